"""One record for every kind of feedback: what was asked, what was answered, and what people said of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from trimtab.errors import UserError, nearest
from trimtab.stateful import stateful

Kind = Literal["demonstration", "pair", "ranking", "thumbs", "score", "prompt"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ROLES = ("system", "user", "assistant", "tool")

MOST_COMPARED = 1000  # responses to one prompt, since pairs grow with the square

# How many responses a record of each kind holds: (fewest, most).
RESPONSES: dict[Kind, tuple[int, float]] = {
    "demonstration": (1, 1),
    "pair": (2, 2),
    "ranking": (2, MOST_COMPARED),
    "thumbs": (1, 1),
    "score": (1, math.inf),
    "prompt": (0, 0),
}


@stateful
@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is one of ROLES.

    Raises UserError if the role is unknown or the content is not valid text.
    """

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UserError(f"unknown role {shown(self.role)}; {nearest(str(self.role)[:40], ROLES)}")
        check_text(self.content, f"the {self.role} turn")


Prompt = str | tuple[Message, ...]  # text, or a conversation that ends before the response


@dataclass(frozen=True, slots=True)
class Record:
    """What one row of feedback says. A response is the text of one final assistant turn.

    Raises UserError, one sentence without the row's place, if the fields contradict each other.
    """

    kind: Kind
    prompt: Prompt
    responses: tuple[str, ...] = ()  # demonstration, thumbs 1; pair (chosen, rejected); ranking, score k
    ranks: tuple[int, ...] = ()  # ranking: one for each response, 0 is best, equal ranks are ties
    scores: tuple[float, ...] = ()  # score: one for each response, higher is better, finite
    desirable: bool | None = None  # thumbs
    margin: float | None = None  # pair: how much better chosen is, if known
    source: str = ""  # "file.jsonl:12"
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)  # the row's other columns

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"unknown kind of feedback {self.kind!r}; {nearest(str(self.kind), KINDS)}")
        _check_prompt(self.prompt)
        _check_responses(self)
        _check_judgement(self)


def as_conversation(prompt: Prompt) -> tuple[Message, ...]:
    """The prompt as messages: text becomes one user turn, empty text no turn."""
    if isinstance(prompt, str):
        return (Message("user", prompt),) if prompt else ()
    return prompt


def columns_of(records: Sequence[Record]) -> dict[str, list[Any]]:
    """The records' other columns, each with one value a record, None where a record lacks it."""
    names = dict.fromkeys(name for record in records for name in record.columns)
    return {name: [record.columns.get(name) for record in records] for name in names}


def check_text(value: object, name: str) -> None:
    """Raises UserError unless `value` is text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise UserError(f"{name} must be text, not {type_name(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        character = f"U+{ord(value[error.start]):04X}"
        raise UserError(f"{name} holds half of a character ({character}), which is not valid text") from error


def type_name(value: object) -> str:
    """The JSON name of a value's type, for error messages."""
    names = {
        type(None): "empty (null)",
        str: "text",
        bool: "true or false",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def shown(value: object, most: int = 40) -> str:
    """A value as an error message shows it: without what a terminal would obey, and cut if it is long."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def shown_name(name: object, most: int = 250) -> str:
    """A name of a file or column in an error message; one that cannot be printed in quotes."""
    text = str(name)
    return text if text.isprintable() and len(text) <= most else shown(text, most)


def printable(text: str, most: int = 300) -> str:
    """What a library says, without what a terminal would obey, and cut if it is long."""
    clean = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:most])
    return clean if len(text) <= most else clean + "..."


def _check_prompt(prompt: Prompt) -> None:
    if isinstance(prompt, str):
        check_text(prompt, "the prompt")
        return
    if not prompt:
        raise UserError("the prompt is a conversation without turns")
    if prompt[-1].role == "assistant":
        raise UserError("the prompt ends with an assistant turn, so it already holds a response")


def _check_responses(record: Record) -> None:
    fewest, most = RESPONSES[record.kind]
    count = len(record.responses)
    if not fewest <= count <= most:
        wanted = f"{fewest}" if fewest == most else f"at least {fewest}"
        if count > most > fewest:
            wanted = f"at most {most:,}"
        raise UserError(f"a {record.kind} record needs {wanted} response{'s' * (fewest != 1)}, not {count}")
    for response in record.responses:
        check_text(response, "the response")
        if not response.strip():
            raise UserError("empty response")
    if record.kind == "pair" and record.responses[0] == record.responses[1]:
        raise UserError("chosen and rejected are the same")


def _check_judgement(record: Record) -> None:
    """Each kind has exactly the judgement that belongs to it."""
    count = len(record.responses)
    for name, kind in (("rank", "ranking"), ("score", "score")):
        found = len(getattr(record, name + "s"))
        if record.kind != kind and found:
            raise UserError(f"a {record.kind} record has no {name}s")
        if record.kind == kind and found != count:
            raise UserError(f"the numbers of responses ({count}) and {name}s ({found}) differ")
    if record.ranks and min(record.ranks) != 0:
        raise UserError(f"the best rank must be 0, not {min(record.ranks)}")
    if not all(math.isfinite(score) for score in record.scores):
        raise UserError("a score is not a finite number")
    if (record.desirable is not None) != (record.kind == "thumbs"):
        raise UserError(f"a {record.kind} record {'needs a' if record.kind == 'thumbs' else 'has no'} label")
    if record.margin is not None and record.kind != "pair":
        raise UserError(f"a {record.kind} record has no margin")
    if record.margin is not None and not 0 <= record.margin < math.inf:
        raise UserError(
            f"the margin is {record.margin:g}; it says how much better chosen is, so it is 0 or more"
        )
