"""A record refuses what contradicts itself, in one sentence."""

from typing import Any

import pytest

from trimtab.errors import UserError
from trimtab.feedback.records import Message, Record, as_conversation

USER = Message("user", "1+1?")

BAD: list[tuple[dict[str, Any], str]] = [
    ({"kind": "pairs"}, "unknown kind of feedback 'pairs'; did you mean 'pair'?"),
    ({"kind": "pair", "responses": ("a",)}, "a pair record needs 2 responses, not 1"),
    ({"kind": "pair", "responses": ("a", "a")}, "chosen and rejected are the same"),
    ({"kind": "pair", "responses": ("a", "b"), "margin": -1.0},
     "the margin is -1; it says how much better chosen is, so it is 0 or more"),
    ({"kind": "demonstration", "responses": ("a",), "margin": 1.0}, "a demonstration record has no margin"),
    ({"kind": "demonstration"}, "a demonstration record needs 1 response, not 0"),
    ({"kind": "demonstration", "responses": (" \n",)}, "empty response"),
    ({"kind": "demonstration", "responses": (3,)}, "the response must be text, not a number"),
    ({"kind": "demonstration", "responses": ("\ud83d",)},
     "the response holds half of a character (U+D83D), which is not valid text"),
    ({"kind": "ranking", "responses": ("a",), "ranks": (0,)},
     "a ranking record needs at least 2 responses, not 1"),
    ({"kind": "ranking", "responses": ("a", "b"), "ranks": (0,)},
     "the numbers of responses (2) and ranks (1) differ"),
    ({"kind": "ranking", "responses": ("a", "b"), "ranks": (1, 2)}, "the best rank must be 0, not 1"),
    ({"kind": "score", "responses": ("a",), "scores": (float("nan"),)}, "a score is not a finite number"),
    ({"kind": "score", "responses": ("a",)}, "the numbers of responses (1) and scores (0) differ"),
    ({"kind": "pair", "responses": ("a", "b"), "ranks": (0, 1)}, "a pair record has no ranks"),
    ({"kind": "thumbs", "responses": ("a",)}, "a thumbs record needs a label"),
    ({"kind": "prompt", "desirable": True}, "a prompt record has no label"),
    ({"kind": "prompt", "responses": ("a",)}, "a prompt record needs 0 responses, not 1"),
    ({"kind": "prompt", "prompt": ()}, "the prompt is a conversation without turns"),
    ({"kind": "prompt", "prompt": (USER, Message("assistant", "2"))},
     "the prompt ends with an assistant turn, so it already holds a response"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_a_contradiction_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Record(**{"prompt": "1+1=", **fields})
    assert str(error.value) == message


def test_an_unknown_role_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^unknown role 'asistant'; did you mean 'assistant'\?$"):
        Message("asistant", "hello")


def test_records_compare_by_value_and_can_be_hashed() -> None:
    first = Record("pair", (USER,), ("2", "3"), columns={"topic": ["sums"]})
    assert first == Record("pair", (USER,), ("2", "3"), columns={"topic": ["sums"]})
    assert len({first, Record("pair", (USER,), ("2", "3"), columns={"topic": ["sums"]})}) == 1


def test_text_becomes_a_user_turn() -> None:
    assert as_conversation("1+1?") == (USER,)
    assert as_conversation("") == ()
    assert as_conversation((USER,)) == (USER,)
