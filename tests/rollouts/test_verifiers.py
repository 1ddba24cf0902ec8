"""Verifiers against answers written by hand, and against every answer of GSM8K."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

from trimtab.errors import UserError
from trimtab.rollouts.verifiers import VERIFIERS, Exact, Length, Regex, shown

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def right(response: str, answer: object) -> bool:
    (score,) = Exact()(["p"], [response], {"answer": [answer]})
    assert score in (0.0, 1.0)
    return bool(score)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("#### 12", "#### 12"),
        ("12", "She has 3 * 4 = 12 eggs.\n#### 12"),
        ("First 3, then 4, so 12 in all", "12"),
        ("The answer is 12.", "12"),
        ("The answer is 12.00.", "12"),
        ("#### 12", "12.0"),
        ("#### 1,234", "1234"),
        ("It costs $1,234,567.50 today.", "1234567.5"),
        ("#### $12", "12"),
        ("#### 12 €", "12"),
        ("That is 25%.", "25"),
        ("25", "25%."),
        ("+7", "7"),
        ("#### -7", "-7"),
        ("It falls to -$7.", "-7"),
        ("It falls to $-7.", "-7"),
        ("x = −7", "-7"),  # Unicode's minus
        ("So 16-7", "7"),
        ("between 3 and (-7)", "-7"),
        ("-0.0", "0"),
        ("#### .5", "0.50"),
        ("The factors are 1, 2, 3", "3"),
        ("the numbers 1,2345", "2345"),  # commas stand before three digits each
        ("#### 12 eggs of the 16", "12"),
        ("#### 12\n\nQuestion: what is 5 + 6?", "12"),
        ("#### 3\nNo, wait.\n#### 12", "12"),
        ("#### Step 2: add\n5 + 7, so the answer is **12**.", "12"),
        ("1e3", "1000"),
        ("about 12", 12),
        ("about 12", 12.0),
        ("  Paris\n", "Paris"),
        ("The Seine is in ...\n#### Paris", "Paris"),
        ("Paris", "The Seine is in ...\n#### Paris"),
        ("1/2", "1/2"),
    ],
)
def test_right_answers(response: str, answer: object) -> None:
    assert right(response, answer)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("#### 13", "12"),
        ("12 or 13", "12"),
        ("I do not know", "12"),
        ("", "12"),
        ("12, but #### unknown", "12"),
        ("#### 12, no: 13", "13"),
        ("#### -7", "7"),
        ("16 - 7", "-7"),
        ("1,234", "1.234"),
        ("1234,567", "1234567"),  # commas stand before three digits each
        ("1,2345", "12345"),
        ("12.01", "12"),
        ("paris", "Paris"),
        ("It is Paris", "Paris"),
        ("0.5", "1/2"),
        ("2", "1/2"),
        ("1e9999999999999999999", "1"),
    ],
)
def test_wrong_answers(response: str, answer: object) -> None:
    assert not right(response, answer)


@pytest.mark.parametrize("name", ["train", "test"])
def test_every_answer_of_gsm8k(name: str) -> None:
    with (DATA / f"gsm8k/{name}.jsonl").open(encoding="utf-8") as file:
        answers = [json.loads(line)["answer"] for line in file]
    numbers = [Decimal(answer.split("#### ")[1].replace(",", "")) for answer in answers]
    assert len(answers) == {"train": 7473, "test": 1319}[name]
    all_right = [1.0] * len(answers)
    prompts = ["p"] * len(answers)

    def scores(responses: list[str]) -> list[float]:
        return Exact()(prompts, responses, {"answer": answers})

    assert scores(answers) == all_right
    assert scores([f"#### {number}" for number in numbers]) == all_right
    assert scores([answer.replace("####", "The answer is") + "." for answer in answers]) == all_right
    assert scores([f"From 5 to 1,000: ${number:,}.00" for number in numbers]) == all_right
    assert not any(scores([f"#### {number + 1}" for number in numbers]))
    neighbours = scores([*answers[1:], answers[0]])
    repeated = [a == b for a, b in zip([*numbers[1:], numbers[0]], numbers, strict=True)]
    assert neighbours == repeated and any(repeated) and not all(repeated)


def test_scores_stand_in_the_order_of_the_responses() -> None:
    columns = {"solution": ["1", "2", "3"], "answer": ["7", "8", "9"]}
    assert Exact("solution")(["p"] * 3, ["1", "8", "3"], columns) == [1.0, 0.0, 1.0]


def test_a_column_that_is_missing_or_empty() -> None:
    with pytest.raises(
        UserError, match=r"no column 'answer' to compare with; they have solution, level; nam"
    ):
        Exact()(["p"], ["1"], {"solution": ["1"], "level": [3]})
    with pytest.raises(UserError, match="they have none"):
        Exact()(["p"], ["1"])
    with pytest.raises(UserError, match="the record of the prompt 'q' has no 'answer' to compare"):
        Exact()(["p", "q"], ["1", "2"], {"answer": ["1", None]})


def test_a_pattern_is_searched_for_anywhere() -> None:
    reward = Regex(r"<answer>\d+</answer>$")
    assert reward(["p"] * 3, ["so <answer>12</answer>", "<answer>x</answer>", "12"]) == [1.0, 0.0, 0.0]
    with pytest.raises(UserError, match=r"^reward regex:\(a: not a regular expression \(missing \), unterm"):
        Regex("(a")


def test_length_costs_nothing_up_to_the_limit_and_then_falls_in_a_line() -> None:
    assert Length(10)(["p"] * 5, ["", "a" * 10, "a" * 15, "a" * 20, "a" * 30]) == [0, 0, -0.5, -1, -2]


@pytest.mark.parametrize("limit", ["", "0", "-5", "1.5", "many"])
def test_what_is_no_limit(limit: str) -> None:
    with pytest.raises(UserError, match=f"reward length:{limit}: the limit must be a whole number"):
        VERIFIERS["length"](limit)


def test_what_follows_the_colon_makes_the_verifier() -> None:
    made = [VERIFIERS[name](text) for name, text in (("exact", ""), ("exact", "b"), ("length", "400"))]
    assert made == [Exact("answer"), Exact("b"), Length(400)]


def test_long_values_are_cut_in_messages() -> None:
    assert shown("a" * 300) == "'" + "a" * 199 + "..."
    assert shown("a" * 198) == "'" + "a" * 198 + "'"
