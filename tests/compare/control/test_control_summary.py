"""From made-up runs to scores, rankings and sentences that claim no more than the intervals do."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from made_up import add_failure, add_run, add_runs, write_about

from trimtab.compare.control.summary import Contender, ControlComparison, load_control_comparison
from trimtab.compare.control.verdict import score, standing, verdict
from trimtab.compare.results import Result

HILL, LAKE = ["Hill"], ["Lake"]
BOTH = ["Hill", "Lake"]


def named(comparison: ControlComparison, label: str) -> Contender:
    return next(c for c in comparison.contenders if c.label == label)


def labels(contenders: Sequence[Contender]) -> list[str]:
    return [contender.label for contender in contenders]


def two_environments(out: Path) -> ControlComparison:
    """In Hill ppo is best with 110 and a2c has 60; in Lake a2c is best with -5 and ppo has -10."""
    write_about(out, BOTH)
    for env, start, ppo, a2c in (("Hill", 10, 110, 60), ("Lake", -15, -10, -5)):
        add_runs(out, "start", [start] * 3, env=env)
        add_runs(out, "ppo", [ppo] * 3, env=env)
        add_runs(out, "a2c", [a2c] * 3, env=env)
    return load_control_comparison(out)


def test_scores_are_normalised_from_the_untrained_policy_to_the_best_method(tmp_path: Path) -> None:
    comparison = two_environments(tmp_path)
    assert comparison.scales == {"Hill": (10.0, 110.0), "Lake": (-15.0, -5.0)}
    ppo, a2c = (named(comparison, name) for name in ("ppo", "a2c"))
    assert [comparison.normalised(ppo, env).tolist() for env in BOTH] == [[1.0] * 3, [0.5] * 3]
    assert comparison.estimate(ppo, BOTH).mean == comparison.estimate(a2c, BOTH).mean == 0.75
    assert comparison.estimate(a2c, LAKE).mean == -5.0  # a single environment keeps its own unit
    assert labels(comparison.ranking(HILL)) == ["ppo", "a2c"]
    assert labels(comparison.ranking(LAKE)) == ["a2c", "ppo"]
    assert comparison.threshold("Lake") is None  # without a curve


def test_nine_tenths_are_counted_to_the_top_of_the_best_curve(tmp_path: Path) -> None:
    """From -15 to -5, of negative returns too; the final score, with other actions, is no measure."""
    write_about(tmp_path)
    add_run(tmp_path, "start", -15.0)
    add_run(tmp_path, "ppo", 0.0, curve=[(0, -20.0), (500, -5.0), (1000, -8.0)])
    add_run(tmp_path, "a2c", -9.0, curve=[(0, -15.0), (1000, -10.0)])
    assert load_control_comparison(tmp_path).threshold("Hill") == pytest.approx(-6.0)


def test_an_environment_without_gain_is_left_out(tmp_path: Path) -> None:
    write_about(tmp_path, BOTH)
    for env, ppo in (("Hill", 2.0), ("Lake", 0.0)):
        add_runs(tmp_path, "start", [1.0, 1.0], env=env)
        add_runs(tmp_path, "ppo", [ppo, ppo], env=env)
    assert list(load_control_comparison(tmp_path).scales) == ["Hill"]


def test_only_methods_of_all_environments_are_ranked_over_all(tmp_path: Path) -> None:
    write_about(tmp_path, BOTH)
    for env in BOTH:
        add_runs(tmp_path, "start", [0.0, 0.0], env=env)
        add_runs(tmp_path, "ppo", [1.0, 1.0], env=env)
    add_runs(tmp_path, "a2c", [9.0, 9.0], env="Hill")
    comparison = load_control_comparison(tmp_path)
    assert labels(comparison.ranking(BOTH)) == ["ppo"]
    assert labels(comparison.ranking(HILL)) == ["a2c", "ppo"]


def test_a_method_is_named_by_what_its_runs_differ_in(tmp_path: Path) -> None:
    write_about(tmp_path)
    for clip in (0.2, 1000.0):
        add_runs(tmp_path, "ppo", [1.0, 2.0], clip=clip, steps=64)
    add_run(tmp_path, "a2c", 1.0, hidden=[64, 64])
    add_failure(tmp_path, "a2c", "the loss became NaN", hidden=[8])
    add_run(tmp_path, "trpo", 1.0, max_kl=0.1)
    comparison = load_control_comparison(tmp_path)
    assert labels(comparison.contenders) == [
        "ppo (clip 0.2)",
        "ppo (clip 1000)",
        "a2c (hidden 64x64)",
        "trpo",
    ]
    assert comparison.contenders[0].scores("Hill").tolist() == [1.0, 2.0]


def test_a_row_holds_the_numbers_of_one_method(tmp_path: Path) -> None:
    write_about(tmp_path)
    add_runs(tmp_path, "start", [0.0, 0.0])
    for seed, top in enumerate((90.0, 100.0, 110.0)):
        curve = [(0, 0.0), (1000, top)]
        add_run(tmp_path, "ppo", top, seed=seed, drawn=top - 30, curve=curve, total_steps=1000)
        add_run(tmp_path, "a2c", 50.0, seed=seed, curve=[(0, 0.0), (1000, 50.0)])
    first, second, start = load_control_comparison(tmp_path).rows["Hill"]
    assert (first.contender.label, first.best, second.best) == ("ppo", True, False)
    assert (first.mean, first.worst, first.drawn) == (100.0, 90.0, 70.0)
    assert (first.score.mean, first.score.low, first.score.high) == (100.0, 90.0, 110.0)
    assert first.steps_to == pytest.approx(900, abs=5)  # the mean of the three lines is at 90 there
    assert second.steps_to is None
    assert (first.seconds, first.speed) == (4.0, 250.0)
    assert (start.contender.label, start.seconds, start.steps_to) == ("untrained", None, None)


def test_ahead_asks_few_seeds_to_agree_and_many_for_their_interval_only(tmp_path: Path) -> None:
    write_about(tmp_path)
    add_runs(tmp_path, "ppo", [5.0, 6.0, 7.0])
    add_runs(tmp_path, "a2c", [1.0, 2.0, 3.0])
    add_runs(tmp_path, "trpo", [0.0, 0.0, 5.5])  # one seed of it is above one of ppo's
    add_runs(tmp_path, "reinforce", [0.0, 0.0])
    for seed, (mine, theirs) in enumerate([(6.0, 0.0), (7.0, 0.0), (8.0, 0.0), (9.0, 0.0), (1.0, 5.0)]):
        add_run(tmp_path, "ppo", mine, seed=seed, clip=0.1)
        add_run(tmp_path, "a2c", theirs, seed=seed, lam=0.1)
    comparison = load_control_comparison(tmp_path)
    ppo, a2c, trpo, reinforce, ppo_5, a2c_5 = comparison.contenders
    assert comparison.ahead(ppo, a2c, HILL) and not comparison.ahead(a2c, ppo, HILL)
    assert not comparison.ahead(ppo, trpo, HILL)
    assert not comparison.ahead(ppo, reinforce, HILL)  # two seeds
    assert comparison.ahead(ppo_5, a2c_5, HILL)


@pytest.mark.parametrize(("seeds", "expected"), [(3, 0.11), (4, 0.04), (5, 0.06)])
def test_equal_methods_are_rarely_called_different(seeds: int, expected: float) -> None:
    """The shares that the report warns of."""
    rng, found, trials = np.random.default_rng(seeds), 0, 400
    for _ in range(trials):
        a, b = (Contender(name, "", {"Hill": runs(rng.normal(size=seeds))}) for name in "ab")
        comparison = ControlComparison(Path(), {"envs": HILL}, (a, b), Contender("start", "", {}), ())
        found += comparison.ahead(a, b, HILL) or comparison.ahead(b, a, HILL)
    assert found / trials == pytest.approx(expected, abs=0.04)


def runs(scores: Sequence[float]) -> tuple[Result, ...]:
    return tuple(
        Result(str(seed), "done", "ppo", seed, env="Hill", metrics={"deterministic": value})
        for seed, value in enumerate(scores)
    )


def test_the_verdict_names_who_is_ahead_and_who_cannot_be_told(tmp_path: Path) -> None:
    write_about(tmp_path)
    add_runs(tmp_path, "start", [0.0, 0.1, 0.2])
    add_runs(tmp_path, "ppo", [50.0, 60.0, 70.0])
    add_runs(tmp_path, "trpo", [40.0, 55.0, 65.0])
    add_runs(tmp_path, "a2c", [10.0, 11.0, 12.0])
    add_runs(tmp_path, "reinforce", [9.0, 10.5, 12.5])
    assert verdict(load_control_comparison(tmp_path)) == [
        "ppo is ahead of a2c and reinforce on Hill; it cannot be told from trpo with 3 seeds.",
        "Its score is 60.0 (95 % interval 50.0 to 70.0).",
        "Of the others reinforce cannot be told from a2c.",
    ]


def test_the_verdict_over_environments_names_where_another_is_ahead(tmp_path: Path) -> None:
    write_about(tmp_path, BOTH)
    for env, ppo, a2c in (("Hill", 100.0, 10.0), ("Lake", 8.0, 10.0)):
        add_runs(tmp_path, "start", [0.0, 0.0, 0.0], env=env)
        add_runs(tmp_path, "ppo", [ppo - 0.1, ppo, ppo + 0.1], env=env)
        add_runs(tmp_path, "a2c", [a2c - 0.1, a2c, a2c + 0.1], env=env)
    first, second, third = verdict(load_control_comparison(tmp_path))
    assert first == "ppo is ahead of a2c on Hill and Lake together."
    assert second.startswith("Its normalised score is 0.90 (95 % interval 0.")
    assert third == "Ahead of ppo in a single environment: a2c on Lake."


def test_no_verdict_without_a_difference(tmp_path: Path) -> None:
    write_about(tmp_path)
    add_runs(tmp_path, "start", [0.0, 0.1, 0.2])
    add_runs(tmp_path, "ppo", [5.0, 6.0, 7.0])
    add_runs(tmp_path, "a2c", [4.0, 6.0, 6.5])
    assert verdict(load_control_comparison(tmp_path))[0] == (
        "No method is ahead on Hill: the highest, ppo, cannot be told from a2c with 3 seeds."
    )


def test_a_method_that_does_not_beat_chance_wins_nothing(tmp_path: Path) -> None:
    write_about(tmp_path)
    add_runs(tmp_path, "start", [1.0, 5.0, 9.0])
    add_runs(tmp_path, "ppo", [6.0, 7.0, 8.0])
    add_runs(tmp_path, "a2c", [0.0, 0.1, 0.2])
    first, second = verdict(load_control_comparison(tmp_path))
    assert first == "No method is clearly better than an untrained policy on Hill with 3 seeds."
    assert second == "The highest is ppo: its score is 7.00 (95 % interval 6.00 to 8.00)."


def test_a_method_alone_is_compared_with_the_untrained_policy(tmp_path: Path) -> None:
    write_about(tmp_path)
    add_runs(tmp_path, "start", [1.0, 2.0, 3.0])
    add_runs(tmp_path, "ppo", [6.0, 7.0, 8.0])
    assert verdict(load_control_comparison(tmp_path))[0] == "ppo is better than an untrained policy on Hill."


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        (1, "but from 1 seed only, so there are no intervals"),
        (2, "but from 2 seeds only, too few for their intervals to tell methods apart"),
    ],
)
def test_one_or_two_seeds_support_no_claim(seeds: int, words: str, tmp_path: Path) -> None:
    write_about(tmp_path)
    add_runs(tmp_path, "start", [0.0] * seeds)
    add_runs(tmp_path, "ppo", [500.0] * seeds)
    add_runs(tmp_path, "a2c", [1.0] * seeds)
    (sentence,) = verdict(load_control_comparison(tmp_path))
    assert sentence.startswith("ppo has the highest score on Hill, 500.0, ") and words in sentence


def test_failed_runs_are_counted(tmp_path: Path) -> None:
    write_about(tmp_path)
    add_failure(tmp_path, "ppo", "the loss became NaN")
    assert verdict(load_control_comparison(tmp_path)) == [
        "No run has finished yet, so there is nothing to compare.",
        "1 of 1 runs failed and is listed below with the reason; the scores are those of the runs that were "
        "left.",
    ]


def test_many_ties_are_not_all_spelled_out(tmp_path: Path) -> None:
    write_about(tmp_path)
    add_runs(tmp_path, "start", [0.0, 0.1, 0.2])
    for clip in range(1, 8):
        add_runs(tmp_path, "ppo", [90.0 - clip, 91.0 - clip, 92.0 - clip], clip=clip)
    *_, last = standing(load_control_comparison(tmp_path), HILL)
    assert last == (
        "Of the others ppo (clip 3) cannot be told from ppo (clip 2), nor ppo (clip 4) from ppo (clip 3), "
        "nor ppo (clip 5) from ppo (clip 4), nor 2 other neighbours in the table."
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (-1234.5, "−1,234"), (487.26, "487.3"), (-99.96, "−100.0"), (0.53, "0.53")],
)
def test_returns_have_the_decimals_they_deserve(value: float, text: str) -> None:
    assert score(value) == text
