"""What the columns of a row hold: conversations, responses, labels, scores, transcripts.

Every function raises UserError, one sentence without the row's place, for a value it cannot read.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.errors import UserError
from trimtab.feedback.records import Message, Prompt, as_conversation, check_text, shown, type_name

Row = Mapping[str, Any]

ROLE_NAMES = {"human": "user", "prompter": "user", "gpt": "assistant", "observation": "tool"}

LABELS = {"true": True, "1": True, "up": True, "yes": True, "good": True, "👍": True}
LABELS |= {"false": False, "0": False, "-1": False, "down": False, "no": False, "bad": False, "👎": False}

TEXT_OR_MESSAGES = "text or a list of messages"
ENCODER = json.JSONEncoder(ensure_ascii=False, default=str)
TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def text(value: Any, column: str) -> str:
    """The value itself, if it is text."""
    check_text(value, f"{column!r}")
    return value


def messages(value: Any, column: str, expected: str = "a list of messages") -> tuple[Message, ...]:
    """A list of turns, written as role/content (Hugging Face) or from/value (ShareGPT).

    expected: what else the caller takes in this column, for the error message.
    """
    if not isinstance(value, list):
        raise UserError(f"{column!r} must be {expected}, not {type_name(value)}")
    return tuple(_message(turn, f"message {n} of {column!r}") for n, turn in enumerate(value, start=1))


def _message(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise UserError(f"{place} must be an object with a role and a content, not {type_name(turn)}")
    role, content = ("from", "value") if "from" in turn else ("role", "content")
    for key in (role, content):
        if key not in turn:
            raise UserError(f"{place} has no {key!r}")
    if turn.get("tool_calls"):
        raise UserError(f"{place} calls a tool; only turns of text are supported")
    name = text(turn[role], f"{role} of {place}")
    return Message(ROLE_NAMES.get(name, name), _content(turn[content], place))


def _content(value: Any, place: str) -> str:
    """Text, or a list of text parts as multimodal templates write it."""
    if not isinstance(value, list):
        check_text(value, f"the content of {place}")
        return value
    for part in value:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise UserError(f"{place} holds something other than text; only text is supported")
    return "".join(part["text"] for part in value)


def last_turn(turns: Sequence[Message], column: str) -> tuple[tuple[Message, ...], str]:
    """Splits a conversation into what comes before its last turn, and the response in it."""
    if not turns:
        raise UserError(f"{column!r} is a conversation without turns")
    if turns[-1].role != "assistant":
        raise UserError(f"{column!r} ends with a {turns[-1].role} turn, so it holds no response")
    return tuple(turns[:-1]), turns[-1].content


def prompt(row: Row) -> Prompt:
    """The prompt of a row that has a column for it.

    `prompt` is text or messages; `question` and `instruction` (with `input`, `history`) and `conversations`
    are one side of a conversation. A `system` column puts a system turn first.
    """
    found: Prompt
    if "conversations" in row:
        found = messages(row["conversations"], "conversations")
    elif "instruction" in row:
        found = _alpaca(row)
    elif "question" in row:
        found = (Message("user", text(row["question"], "question")),)
    elif isinstance(row["prompt"], str):
        found = text(row["prompt"], "prompt")
    else:
        found = messages(row["prompt"], "prompt", TEXT_OR_MESSAGES)
    return (*system_turn(row), *as_conversation(found)) if system_turn(row) else found


def system_turn(row: Row) -> tuple[Message, ...]:
    """What the `system` column says, as a turn; none if there is no such column or it is empty."""
    said = optional(row, "system")
    return (Message("system", said),) if said else ()


def optional(row: Row, column: str) -> str:
    """The text of a column that may be missing or empty."""
    value = row.get(column)
    return "" if value is None else text(value, column)


def _alpaca(row: Row) -> tuple[Message, ...]:
    """Alpaca: `input` follows `instruction` on a new line; `history` holds earlier [question, answer]."""
    turns = []
    history = [] if row.get("history") in (None, "") else row["history"]
    if not isinstance(history, list):
        raise UserError(f"'history' must be a list of [question, answer], not {type_name(history)}")
    for exchange in history:
        if not (isinstance(exchange, list) and len(exchange) == 2):
            raise UserError("'history' must be a list of [question, answer]")
        question, answer = exchange
        turns += [Message("user", question), Message("assistant", answer)]
    parts = [text(row["instruction"], "instruction"), optional(row, "input")]
    asked = "\n".join(part for part in parts if part)
    if not asked:
        raise UserError("'instruction' is empty")
    return (*turns, Message("user", asked))


def answered(asked: Prompt, value: Any, column: str) -> tuple[Prompt, str]:
    """The prompt and the response in `value`: text, one message, or messages that end with the response.

    A response written as messages makes a conversation of a text prompt. Its messages may repeat the prompt,
    as UltraFeedback's do, but not add to it.
    """
    if isinstance(value, str):
        return asked, text(value, column)
    turns = messages([value] if isinstance(value, dict) else value, column, TEXT_OR_MESSAGES)
    before, response = last_turn(turns, column)
    asked = as_conversation(asked)
    if not before:
        return asked, response
    if asked and before[-len(asked) :] != asked:
        raise UserError(f"the turns before the response in {column!r} differ from the prompt")
    return before, response


def responses(asked: Prompt, values: Any, column: str) -> tuple[Prompt, tuple[str, ...]]:
    """The prompt and all responses of a list whose items are as in `answered`."""
    if not isinstance(values, list):
        raise UserError(f"{column!r} must be a list of responses, not {type_name(values)}")
    if not values:
        raise UserError(f"{column!r} is an empty list")
    both = [answered(asked, value, column) for value in values]
    if any(prompt != both[0][0] for prompt, _ in both):
        raise UserError(f"the responses in {column!r} answer different prompts")
    return both[0][0], tuple(response for _, response in both)


def transcript(value: Any, column: str) -> tuple[Message, ...]:
    r"""An HH-RLHF transcript: "\n\nHuman: ...\n\nAssistant: ..."."""
    _, *parts = TURN.split(text(value, column).lstrip())
    roles = ["user" if name == "Human" else "assistant" for name in parts[::2]]
    return tuple(Message(role, said.strip()) for role, said in zip(roles, parts[1::2], strict=True))


def is_transcript(value: Any) -> bool:
    """Whether text is an HH-RLHF transcript."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def common_prefix(first: str, second: str) -> int:
    """How many characters of two texts are their shared prompt.

    As TRL's `extract_prompt`, the space before the first difference belongs to the responses; unlike it, a
    word of ASCII letters is never cut in two, since its tokens would differ from those of the whole word.
    """
    shorter = min(len(first), len(second))
    end = next((place for place in range(shorter) if first[place] != second[place]), shorter)
    while end and _is_word(first[end - 1]) and any(_is_word(t[end : end + 1]) for t in (first, second)):
        end -= 1
    return end - 1 if end and first[end - 1] == " " else end


def _is_word(character: str) -> bool:
    return character.isascii() and character.isalnum()


def label(value: Any, column: str) -> bool:
    """A thumbs-up or thumbs-down: a bool, 1 and 0 (or -1), or a word in LABELS in any case."""
    name = str(int(value)) if isinstance(value, bool | float) and value in (0, 1, -1) else str(value)
    name = name.strip().lower()
    if name[:1] in ("👍", "👎"):  # with or without a skin tone
        name = name[:1]
    if name not in LABELS:
        raise UserError(f"{column!r} is {_shown(value)}; a label is true or false, 1 or 0, up or down")
    return LABELS[name]


def number(value: Any, column: str) -> float:
    """A number, or text that holds one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UserError(f"{column!r} must be a number, not {type_name(value)}")
    try:
        if isinstance(value, str) and "_" in value:
            raise ValueError("Python reads 1_5 as 15, which hardly anybody means")
        return float(value)
    except (ValueError, OverflowError):
        raise UserError(f"{column!r} is {_shown(value)}, which is not a number") from None


def numbers(values: Any, column: str) -> tuple[float, ...]:
    """A list of numbers."""
    if not isinstance(values, list):
        raise UserError(f"{column!r} must be a list of numbers, not {type_name(values)}")
    return tuple(number(value, column) for value in values)


def ranks(values: Any, column: str) -> tuple[int, ...]:
    """A list of whole ranks, made dense: the best becomes 0, the next 1, equal ones stay equal."""
    found = numbers(values, column)
    if not all(rank.is_integer() for rank in found):
        raise UserError(f"{column!r} must hold whole numbers, 0 for the best")
    place = {rank: n for n, rank in enumerate(sorted(set(found)))}
    return tuple(place[rank] for rank in found)


def _shown(value: Any) -> str:
    return "empty" if value in ("", None) else shown(value)


def check_writable(columns: Row) -> None:
    """Raises UserError if one of these columns, or its name, cannot be written as UTF-8."""
    if columns and not _is_writable(columns):
        bad = next(name for name, value in columns.items() if not _is_writable({name: value}))
        raise UserError(f"the column {shown(bad)} holds half of a character, which is not valid text")


def _is_writable(columns: Row) -> bool:
    try:
        ENCODER.encode(columns).encode()
    except UnicodeEncodeError:
        return False
    return True
