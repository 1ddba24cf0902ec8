"""Contradictions, circles, the bias to length with its interval, KTO's weights."""

from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from trimtab.doctor.findings import Finding
from trimtab.doctor.labels import cycles, kto_weights, label_findings, length_of_thumbs, length_only, wilson
from trimtab.doctor.material import Material
from trimtab.feedback.readers import Reading
from trimtab.feedback.records import Record
from trimtab.methods import METHODS


def pair(prompt: str, chosen: str, rejected: str, source: str = "") -> Record:
    return Record("pair", prompt, (chosen, rejected), source=source)


def thumb(response: str, up: bool, prompt: str = "p") -> Record:
    return Record("thumbs", prompt, (response,), desirable=up)


def judged(records: list[Record], method: str | None = None, **parameters: Any) -> dict[str, Finding]:
    material = Material(
        Reading("f", records), METHODS[method](**parameters) if method else None, tuple(records)
    )
    return {finding.check: finding for finding in label_findings(material)}


def test_a_pair_and_its_reverse_contradict_each_other() -> None:
    rows = [pair("p", "a", "b", "f:1"), pair("q", "b", "a", "f:2"), pair("p", "b", "a", "f:3")]
    finding = judged(rows)["contradictions"]
    assert (finding.level, finding.places, finding.values["rows"]) == ("warning", ("f:3",), 1)
    assert judged(rows[:2])["contradictions"].level == "ok"
    assert judged([thumb("a", True), thumb("a", False)])["contradictions"].values["rows"] == 1
    assert judged([thumb("a", True), thumb("a", False, "q")])["contradictions"].level == "ok"


def test_a_circle_over_pairs_and_rankings_is_found() -> None:
    """a > b > c by a ranking, c > a by a pair; of another prompt the same pairs are sound."""
    ranking = Record("ranking", "p", ("c", "b", "a"), ranks=(2, 1, 0), source="f:1")
    rows = [ranking, pair("q", "a", "b", "f:2"), pair("q", "b", "c", "f:3"), pair("p", "c", "x", "f:4")]
    assert cycles(rows) == [] and judged(rows)["circles"].level == "ok"
    # c > a also contradicts a > c, which the ranking says: no circle; c > d > a is one
    assert cycles([*rows, pair("p", "c", "a", "f:5")]) == []
    assert judged([*rows, pair("p", "c", "a", "f:5")])["contradictions"].places == ("f:5",)
    circle = [*rows, pair("p", "c", "d", "f:6"), pair("p", "d", "a", "f:7")]
    finding = judged(circle)["circles"]
    assert (finding.level, finding.values["circles"]) == ("warning", 1)
    assert set(finding.places) == {"f:1", "f:6", "f:7"}
    three = [pair(p, *two, f"{p}:{two}") for p in "pq" for two in ("ab", "bc", "ca")]
    assert [len(found) for found in cycles(three)] == [3, 3]
    assert judged(three, "sft")["circles"].level == "skipped"


def test_the_interval_of_independent_pairs_is_wilsons() -> None:
    rows = [pair(f"p{n}", "longer", "short") for n in range(30)]
    rows += [pair(f"q{n}", "short", "longer") for n in range(10)]
    found = length_only(rows)
    interval = binomtest(30, 40).proportion_ci(method="wilson")
    assert found is not None and (found.mean, found.n) == (0.75, 40)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-6)
    assert wilson(0.75, 40) == pytest.approx((interval.low, interval.high), abs=1e-6)


def test_pairs_of_one_prompt_count_together() -> None:
    """Ten equal pairs of each of four prompts tell no more than four pairs do."""
    rows = [pair(f"p{n}", *(("long", "s") if n < 3 else ("s", "long"))) for n in range(4) for _ in range(10)]
    found = length_only(rows)
    interval = binomtest(3, 4).proportion_ci(method="wilson")
    assert found is not None and (found.mean, found.n) == (0.75, 40)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-6)
    all_longer = length_only([pair(f"p{n}", "long", "s") for n in range(4) for _ in range(10)])
    assert all_longer is not None and all_longer.low == pytest.approx(
        binomtest(4, 4).proportion_ci(method="wilson").low, abs=1e-6
    )


def test_equal_lengths_count_half() -> None:
    found = length_only([pair("p", "ab", "cd"), pair("q", "abc", "de")])
    assert found is not None and found.mean == 0.75


@pytest.mark.parametrize(("longer", "level"), [(40, "warning"), (22, "ok"), (4, "warning")])
def test_a_bias_to_length_is_told(longer: int, level: str) -> None:
    rows = [pair(f"p{n}", *(("long", "s") if n < longer else ("s", "long"))) for n in range(44)]
    finding = judged(rows, "dpo")["bias to length"]
    assert finding.level == level and f"would be right in {longer / 44:.0%}" in finding.said
    assert judged(rows[:19], "dpo")["bias to length"].level == "skipped"


def test_scores_and_thumbs_of_one_prompt_make_comparisons() -> None:
    scored = [Record("score", f"p{n}", ("long", "s"), scores=(2.0, 1.0)) for n in range(20)]
    assert "right in 100%" in judged(scored, "score_weighted")["bias to length"].said
    alone = [Record("score", f"q{n}", ("s",), scores=(1.0,)) for n in range(20)]
    assert judged(alone, "score_weighted")["bias to length"].level == "skipped"
    thumbs = [thumb(text, text == "s", f"p{n}") for n in range(20) for text in ("long", "s")]
    assert "right in 0%" in judged(thumbs, "dpo")["bias to length"].said


def test_the_share_of_thumbs_is_the_area_under_the_curve() -> None:
    """Ups of 3, 5 and 9 letters, downs of 3 and 4: of six couples four and a half are won."""
    rows = [thumb("x" * n, True) for n in (3, 5, 9)] + [thumb("x" * n, False) for n in (3, 4)]
    found = length_of_thumbs(rows)
    assert found is not None and found.mean == pytest.approx(4.5 / 6)
    # Hanley & McNeil 1982: A (1 - A) + (3 - 1) (A / (2 - A) - A^2) + (2 - 1) (2 A^2 / (1 + A) - A^2), over 6
    variance = 0.75 * 0.25 + 2 * (0.75 / 1.25 - 0.5625) + (1.125 / 1.75 - 0.5625)
    assert 0.75 - found.low == pytest.approx(1.959964 * (variance / 6) ** 0.5)
    ups = [thumb("a long answer " + "x" * n, True, f"p{n}") for n in range(15)]
    downs = [thumb("x" * n, False, f"q{n}") for n in range(1, 15)]
    assert judged(ups + downs, "kto")["bias to length"].level == "warning"


@pytest.mark.parametrize(
    ("counts", "weights"),
    [
        ((100, 100), {}),
        ((132, 100), {}),
        ((100, 400), {"--desirable-weight": (4.0, 16 / 3)}),
        ((400, 100), {"--undesirable-weight": (3.0, 4.0)}),
        ((100, 400, 4.5, 1.0), {}),
        ((100, 400, 1.0, 0.5), {"--desirable-weight": (2.0, 8 / 3)}),
    ],
)
def test_weights_bring_the_counts_to_between_1_to_1_and_4_to_3(counts: Any, weights: Any) -> None:
    found = kto_weights(*counts)
    assert list(found) == list(weights)
    for option, ends in weights.items():
        assert found[option] == pytest.approx(ends)


def test_unequal_thumbs_get_weights_that_pass() -> None:
    rows = [thumb(f"good {n}", True, f"p{n}") for n in range(40)] + [
        thumb(f"b {n}", False) for n in range(10)
    ]
    finding = judged(rows, "kto")["balance of thumbs"]
    assert finding.level == "warning" and "40 thumbs are up and 10 down" in finding.said
    assert "--undesirable-weight 3.5 (from 3 to 4)" in finding.advice
    assert judged(rows, "kto", undesirable_weight=3.5)["balance of thumbs"].level == "ok"
    assert judged(rows)["balance of thumbs"].level == "ok"  # no method: only one in ten is told
    assert judged(rows[:40] + rows[-3:])["balance of thumbs"].level == "warning"
    assert judged(rows[:40], "kto")["balance of thumbs"].level == "warning"
    assert judged([pair("p", "a", "b")], "dpo")["balance of thumbs"].level == "skipped"


def test_kto_needs_other_prompts() -> None:
    rows = [thumb(f"x {n}", n % 2 == 0, "p" if n < 5 else "q") for n in range(8)]
    finding = judged(rows, "kto")["prompts for KTO"]
    assert finding.level == "error" and "more than half" in finding.said
    assert judged(rows[1:], "kto")["prompts for KTO"].level == "error"
    assert judged(rows[2:], "kto")["prompts for KTO"].level == "ok"


def test_equal_scores_are_an_error(tmp_path: Path) -> None:
    rows = [Record("score", f"p{n}", ("a", "bc"), scores=(2.0, 2.0 + n)) for n in range(2)]
    assert judged(rows, "score_weighted")["scores"].said == "4 scores from 2 to 3"
    finding = judged(rows[:1], "score_weighted")["scores"]
    assert (finding.level, finding.said) == ("error", "all 2 scores are 2")
    assert judged(rows, "sft")["scores"].level == "skipped"
