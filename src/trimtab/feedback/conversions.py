"""Conversions of feedback, each a small function from records of one kind to records of another, one by one.

What each assumes stands in the table `trimtab.feedback.views.VIEWS`.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Literal

import numpy as np

from trimtab.errors import UserError, nearest
from trimtab.feedback.mapped import MappedRecords
from trimtab.feedback.numbers import numbered
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


Function = Callable[[Sequence[Record], ViewOptions], Iterable[Record]]


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


def groups(records: Sequence[Record]) -> Iterator[list[Record]]:
    """The groups of `by_prompt`, one after the other."""
    if not isinstance(records, MappedRecords):
        yield from by_prompt(records).values()
        return
    numbers, _ = numbered(records.marks())
    ordered = iter(records.select(np.argsort(numbers, kind="stable")))
    for count in np.bincount(numbers).tolist():
        yield list(islice(ordered, count))


def unchanged(records: Sequence[Record], options: ViewOptions) -> Iterable[Record]:
    """The records themselves."""
    return records


def prompts(records: Sequence[Record], options: ViewOptions) -> Iterator[Record]:
    """Each prompt once, with the other columns of the first record that has it.

    The response of a demonstration goes along as the column `answer`, unless the row has one of that name, so
    that new responses can be compared with it.
    """
    for first, *_ in groups(records):
        answer = {"answer": first.responses[0]} if first.kind == "demonstration" else {}
        yield Record("prompt", first.prompt, source=first.source, columns={**answer, **first.columns})


def demonstrated_turns(records: Sequence[Record], options: ViewOptions) -> Iterable[Record]:
    """The last response of each conversation, or with turns="all" every assistant turn."""
    if options.turns == "last":
        return records
    return (turn for record in records for turn in _assistant_turns(record))


def _assistant_turns(record: Record) -> Iterator[Record]:
    turns: tuple[Message, ...] = () if isinstance(record.prompt, str) else record.prompt
    for n, turn in enumerate(turns):
        # An assistant's second turn in a row, or a first turn, answers nothing.
        if turn.role == "assistant" and n > 0 and turns[n - 1].role != "assistant" and turn.content.strip():
            yield replace(record, prompt=turns[:n], responses=(turn.content,))
    yield record


def ranking_to_pairs(records: Iterable[Record], options: ViewOptions) -> Iterator[Record]:
    """Every response before every worse one, or only before the next worse."""
    for record in records:
        for better, worse in preferred(record, options.pairs):
            yield _as(record, "pair", record.responses[better], record.responses[worse])


def ranking_to_thumbs(records: Iterable[Record], options: ViewOptions) -> Iterator[Record]:
    """Desirable if a response beats more others than beat it, undesirable if fewer; else left out."""
    for record in records:
        for response, rank in zip(record.responses, record.ranks, strict=True):
            balance = sum(other > rank for other in record.ranks) - sum(
                other < rank for other in record.ranks
            )
            if balance:
                yield _as(record, "thumbs", response, label=balance > 0)


def ranking_to_demonstrations(records: Iterable[Record], options: ViewOptions) -> Iterator[Record]:
    """The best response; the first of them if several are."""
    for record in records:
        yield _as(record, "demonstration", record.responses[record.ranks.index(min(record.ranks))])


def ranking_to_scores(records: Iterable[Record], options: ViewOptions) -> Iterator[Record]:
    """The share of the other responses that each beats, in [0, 1]; a tie counts half."""
    for record in records:
        yield replace(record, kind="score", ranks=(), scores=tuple(_win_shares(record.ranks)))


def _win_shares(ranks: tuple[int, ...]) -> Iterator[float]:
    for rank in ranks:
        beaten = sum(other > rank for other in ranks)
        tied = ranks.count(rank) - 1
        yield (beaten + tied / 2) / (len(ranks) - 1)


def pair_to_rankings(records: Iterable[Record], options: ViewOptions) -> Iterator[Record]:
    """A ranking of two."""
    for record in records:
        yield replace(record, kind="ranking", ranks=(0, 1), margin=None)


def score_to_rankings(records: Sequence[Record], options: ViewOptions) -> Iterator[Record]:
    """The responses to one prompt by falling score; neighbours within `tie_within` share a rank."""
    return _ranked(groups(records), options)


def score_to_pairs(records: Sequence[Record], options: ViewOptions) -> Iterator[Record]:
    """The pairs of the ranking whose scores differ by at least `min_margin`; the difference is the margin."""
    for record in _compared(groups(records), options):
        ranking = replace(record, kind="ranking", scores=(), ranks=_ranks(record, options))
        for better, worse in preferred(ranking, options.pairs):
            margin = record.scores[better] - record.scores[worse]
            if margin >= options.min_margin:
                yield _as(record, "pair", *(record.responses[i] for i in (better, worse)), margin=margin)


def score_to_thumbs(records: Iterable[Record], options: ViewOptions) -> Iterator[Record]:
    """Desirable from `threshold` on, undesirable below."""
    threshold = options.threshold
    if threshold is None:
        raise UserError("thumbs from scores need a threshold: say with threshold which score is good enough")
    for record in records:
        for response, score in zip(record.responses, record.scores, strict=True):
            yield _as(record, "thumbs", response, label=score >= threshold)


def score_to_demonstrations(records: Sequence[Record], options: ViewOptions) -> Iterator[Record]:
    """Every response from `threshold` on; without a threshold the best of each prompt's responses."""
    if options.threshold is None:
        for record in _merged(groups(records)):
            best = record.scores.index(max(record.scores))
            yield _as(record, "demonstration", record.responses[best])
    else:
        yield from thumbs_to_demonstrations(score_to_thumbs(records, options), options)


def thumbs_to_pairs(records: Sequence[Record], options: ViewOptions) -> Iterator[Record]:
    """Every desirable response to a prompt before every undesirable one to the same prompt."""
    return ranking_to_pairs(thumbs_to_rankings(records, options), options)


def thumbs_to_rankings(records: Sequence[Record], options: ViewOptions) -> Iterator[Record]:
    """The responses to one prompt: the desirable tie for the best rank, the undesirable for the next."""
    scored = (list(thumbs_to_scores(group, options)) for group in groups(records))
    return _ranked(scored, ViewOptions())


def thumbs_to_demonstrations(records: Iterable[Record], options: ViewOptions) -> Iterator[Record]:
    """The desirable responses."""
    for record in records:
        if record.desirable:
            yield _as(record, "demonstration", *record.responses)


def thumbs_to_scores(records: Iterable[Record], options: ViewOptions) -> Iterator[Record]:
    """1 for desirable, 0 for undesirable."""
    for record in records:
        yield replace(record, kind="score", desirable=None, scores=(float(bool(record.desirable)),))


def through_ranking(function: Callable[[Iterable[Record], ViewOptions], Iterator[Record]]) -> Function:
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


def _ranked(scored: Iterable[list[Record]], options: ViewOptions) -> Iterator[Record]:
    for record in _compared(scored, options):
        yield replace(record, kind="ranking", scores=(), ranks=_ranks(record, options))


def _merged(scored: Iterable[list[Record]]) -> Iterator[Record]:
    """One score record for each prompt with two responses or more; the others are left out and counted."""
    alone = count = 0
    for count, group in enumerate(scored, start=1):  # noqa: B007
        responses = tuple(response for record in group for response in record.responses)
        if len(responses) >= 2:
            scores = tuple(score for record in group for score in record.scores)
            yield replace(group[0], responses=responses, scores=scores)
        alone += len(responses) < 2
    _warn(alone, count, "have a single response, which is compared with nothing")


def _compared(scored: Iterable[list[Record]], options: ViewOptions) -> Iterator[Record]:
    """The merged records in which some response is better than another."""
    equal = count = 0
    for count, record in enumerate(_merged(scored), start=1):  # noqa: B007
        if len(record.responses) > MOST_COMPARED:
            raise UserError(
                f"{len(record.responses):,} responses to one prompt are too many to compare with each other "
                f"(at most {MOST_COMPARED:,}); give them the prompts that they answer"
            )
        if any(_ranks(record, options)):
            yield record
        else:
            equal += 1
    _warn(equal, count, "have responses that are all equally good")


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
