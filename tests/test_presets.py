"""Settings for environments: each of them arrives in the job that `trimtab train METHOD --env` makes."""

from pathlib import Path
from typing import Any

import gymnasium
import pytest

from trimtab.cli import main, train_control
from trimtab.config import load_yaml
from trimtab.control_jobs import ControlJob
from trimtab.methods import METHODS
from trimtab.presets import ANY, FOLDER, environments, preset, preset_file
from trimtab.runs import flat_options

SERVED = {"reinforce", "a2c", "ppo", "ppo_kl", "trpo"}
ELSEWHERE = "MountainCar-v0"  # has no settings of its own
SECTIONS = [
    (ELSEWHERE if file == ANY else file.stem, method)
    for file in sorted(FOLDER.glob("*.yaml"))
    for method in load_yaml(file)
]
sections = pytest.mark.parametrize(("env", "method"), SECTIONS)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[ControlJob]:
    """The jobs that were to be run."""
    asked: list[ControlJob] = []

    def run(job: ControlJob, progress: Any, **_: bool) -> dict[str, float]:
        asked.append(job)
        return {}

    monkeypatch.setattr(train_control, "run_control_job", run)
    return asked


def options_of(jobs: list[ControlJob], method: str, env: str, *words: str) -> dict[str, Any]:
    """Every option of the job that the command line makes."""
    assert main(["train", method, "--env", env, "--out", "nowhere", *words]) == 0
    [job] = jobs
    assert job.method.name == method
    jobs.clear()
    return flat_options(job)


@sections
def test_every_setting_arrives_as_the_value_that_is_written(
    env: str, method: str, jobs: list[ControlJob]
) -> None:
    written = load_yaml(ANY if env == ELSEWHERE else FOLDER / f"{env}.yaml")[method]
    options = options_of(jobs, method, env)
    assert options["env"] == env
    for name, value in written.items():
        assert name in options, f"{name} is no option of {method}"
        expected = float(value) if type(options[name]) is float else value  # YAML reads 1e-3 as text
        assert options[name] == expected


@sections
def test_minibatches_are_no_larger_than_the_collection_and_the_budget_no_smaller(
    env: str, method: str, jobs: list[ControlJob]
) -> None:
    options = options_of(jobs, method, env)
    collection = options["envs"] * options["steps"]
    assert (options["minibatch_size"] or collection) <= collection <= options["total_steps"]


def test_what_the_command_line_says_wins(jobs: list[ControlJob]) -> None:
    assert options_of(jobs, "ppo", "CartPole-v1")["gamma"] == 0.98
    options = options_of(jobs, "ppo", "CartPole-v1", "--gamma", "0.5", "--hidden", "7", "9")
    assert (options["gamma"], options["lam"], options["hidden"]) == (0.5, 0.9, (7, 9))


def test_a_file_of_options_wins_over_the_preset(jobs: list[ControlJob], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("gamma: 0.5\nenvs: 3\n")
    words = ("--config", str(tmp_path / "mine.yaml"), "--envs", "5")
    options = options_of(jobs, "ppo", "CartPole-v1", *words)
    assert (options["gamma"], options["lam"], options["envs"]) == (0.5, 0.9, 5)


@pytest.mark.parametrize("env", environments())
def test_every_environment_is_one_of_gymnasium_in_its_newest_version(env: str) -> None:
    name, _, version = env.rpartition("-v")
    known = [int(other.rpartition("-v")[2]) for other in gymnasium.registry if other.startswith(f"{name}-v")]
    assert int(version) == max(known)


def test_every_method_that_an_environment_serves_has_settings_for_any() -> None:
    assert set(load_yaml(ANY)) == SERVED <= set(METHODS)
    assert {method for env, method in SECTIONS if env != ELSEWHERE} <= SERVED


def test_an_environment_without_the_method_takes_the_settings_for_any() -> None:
    assert preset_file("ppo", "CartPole-v1") == FOLDER / "CartPole-v1.yaml"
    assert preset_file("ppo_kl", "CartPole-v1") == preset_file("ppo", ELSEWHERE) == ANY
    assert preset("ppo_kl", "CartPole-v1") == load_yaml(ANY)["ppo_kl"]
    assert preset("dpo", "CartPole-v1") == {}
