"""Each shape of feedback is recognised by its columns and read as a person would read it."""

from typing import Any

import pytest

from trimtab.errors import UserError
from trimtab.feedback.records import Message, Record
from trimtab.feedback.shapes import SHAPES, Shape, recognise


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def one(row: dict[str, Any]) -> Record:
    """The single record in a row."""
    (record,) = recognise(row).records(row)
    return record


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_each_shape_recognises_its_own_sample(shape: Shape) -> None:
    assert recognise(shape.sample) is shape
    assert [record.kind for record in shape.records(shape.sample)] == [shape.kind]


def chat(*turns: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]


READ: list[tuple[str, dict[str, Any], Record]] = [
    ("TRL pair", {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
     Record("pair", "The sky is", (" blue.", " green."))),
    ("TRL pair, messages",
     {"prompt": chat("Sky?"), "chosen": [{"role": "assistant", "content": "Blue."}],
      "rejected": [{"role": "assistant", "content": "Green."}]},
     Record("pair", (user("Sky?"),), ("Blue.", "Green."))),
    ("implicit prompt, text",
     {"chosen": "The sky is blue.", "rejected": "The sky is black."},
     Record("pair", "The sky is", (" blue.", " black."))),
    ("implicit prompt, Chinese", {"chosen": "天空是蓝色", "rejected": "天空是绿色"},
     Record("pair", "天空是", ("蓝色", "绿色"))),
    ("implicit prompt, messages",
     {"chosen": chat("Hi", "Hello", "Sky?", "Blue."), "rejected": chat("Hi", "Hello", "Sky?", "Green.")},
     Record("pair", (user("Hi"), assistant("Hello"), user("Sky?")), ("Blue.", "Green."))),
    ("UltraFeedback",
     {"prompt": "Sky?", "prompt_id": "a1",
      "chosen": chat("Sky?", "Blue."), "rejected": chat("Sky?", "Green."),
      "messages": chat("Sky?", "Blue."), "score_chosen": 8.5, "score_rejected": 6.0},
     Record("pair", (user("Sky?"),), ("Blue.", "Green."), margin=2.5,
            columns={"prompt_id": "a1", "messages": chat("Sky?", "Blue.")})),
    ("HH-RLHF",
     {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sky?\n\nAssistant: Blue.\n\nReally.",
      "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sky?\n\nAssistant: Green."},
     Record("pair", (user("Hi"), assistant("Hello"), user("Sky?")), ("Blue.\n\nReally.", "Green."))),
    ("Orca pair", {"system": "Be brief.", "question": "Sky?", "chosen": "Blue.", "rejected": "Green."},
     Record("pair", (Message("system", "Be brief."), user("Sky?")), ("Blue.", "Green."))),
    ("TRL thumbs", {"prompt": "Sky?", "completion": "Blue.", "label": True},
     Record("thumbs", "Sky?", ("Blue.",), desirable=True)),
    ("CSV thumbs", {"prompt": "Sky?", "completion": "Blue.", "label": "False"},
     Record("thumbs", "Sky?", ("Blue.",), desirable=False)),
    ("thumb", {"prompt": "Sky?", "response": "Green.", "label": "👎🏽"},
     Record("thumbs", "Sky?", ("Green.",), desirable=False)),
    ("TRL messages", {"messages": chat("Sky?", "Blue.")},
     Record("demonstration", (user("Sky?"),), ("Blue.",))),
    ("KTO messages", {"messages": chat("Sky?", "Green."), "label": 0},
     Record("thumbs", (user("Sky?"),), ("Green.",), desirable=False)),
    ("text parts", {"messages": [{"role": "user", "content": [{"type": "text", "text": "Sky?"}]},
                                 {"role": "assistant", "content": "Blue."}]},
     Record("demonstration", (user("Sky?"),), ("Blue.",))),
    ("prompt and completion", {"prompt": "Sky?", "completion": "Blue."},
     Record("demonstration", "Sky?", ("Blue.",))),
    ("tutorial: reward", {"prompt": "Sky?", "completion": "Blue.", "reward": 0.75},
     Record("score", "Sky?", ("Blue.",), scores=(0.75,))),
    ("tutorial: score", {"prompt": "Sky?", "response": "Blue.", "score": "4"},
     Record("score", "Sky?", ("Blue.",), scores=(4.0,))),
    ("tutorial: response", {"prompt": "Sky?", "response": "Blue."},
     Record("demonstration", "Sky?", ("Blue.",))),
    ("prompt", {"prompt": "2+2=", "answer": "4"}, Record("prompt", "2+2=", columns={"answer": "4"})),
    ("prompt, messages", {"prompt": chat("Sky?")}, Record("prompt", (user("Sky?"),))),
    ("text", {"text": "The sky is blue."}, Record("demonstration", "", ("The sky is blue.",))),
    ("labelled text", {"text": "a delight", "positive": True},
     Record("thumbs", "", ("a delight",), desirable=True)),
    ("GSM8K", {"question": "2+2?", "answer": "#### 4"},
     Record("demonstration", (user("2+2?"),), ("#### 4",))),
    ("Alpaca", {"instruction": "Add.", "input": "2 and 2", "output": "4"},
     Record("demonstration", (user("Add.\n2 and 2"),), ("4",))),
    ("Alpaca with history and system",
     {"instruction": "And 3?", "input": "", "output": "6", "system": "Sum.", "history": [["2?", "4"]]},
     Record("demonstration",
            (Message("system", "Sum."), user("2?"), assistant("4"), user("And 3?")), ("6",))),
    ("Alpaca ranking", {"instruction": "天空？", "input": "", "output": ["蓝", "黑", "绿"], "history": []},
     Record("ranking", (user("天空？"),), ("蓝", "黑", "绿"), ranks=(0, 1, 2))),
    ("Alpaca KTO", {"instruction": "Sky?", "output": "Green.", "kto_tag": False},
     Record("thumbs", (user("Sky?"),), ("Green.",), desirable=False)),
    ("ShareGPT", {"system": "Be brief.", "conversations": [{"from": "human", "value": "Sky?"},
                                                           {"from": "gpt", "value": "Blue."}]},
     Record("demonstration", (Message("system", "Be brief."), user("Sky?")), ("Blue.",))),
    ("ShareGPT pair", {"conversations": [{"from": "human", "value": "Sky?"}],
                       "chosen": {"from": "gpt", "value": "Blue."},
                       "rejected": {"from": "gpt", "value": "Green."}},
     Record("pair", (user("Sky?"),), ("Blue.", "Green."))),
    ("ranking with a tie, counted from 1",
     {"prompt": "Sky?", "responses": ["a", "b", "c"], "ranks": [3, 1, 1]},
     Record("ranking", "Sky?", ("a", "b", "c"), ranks=(1, 0, 0))),
    ("scores", {"prompt": "Sky?", "responses": ["a", "b"], "scores": [1, 0.5], "margin": 3},
     Record("score", "Sky?", ("a", "b"), scores=(1.0, 0.5), columns={"margin": 3})),
]  # fmt: skip


@pytest.mark.parametrize(("row", "expected"), [case[1:] for case in READ], ids=[case[0] for case in READ])
def test_a_row_becomes_the_record_it_means(row: dict[str, Any], expected: Record) -> None:
    assert one(row) == expected


def test_a_message_tree_gives_a_ranking_for_every_prompt_with_two_ranked_replies() -> None:
    def node(role: str, text: str, *replies: dict[str, Any], **marks: Any) -> dict[str, Any]:
        return {"role": role, "text": text, "replies": list(replies), **marks}

    follow_up = node(
        "prompter", "Why?",
        node("assistant", "Scattering.", rank=0), node("assistant", "Paint.", rank=2),
        node("assistant", "Because.", rank=None), node("assistant", "Model.", rank=1, synthetic=True),
    )  # fmt: skip
    tree = node(
        "prompter", "Sky?",
        node("assistant", "Green.", rank=1), node("assistant", "Blue.", follow_up, rank=0),
        node("assistant", "Removed.", rank=2, deleted=True),
    )  # fmt: skip
    row = {"message_tree_id": "t", "prompt": tree, "tree_state": "ready"}
    assert recognise(row).records(row, "trees.jsonl:3") == [
        Record("ranking", (user("Sky?"),), ("Green.", "Blue."), ranks=(1, 0), source="trees.jsonl:3",
               columns={"tree_state": "ready"}),
        Record("ranking", (user("Sky?"), assistant("Blue."), user("Why?")), ("Scattering.", "Paint."),
               ranks=(0, 1), source="trees.jsonl:3", columns={"tree_state": "ready"}),
    ]  # fmt: skip


LABEL_HELP = "a label is true or false, 1 or 0, up or down"
BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "a", "chosen": "b", "rejectd": "c"},
     "the columns (chosen, prompt, rejectd) are no known shape; the nearest, 'preference pair', "
     "also needs rejected (did you mean 'rejectd'?)"),
    ({"prompt": "a", "label": True},
     "the columns (label, prompt) are no known shape; the nearest, 'thumbs', "
     "also needs completion or response or output"),
    ({"query_id": 3, "doc": "x"},
     "the columns (doc, query_id) are no known shape; name them for example prompt and completion, "
     "or prompt, chosen and rejected, or prompt, completion and label"),
    ({"prompt": "a", "chosen": None, "rejected": "c"},
     "'chosen' must be text or a list of messages, not empty (null)"),
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
    ({"chosen": "same", "rejected": "same"}, "chosen and rejected are the same"),
    ({"prompt": "a", "completion": "", "label": 1}, "empty response"),
    ({"prompt": "a", "completion": "b", "label": "maybe"}, f"'label' is 'maybe'; {LABEL_HELP}"),
    ({"prompt": "a", "completion": "b", "label": 2}, f"'label' is 2; {LABEL_HELP}"),
    ({"prompt": "a", "completion": "b", "label": None}, f"'label' is empty; {LABEL_HELP}"),
    ({"prompt": "a", "completion": "b", "reward": "high"}, "'reward' is 'high', which is not a number"),
    ({"prompt": "a", "completion": "b", "reward": True}, "'reward' must be a number, not true or false"),
    ({"prompt": "a", "completion": "b", "reward": float("inf")}, "a score is not a finite number"),
    ({"prompt": 3, "completion": "b"}, "'prompt' must be text or a list of messages, not a number"),
    ({"messages": [{"role": "user", "content": "a"}]},
     "'messages' ends with a user turn, so it holds no response"),
    ({"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]},
     "message 1 of 'messages' has no 'content'"),
    ({"messages": [{"role": "asistant", "content": "b"}]},
     "unknown role 'asistant'; did you mean 'assistant'?"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "b"}]},
     "message 1 of 'messages' holds something other than text; only text is supported"),
    ({"messages": ["a", "b"]},
     "message 1 of 'messages' must be an object with a role and a content, not text"),
    ({"messages": []}, "'messages' is a conversation without turns"),
    ({"chosen": chat("a", "b", "c", "d"), "rejected": chat("a", "x", "c", "d")},
     "chosen and rejected differ before the last turn; only the last may differ"),
    ({"prompt": "Sky?", "chosen": chat("Sea?", "b"), "rejected": chat("Sky?", "c")},
     "the turns before the response in 'chosen' differ from the prompt"),
    ({"prompt": "a", "responses": ["b", "c"], "ranks": [0]},
     "the numbers of responses (2) and ranks (1) differ"),
    ({"prompt": "a", "responses": "b", "ranks": [0]}, "'responses' must be a list of responses, not text"),
    ({"prompt": "a", "responses": ["b", "c"], "ranks": [0, 0.5]},
     "'ranks' must hold whole numbers, 0 for the best"),
    ({"prompt": "a", "responses": ["b", "c"], "ranks": [0, float("nan")]},
     "'ranks' must hold whole numbers, 0 for the best"),
    ({"instruction": "a", "output": ["b"]}, "a ranking record needs at least 2 responses, not 1"),
    ({"instruction": "", "output": "b"}, "'instruction' is empty"),
    ({"instruction": "a", "output": "b", "history": ["q"]}, "'history' must be a list of [question, answer]"),
    ({"message_tree_id": "t", "prompt": {"role": "prompter"}},
     "a message of the tree has no 'role' or no 'text'"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 1, "score_rejected": 2},
     "the margin is -1; it says how much better chosen is, so it is 0 or more"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BAD, ids=[case[1][:50] for case in BAD])
def test_a_bad_row_is_refused_in_a_sentence(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        one(row)
    assert str(error.value) == message
