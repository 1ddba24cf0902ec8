"""Rewards by name: functions, reward models, and what they must not return."""

from pathlib import Path

import pytest
import torch
from tests import tiny
from transformers import AutoModelForSequenceClassification

from trimtab.errors import UserError
from trimtab.policies.load import ModelConfig, load_reward_model
from trimtab.rollouts.rewards import checked, load_reward


@pytest.fixture
def reward_file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(
        "def length(prompts, responses):\n"
        "    return [len(p) + len(r) / 10 for p, r in zip(prompts, responses)]\n"
        "def broken(prompts, responses):\n"
        "    total = 1\n"
        "    return [total / 0]\n"
    )
    return file


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    load_reward_model(ModelConfig(tiny.model_folder(), precision="fp32"), seed=1).save(folder)
    return folder


def test_a_function_of_a_file(reward_file: Path) -> None:
    reward = load_reward(f"{reward_file}:length")
    assert list(reward(["ab", "c"], ["xyz", ""])) == [2.3, 1.0]


def test_a_reward_model_scores_as_transformers_does(model_folder: Path) -> None:
    reward = load_reward(str(model_folder))
    model = AutoModelForSequenceClassification.from_pretrained(model_folder)
    responses = [" good and a joy.", " bad.", ""]
    tokenizer = load_reward_model(ModelConfig(str(model_folder)), trainable=False).tokenizer
    for response, score in zip(responses, reward(["the film is"] * 3, responses), strict=True):
        ids = [*tokenizer("the film is" + response).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            expected = float(model(input_ids=torch.tensor([ids])).logits[0, 0])
        # bf16 matrix products where the machine has them
        assert score == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "nothing: not a reward; pass a reward model's folder"),
        ("no.py:length", r"no\.py: there is no such file"),
        ("{file}:lenght", "has no function 'lenght'; did you mean 'length'?"),
        ("{model}", "not a reward model: it has no score head; train one first"),
    ],
)
def test_names_that_are_no_reward(reward_file: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_reward(name.format(file=reward_file, model=tiny.model_folder()))


def test_what_the_users_function_raises_is_named_with_its_line(
    reward_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reward_file.parent)
    reward = load_reward("mine.py:broken")
    with pytest.raises(UserError, match=r"mine\.py:5: the reward failed with ZeroDivisionError"):
        reward(["a"], ["b"])


def test_a_file_that_cannot_be_imported(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("x = 1\nimport nothing_of_this_name\n")
    with pytest.raises(UserError, match=r"mine\.py:2: the reward failed with ModuleNotFoundError"):
        load_reward(f"{file}:f")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0], "reward r: gave 1 scores for 2 responses"),
        ([1.0, float("nan")], "reward r: gave nan for 'y' to 'b'; a score must be a finite number"),
        ([1.0, float("inf")], "gave inf"),
        ([1.0, None], "must give one number for each response"),
        (0.5, "must give one number for each response"),
    ],
)
def test_what_a_reward_must_not_return(given: object, message: str) -> None:
    reward = checked(lambda prompts, responses: given, "r")  # type: ignore[arg-type, return-value]
    with pytest.raises(UserError, match=message):
        reward(["a", "b"], ["x", "y"])
