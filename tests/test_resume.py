"""A run that was stopped at any moment and resumed is the run that was never stopped: to the last bit."""

import errno
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import tiny
from tests.interrupted import Signals
from tests.online_runs import prepared, same, weights, words
from trimtab import recorder
from trimtab.checkpoint import Checkpoints
from trimtab.cli import main
from trimtab.methods import METHODS
from trimtab.online_jobs import reward_paths
from trimtab.policies.language import LanguagePolicy

OFFLINE = [name for name, method in METHODS.items() if not method.online]
ONLINE = [name for name, method in METHODS.items() if method.online]
CONTROL = ["reinforce", "a2c", "ppo", "ppo_kl", "trpo"]
DATA = {"sft": tiny.demonstrations, "kto": tiny.thumbs, "score_weighted": tiny.scores}
CLOCK = {"seconds", "steps_per_second", "tokens_per_second"}


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Has the next run stop after so many of its events."""

    def after(events: int) -> None:
        monkeypatch.setattr(recorder, "Interruption", Signals(events))

    yield after


def offline_words(method: str, folder: Path, *options: str) -> list[str]:
    data = tiny.write_jsonl(folder / "data.jsonl", DATA.get(method, tiny.pairs)())
    files = ["--model", tiny.model_folder(), "--data", data, "--precision", "fp32", "--device", "cpu"]
    return ["train", method, *files, "--steps", "6", "--batch-size", "4", "--learning-rate", "1e-3", *options]


def control_words(method: str, *options: str) -> list[str]:
    sizes = ["--envs", "2", "--steps", "32", "--hidden", "8", "--total-steps", "256"]
    return ["train", method, "--env", "CartPole-v1", *sizes, *options]


def without_clock(folder: Path) -> list[dict[str, Any]]:
    rows = tiny.read_jsonl(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


Left = tuple[list[dict[str, Any]], dict[str, bytes], list[str]]


def left_by(run: Path) -> Left:
    """The curve without its clock, every weight's bits, and the names of the files."""
    bits = {name: tensor.contiguous().numpy().tobytes() for name, tensor in weights(run).items()}
    return without_clock(run), bits, sorted(file.name for file in run.iterdir())


def stop_and_go(command: list[str], folder: Path, moments: list[int], stopped: Any) -> tuple[Left, Left]:
    """What the same command leaves that is stopped again and again, and that runs through."""
    assert main([*command, "--out", f"{folder}/through"]) == 0
    stopped(moments[0])
    assert main([*command, "--out", f"{folder}/stopped"]) == 128 + signal.SIGTERM
    for moment in moments[1:]:
        torch.manual_seed(moment)  # another process would stand elsewhere in its random streams
        stopped(moment)
        assert main(["resume", f"{folder}/stopped"]) == 128 + signal.SIGTERM
    stopped(10**9)
    assert main(["resume", f"{folder}/stopped"]) == 0
    return left_by(folder / "stopped"), left_by(folder / "through")


@pytest.mark.parametrize("rank", ["0", "2"])
@pytest.mark.parametrize("method", OFFLINE)
def test_recorded_feedback(method: str, rank: str, tmp_path: Path, stopped: Any) -> None:
    found, expected = stop_and_go(
        offline_words(method, tmp_path, "--lora-rank", rank), tmp_path, [2, 1], stopped
    )
    assert found == expected


@pytest.mark.parametrize("method", ONLINE)
def test_answers_between_and_within_collections(method: str, tmp_path: Path, stopped: Any) -> None:
    options = ["--refreshes", "3", "--epochs", "2", "--minibatch-size", "4", "--mix", "0.5"]
    command = words(method, prepared(tmp_path), *options)
    place = command.index("--out")
    found, expected = stop_and_go(command[:place] + command[place + 2 :], tmp_path, [1, 3, 5], stopped)
    assert found == expected


@pytest.mark.parametrize("method", CONTROL)
def test_environments(method: str, tmp_path: Path, stopped: Any) -> None:
    options = ["--normalise-observations", "--normalise-rewards", "--minibatch-size", "16"]
    found, expected = stop_and_go(control_words(method, *options), tmp_path, [1, 4, 6], stopped)
    assert found == expected


@pytest.mark.parametrize(
    "env", ["Pendulum-v1", "Acrobot-v1", "LunarLander-v3", "HalfCheetah-v5", "FrozenLake-v1", "CartPole-v0"]
)
def test_simulators_of_every_kind_are_brought_back(env: str, tmp_path: Path, stopped: Any) -> None:
    command = control_words("ppo", "--env", env, "--steps", "48")
    found, expected = stop_and_go(command, tmp_path, [1, 3, 5], stopped)
    assert found == expected


def test_an_environment_that_does_not_repeat_itself_is_said(
    tmp_path: Path, stopped: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    import gymnasium

    class Moody(gymnasium.Env[Any, Any]):
        observation_space = gymnasium.spaces.Box(-1, 1, (1,))
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            return np.zeros(1, dtype=np.float32), {}

        def step(self, action: Any) -> Any:
            return np.array([random.SystemRandom().random()], dtype=np.float32), 1.0, False, False, {}

    gymnasium.register("Moody-v0", Moody, max_episode_steps=100)
    try:
        command = control_words("ppo", "--env", "Moody-v0", "--steps", "16", "--out", f"{tmp_path}/out")
        stopped(2)
        assert main(command) == 143
        stopped(10**9)
        assert main(["resume", f"{tmp_path}/out"]) == 0
    finally:
        del gymnasium.registry["Moody-v0"]
    assert "Moody-v0: 2 of 2 copies did not come back to where they were" in capsys.readouterr().err


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    if how == "a flipped bit":
        content[len(content) // 2] ^= 16
    if how == "gone":
        file.unlink()
        return
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "a flipped bit", "gone"])
@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors", "sums.json"])
def test_a_damaged_checkpoint_is_passed_over(
    name: str, how: str, tmp_path: Path, stopped: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command = offline_words("dpo", tmp_path, "--save-every", "1")
    assert main([*command, "--out", f"{tmp_path}/through"]) == 0
    stopped(4)
    out = tmp_path / "stopped"
    assert main([*command, "--out", str(out)]) == 143
    newest = out / "checkpoints" / "00000004-000000"
    damage(newest / name, how)
    capsys.readouterr()
    stopped(10**9)
    assert main(["resume", str(out)]) == 0
    said = capsys.readouterr().err
    assert f"{newest} is damaged" in said and "the one before it is used" in said
    assert without_clock(out) == without_clock(tmp_path / "through")
    assert same(weights(out), weights(tmp_path / "through"))


def test_nothing_goes_on_from_damaged_checkpoints_alone(
    tmp_path: Path, stopped: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(2)
    out = tmp_path / "out"
    assert main([*offline_words("dpo", tmp_path), "--out", str(out)]) == 143
    for file in out.glob("checkpoints/*/tensors.safetensors"):
        damage(file, "a flipped bit")
    assert main(["resume", str(out)]) == 2
    assert "every checkpoint is damaged, so the run cannot go on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keep", "left"), [("1", ["00000004-000000"]), ("3", [f"0000000{i}-000000" for i in (2, 3, 4)])]
)
def test_so_many_checkpoints_are_kept(keep: str, left: list[str], tmp_path: Path, stopped: Any) -> None:
    stopped(4)
    out = tmp_path / "out"
    assert (
        main([*offline_words("sft", tmp_path), "--out", str(out), "--save-every", "1", "--keep", keep]) == 143
    )
    assert Checkpoints(out).names() == left


def test_a_killed_run_without_checkpoint_starts_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = offline_words("sft", tmp_path)
    for name in ("through", "killed"):
        assert main([*command, "--out", f"{tmp_path}/{name}"]) == 0
    killed = tmp_path / "killed"  # as a kill in the first minutes leaves it: options, and a line of the curve
    for file in killed.iterdir():
        if file.name not in ("trimtab.yaml", "metrics.jsonl"):
            file.unlink()
    (killed / "metrics.jsonl").write_text('{"step": 1, "lo')
    assert main(["resume", str(killed)]) == 0
    assert "has no checkpoint yet: the run starts from its beginning" in " ".join(
        capsys.readouterr().err.split()
    )
    assert without_clock(killed) == without_clock(tmp_path / "through")
    assert same(weights(killed), weights(tmp_path / "through"))


def test_a_run_goes_on_with_its_own_data_model_and_options_only(
    tmp_path: Path, stopped: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(2)
    out = tmp_path / "out"
    assert main([*offline_words("dpo", tmp_path), "--out", str(out)]) == 143
    stopped(10**9)
    data, options = tmp_path / "data.jsonl", out / "trimtab.yaml"
    before = {file: file.read_text() for file in (data, options)}
    changes = {
        data: before[data] + before[data].splitlines()[0] + "\n",
        options: before[options].replace("beta: 0.1", "beta: 0.2"),
    }
    sentences = {
        data: "the data is not what the run began with",
        options: "beta is 0.2, but the run began with 0.1",
    }
    for file, text in changes.items():
        file.write_text(text)
        assert main(["resume", str(out)]) == 2
        assert sentences[file] in " ".join(capsys.readouterr().err.split())
        file.write_text(before[file])
    options.write_text(before[options].replace("keep: 2", "keep: 5"))  # what changes no number may change
    assert main(["resume", str(out)]) == 0


def test_a_complete_run_says_so_and_an_incomplete_one_is_not_overwritten(
    tmp_path: Path, stopped: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*offline_words("dpo", tmp_path), "--out", f"{tmp_path}/out"]
    stopped(2)
    assert main(command) == 143
    assert main(command) == 2
    assert f"trimtab resume {tmp_path}/out, or another --out" in " ".join(capsys.readouterr().err.split())
    stopped(10**9)
    assert main(["resume", f"{tmp_path}/out"]) == 0
    assert main(["resume", f"{tmp_path}/out"]) == 0
    assert "is complete: there is nothing left to train" in " ".join(capsys.readouterr().out.split())
    assert main(["resume", str(tmp_path)]) == 2
    assert "no run is there" in capsys.readouterr().err


def test_finishing_writes_the_model_of_the_checkpoint(tmp_path: Path, stopped: Any) -> None:
    """With a constant rate, two steps of six are two steps of two."""
    command = offline_words("dpo", tmp_path, "--schedule", "constant")
    assert main([*command, "--steps", "2", "--out", f"{tmp_path}/two"]) == 0
    stopped(2)
    assert main([*command, "--out", f"{tmp_path}/six"]) == 143
    assert main(["resume", f"{tmp_path}/six", "--finish"]) == 0
    assert same(weights(tmp_path / "six"), weights(tmp_path / "two"))
    assert not (tmp_path / "six" / "checkpoints").exists()


def test_a_second_process_is_kept_out(
    tmp_path: Path, stopped: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fcntl = pytest.importorskip("fcntl")
    stopped(2)
    assert main([*offline_words("dpo", tmp_path), "--out", f"{tmp_path}/out"]) == 143
    with (tmp_path / "out" / "trimtab.yaml").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["resume", f"{tmp_path}/out"]) == 2
    assert "another process is training there" in " ".join(capsys.readouterr().err.split())


def test_a_reward_that_fails_leaves_a_checkpoint(
    tmp_path: Path, stopped: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is mended, and the run goes on from there: as it would have with the mended one all along."""
    folder = prepared(tmp_path)
    command = words("grpo", folder, "--refreshes", "4")
    place = command.index("--out")
    command = command[:place] + command[place + 2 :]
    assert main([*command, "--out", f"{folder}/through"]) == 0
    reward = folder / "r.py"
    right = reward.read_text()
    reward.write_text(right + "\ncalls = []\n" + right.replace("def joy", "def wrong") + BROKEN)
    assert main([*command, "--out", f"{folder}/out"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "no luck" in said and f"trimtab resume {folder}/out goes on from here" in said
    reward.write_text(right)
    assert main(["resume", f"{folder}/out"]) == 0
    assert "the files of the reward have changed" in capsys.readouterr().err
    assert without_clock(folder / "out") == without_clock(folder / "through")
    assert same(weights(folder / "out"), weights(folder / "through"))


BROKEN = """

def joy(prompts, responses):
    calls.append(1)
    if len(calls) == 3:
        raise ValueError("no luck")
    return wrong(prompts, responses)
"""


def test_another_precision_is_refused(
    tmp_path: Path, stopped: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What auto means depends on the machine."""
    command = [word for word in offline_words("dpo", tmp_path) if word not in ("--precision", "fp32")]
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    stopped(2)
    assert main([*command, "--out", f"{tmp_path}/out"]) == 143
    stopped(10**9)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    assert main(["resume", f"{tmp_path}/out"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "the precision (--precision auto is another on this machine: name the old one) is not" in said
    options = tmp_path / "out" / "trimtab.yaml"
    options.write_text(options.read_text().replace("precision: auto", "precision: fp32"))
    assert main(["resume", f"{tmp_path}/out"]) == 0


def test_a_reward_with_a_negative_weight_is_resumed(tmp_path: Path, stopped: Any) -> None:
    command = words("grpo", prepared(tmp_path), "--refreshes", "2", reward="-1*length:4")
    place = command.index("--reward")
    command[place : place + 2] = ["--reward=-1*length:4"]
    stopped(3)
    assert main(command) == 143
    stopped(10**9)
    assert main(["resume", f"{tmp_path}/out"]) == 0


def test_only_what_a_reward_names_is_looked_at(tmp_path: Path) -> None:
    names = ["regex:.*yes.*", "0.5*length:200", "exact:answer", "2*judge.py:score", "runs/rm", "-1*runs/rm"]
    assert [*reward_paths(names)] == ["judge.py:score", "judge.py", *["runs/rm"] * 4]


def test_a_model_that_cannot_be_written_costs_no_training(
    tmp_path: Path, stopped: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = offline_words("dpo", tmp_path)
    assert main([*command, "--out", f"{tmp_path}/through"]) == 0

    def full(self: LanguagePolicy, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    with monkeypatch.context() as broken:
        broken.setattr(LanguagePolicy, "save", full)
        assert main([*command, "--out", f"{tmp_path}/out"]) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert Checkpoints(tmp_path / "out").names() == ["00000006-000000"]  # of the last of six steps
    assert main(["resume", f"{tmp_path}/out"]) == 0
    assert same(weights(tmp_path / "out"), weights(tmp_path / "through"))
