"""Rewards by name: functions, reward models, verifiers, sums of them, and what they must not do."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import tiny
from transformers import AutoModelForSequenceClassification

from trimtab.errors import UserError
from trimtab.feedback.records import Message
from trimtab.policies.load import ModelConfig, load_reward_model
from trimtab.rollouts.rewards import Reward, checked, load_reward, load_rewards

CHAT = (Message("system", "Be brief."), Message("user", "Hi"))
COLUMNS = {"answer": ["1", "2"], "level": [3, None]}

MINE = """
import threading

def length(prompts, responses):
    return [len(p) + len(r) / 10 for p, r in zip(prompts, responses)]

def broken(prompts, responses):
    total = 1
    return [total / 0]

def picky(prompts, responses, answer):
    for n, response in enumerate(responses):
        if response == answer[n]:
            raise ValueError("too good")
        yield 1.0

def lonely(prompts, responses):
    if len(responses) > 1:
        raise ValueError("too many")
    return [1.0]

def shifting(prompts, responses):
    raise KeyError(len(responses))

def starred(*both):
    return [float(len(both))] * len(both[1])

def hang(prompts, responses):
    threading.Event().wait(60)

def for_trl(completions, answer, **kwargs):
    return [0.0] * len(completions)

def alone(prompts):
    return [0.0] * len(prompts)
"""


@pytest.fixture
def reward_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(MINE.lstrip())
    return file


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    load_reward_model(ModelConfig(tiny.model_folder(), precision="fp32"), seed=1).save(folder)
    return folder


def always(given: object) -> Reward:
    return lambda prompts, responses, columns=None: given  # type: ignore[return-value]


def write(path: Path, source: str) -> str:
    path.write_text(source)
    return str(path)


def leaves(prompts: object, responses: object, columns: object = None) -> list[float]:
    raise SystemExit(3)


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    return str(error.value)


def test_a_function_of_a_file(reward_file: Path) -> None:
    reward = load_reward(f"{reward_file}:length")
    assert list(reward(["ab", "c"], ["xyz", ""])) == [2.3, 1.0]
    assert list(reward(["ab", "c"], ["xyz", ""], COLUMNS)) == [2.3, 1.0]
    assert list(load_reward("mine.py:starred")(["a"], ["b"], {"answer": ["1"]})) == [2.0]


def test_a_function_gets_the_columns_that_it_names(tmp_path: Path) -> None:
    name = write(
        tmp_path / "r.py",
        "def f(prompts, responses, level, answer='none', *, more=0.5):\n"
        "    return [10 * (v or 0) + (a == r) + more for v, a, r in zip(level, answer, responses)]\n",
    )
    reward = load_reward(f"{name}:f")
    assert reward(["p", "q"], ["1", "x"], {**COLUMNS, "topic": ["a", "b"]}) == [31.5, 0.5]
    assert reward(["p", "q"], ["o", "o"], {"level": [1, 1]}) == [10.5, 11.5]  # "none"[1] is "o"


def test_a_function_with_kwargs_gets_every_column(tmp_path: Path) -> None:
    name = write(
        tmp_path / "r.py",
        "def f(prompts, responses, level, **others):\n"
        "    assert sorted(others) == ['a b', 'answer'] and others['a b'] == [7]\n"
        "    return level\n",
    )
    columns = {
        "answer": ["1"],
        "level": [3],
        "a b": (7,),
        "prompts": ["not these"],
        "responses": ["nor these"],
    }
    assert load_reward(f"{name}:f")(["p"], ["r"], columns) == [3.0]


def test_a_column_that_a_function_requires_and_that_is_missing(reward_file: Path) -> None:
    reward = load_reward("mine.py:picky")
    assert message_of(lambda: reward(["p"], ["r"], {"level": [1], "topic": ["a"]})) == (
        "mine.py: picky needs the column 'answer', which the records lack; they have level, topic; "
        "add it to the data or give the argument a default"
    )
    assert "they have none" in message_of(lambda: reward(["p"], ["r"]))


def test_a_function_gets_conversations_as_plain_values(tmp_path: Path) -> None:
    name = write(
        tmp_path / "r.py",
        "def f(prompts, responses):\n"
        "    assert prompts == ['text', [{'role': 'system', 'content': 'Be brief.'},\n"
        "                                {'role': 'user', 'content': 'Hi'}]]\n"
        "    assert type(responses) is list\n"
        "    return [1, 2]\n",
    )
    assert load_reward(f"{name}:f")(("text", CHAT), ("a", "b")) == [1.0, 2.0]


@pytest.mark.parametrize("function", ["for_trl", "alone"])
def test_a_function_that_takes_other_arguments_is_refused(reward_file: Path, function: str) -> None:
    with pytest.raises(
        UserError, match=rf"{function}\(.*\) must take the prompts and the responses as its fir"
    ):
        load_reward(f"mine.py:{function}")


def test_a_reward_model_scores_as_transformers_does(model_folder: Path) -> None:
    reward = load_reward(str(model_folder))
    model = AutoModelForSequenceClassification.from_pretrained(model_folder)
    responses = [" good and a joy.", " bad.", ""]
    tokenizer = load_reward_model(ModelConfig(str(model_folder)), trainable=False).tokenizer
    scores = reward(["the film is"] * 3, responses, {"answer": ["x"] * 3})
    for response, score in zip(responses, scores, strict=True):
        ids = [*tokenizer("the film is" + response).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            expected = float(model(input_ids=torch.tensor([ids])).logits[0, 0])
        # bf16 matrix products where the machine has them
        assert score == pytest.approx(expected, abs=0.05)


def test_the_built_in_scorer_looks_at_no_columns() -> None:
    texts = ["the film is"] * 2, [" a warm , moving masterpiece .", " a dull , lifeless bore ."]
    reward = load_reward("reviews")
    good, bad = reward(*texts, {"answer": ["x", "y"]})
    assert good > 0.9 and bad < 0.1
    assert list(reward(*texts)) == [good, bad]


@pytest.mark.parametrize(
    ("name", "scores"),
    [("exact", [1, 0]), ("exact:level", [0, 1]), ("regex:^#+ [23]$", [0, 1]), ("length:2", [-1, -1])],
)
def test_verifiers_by_name(name: str, scores: list[float]) -> None:
    columns = {"answer": ["1", "2"], "level": [4, 3]}
    assert list(load_reward(name)(["p", "q"], ["## 1", "## 3"], columns)) == scores


FORMS = "pass a reward model's folder, file.py:function, reviews, exact:COLUMN, regex:PATTERN or length:N"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", f"nothing: not a reward; {FORMS}$"),
        ("exakt:answer", f"exakt:answer: not a reward; {FORMS}; did you mean 'exact'?"),
        ("no.py:length", r"no\.py: there is no such file"),
        ("{file}:lenght", "has no function 'lenght'; did you mean 'length'?"),
        ("{model}", "not a reward model: it has no score head; train one first"),
        ("regex:(", "not a regular expression"),
        ("length:long", "must be a whole number of characters"),
    ],
)
def test_names_that_are_no_reward(reward_file: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_reward(name.format(file=reward_file, model=tiny.model_folder()))


def test_what_the_users_function_raises_is_named_with_its_line_and_sample(reward_file: Path) -> None:
    assert message_of(lambda: load_reward("mine.py:broken")(["a"], ["b"])) == (
        "mine.py:8: the reward failed with ZeroDivisionError: division by zero; "
        "alone, the first sample that fails is 1 of 1: the response 'b' to the prompt 'a'"
    )


@pytest.mark.parametrize("timeout", [None, 30])
def test_the_sample_that_fails_is_found(reward_file: Path, timeout: float | None) -> None:
    reward = load_reward("mine.py:picky", timeout=timeout)
    answers = {"answer": ["1", "2", "3"]}
    assert list(reward([CHAT] * 3, ["a", "b", "c"], answers)) == [1.0, 1.0, 1.0]
    assert message_of(lambda: reward(["p", CHAT, "q"], ["a", "2", "3"], answers)) == (
        "mine.py:13: the reward failed with ValueError: too good; "
        "alone, the first sample that fails is 2 of 3: the response '2' to the prompt "
        "[{'role': 'system', 'content': 'Be brief.'}, "
        "{'role': 'user', 'content': 'Hi'}]"
    )


def test_long_samples_are_cut(reward_file: Path) -> None:
    message = message_of(lambda: load_reward("mine.py:broken")(["p" * 1000], ["r" * 1000]))
    assert message.count("p" * 199 + "...") == 1 and message.count("r" * 199 + "...") == 1
    assert len(message) < 600


def test_a_batch_of_which_no_sample_fails_alone(reward_file: Path) -> None:
    message = message_of(lambda: load_reward("mine.py:lonely")(["p"] * 3, ["a"] * 3))
    assert message.endswith("ValueError: too many; no sample fails alone, only the batch of 3 together")


def test_a_sample_that_fails_in_another_way_alone(reward_file: Path) -> None:
    message = message_of(lambda: load_reward("mine.py:shifting")(["p"] * 3, ["a"] * 3))
    assert message.startswith("mine.py:22: the reward failed with KeyError: 3; alone, the first sample")
    assert message.endswith("(mine.py:22: the reward failed with KeyError: 1)")


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
    with pytest.raises(UserError, match=message):
        checked(always(given), "r")(["a", "b"], ["x", "y"])


def test_a_reward_that_hangs_is_given_up_and_holds_nothing_up(reward_file: Path) -> None:
    reward = load_reward("mine.py:hang", timeout=0.2)
    start = time.monotonic()
    assert message_of(lambda: reward(["p"], ["r"])) == (
        "reward mine.py:hang: took longer than 0.2 seconds; "
        "make it faster, or allow more with --reward-timeout"
    )
    assert time.monotonic() - start < 10
    (left,) = [thread for thread in threading.enumerate() if thread.name == "reward mine.py:hang"]
    assert left.daemon  # only daemons let the process end


def test_a_limit_changes_nothing_else(reward_file: Path, model_folder: Path) -> None:
    texts = ["ab", "c"], ["xyz", ""]
    for name in ("mine.py:length", str(model_folder), "length:2"):
        assert load_reward(name, timeout=60)(*texts) == load_reward(name)(*texts)
    with pytest.raises(SystemExit):
        checked(leaves, "leaves", timeout=60)(["a"], ["b"])


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_what_is_no_limit(timeout: float) -> None:
    with pytest.raises(
        UserError, match=f"--reward-timeout is {timeout:g}; it must be a number of seconds abo"
    ):
        load_reward("exact", timeout=timeout)


def test_a_weighted_sum_and_its_parts() -> None:
    reward = load_rewards(["exact", "0.5*regex:2*3", "-1e-1 * length:2"])
    texts = ["p", "q"], ["1", "0223"], {"answer": ["1", "2"]}
    assert reward.parts(*texts) == {"exact": [1, 0], "regex:2*3": [0, 1], "length:2": [0, -1]}
    assert reward(*texts) == pytest.approx([1.0, 0.6])
    assert reward.total({"length:2": [0, -1], "exact": [1, 1]}) == pytest.approx([1.0, 1.1])


def test_a_sum_is_of_several_different_rewards(reward_file: Path) -> None:
    assert message_of(lambda: load_rewards([])) == f"no reward is given; pass one or several: {FORMS[5:]}"
    with pytest.raises(UserError, match="the reward exact is given twice; give it once, with the weight"):
        load_rewards(["exact", "2*exact"])
    with pytest.raises(UserError, match="1e999\\*exact: the weight must be a finite number"):
        load_rewards(["1e999*exact"])
    with pytest.raises(UserError, match="half\\*exact: not a reward"):
        load_rewards(["half*exact"])
    with pytest.raises(UserError, match=r"reward mine.py:hang: took longer than 0\.1 seconds"):
        load_rewards(["exact", "mine.py:hang"], timeout=0.1)(["p"], ["r"], {"answer": ["1"]})
