"""Checks on what people said of responses: contradictions, circles, a bias to length, unequal labels."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from trimtab.doctor.findings import Check, Finding
from trimtab.doctor.material import Material, listening
from trimtab.errors import UserError
from trimtab.feedback import suspicious
from trimtab.feedback.batches import Example, Table
from trimtab.feedback.records import Prompt, Record
from trimtab.feedback.tokenise import add_mismatched
from trimtab.feedback.views import convert
from trimtab.methods.kto import KTO

Z = 1.959964  # of a 95 % interval
KTO_RATIO = (1.0, 4 / 3)  # weight x count of ups over that of downs (Ethayarajh et al. 2024, sec. 4.2)


def label_findings(material: Material) -> list[Finding]:
    """The checks on judgements; skipped for methods that learn from responses or prompts alone."""
    return [
        _contradictions(material),
        _cycles(material),
        _length_bias(material),
        _outliers(material),
        _balance(material),
        _mismatched(material),
        _scores(material),
    ]


def _contradictions(material: Material) -> Finding:
    check = Check("data", "contradictions")
    if not material.compares:
        return check.skipped("responses are not compared")
    return check.rows(
        [record.source for record in suspicious.contradictions(material.records)],
        len(material.records),
        bad="say the opposite of an earlier row on the same prompt",
        fine="no row says the opposite of an earlier one",
        advice="decide which is right, or delete both; together they teach nothing",
    )


def cycles(records: Sequence[Record]) -> list[list[Record]]:
    """For each circle of preferences (A before B, B before C, C before A) the records that make it.

    A pair and its reverse are a contradiction and not counted here. A circle is a strongly connected part of
    the graph of a prompt's responses.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes: dict[tuple[Prompt, str], int] = {}
    said: dict[tuple[int, int], Record] = {}
    for record in records:
        for both in suspicious.preferences(record):
            better, worse = (nodes.setdefault((record.prompt, text), len(nodes)) for text in both)
            said.setdefault((better, worse), record)
    edges = [edge for edge in said if edge[::-1] not in said]
    if not edges:
        return []
    starts, ends = np.array(edges).T
    graph = coo_array((np.ones(len(edges)), (starts, ends)), shape=(len(nodes), len(nodes)))
    _, part = connected_components(graph.tocsr(), directed=True, connection="strong")
    circles: dict[int, list[Record]] = defaultdict(list)
    for start, end in edges:
        if part[start] == part[end]:
            circles[int(part[start])].append(said[start, end])
    return list(circles.values())


def _cycles(material: Material) -> Finding:
    check = Check("data", "circles")
    if not material.compares:
        return check.skipped("responses are not compared")
    if not any(record.kind in ("pair", "ranking") for record in material.records):
        return check.skipped("no row ranks responses")
    found = cycles(material.records)
    if not found:
        return check.ok("no preferences go round in a circle")
    circles = f"{len(found):,} prompt{' has' if len(found) == 1 else 's have'}"
    said = f"{circles} preferences that go round in a circle, as A before B, B before C, C before A"
    advice = "ask again which of these responses is best; no score can satisfy all of the rows"
    places = (record.source for circle in found for record in circle)
    return check.bad("warning", said, advice, places, circles=len(found))


@dataclass(frozen=True)
class Share:
    """A share from 0 to 1 with its 95 % interval, of `n` comparisons."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.0%} (95 % interval {self.low:.0%} to {self.high:.0%})"


def length_only(records: Sequence[Record]) -> Share | None:
    """How often the longer response, in characters, is the better one; equal lengths count half.

    Comparisons of one prompt are not independent. The interval is Wilson's (1927) with the number of
    comparisons that would give the same standard error if they were (Kish 1965, the design effect). Without
    variance between the prompts, each prompt counts as one.
    """
    by_prompt: dict[Prompt, list[float]] = defaultdict(list)
    for number, record in enumerate(records):
        for better, worse in suspicious.preferences(record):
            right = 0.5 * (1 + (len(better) > len(worse)) - (len(better) < len(worse)))
            by_prompt[record.prompt or (number, "")].append(right)  # type: ignore[index]
    if not by_prompt:
        return None
    n = sum(map(len, by_prompt.values()))
    mean = sum(map(sum, by_prompt.values())) / n
    error = sqrt(sum((sum(found) - mean * len(found)) ** 2 for found in by_prompt.values())) / n
    independent = mean * (1 - mean) / error**2 if error > 0 else len(by_prompt)
    return Share(mean, *wilson(mean, independent), n)


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's interval of a share among n, which need not be whole."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def length_of_thumbs(records: Sequence[Record]) -> Share | None:
    """How often a desirable response is longer than an undesirable one, over all such couples.

    The area under the curve (Mann & Whitney 1947) with the standard error of Hanley & McNeil 1982.
    """
    from scipy.stats import mannwhitneyu

    lengths = {side: [len(r.responses[0]) for r in records if r.desirable is side] for side in (True, False)}
    ups, downs = len(lengths[True]), len(lengths[False])
    if not ups or not downs:
        return None
    area = float(mannwhitneyu(lengths[True], lengths[False]).statistic) / (ups * downs)
    both_ups, both_downs = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (ups - 1) * (both_ups - area**2) + (downs - 1) * (both_downs - area**2)
    half = Z * sqrt(max(variance, 0.0) / (ups * downs))
    return Share(area, max(0.0, area - half), min(1.0, area + half), ups + downs)


def _length_bias(material: Material) -> Finding:
    check = Check("data", "bias to length")
    if not material.compares:
        return check.skipped("responses are not compared")
    found = _length_share(material)
    if found is None or found.n < suspicious.FEWEST_PAIRS:
        return check.skipped(f"fewer than {suspicious.FEWEST_PAIRS} comparisons tell nothing")
    said = f"a model that only prefers longer answers would be right in {found} of the comparisons"
    values: dict[str, Any] = {
        "share": found.mean,
        "low": found.low,
        "high": found.high,
        "comparisons": found.n,
    }
    low, high = suspicious.UNBIASED
    if low <= found.mean <= high or found.low <= 0.5 <= found.high:
        return check.ok(said, **values)
    way = "longer" if found.mean > 0.5 else "shorter"
    advice = (
        f"compare the lengths of answers when you judge the result, or add rows whose {way} answer is worse"
    )
    return check.bad("warning", said, advice, **values)


def _length_share(material: Material) -> Share | None:
    records = material.records
    if (found := length_only(records)) is not None:
        return found
    if material.kind == "thumbs" and all(record.kind == "thumbs" for record in records):
        return length_of_thumbs(records)
    with listening():  # what is left out makes no comparison
        try:
            return length_only(convert(records, "pair"))
        except UserError:  # no two responses to one prompt
            return None


def _outliers(material: Material) -> Finding:
    check = Check("data", "very long responses")
    if material.kind == "prompt":
        return check.skipped("only the prompts are used")
    limit, found = suspicious.outliers(material.records)
    over = f"more than {limit:,.0f} characters, at least ten times the median"
    return check.rows(
        [record.source for record in found],
        len(material.records),
        bad=f"have a response of {over}",
        fine=f"no response has {over}",
        advice="look at them: they take much of the memory, and may be several answers in one",
        limit=limit,
    )


def kto_weights(
    ups: int, downs: int, up_weight: float = 1.0, down_weight: float = 1.0
) -> dict[str, tuple[float, float]]:
    """The option to raise, with the least and the most that bring KTO's weighted counts into KTO_RATIO.

    Empty if they are in it already.
    """
    ratio = ups * up_weight / (downs * down_weight)
    least, most = KTO_RATIO
    if ratio < least:
        base = downs * down_weight / ups
        return {"--desirable-weight": (least * base, most * base)}
    if ratio > most:
        base = ups * up_weight / downs
        return {"--undesirable-weight": (base / most, base / least)}
    return {}


def _balance(material: Material) -> Finding:
    check = Check("data", "balance of thumbs")
    thumbs = [record for record in material.view if record.kind == "thumbs"]
    method = material.method
    if material.kind != "thumbs" or not thumbs:
        return check.skipped("there are no thumbs, or they are not learned from as such")
    ups, downs = suspicious.label_counts(thumbs)
    said = f"{ups:,} thumbs are up and {downs:,} down"
    if not ups or not downs:
        return check.bad("warning", said, "collect the other label too: one alone says not what to prefer")
    given = (method.desirable_weight, method.undesirable_weight) if isinstance(method, KTO) else (1.0, 1.0)
    weights = kto_weights(ups, downs, *given) if min(given) > 0 else {}
    few = min(ups, downs) < suspicious.RARE * (ups + downs)
    values: dict[str, Any] = {"up": ups, "down": downs, "weights": weights}
    if not weights or (method is None and not few):
        return check.ok(said, **values)
    ((option, (least, most)),) = weights.items()
    advice = (
        f"with KTO pass {option} {(least + most) / 2:.3g} (from {least:.3g} to {most:.3g}), so that the "
        "weighted counts of ups and downs stand between 1:1 and 4:3"
    )
    return check.bad("warning", f"{said}{_as_weighted(given)}", advice, **values)


def _as_weighted(given: tuple[float, float]) -> str:
    return "" if given == (1.0, 1.0) else f", weighted {given[0]:g} and {given[1]:g}"


def _mismatched(material: Material) -> Finding:
    """KTO reads prompts with the responses to other prompts: none may have more than half of the rows."""
    check, method = Check("data", "prompts for KTO"), material.method
    if method is None or not method.needs_mismatched or not material.view:
        return check.skipped("only KTO needs the responses to other prompts")
    numbers: dict[Prompt, int] = {}
    prompts = [numbers.setdefault(record.prompt, len(numbers)) for record in material.view]
    examples = [Example(rows=(row,)) for row in range(len(prompts))]
    try:
        add_mismatched(Table("thumbs", [([number], [0]) for number in prompts], examples), seed=0)
    except UserError as error:
        return check.bad("error", str(error), "add thumbs on other prompts", prompts=len(numbers))
    return check.ok(f"every response can be read after another of the {len(numbers):,} prompts")


def _scores(material: Material) -> Finding:
    check = Check("data", "scores")
    scores = [score for record in material.records for score in record.scores]
    if not scores or not material.compares:
        return check.skipped("there are no scores, or they are not learned from")
    if min(scores) == max(scores):
        advice = "give scores that tell better responses from worse ones"
        return check.bad("error", f"all {len(scores):,} scores are {scores[0]:g}", advice, scores=len(scores))
    return check.ok(f"{len(scores):,} scores from {min(scores):g} to {max(scores):g}")
