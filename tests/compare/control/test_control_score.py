"""By which returns the runs of a comparison in environments are judged: the three kinds of score."""

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from made_up import Page, add_run, write_about
from rich.console import Console

from trimtab.compare.control.config import ControlCompareConfig, Evaluation, Run, Score
from trimtab.compare.control.report import write_control_report
from trimtab.compare.control.run import _note, compare_control
from trimtab.compare.control.summary import load_control_comparison
from trimtab.compare.control.table import control_table
from trimtab.compare.control.worker import Cell
from trimtab.compare.results import load_results
from trimtab.errors import UserError

CARTPOLE = ControlCompareConfig(
    envs=["CartPole-v1"],
    methods={"ppo": None},
    settings={"total_steps": 900, "hidden": [16]},
    seeds=[0, 1],
    evaluation=Evaluation(episodes=3),
    jobs=1,
)
each_score = pytest.mark.parametrize("score", ["deterministic", "drawn", "training"])


class Counting(gymnasium.Env[Any, Any]):
    """Episodes of one step: the first has the return 1, the second 2, and so on."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    episode = 0

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(**options)
        self.episode += 1
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, dtype=np.float32), float(self.episode), True, False, {}


if "Counting-v0" not in gymnasium.registry:
    gymnasium.register("Counting-v0", entry_point=Counting, disable_env_checker=True)


def metrics(out: Path, env: str, total_steps: int) -> dict[str, float]:
    """Of a run with one copy, trained and played here."""
    settings = {"total_steps": total_steps, "envs": 1, "steps": 8, "hidden": [4]}
    found: dict[str, float] = Cell(Run(env, "ppo", {}, 0), settings, 1, out).carry_out()["metrics"]
    return found


@pytest.mark.parametrize(("episodes", "mean"), [(40, 20.5), (100, 50.5), (120, 70.5)])
def test_a_run_keeps_the_mean_of_its_last_100_training_episodes(
    episodes: int, mean: float, tmp_path: Path
) -> None:
    """The returns 1 to 40, 1 to 100, and of 120 those from 21 on."""
    assert metrics(tmp_path, "Counting-v0", episodes)["training"] == mean


def test_a_training_in_which_no_episode_ended_has_no_return(tmp_path: Path) -> None:
    """Pendulum's take 200 steps."""
    assert metrics(tmp_path, "Pendulum-v1", 16).keys() == {"deterministic", "drawn", "total_steps"}


def two_methods(out: Path, **about: Any) -> None:
    """By the most likely actions a2c is best, by drawn ones ppo, and by training ppo by far."""
    write_about(out, **about)
    add_run(out, "start", 2.0)
    add_run(out, "ppo", 8.0, drawn=7.0, training=12.0, curve=[(0, 2.0), (1000, 12.0)])
    add_run(out, "a2c", 10.0, drawn=6.0, training=4.0, curve=[(0, 2.0), (1000, 4.0)])


@pytest.mark.parametrize(
    ("about", "best", "scores", "other"),
    [
        ({}, "a2c", [10.0, 8.0], 0.75),
        ({"score": "deterministic"}, "a2c", [10.0, 8.0], 0.75),
        ({"score": "drawn"}, "ppo", [7.0, 6.0], 0.8),
        ({"score": "training"}, "ppo", [12.0, 4.0], 0.2),
    ],
)
def test_the_score_decides_who_is_best(
    about: dict[str, str], best: str, scores: list[float], other: float, tmp_path: Path
) -> None:
    """Whatever it is, 0 is what the untrained policy's drawn actions earn: 2."""
    two_methods(tmp_path, **about)
    comparison = load_control_comparison(tmp_path)
    first, second = comparison.ranking(["Hill"])
    assert first.label == best
    assert [float(c.scores("Hill")[0]) for c in (first, second)] == scores
    assert comparison.scales["Hill"] == (2.0, scores[0])
    assert comparison.normalised(second, "Hill").tolist() == [other]


@pytest.mark.parametrize(
    ("score", "page", "table"),
    [
        ("deterministic", "after training, with the most likely action in every", "deterministic episodes"),
        ("drawn", "return after training, with drawn actions;", "episodes with drawn actions"),
        (
            "training",
            "return of the last 100 episodes of training (of all",
            "the last 100 training episodes",
        ),
    ],
)
def test_page_and_table_say_what_the_score_is(score: str, page: str, table: str, tmp_path: Path) -> None:
    two_methods(tmp_path, score=score)
    add_run(tmp_path, "ppo", 7.0, drawn=7.5, training=13.0, seed=1)
    shown = Page(write_control_report(tmp_path))
    assert page in shown.text
    # the run to look at: of ppo's two the second is better by drawn actions and by training
    best = "Hill-a2c-seed=0" if score == "deterministic" else "Hill-ppo-seed=1"
    assert f"trimtab play FOLDER/runs/{best}" in shown.text
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(control_table(tmp_path))
    assert f"mean over seeds of {table} (95 % interval);" in " ".join(console.export_text().split())


def test_a_run_without_the_score_is_listed_as_failed(tmp_path: Path) -> None:
    two_methods(tmp_path, score="training")
    add_run(tmp_path, "trpo", 5.0)
    comparison = load_control_comparison(tmp_path)
    assert [c.label for c in comparison.contenders] == ["ppo", "a2c"]
    [failed] = comparison.failed
    assert (failed.key, failed.error) == (
        "Hill/trpo/seed=0",
        "it has no training return: no episode ended; take another score, or train longer in another --out",
    )
    assert "1 of 4 runs failed" in Page(write_control_report(tmp_path)).text


def test_a_score_that_does_not_exist_is_refused_in_the_folder_too(tmp_path: Path) -> None:
    two_methods(tmp_path, score="trainig")
    with pytest.raises(UserError) as caught:
        load_control_comparison(tmp_path)
    sentence = f"{tmp_path}/comparison.json: score: 'trainig' is not known; did you mean 'training'?"
    assert str(caught.value) == sentence


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison, judged by the most likely actions."""
    out = tmp_path_factory.mktemp("score") / "out"
    compare_control(CARTPOLE, out, lambda *_, **__: None)
    return out


@each_score
def test_a_finished_comparison_is_judged_anew_without_training(
    score: Score, trained: Path, tmp_path: Path
) -> None:
    """Against the files of its runs: the returns of the episodes played, the end of the learning curve."""
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    before = (out / "results.jsonl").read_bytes()
    compare_control(dataclasses.replace(CARTPOLE, score=score), out, lambda *_, **__: None)
    assert (out / "results.jsonl").read_bytes() == before
    [ppo] = load_control_comparison(out).contenders
    expected = [from_files(out / f"runs/CartPole-v1-ppo-seed={seed}")[score] for seed in (0, 1)]
    assert ppo.scores("CartPole-v1").tolist() == pytest.approx(expected, rel=1e-12)


def test_the_three_scores_of_a_run_differ(trained: Path) -> None:
    """Otherwise the test above could not tell one from another."""
    for result in load_results(trained):
        if result.method == "ppo":
            assert len(set(from_files(trained / result.folder).values())) == 3


def from_files(folder: Path) -> dict[str, float]:
    """The mean returns of a run by kind."""
    played = json.loads((folder / "evaluation.json").read_text())
    *_, last = (folder / "metrics.jsonl").read_text().splitlines()
    means = {kind: sum(returns) / len(returns) for kind, returns in played.items()}
    return {**means, "training": json.loads(last)["return"]}


def test_a_run_that_ends_is_told_with_its_score() -> None:
    metrics = {"deterministic": 3.0, "drawn": 2.0}
    assert _note("deterministic", {"method": "ppo", "metrics": metrics}) == "return 3"
    assert _note("training", {"method": "ppo", "metrics": metrics}) == "no training return"
    assert _note("training", {"method": "start", "metrics": {"drawn": 1.5}}) == "return 1.5"
