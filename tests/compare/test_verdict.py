"""The first sentences of the report, on comparisons whose outcome is plain."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from synthetic import add_failure, add_run, write_about

from trimtab.compare.statistics import Estimate
from trimtab.compare.summary import load_comparison
from trimtab.compare.verdict import join, number, span, verdict

START = [0.48, 0.50, 0.52, 0.54, 0.46] * 8


def shifted(by: float) -> list[float]:
    """The start's scores plus `by`, with a little spread from prompt to prompt."""
    return [score + by + 0.02 * (-1) ** i for i, score in enumerate(START)]


def sentences(out: Path, runs: dict[str, Sequence[float]], kl: float | None = None) -> list[str]:
    write_about(out, rewards=["gold"])
    add_run(out, "start", START)
    for method, scores in runs.items():
        add_run(out, method, scores, strength=0.1, kl=None if kl is None else [kl] * len(START))
    return verdict(load_comparison(out))


def test_a_clear_winner(tmp_path: Path) -> None:
    said = sentences(tmp_path, {"dpo": shifted(0.3), "ipo": shifted(0.1)}, kl=7.25)
    assert said[0].startswith(
        "DPO (beta 0.1) wins: gold reward 0.80 against the start's 0.50 (+0.30, 95 % interval 0.29 to "
    )
    assert said[0].endswith("at a KL of 7.2 nats.")
    assert said[1:] == ["It is clearly better than every other method."]


def test_a_tie_at_the_top(tmp_path: Path) -> None:
    """IPO is DPO plus differences that cancel; KTO is behind both."""
    ipo = [score + 0.1 * (-1) ** (i // 2) for i, score in enumerate(shifted(0.3))]
    said = sentences(tmp_path, {"dpo": shifted(0.301), "ipo": ipo, "kto": shifted(0.1)})
    assert said[0].startswith("DPO (beta 0.1) wins")
    assert said[1] == "IPO (beta 0.1) is not distinguishable from it on these prompts."


def test_two_ties_are_both_named(tmp_path: Path) -> None:
    ipo = [score + 0.1 * (-1) ** (i // 2) for i, score in enumerate(shifted(0.3))]
    said = sentences(tmp_path, {"dpo": shifted(0.301), "ipo": ipo, "kto": ipo})
    assert said[1] == "IPO (beta 0.1) and KTO (beta 0.1) are not distinguishable from it on these prompts."


def test_one_method_that_helps(tmp_path: Path) -> None:
    said = sentences(tmp_path, {"dpo": shifted(0.3)})
    assert said[0].startswith("DPO (beta 0.1) beats the start: gold reward 0.80")
    assert "KL" not in said[0]
    assert len(said) == 1


def test_no_clear_gain(tmp_path: Path) -> None:
    noisy = [score + 0.2 * (-1) ** i + 0.01 for i, score in enumerate(START)]
    said = sentences(tmp_path, {"dpo": noisy, "ipo": shifted(-0.2)})
    assert said[0].startswith(
        "No method clearly beats the start: the best, DPO (beta 0.1), has a gold reward of 0.51 "
    )


def test_all_worse(tmp_path: Path) -> None:
    said = sentences(tmp_path, {"dpo": shifted(-0.2), "ipo": shifted(-0.3)})
    assert said[0].startswith("Training made the model worse with every method: the best, DPO (beta 0.1), ")
    assert "(−0.20, 95 % interval −0.21 to −0.19)" in said[0]


def test_over_optimisation_is_named(tmp_path: Path) -> None:
    write_about(tmp_path, rewards=["gold", "proxy"])
    add_run(tmp_path, "start", [{"gold": score, "proxy": 0.0} for score in START])
    add_run(tmp_path, "dpo", [{"gold": score, "proxy": 0.5} for score in shifted(0.2)], strength=0.1)
    add_run(tmp_path, "ppo", [{"gold": score, "proxy": 2.0} for score in shifted(-0.2)], strength=0.1)
    assert verdict(load_comparison(tmp_path))[-1] == (
        "Beware of over-optimisation: PPO (beta 0.1) gains proxy reward over the start while losing gold "
        "reward."
    )


def test_failed_runs_are_counted(tmp_path: Path) -> None:
    sentences(tmp_path, {"dpo": shifted(0.3)})
    add_failure(tmp_path, "kto", "out of memory")
    assert verdict(load_comparison(tmp_path))[-1] == "1 of 3 runs failed and is listed below with the reason."


def test_only_failures(tmp_path: Path) -> None:
    write_about(tmp_path)
    add_failure(tmp_path, "kto", "out of memory")
    assert verdict(load_comparison(tmp_path)) == [
        "No run has finished yet, so there is nothing to compare.",
        "1 of 1 runs failed and is listed below with the reason.",
    ]


def test_without_the_start(tmp_path: Path) -> None:
    write_about(tmp_path, rewards=["gold"])
    add_run(tmp_path, "dpo", shifted(0.3), strength=0.1)
    (said,) = verdict(load_comparison(tmp_path))
    assert said.startswith("DPO (beta 0.1) has the highest gold reward, 0.80 (95 % interval 0.79 to 0.8")


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [(0.345, "+", "+0.34"), (-0.5, "", "−0.50"), (-0.001, "", "0.00"), (12.0, "", "12.00")],
)
def test_numbers_have_a_true_minus_and_no_negative_zero(value: float, sign: str, text: str) -> None:
    assert number(value, sign) == text


def test_the_span_of_one_prompt_is_unknown() -> None:
    assert span(Estimate(0.5, float("nan"), float("nan"), 1)) == "unknown"


def test_long_lists_are_cut() -> None:
    assert join(["a"]) == "a"
    assert join(["a", "b", "c"]) == "a, b and c"
    assert join(list("abcdefg")) == "a, b, c and 4 others"
