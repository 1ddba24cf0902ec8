"""`trimtab train METHOD --env ENVIRONMENT` and `trimtab play RUN` as a user runs them."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium.spaces import Box, Discrete
from safetensors.torch import load_file, save_file

from tests import control_environments
from tests.tiny import read_jsonl
from trimtab.cli import main
from trimtab.presets import preset

METHODS = ["reinforce", "a2c", "ppo", "ppo_kl", "trpo"]
FILES = ["metrics.jsonl", "policy.safetensors", "state.json", "trimtab.yaml"]


class Broken(gymnasium.Env[Any, Any]):
    """Episodes of ten steps; at a later one something is wrong."""

    observation_space: Any = Box(-1, 1, (2,), np.float32)
    action_space: Any = Discrete(2)
    reward: ClassVar[float] = 1.0
    taken: ClassVar[int] = 0

    def __init__(self, render_mode: Any = None) -> None:
        self.length = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.length = 0
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: Any) -> Any:
        self.length += 1
        type(self).taken += 1
        return np.full(2, 0.1 * self.length, dtype=np.float32), self.wrong(), self.length == 10, False, {}

    def wrong(self) -> float:
        return 1.0


class NoNumber(Broken):
    def wrong(self) -> float:
        return float("nan") if self.length == 5 else 1.0


class Interrupted(Broken):
    def wrong(self) -> float:
        if self.taken == 700:
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does
        return 1.0


control_environments.register()
for made in (NoNumber, Interrupted):
    cls: Any = made
    gymnasium.register(f"trimtab-tests/{cls.__name__}-v0", entry_point=cls, disable_env_checker=True)


def words(method: str, out: Path, *options: str, env: str = "CartPole-v1", steps: int = 600) -> list[str]:
    given = ["--env", env, "--out", str(out), "--total-steps", str(steps)]
    return ["train", method, *given, *options]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "policy.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def curve(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, without what depends on the clock."""
    clock = ("seconds", "steps_per_second")
    rows = read_jsonl(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in clock} for row in rows]


def options_of(run: Path) -> dict[str, Any]:
    options: dict[str, Any] = yaml.safe_load((run / "trimtab.yaml").read_text())
    return options


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_a_policy_its_options_and_its_curve(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(words(method, out)) == 0
    printed = capsys.readouterr()
    assert f"training {method}: 600/600 (" in printed.out and "trained in " in printed.out
    assert printed.out.endswith(f"the policy is in {out}; trimtab play {out}\n")
    assert printed.err == ""
    assert sorted(file.name for file in out.iterdir()) == FILES

    shapes = {name: tuple(tensor.shape) for name, tensor in weights(out).items()}
    assert shapes["actor.body.0.weight"] == (64, 4) and shapes["actor.body.4.bias"] == (2,)
    assert ("critic.4.weight" in shapes) == (method != "reinforce")
    assert (options_of(out)["method"], options_of(out)["env"]) == (method, "CartPole-v1")
    rows, state = curve(out), json.loads((out / "state.json").read_text())
    assert [row["refresh"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1]["total_steps"] == sum(row["steps"] for row in rows) == state["total_steps"]
    assert rows[-1]["total_steps"] - rows[-1]["steps"] < 600 <= rows[-1]["total_steps"]


@pytest.mark.parametrize(
    ("method", "env", "options"),
    [
        *((method, "CartPole-v1", []) for method in METHODS),
        ("ppo", "Pendulum-v1", ["--steps", "100", "--normalise-observations", "--normalise-rewards"]),
        ("a2c", "CartPole-v1", ["--hidden", "5", "3", "--activation", "elu", "--no-orthogonal"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_its_options_train_the_same_policy_again_and_another_seed_another(
    method: str, env: str, options: list[str], tmp_path: Path
) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    assert main(words(method, first, "--seed", "3", *options, env=env)) == 0
    config = ["train", method, "--config", str(first / "trimtab.yaml")]
    assert main([*config, "--out", str(again)]) == 0
    assert main([*config, "--out", str(other), "--seed", "4"]) == 0
    assert same(weights(first), weights(again))
    assert not same(weights(first), weights(other))
    assert curve(first) == curve(again) != curve(other)
    assert (first / "state.json").read_text() == (again / "state.json").read_text()
    assert {**options_of(first), "out": str(again)} == options_of(again)
    assert {**options_of(first), "out": str(other), "seed": 4} == options_of(other)


def test_statistics_count_every_step_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--normalise-observations", "--normalise-rewards", "--envs", "3", "--steps", "60"]
    assert main(words("ppo", out, *options)) == 0
    state = json.loads((out / "state.json").read_text())
    assert state["reward_count"] == state["total_steps"] == int(weights(out)["observations.count"])
    assert (
        float(weights(out)["observations.variance"].max()) < 1
    )  # of CartPole's first moves, not the start's 1


def test_an_option_that_was_set_to_none_is_none_again(tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    assert main(words("ppo_kl", first, "--steps", "32", "--old-kl-target", "None")) == 0
    assert options_of(first)["old_kl_target"] is None
    assert main(["train", "ppo_kl", "--config", str(first / "trimtab.yaml"), "--out", str(again)]) == 0
    assert options_of(again)["old_kl_target"] is None
    assert curve(first) == curve(again)
    assert {row["kl_penalty"] for row in curve(again)} == {1.0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a policy for CartPole, to be copied."""
    run = tmp_path_factory.mktemp("runs") / "run"
    assert main(words("ppo", run, steps=100)) == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run whose policy pushes to the right a little more often than to the left, whatever it sees."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    tensors = {name: tensor.zero_() for name, tensor in weights(folder).items()}
    tensors["actor.body.4.bias"][1] = 1e-3
    save_file(tensors, folder / "policy.safetensors")
    capsys.readouterr()
    return folder


def row_of(shown: str, name: str) -> list[float]:
    """Mean, ends of the interval, lowest and highest."""
    [line] = (line for line in shown.splitlines() if line.strip().startswith(name))
    return [float(number) for number in re.findall(r"-?\d+\.\d", line)]


def test_play_tells_the_most_likely_actions_from_drawn_ones(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pushed to the right alone, the pole falls after 8 to 11 steps; at random, after 22 in the mean."""
    assert main(["play", str(run), "--episodes", "60"]) == 0
    shown = capsys.readouterr().out
    assert "CartPole-v1, 60 episodes" in shown
    mean, low, high, lowest, highest = row_of(shown, "most likely")
    assert 8 <= lowest < low < mean < high < highest <= 11
    mean, low, high, lowest, highest = row_of(shown, "drawn")
    assert lowest < low < mean < high < highest
    assert 17 < mean < 28


def test_play_repeats_itself_unless_the_seed_is_another(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for seed in ("0", "0", "1"):
        assert main(["play", str(run), "--episodes", "4", "--seed", seed]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2]


def test_films_of_three_episodes_of_either_kind(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    films = tmp_path / "films"
    given = ["play", str(run), "--episodes", "2", "--video", str(films)]
    assert main(given) == 0
    assert f"the films are in {films}" in capsys.readouterr().out
    found = sorted(films.rglob("*.mp4"))
    assert [file.parent.name for file in found] == ["drawn"] * 3 + ["most-likely"] * 3
    assert all(file.read_bytes()[4:8] == b"ftyp" for file in found)  # as every mp4 file
    assert main(given) == 2
    assert f"{films} exists already; choose another --video, or delete it" in capsys.readouterr().err


def refused(given: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence of a command that writes nothing."""
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    assert main(given) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("trimtab: ") and printed.err.count("\n") == 1
    assert printed.out == ""
    assert sorted(folder.rglob("*")) == before
    return printed.err


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("ppo", ["--env", "CartPol-v1"], "Gymnasium knows no such environment; did you mean 'CartPole-v1'?"),
        (
            "ppo",
            ["--env", "trimtab-tests/TwoHands-v0"],
            "actions are a MultiDiscrete space; a Box or Discrete",
        ),
        ("ppo", ["--env", "trimtab-tests/TwoEyes-v0"], "observations are a Dict space; a Box or Discrete"),
        ("grpo", [], "grpo compares answers to the same prompt, which an environment has not; take ppo"),
        ("rloo", [], "rloo compares answers to the same prompt, which an environment has not; take ppo"),
        ("dpo", [], "dpo learns from recorded feedback, not in an environment; take a2c, "),
        ("ppo", ["--clipp", "0.1"], "unknown option --clipp; did you mean --clip?"),
        ("ppo", ["--beta", "0.1"], "unknown option --beta; "),
        ("ppo", ["--kl-target", "6"], "unknown option --kl-target; "),
        ("trpo", ["--parameters", "x"], "unknown option --parameters; "),
        ("a2c", ["--clip", "0.2"], "unknown option --clip; "),
        ("ppo", ["--gamma", "1.5"], "--gamma 1.5: ppo takes values from 0 to 1"),
        ("ppo", ["--gamma", "x"], "--gamma x: expected a number; see trimtab train ppo --help"),
        ("ppo", ["--envs", "0"], "envs is 0; it must be a number above 0"),
        ("ppo", ["--total-steps", "0"], "total_steps is 0; it must be a number above 0"),
        ("ppo", ["--total-steps", "1.5"], "--total-steps 1.5: expected a whole number"),
        ("ppo", ["--learning-rate", "nan"], "learning_rate is nan; it must be a number above 0"),
        ("ppo", ["--max-grad-norm", "-1"], "max_grad_norm is -1; it must be 0 or more"),
        ("ppo", ["--hidden", "8", "0"], "hidden is (8, 0); every layer needs 1 unit or more"),
        ("ppo", ["--log-std", "9"], "log_std is 9; it must be from -20 to 5"),
        ("ppo", ["--activation", "swish"], "invalid choice 'swish' for argument '--activation'"),
        ("ppo", ["--out", "{folder}"], " exists already; choose another --out, or delete it"),
        ("ppo", ["--config", "{folder}/key.yaml"], "key.yaml: unknown key 'stepps'; did you mean 'steps'?"),
        ("ppo", ["--config", "{folder}/a2c.yaml"], "a2c.yaml: holds the options of 'a2c', not of 'ppo'"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(
    method: str, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key.yaml").write_text("stepps: 1\n")
    (tmp_path / "a2c.yaml").write_text("method: a2c\nenvs: 1\n")
    given = words(method, tmp_path / "out", *(word.format(folder=tmp_path) for word in options))
    assert message in refused(given, tmp_path, capsys)


@pytest.mark.parametrize(("seed", "said"), [("-1", "seed is -1"), ("9" * 23, "too large a number")])
def test_a_seed_that_is_none(
    seed: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(words("ppo", tmp_path / "out", "--seed", seed), tmp_path, capsys)


def test_a_wrong_value_is_one_sentence_where_the_output_is_utf_8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in every terminal; pytest's own output says `UTF-8`, which tyro takes for something else."""
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")):
        said = refused(words("ppo", tmp_path / "out", "--gamma", "x"), tmp_path, capsys)
    assert said == "trimtab: --gamma x: expected a number; see trimtab train ppo --help\n"


@pytest.mark.parametrize(("env", "package"), [("Hopper-v5", "mujoco"), ("LunarLander-v3", "Box2D")])
def test_a_package_that_is_missing_has_an_extra_that_brings_it(
    env: str,
    package: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extra = package.lower()
    for name in [n for n in sys.modules if n.startswith((package, f"gymnasium.envs.{extra}"))]:
        monkeypatch.delitem(sys.modules, name)  # as if nothing had imported it yet
    monkeypatch.setitem(sys.modules, package, None)
    said = refused(words("ppo", tmp_path / "out", env=env), tmp_path, capsys)
    assert f"--env {env}: {package} is not installed; pip install 'trimtab[{extra}]'" in said


NAN = "trimtab-tests/NoNumber-v0"


@pytest.mark.parametrize("method", METHODS)
def test_a_reward_that_is_no_number_stops_the_run_and_leaves_no_folder(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(words(method, tmp_path / "out", env=NAN), tmp_path, capsys)
    assert f"{NAN}: it gave rewards that are not finite numbers" in said


@pytest.mark.parametrize("method", ["ppo", "trpo"])
def test_a_reward_that_is_no_number_is_named(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(words(method, tmp_path / "out", env=NAN), tmp_path, capsys)
    assert NAN in said and "reward" in said and "--precision" not in said


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A process in a shell's background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_run_leaves_its_curve_and_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two collections of 8 x 32 steps are learned from; the third is complete, and kept."""
    out = tmp_path / "out"
    given = words("ppo", out, "--steps", "32", env="trimtab-tests/Interrupted-v0", steps=2000)
    Interrupted.taken = 0
    assert main(given) == 130
    said = capsys.readouterr().err
    assert "[WARNING] stopping after this step" in said
    assert f"trimtab: stopped; trimtab resume {out} goes on from here\n" in said
    assert sorted(file.name for file in out.iterdir()) == ["checkpoints", "metrics.jsonl", "trimtab.yaml"]
    assert [file.name for file in (out / "checkpoints").iterdir()] == ["00000002-000000"]
    assert [row["refresh"] for row in curve(out)] == [1, 2]
    assert f"trimtab resume {out}" in refused(given, tmp_path, capsys)
    assert main(["resume", str(out)]) == 0
    assert [row["refresh"] for row in curve(out)] == [*range(1, 10)]
    assert json.loads((out / "state.json").read_text())["refresh"] == 9
    assert weights(out)["actor.body.0.weight"].abs().sum() > 0


def damaged(run: Path, how: str) -> None:
    weights_file, options_file = run / "policy.safetensors", run / "trimtab.yaml"
    if how == "no weights":
        weights_file.unlink()
    elif how == "no options":
        options_file.unlink()
    elif how == "cut":
        weights_file.write_bytes(weights_file.read_bytes()[:1000])
    elif how == "of other networks":
        options_file.write_text(options_file.read_text().replace("- 64", "- 32"))
    elif how == "of another environment":
        options_file.write_text(options_file.read_text().replace("CartPole-v1", "Acrobot-v1"))
    elif how == "of a language model":
        save_file({"model.embed_tokens.weight": torch.zeros(3, 2)}, weights_file)
    elif how == "no environment":
        options_file.write_text(options_file.read_text().replace("env: CartPole-v1\n", ""))
    elif how == "unknown environment":
        options_file.write_text(options_file.read_text().replace("CartPole-v1", "CartPol-v1"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no weights", "no trained control policy is there; pass the --out folder of trimtab train"),
        ("no options", "no trained control policy is there; pass the --out folder of trimtab train"),
        ("of other networks", "policy.safetensors: not the weights of a policy for CartPole-v1 with the"),
        ("of another environment", "policy.safetensors: not the weights of a policy for Acrobot-v1 with the"),
        ("of a language model", "policy.safetensors: not the weights of a policy for CartPole-v1 with the"),
        ("unknown environment", "Gymnasium knows no such environment; did you mean 'CartPole-v1'?"),
        ("cut", "policy.safetensors: damaged ("),
        ("no environment", "trimtab.yaml: the key 'env' is missing"),
    ],
)
def test_what_cannot_play(
    how: str, message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged(run, how)
    assert message in refused(["play", str(run)], tmp_path, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--episodes", "0"], "episodes is 0; it must be a number above 0"),
        (["--seed", "-1"], "seed is -1; it must be from 0 to "),
        (["--vidoe", "x"], "unknown option --vidoe; did you mean --video?"),
    ],
)
def test_wrong_options_of_play(
    options: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(["play", str(run), *options], tmp_path, capsys)


@pytest.mark.parametrize("env", ["CartPole-v1", "MountainCar-v0"])
def test_help_shows_the_settings_for_the_environment_as_defaults(
    env: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "ppo", "--env", env, "--help"])
    assert not end.value.code
    shown = " ".join(re.sub("[│|]", " ", capsys.readouterr().out).split())
    for name, value in preset("ppo", env).items():
        default = re.findall(rf"--{name.replace('_', '-')}[ ,].*?\(default: (.*?)\)", shown)[0]
        assert default == str(value) or float(default) == float(value), name
    assert "--beta" not in shown and "--kl-target" not in shown


def test_training_in_an_environment_imports_nothing_of_language_models(tmp_path: Path) -> None:
    given = words("ppo", tmp_path / "out", steps=100)
    code = f"import sys; from trimtab.cli import main; main({given!r}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {name.split(".")[0] for name in done.stderr.split()}
    assert {"gymnasium", "torch"} <= imported
    assert not {"transformers", "peft", "datasets", "sklearn", "matplotlib", "pandas"} & imported
