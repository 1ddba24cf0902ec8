"""Conversions of feedback, each a small function from records of one kind to records of another.

What each assumes stands in the table `trimtab.feedback.views.VIEWS`.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from trimtab.errors import UserError, nearest
from trimtab.feedback.records import MOST_COMPARED, Kind, Message, Prompt, Record

log = logging.getLogger("trimtab")


@dataclass(frozen=True)
class ViewOptions:
    """How to convert where there is a choice."""

    pairs: Literal["all", "adjacent"] = "all"  # of a ranking: every pair, or neighbours in the order only
    tie_within: float = 0.0  # scores that differ by no more than this are ties
    min_margin: float = 0.0  # pairs from scores: the least difference that makes a pair
    threshold: float | None = None  # the least score of a good response
    turns: Literal["last", "all"] = "last"  # of a demonstrated conversation: which assistant turns

    def __post_init__(self) -> None:
        for name, choices in (("pairs", ("all", "adjacent")), ("turns", ("last", "all"))):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} is {getattr(self, name)!r}; {nearest(getattr(self, name), choices)}")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise UserError(f"threshold is {self.threshold}; it must be a finite number")
        for name in ("tie_within", "min_margin"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 0 or more")


Function = Callable[[list[Record], ViewOptions], list[Record]]


def preferred(record: Record, pairs: Literal["all", "adjacent"] = "all") -> Iterator[tuple[int, int]]:
    """The pairs (better, worse) of positions in a ranking; ties and equal texts make no pair."""
    order = sorted(set(record.ranks))
    place = [order.index(rank) for rank in record.ranks]
    for better, i in enumerate(place):
        for worse, j in enumerate(place):
            apart = j - i
            if (apart == 1 if pairs == "adjacent" else apart > 0) and (
                record.responses[better] != record.responses[worse]
            ):
                yield better, worse


def by_prompt(records: Sequence[Record]) -> dict[Prompt, list[Record]]:
    """The records grouped by their prompt, in the order in which prompts first come."""
    groups: dict[Prompt, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.prompt].append(record)
    return groups


def unchanged(records: list[Record], options: ViewOptions) -> list[Record]:
    """The records themselves."""
    return records


def prompts(records: list[Record], options: ViewOptions) -> list[Record]:
    """Each prompt once, with the other columns of the first record that has it.

    The response of a demonstration goes along as the column `answer`, unless the row has one of that name, so
    that new responses can be compared with it.
    """
    found = []
    for first, *_ in by_prompt(records).values():
        answer = {"answer": first.responses[0]} if first.kind == "demonstration" else {}
        found.append(Record("prompt", first.prompt, source=first.source, columns={**answer, **first.columns}))
    return found


def demonstrated_turns(records: list[Record], options: ViewOptions) -> list[Record]:
    """The last response of each conversation, or with turns="all" every assistant turn."""
    if options.turns == "last":
        return records
    return [turn for record in records for turn in _assistant_turns(record)]


def _assistant_turns(record: Record) -> Iterator[Record]:
    turns: tuple[Message, ...] = () if isinstance(record.prompt, str) else record.prompt
    for n, turn in enumerate(turns):
        # An assistant's second turn in a row, or a first turn, answers nothing.
        if turn.role == "assistant" and n > 0 and turns[n - 1].role != "assistant" and turn.content.strip():
            yield replace(record, prompt=turns[:n], responses=(turn.content,))
    yield record


def ranking_to_pairs(records: list[Record], options: ViewOptions) -> list[Record]:
    """Every response before every worse one, or only before the next worse."""
    return [
        _as(record, "pair", record.responses[better], record.responses[worse])
        for record in records
        for better, worse in preferred(record, options.pairs)
    ]


def ranking_to_thumbs(records: list[Record], options: ViewOptions) -> list[Record]:
    """Desirable if a response beats more others than beat it, undesirable if fewer; else left out."""
    found = []
    for record in records:
        for response, rank in zip(record.responses, record.ranks, strict=True):
            balance = sum(other > rank for other in record.ranks) - sum(
                other < rank for other in record.ranks
            )
            if balance:
                found.append(_as(record, "thumbs", response, label=balance > 0))
    return found


def ranking_to_demonstrations(records: list[Record], options: ViewOptions) -> list[Record]:
    """The best response; the first of them if several are."""
    return [_as(r, "demonstration", r.responses[r.ranks.index(min(r.ranks))]) for r in records]


def ranking_to_scores(records: list[Record], options: ViewOptions) -> list[Record]:
    """The share of the other responses that each beats, in [0, 1]; a tie counts half."""
    return [replace(r, kind="score", ranks=(), scores=tuple(_win_shares(r.ranks))) for r in records]


def _win_shares(ranks: tuple[int, ...]) -> Iterator[float]:
    for rank in ranks:
        beaten = sum(other > rank for other in ranks)
        tied = ranks.count(rank) - 1
        yield (beaten + tied / 2) / (len(ranks) - 1)


def pair_to_rankings(records: list[Record], options: ViewOptions) -> list[Record]:
    """A ranking of two."""
    return [replace(record, kind="ranking", ranks=(0, 1), margin=None) for record in records]


def score_to_rankings(records: list[Record], options: ViewOptions) -> list[Record]:
    """The responses to one prompt by falling score; neighbours within `tie_within` share a rank."""
    return [
        replace(r, kind="ranking", scores=(), ranks=_ranks(r, options)) for r in _compared(records, options)
    ]


def score_to_pairs(records: list[Record], options: ViewOptions) -> list[Record]:
    """The pairs of the ranking whose scores differ by at least `min_margin`; the difference is the margin."""
    found = []
    for record in _compared(records, options):
        ranking = replace(record, kind="ranking", scores=(), ranks=_ranks(record, options))
        for better, worse in preferred(ranking, options.pairs):
            margin = record.scores[better] - record.scores[worse]
            if margin >= options.min_margin:
                found.append(
                    _as(record, "pair", *(record.responses[i] for i in (better, worse)), margin=margin)
                )
    return found


def score_to_thumbs(records: list[Record], options: ViewOptions) -> list[Record]:
    """Desirable from `threshold` on, undesirable below."""
    threshold = options.threshold
    if threshold is None:
        raise UserError("thumbs from scores need a threshold: say with threshold which score is good enough")
    return [
        _as(record, "thumbs", response, label=score >= threshold)
        for record in records
        for response, score in zip(record.responses, record.scores, strict=True)
    ]


def score_to_demonstrations(records: list[Record], options: ViewOptions) -> list[Record]:
    """Every response from `threshold` on; without a threshold the best of each prompt's responses."""
    if options.threshold is None:
        best = ((r, r.scores.index(max(r.scores))) for r in _merged(records))
        return [_as(record, "demonstration", record.responses[n]) for record, n in best]
    return [_as(r, "demonstration", *r.responses) for r in score_to_thumbs(records, options) if r.desirable]


def thumbs_to_pairs(records: list[Record], options: ViewOptions) -> list[Record]:
    """Every desirable response to a prompt before every undesirable one to the same prompt."""
    return ranking_to_pairs(thumbs_to_rankings(records, options), options)


def thumbs_to_rankings(records: list[Record], options: ViewOptions) -> list[Record]:
    """The responses to one prompt: the desirable tie for the best rank, the undesirable for the next."""
    return score_to_rankings(thumbs_to_scores(records, options), ViewOptions())


def thumbs_to_demonstrations(records: list[Record], options: ViewOptions) -> list[Record]:
    """The desirable responses."""
    return [_as(record, "demonstration", *record.responses) for record in records if record.desirable]


def thumbs_to_scores(records: list[Record], options: ViewOptions) -> list[Record]:
    """1 for desirable, 0 for undesirable."""
    return [replace(r, kind="score", desirable=None, scores=(float(bool(r.desirable)),)) for r in records]


def through_ranking(function: Function) -> Function:
    """A conversion of rankings, for pairs."""
    return lambda records, options: function(pair_to_rankings(records, options), options)


def _as(
    record: Record, kind: Kind, *responses: str, label: bool | None = None, margin: float | None = None
) -> Record:
    """A record of another kind with some of the responses, and the same prompt, source and columns."""
    return Record(
        kind,
        record.prompt,
        responses,
        desirable=label,
        margin=margin,
        source=record.source,
        columns=record.columns,
    )


def _merged(records: list[Record]) -> list[Record]:
    """One score record for each prompt with two responses or more; the others are left out and counted."""
    groups = by_prompt(records)
    merged = []
    for group in groups.values():
        responses = tuple(response for record in group for response in record.responses)
        if len(responses) >= 2:
            scores = tuple(score for record in group for score in record.scores)
            merged.append(replace(group[0], responses=responses, scores=scores))
    _warn(len(groups) - len(merged), len(groups), "have a single response, which is compared with nothing")
    return merged


def _compared(records: list[Record], options: ViewOptions) -> list[Record]:
    """The merged records in which some response is better than another."""
    merged = _merged(records)
    for record in merged:
        if len(record.responses) > MOST_COMPARED:
            raise UserError(
                f"{len(record.responses):,} responses to one prompt are too many to compare with each other "
                f"(at most {MOST_COMPARED:,}); give them the prompts that they answer"
            )
    differing = [record for record in merged if any(_ranks(record, options))]
    _warn(len(merged) - len(differing), len(merged), "have responses that are all equally good")
    return differing


def _ranks(record: Record, options: ViewOptions) -> tuple[int, ...]:
    """Dense ranks from scores: a new rank where the next lower score is more than `tie_within` away."""
    falling = sorted(set(record.scores), reverse=True)
    rank_of = {falling[0]: 0}
    for higher, lower in pairwise(falling):
        rank_of[lower] = rank_of[higher] + (higher - lower > options.tie_within)
    return tuple(rank_of[score] for score in record.scores)


def _warn(count: int, of: int, why: str) -> None:
    if count:
        log.warning(f"{count} of {of} prompts are left out: they {why}")
