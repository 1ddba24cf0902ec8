"""The numbers of the table, computed by hand for comparisons of a few prompts."""

import json
from pathlib import Path

import pytest
from rich.console import Console
from synthetic import add_failure, add_run, write_about, write_film_reviews

from trimtab.compare.summary import Comparison, Row, load_comparison
from trimtab.compare.table import summary_table
from trimtab.errors import UserError


def row(comparison: Comparison, label: str) -> Row:
    return next(row for row in comparison.rows if row.setting.label == label)


def test_with_one_strength_each_number_is_of_all_prompts(tmp_path: Path) -> None:
    write_about(tmp_path, rewards=["gold"])
    add_run(tmp_path, "start", [0.1, 0.2, 0.3, 0.4])
    add_run(tmp_path, "dpo", [0.2, 0.2, 0.1, 0.9], strength=0.1, seed=0, kl=[1, 2, 3, 4])
    add_run(tmp_path, "dpo", [0.4, 0.4, 0.5, 0.9], strength=0.1, seed=1, kl=[3, 2, 1, 4])
    dpo = row(load_comparison(tmp_path), "DPO (beta 0.1)")
    assert dpo.rewards["gold"].mean == pytest.approx(0.45)  # of 0.3, 0.3, 0.3, 0.9
    assert dpo.rewards["gold"].n == 4
    assert dpo.middle_reward == pytest.approx(0.3)
    assert dpo.gain is not None
    assert dpo.gain.mean == pytest.approx(0.2)
    assert dpo.win_rate is not None
    assert dpo.win_rate.mean == pytest.approx((1 + 0.75 + 0.5 + 1) / 4)
    assert dpo.kl == pytest.approx(2.5)
    assert dpo.kl_error == pytest.approx(0.5)  # of 2, 2, 2, 4: standard deviation 1, over sqrt(4)
    assert dpo.length == pytest.approx((4 + 5 + 6 + 4) / 4)
    assert dpo.distinct == 1.0  # "answer 0 .", "answer 1 .", ...: eight bigrams, all distinct
    assert dpo.seconds == pytest.approx(10.5)
    assert dpo.memory_mb == 512.0
    assert (dpo.chosen, dpo.best) == (True, True)


def test_strength_is_chosen_on_one_half_and_reported_on_the_other(tmp_path: Path) -> None:
    """On even prompts 0.1 is best, on odd ones 1.0: 0.1 is chosen, and reported with its odd mean."""
    write_about(tmp_path, rewards=["gold"])
    add_run(tmp_path, "start", [0.5] * 6)
    add_run(tmp_path, "dpo", [0.9, 0.2, 0.9, 0.3, 0.9, 0.4], strength=0.1)
    add_run(tmp_path, "dpo", [0.1, 0.9, 0.1, 0.9, 0.1, 0.9], strength=1.0)
    comparison = load_comparison(tmp_path)
    assert comparison.chosen["dpo"].label == "DPO (beta 0.1)"
    assert list(comparison.reported) == [1, 3, 5]
    chosen = row(comparison, "DPO (beta 0.1)")
    assert chosen.rewards["gold"].mean == pytest.approx(0.3)
    assert chosen.gain is not None
    assert chosen.gain.mean == pytest.approx(-0.2)


def test_settings_that_differ_in_more_than_strength_are_kept_apart(tmp_path: Path) -> None:
    write_about(tmp_path, rewards=["gold"])
    add_run(tmp_path, "start", [0.5, 0.5])
    for rate, score in ((0.001, 0.2), (0.002, 0.8)):
        add_run(tmp_path, "dpo", [score, score], strength=0.1, parameters=f"learning_rate={rate}")
    labels = [setting.label for setting in load_comparison(tmp_path).by_method["dpo"]]
    assert labels == ["DPO (beta 0.1, learning_rate 0.001)", "DPO (beta 0.1, learning_rate 0.002)"]


def test_better_needs_every_seed(tmp_path: Path) -> None:
    """Seeds 0.9, 0.9, 0.4 against 0.5: the mean is far above, but one seed of three is below."""
    write_about(tmp_path, rewards=["gold"])
    add_run(tmp_path, "start", [0.5] * 20)
    for seed, score in enumerate((0.9, 0.9, 0.4)):
        add_run(tmp_path, "dpo", [score] * 20, strength=0.1, seed=seed)
    for seed, score in enumerate((0.9, 0.9, 0.6)):
        add_run(tmp_path, "ipo", [score] * 20, strength=0.1, seed=seed)
    comparison = load_comparison(tmp_path)
    assert comparison.start is not None
    assert not comparison.clearly_better(comparison.chosen["dpo"], comparison.start)
    assert comparison.clearly_better(comparison.chosen["ipo"], comparison.start)
    assert not comparison.clearly_better(comparison.start, comparison.chosen["dpo"])


def test_win_matrix_is_antisymmetric_and_ordered_by_reward(tmp_path: Path) -> None:
    write_about(tmp_path, rewards=["gold"])
    add_run(tmp_path, "start", [0.5, 0.5, 0.5, 0.5])
    add_run(tmp_path, "kto", [0.6, 0.6, 0.4, 0.5], strength=0.1)
    add_run(tmp_path, "dpo", [0.9, 0.9, 0.9, 0.1], strength=0.1)
    comparison = load_comparison(tmp_path)
    assert [player.method for player in comparison.players] == ["dpo", "kto", "start"]
    rates = [[rate and rate.mean for rate in line] for line in comparison.win_matrix()]
    assert rates == [[None, 0.75, 0.75], [0.25, None, 0.625], [0.25, 0.375, None]]


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    write_about(tmp_path, rewards=["gold"])
    add_run(tmp_path, "start", [0.5, 0.5])
    add_run(tmp_path, "dpo", [0.5, 0.5], strength=0.1, prompts=["x", "y"])
    with pytest.raises(UserError, match="other prompts"):
        load_comparison(tmp_path)


def test_a_reward_that_is_no_number_is_named(tmp_path: Path) -> None:
    write_about(tmp_path, rewards=["gold"])
    add_run(tmp_path, "start", [0.5, float("nan")])
    with pytest.raises(UserError, match=r"evaluation\.jsonl line 2: rewards\.gold is nan"):
        load_comparison(tmp_path)


def test_the_terminal_table_fits_in_100_columns_and_says_all(tmp_path: Path) -> None:
    write_film_reviews(tmp_path, methods=("dpo", "score_weighted"), strengths=(0.03, 0.1), prompts=40)
    add_failure(tmp_path, "kto", "the loss became NaN at step 31; lower the learning rate")
    console = Console(width=100, record=True, force_terminal=False, file=None, quiet=False)
    with console.capture() as capture:
        console.print(summary_table(tmp_path))
    text = capture.get()
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "…" not in text
    assert "\x1b" not in text
    best = next(line for line in text.splitlines() if line.startswith("*"))
    expected = next(row for row in load_comparison(tmp_path).rows if row.best).rewards["gold"].mean
    assert f"{expected:.2f} (" in best
    assert "failed: kto/beta=0.1/seed=0: the loss became NaN at step 31" in text


def test_one_prompt_one_run_no_kl(tmp_path: Path) -> None:
    write_about(tmp_path, rewards=["gold"])
    add_run(tmp_path, "dpo", [0.5], strength=0.1)
    console = Console(width=100)
    with console.capture() as capture:
        console.print(summary_table(tmp_path))
    assert "0.50" in capture.get()
    assert "nan" not in capture.get()


def test_a_comparison_without_rewards_is_named(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(json.dumps({"name": "x"}))
    with pytest.raises(UserError, match="has no 'rewards'"):
        load_comparison(tmp_path)
