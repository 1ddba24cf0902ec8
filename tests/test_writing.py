"""What a run writes for people: its curve, sample answers at intervals, warnings once each."""

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trimtab.errors import UserError
from trimtab.feedback.records import Prompt, as_conversation
from trimtab.online import Refresh
from trimtab.rollouts.rollout import Sample
from trimtab.writing import Curves, Samples, Watch, library


class Board:
    """TensorBoard's writer and Weights & Biases' run in one: writes down what it is told."""

    def __init__(self, *given: Any, **options: Any) -> None:
        self.made_with = (given, options)
        self.told: list[Any] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.told.append((name, value, step))

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.told.append((metrics, step))

    def close(self) -> None:
        self.told.append("closed")

    def finish(self, exit_code: int) -> None:
        self.told.append(f"finished {exit_code}")


@pytest.fixture
def boards(monkeypatch: pytest.MonkeyPatch) -> list[Board]:
    """Both libraries, and every board or run that is made."""
    found: list[Board] = []

    def make(*given: Any, **options: Any) -> Board:
        found.append(Board(*given, **options))
        return found[-1]

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=make))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=make))
    return found


def test_every_refresh_is_a_line_at_once(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    with Curves(tmp_path, "none", {}) as curves:
        curves.write({"refresh": 1, "score": 0.5})
        assert file.read_text() == '{"refresh": 1, "score": 0.5}\n'
        curves.write({"refresh": 2, "score": float("nan"), "loss": float("-inf")})
    assert file.read_text().splitlines()[1:] == ['{"refresh": 2, "score": null, "loss": null}']


def test_tensorboard_has_every_metric(tmp_path: Path, boards: list[Board]) -> None:
    with Curves(tmp_path, "tensorboard", {"seed": 3}) as curves:
        curves.write({"refresh": 7, "score": 0.5})
    (board,) = boards
    assert board.made_with == ((str(tmp_path / "tensorboard"),), {})
    assert board.told == [("refresh", 7, 7), ("score", 0.5, 7), "closed"]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"refresh": 7, "score": 0.5}


def test_weights_and_biases_has_every_metric_and_the_options(tmp_path: Path, boards: list[Board]) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with Curves(out, "wandb", {"seed": 3}) as curves:
        curves.write({"refresh": 7, "score": 0.5})
    (run,) = boards
    assert run.made_with == (
        (),
        {"project": "trimtab", "name": "run", "dir": str(out), "config": {"seed": 3}},
    )
    assert run.told == [({"refresh": 7, "score": 0.5}, 7), "finished 0"]


def test_a_run_that_fails_is_marked_so(tmp_path: Path, boards: list[Board]) -> None:
    with pytest.raises(UserError), Curves(tmp_path, "wandb", {}) as curves:
        curves.write({"refresh": 1})
        raise UserError("the reward failed")
    assert boards[0].told[-1] == "finished 1"
    assert (tmp_path / "metrics.jsonl").read_text() == '{"refresh": 1}\n'


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_library_is_named(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)  # an import fails
    with pytest.raises(UserError, match=f"--log-to {name}: not installed; pip install {name}"):
        library(name)
    assert library("none") is None


def refresh(number: int, scores: list[float], prompt: Prompt = "say") -> Refresh:
    samples = [Sample(prompt, f"answer {n}", score, {"r": score}) for n, score in enumerate(scores)]
    return Refresh({"refresh": number, "score": sum(scores) / len(scores)}, samples, {})


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line]


def test_samples_are_the_best_the_worst_and_two_between(tmp_path: Path) -> None:
    """Of ten answers those of places 0, 3, 6 and 9."""
    file = tmp_path / "samples.md"
    Samples(file, 10).write(refresh(1, [5.0, 9.0, 0.0, 3.0, 7.0, 1.0, 8.0, 2.0, 4.0, 6.0]))
    assert lines(file) == [
        "## Refresh 1: score 4.5",
        "- **9** say → answer 1",
        "- **6** say → answer 9",
        "- **3** say → answer 3",
        "- **0** say → answer 2",
    ]


@pytest.mark.parametrize(("every", "expected"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 3, 6]), (10, [1])])
def test_samples_come_at_first_and_at_intervals(every: int, expected: list[int], tmp_path: Path) -> None:
    samples = Samples(tmp_path / "samples.md", every)
    for number in range(1, 8):
        samples.write(refresh(number, [float(number)]))
    headings = [line for line in lines(samples.path) if line.startswith("##")]
    assert headings == [f"## Refresh {n}: score {n}" for n in expected]
    assert len(lines(samples.path)) == 2 * len(expected)  # one answer is shown once


def test_a_sample_is_one_line_with_the_parts_of_its_score(tmp_path: Path) -> None:
    file = tmp_path / "samples.md"
    conversation = as_conversation("what\nis\n\nit?")
    samples = [
        Sample(conversation, "a\n\n- b", 1.25, {"rm": 1.5, "length:9": -0.25}),
        Sample(conversation, " \n", -2.0, {"rm": -2.0, "length:9": 0.0}),
    ]
    Samples(file, 1).write(Refresh({"refresh": 3, "score": -0.375}, samples, {}))
    assert lines(file) == [
        "## Refresh 3: score -0.375",
        "- **1.25** (rm 1.5, length:9 -0.25) what is it? → a - b",
        "- **-2** (rm -2, length:9 0) what is it? → (nothing)",
    ]


def watched(caplog: pytest.LogCaptureFixture, rows: list[tuple[float | None, float]]) -> list[str]:
    """The warnings over refreshes of (KL, entropy)."""
    watch = Watch()
    with caplog.at_level(logging.WARNING, logger="trimtab"):
        for number, (kl, entropy) in enumerate(rows, start=1):
            metrics = {"refresh": float(number), "entropy": entropy}
            watch.look(metrics if kl is None else {**metrics, "kl": kl})
    return caplog.messages


def test_a_kl_that_explodes_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    (said,) = watched(caplog, [(0.0, 2.0), (50.0, 2.0), (51.0, 2.0), (400.0, 2.0)])
    assert said.startswith("refresh 3: the KL to the reference is 51 nats a response: ")
    assert "--beta" in said


def test_an_entropy_that_collapses_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    (said,) = watched(caplog, [(None, 2.0), (None, 0.2), (None, 0.19), (None, 0.01)])
    assert said.startswith("refresh 3: the entropy fell from 2 to 0.19 nats a token: ")


def test_both_are_said_and_a_quiet_run_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    assert watched(caplog, [(0.0, 2.0), (10.0, 1.0), (49.0, 0.3)]) == []
    assert len(watched(caplog, [(0.0, 2.0), (99.0, 0.01), (99.0, 0.01)])) == 2
