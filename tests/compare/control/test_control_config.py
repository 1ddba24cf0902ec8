"""The YAML of a comparison in environments: its runs, and what is wrong with it before training."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from trimtab.compare.control.config import ControlCompareConfig, Run, grid, load_config
from trimtab.errors import UserError

GOOD: dict[str, Any] = {"envs": ["CartPole-v1"], "methods": {"ppo": {"clip": 0.5}}}


def config(**changes: Any) -> ControlCompareConfig:
    return ControlCompareConfig(**{**GOOD, **changes})


def loaded(tmp_path: Path, **changes: Any) -> ControlCompareConfig:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({**GOOD, **changes}, sort_keys=False))
    return load_config(file)


def options(run: Run, settings: dict[str, Any]) -> dict[str, Any]:
    job = run.job(settings, Path("out"))
    return {**vars(job.method), **vars(job.environment), **vars(job.network), **vars(job.run)}


def test_lists_are_swept_with_seeds_outermost_and_an_untrained_run_for_each() -> None:
    methods = {"ppo": {"clip": [0.2, 1000], "learning_rate": [1e-4, 1e-3]}, "trpo": None}
    config_ = config(methods=methods, seeds=[3, 5], envs=["CartPole-v1", "Acrobot-v1"])
    assert [run.key for run in grid(config_)] == [
        f"{env}/{cell}/seed={seed}"
        for seed in (3, 5)
        for env in ("CartPole-v1", "Acrobot-v1")
        for cell in (
            "start",
            "ppo/clip=0.2/learning_rate=0.0001",
            "ppo/clip=0.2/learning_rate=0.001",
            "ppo/clip=1000/learning_rate=0.0001",
            "ppo/clip=1000/learning_rate=0.001",
            "trpo",
        )
    ]


def test_the_preset_gives_way_to_the_settings_and_these_to_the_method() -> None:
    """CartPole-v1's preset of PPO has 8 copies, 32 steps and a discount of 0.98."""
    settings = {"steps": 64, "learning_rate": 0.01, "gamma": 0.9}
    *_, run = grid(
        config(methods={"ppo": {"learning_rate": 0.02, "clip": 0.3}}, settings=settings, seeds=[7])
    )
    found = options(run, settings)
    expected = {"envs": 8, "steps": 64, "gamma": 0.9, "lam": 0.9, "learning_rate": 0.02, "clip": 0.3}
    assert {name: found[name] for name in expected} == expected
    assert (found["env"], found["seed"], found["beta"]) == ("CartPole-v1", 7, 0.0)


def test_an_environment_has_its_own_preset_and_another_the_one_for_all() -> None:
    envs = ["CartPole-v1", "MountainCar-v0"]
    runs = [run for run in grid(config(envs=envs, methods={"ppo": None})) if run.method == "ppo"]
    assert [options(run, {})["steps"] for run in runs] == [32, 256]


def test_a_run_is_named_after_what_stands_under_its_method(tmp_path: Path) -> None:
    methods = {"ppo": {"hidden": [[64, 64], [32]], "steps": 16, "clip_schedule": "linear"}}
    runs = [run for run in grid(loaded(tmp_path, methods=methods)) if run.method == "ppo"]
    assert [run.folder for run in runs] == [
        f"runs/CartPole-v1-ppo-clip_schedule=linear-hidden={sizes}-steps=16-seed=0"
        for sizes in ("64x64", "32")
    ]
    assert options(runs[0], {})["hidden"] == (64, 64)


def test_a_list_of_sizes_is_one_network(tmp_path: Path) -> None:
    one = loaded(tmp_path, methods={"a2c": {"hidden": [16, 8]}}, settings={"hidden": [4]})
    assert [run.key for run in grid(one)][1:] == ["CartPole-v1/a2c/hidden=16x8/seed=0"]


def test_one_value_is_one_run_however_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for value in ("1e-1", "0.1", "0.10", "[0.1]"):
        file.write_text(f"{{envs: [CartPole-v1], methods: {{ppo: {{clip: {value}, learning_rate: 2e-4}}}}}}")
        assert grid(load_config(file))[1].key == "CartPole-v1/ppo/clip=0.1/learning_rate=0.0002/seed=0"


def test_total_steps_stand_in_for_all_others() -> None:
    methods = {"ppo": {"total_steps": 300, "clip": 0.1}, "a2c": None}
    changed = config(methods=methods, settings={"total_steps": 200, "gamma": 0.5}).with_total_steps(77)
    assert changed.methods == {"ppo": {"clip": 0.1}, "a2c": {}}
    assert changed.settings == {"total_steps": 77, "gamma": 0.5}
    assert [options(run, changed.settings)["total_steps"] for run in grid(changed)[1:]] == [77, 77]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {}}, "methods: name at least one method, such as ppo"),
        ({"methods": {"pop": {}}}, "unknown method 'pop'; did you mean 'ppo'?"),
        ({"methods": ["ppo"]}, "methods: expected keys and values, found ['ppo']"),
        (
            {"methods": {"dpo": {}}},
            "methods: dpo learns from recorded feedback, not in an environment; take ",
        ),
        ({"methods": {"grpo": {}}}, "grpo compares answers to the same prompt, which an environment has not"),
        ({"methods": {"ppo": {"clipp": 1}}}, "methods: ppo: unknown option 'clipp'; did you mean 'clip'?"),
        ({"methods": {"ppo": {"beta": 0.1}}}, "methods: ppo: unknown option 'beta'; "),
        ({"methods": {"ppo": {"seed": 1}}}, "methods: ppo: 'seed' is not given here; name it under `seeds`"),
        ({"methods": {"ppo": {"clip": ["x"]}}}, "ppo: clip: expected a number, found 'x'"),
        ({"methods": {"ppo": {"clip": []}}}, "methods: ppo: clip is an empty list"),
        ({"methods": {"ppo": {"clip": 0}}}, "--clip 0.0: ppo takes values from 1e-06 to 1000"),
        ({"methods": {"ppo": {"clip": [0.1, 0.1]}}}, "methods: ppo has the same value twice"),
        ({"methods": {"ppo": {"steps": 0}}}, "ppo: steps is 0; it must be a number above 0"),
        ({"methods": {"ppo": {"hidden": [64, "x"]}}}, "ppo: hidden[1]: expected a whole number, found 'x'"),
        ({"methods": {"ppo": {"max_grad_norm": -1}}}, "max_grad_norm is -1; it must be 0 or more"),
        ({"settings": {"total_step": 9}}, "settings: unknown option of ppo 'total_step'; did you mean 'tot"),
        ({"settings": {"max_kl": 1.0}}, "settings: unknown option of ppo 'max_kl'"),
        ({"settings": {"env": "X"}}, "settings: 'env' is not given here; name it under `envs`"),
        (
            {"settings": {"total_steps": [1, 2]}},
            "settings: total_steps: expected a whole number, found [1, 2]",
        ),
        ({"settings": {"gamma": 2}}, "settings: --gamma 2.0: ppo takes values from 0 to 1"),
        ({"envs": []}, "envs is []; it must hold at least one, and none twice"),
        ({"envs": ["CartPole-v1"] * 2}, "envs is ['CartPole-v1', 'CartPole-v1']; it must hold"),
        (
            {"envs": ["CartPol-v1"]},
            "envs: CartPol-v1: Gymnasium knows no such environment; did you mean 'CartP",
        ),
        ({"envs": ["Blackjack-v1"]}, "Blackjack-v1: observations are a Tuple space"),
        ({"seeds": []}, "seeds is []; it must hold at least one, and none twice"),
        ({"seeds": [1, 1]}, "seeds is [1, 1]; it must hold"),
        ({"seeds": [0, -1]}, "seeds is [0, -1]; a seed must be 0 or more"),
        ({"jobs": -1}, "jobs is -1; it must be 0 or more"),
        ({"evaluation": {"episodes": 0}}, "evaluation: episodes is 0; it must be a number above 0"),
        ({"evaluation": {"episode": 1}}, "evaluation: unknown key 'episode'; did you mean 'episodes'?"),
        ({"score": "trainnig"}, "score: 'trainnig' is not known; did you mean 'training'?"),
        ({"score": "best"}, "score: 'best' is not known; known: deterministic, drawn, training"),
        ({"score": 1}, "score: 1 is not known; known: deterministic, drawn, training"),
        ({"setings": {}}, "unknown key 'setings'; did you mean 'settings'?"),
        ({"model": "m"}, "unknown key 'model'; "),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, **changes)
    assert str(caught.value).startswith(f"{tmp_path}/c.yaml: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)
