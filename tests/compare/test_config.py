"""The YAML of a comparison: the runs that it asks for, and what is wrong with it before anything runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from trimtab.compare.config import CompareConfig, grid, load_config
from trimtab.compare.results import Strength
from trimtab.errors import UserError

GOOD: dict[str, Any] = {
    "model": "m",
    "data": "d.jsonl",
    "rewards": {"gold": "r.py:f"},
    "methods": {"dpo": {"beta": 0.5}},
}


def config(**changes: Any) -> CompareConfig:
    return CompareConfig(**{**GOOD, **changes})


def loaded(tmp_path: Path, **changes: Any) -> CompareConfig:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({**GOOD, **changes}, sort_keys=False))
    return load_config(file)


def test_lists_are_swept_and_seeds_are_outermost() -> None:
    methods = {"dpo": {"beta": [0.1, 1], "learning_rate": [1e-4, 2e-4]}, "orpo": None}
    assert [run.key for run in grid(config(methods=methods, seeds=[3, 5]))] == [
        f"{cell}/seed={seed}"
        for seed in (3, 5)
        for cell in (
            "dpo/beta=0.1/learning_rate=0.0001",
            "dpo/beta=1.0/learning_rate=0.0001",
            "dpo/beta=0.1/learning_rate=0.0002",
            "dpo/beta=1.0/learning_rate=0.0002",
            "orpo",
        )
    ]


def test_a_run_knows_its_strength_parameters_and_folder() -> None:
    methods = {"dpo_kl": {"kl_weight": [1], "beta": 0.3}, "kto": {"desirable_weight": 2.0}, "sft": {}}
    dpo_kl, kto, sft = grid(config(methods=methods))
    assert dpo_kl.strength == Strength("kl_weight", 1.0)
    assert dpo_kl.folder == "runs/dpo_kl-beta=0.3-kl_weight=1.0-seed=0"
    assert dpo_kl.build().kl_weight == 1.0  # type: ignore[attr-defined]
    assert kto.strength == Strength("beta", 0.1)  # the method's own
    assert sft.strength is None and sft.key == "sft/seed=0"


def test_one_value_is_one_run_however_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    text = yaml.safe_dump({k: v for k, v in GOOD.items() if k != "methods"})
    for value in ("1e-1", "0.1", "0.10", "[0.1]"):
        file.write_text(text + f"methods: {{dpo: {{beta: {value}, learning_rate: 2e-4}}}}\n")
        assert [run.key for run in grid(load_config(file))] == ["dpo/beta=0.1/learning_rate=0.0002/seed=0"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {}}, "methods: name at least one method"),
        ({"methods": {"dop": {}}}, "unknown method 'dop'; did you mean 'dpo'?"),
        ({"methods": {"dpo": {"betta": 1}}}, "dpo: unknown key 'betta'; did you mean 'beta'?"),
        ({"methods": {"dpo": {"beta": ["x"]}}}, "dpo: beta: expected a number, found 'x'"),
        ({"methods": {"dpo": {"beta": -1}}}, "--beta -1.0: dpo takes values from 1e-06 to 1000"),
        ({"methods": {"dpo": {"beta": [0.1, 0.1]}}}, "methods: dpo has the same value twice"),
        ({"methods": {"dpo": {"learning_rate": "x"}}}, "dpo: learning_rate[0]: expected a number, found 'x'"),
        ({"methods": {"dpo": {"learning_rate": 0}}}, "learning_rate is 0; it must be a number above 0"),
        (
            {"methods": {"reward_model": {}}},
            "reward_model trains a reward model; put it under",
        ),
        ({"methods": ["dpo"]}, "methods: expected keys and values, found ['dpo']"),
        ({"rewards": {}}, "nothing to compare by: give `reward_model`, or a reward under `rewards`"),
        ({"rewards": {"kl": "r.py:f"}}, "rewards: the name 'kl' is taken by another measure"),
        ({"rewards": {"proxy": "r"}, "reward_model": {}}, "rewards: the name 'proxy' is taken"),
        ({"seeds": []}, "seeds is []; it must hold at least one number, and none twice"),
        ({"seeds": [1, 1]}, "seeds is [1, 1]; it must hold"),
        ({"held_out": 1.5}, "held_out is 1.5; it must be from 0 to 1"),
        ({"jobs": -1}, "jobs is -1; it must be 0 or more"),
        ({"bugdet": {}}, "unknown key 'bugdet'; did you mean 'budget'?"),
        ({"budget": {"steps": 0}}, "budget: steps is 0; it must be a number above 0"),
        ({"budget": {"step": 1}}, "budget: unknown key 'step'; did you mean 'steps'?"),
        ({"evaluation": {"temperature": -1}}, "evaluation: temperature is -1; it must be 0 or more"),
        ({"evaluation": {"prompts": 0}}, "evaluation: prompts is 0; it must be a number above 0"),
        ({"collect": {"reward": "r", "samples": 1}}, "collect: samples is 1; it must be 2 or more"),
        ({"collect": {}}, "collect: the key 'reward' is missing"),
        ({"reward_model": {"method": "dpo"}}, "reward_model: method: 'dpo' is not known"),
        ({"sft": {"data": "x", "run": {"batch_size": 0}}}, "sft: run: batch_size is 0"),
        ({"keep": "some"}, "keep: 'some' is not known"),
        ({"online": {"reward": "glod"}}, "online: there is no reward 'glod'; did you mean 'gold'?"),
        ({"online": {"reward": "proxy"}}, "online: there is no reward 'proxy'; known: gold"),
        ({"online": {"refreshs": 1}}, "online: unknown key 'refreshs'; did you mean 'refreshes'?"),
        ({"online": {"refreshes": 0}}, "online: refreshes is 0; it must be a number above 0"),
        ({"online": {"responses": -1}}, "online: responses is -1; it must be a number above 0"),
        ({"online": {"minibatch": 0}}, "online: minibatch is 0; it must be a number above 0"),
        ({"online": {"refreshes": 1.5}}, "online: refreshes: expected a whole number, found 1.5"),
        ({"methods": {"ppo": {"clip": 0}}}, "--clip 0.0: ppo takes values from 1e-06 to 1000"),
        ({"methods": {"grpo": {"aggregation": "mean"}}}, "grpo: aggregation: 'mean' is not known"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, **changes)
    assert str(caught.value).startswith(f"{tmp_path}/c.yaml: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rewards_are_in_order_and_the_proxy_is_last(tmp_path: Path) -> None:
    both = loaded(tmp_path, rewards={"gold": "r.py:f", "brief": "r.py:g"}, reward_model={})
    assert both.reward_names == ["gold", "brief", "proxy"]
    assert loaded(tmp_path).reward_names == ["gold"]


def test_online_methods_learn_from_the_proxy_unless_another_reward_is_named(tmp_path: Path) -> None:
    assert loaded(tmp_path).learned_reward == "gold"
    rewards = {"gold": "r.py:f", "brief": "r.py:g"}
    both = loaded(tmp_path, rewards=rewards, reward_model={})
    assert both.learned_reward == "proxy"
    assert loaded(tmp_path, rewards=rewards).learned_reward == "gold"
    for name in ("brief", "proxy"):
        named = loaded(tmp_path, rewards=rewards, reward_model={}, online={"reward": name})
        assert named.learned_reward == name


def test_online_and_offline_methods_share_a_grid(tmp_path: Path) -> None:
    methods = {
        "dpo": {},
        "ppo": {"beta": [0, 0.1], "learning_rate": 1e-5},
        "grpo": {"aggregation": ["grpo", "dapo"]},
        "trpo": {"max_kl": 0.02},
    }
    runs = grid(loaded(tmp_path, methods=methods))
    assert [run.key for run in runs] == [
        "dpo/seed=0",
        "ppo/beta=0.0/learning_rate=1e-05/seed=0",
        "ppo/beta=0.1/learning_rate=1e-05/seed=0",
        "grpo/aggregation=grpo/seed=0",
        "grpo/aggregation=dapo/seed=0",
        "trpo/max_kl=0.02/seed=0",
    ]
    assert runs[2].strength == Strength("beta", 0.1)
    assert runs[4].build().aggregation == "dapo"  # type: ignore[attr-defined]
