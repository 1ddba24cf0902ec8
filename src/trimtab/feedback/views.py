"""Turns one kind of feedback into another, where that is sound; VIEWS says what each conversion assumes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trimtab.errors import UserError, nearest
from trimtab.feedback import conversions
from trimtab.feedback.conversions import Function, ViewOptions, through_ranking
from trimtab.feedback.mapped import by_kind, kept
from trimtab.feedback.records import KINDS, Kind, Record


@dataclass(frozen=True)
class View:
    """A conversion, with what must hold for it to be sound."""

    function: Function
    assumes: str


VIEWS: dict[tuple[Kind, Kind], View] = {
    ("ranking", "pair"): View(
        conversions.ranking_to_pairs, "that being ranked higher means being preferred; ties make no pair"
    ),
    ("ranking", "thumbs"): View(
        conversions.ranking_to_thumbs, "that the better half of what was ranked is good, the rest bad"
    ),
    ("ranking", "demonstration"): View(
        conversions.ranking_to_demonstrations, "that the best of the ranking is good"
    ),
    ("ranking", "score"): View(
        conversions.ranking_to_scores, "that ranks are evenly spaced (the share of the others beaten)"
    ),
    ("pair", "ranking"): View(conversions.pair_to_rankings, "nothing: a pair is a ranking of two"),
    ("pair", "thumbs"): View(
        through_ranking(conversions.ranking_to_thumbs), "that chosen is good and rejected is bad"
    ),
    ("pair", "demonstration"): View(
        through_ranking(conversions.ranking_to_demonstrations), "that chosen is good"
    ),
    ("pair", "score"): View(
        through_ranking(conversions.ranking_to_scores), "that every pair is equally clear: scores 1 and 0"
    ),
    ("score", "ranking"): View(
        conversions.score_to_rankings, "that the scores of one prompt's responses compare"
    ),
    ("score", "pair"): View(conversions.score_to_pairs, "that the scores of one prompt's responses compare"),
    ("score", "thumbs"): View(
        conversions.score_to_thumbs, "that scores compare across prompts; needs a threshold"
    ),
    ("score", "demonstration"): View(
        conversions.score_to_demonstrations, "that the best of several, or all from the threshold on, is good"
    ),
    ("thumbs", "pair"): View(
        conversions.thumbs_to_pairs, "that any desirable response beats any undesirable one"
    ),
    ("thumbs", "ranking"): View(
        conversions.thumbs_to_rankings, "that all desirable responses tie, and all undesirable ones"
    ),
    ("thumbs", "demonstration"): View(
        conversions.thumbs_to_demonstrations, "that a desirable response is worth imitating"
    ),
    ("thumbs", "score"): View(conversions.thumbs_to_scores, "nothing: desirable is 1, undesirable 0"),
    **{
        (kind, kind): View(conversions.unchanged, "nothing")
        for kind in KINDS
        if kind not in ("demonstration", "prompt")
    },
    ("demonstration", "demonstration"): View(conversions.demonstrated_turns, "nothing"),
    **{(kind, "prompt"): View(conversions.prompts, "nothing: the responses are left out") for kind in KINDS},
}

# The kinds that cannot become every other, with the reason.
REFUSED: dict[Kind, str] = {
    "demonstration": "it shows a good response but none that is worse; collect thumbs, pairs or scores, or "
    "use it for supervised fine-tuning",
    "prompt": "it holds no response; generate responses and have them judged first",
}

_EMPTY: dict[Kind, str] = {
    "demonstration": "no response in them counts as good",
    "pair": "pairs need two different responses to the same prompt, one better than the other",
    "ranking": "a ranking needs two responses to the same prompt, one better than the other",
    "thumbs": "no response in them is better or worse than another",
    "score": "there is nothing to score",
    "prompt": "there is no prompt",
}


def convert(records: Sequence[Record], to: Kind, options: ViewOptions | None = None) -> Sequence[Record]:
    """All records as records of the kind `to`; each kind among them is converted by its own rule.

    A list, or, of very many, what is mapped.
    Thumbs and scores are compared within the same prompt; everything else record by record.
    Raises UserError if a conversion is not sound, needs an option, or yields nothing.
    """
    found = kept(stream(records, to, options))
    return kept(conversions.prompts(found, ViewOptions())) if to == "prompt" else found


def stream(records: Sequence[Record], to: Kind, options: ViewOptions | None = None) -> Iterator[Record]:
    """What `convert` gives, one by one; of the kind prompt a prompt may come again from another kind."""
    if to not in KINDS:
        raise UserError(f"unknown kind of feedback {to!r}; {nearest(to, KINDS)}")
    of_kinds = by_kind(records)
    for kind, of_kind in of_kinds.items():
        if (kind, to) not in VIEWS:
            place = f" (the first: {of_kind[0].source})" if of_kind[0].source else ""
            raise UserError(
                f"{len(of_kind)} of {len(records)} records are of the kind {kind}{place}, which cannot "
                f"become {to}: {REFUSED[kind]}"
            )
    empty = True
    for kind, of_kind in of_kinds.items():
        for record in VIEWS[kind, to].function(of_kind, options or ViewOptions()):
            empty = False
            yield record
    if empty:
        kinds = ", ".join(of_kinds) or "no"
        raise UserError(f"the {len(records)} records ({kinds}) yield no {to} record; {_EMPTY[to]}")


def available(kind: Kind) -> list[Kind]:
    """What records of this kind can become, itself included."""
    return [to for to in KINDS if (kind, to) in VIEWS]
