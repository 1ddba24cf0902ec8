"""The shapes in which feedback is written, as one table: SHAPES. The first that a row fits is taken."""

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from trimtab.errors import UserError, nearest
from trimtab.feedback import builders
from trimtab.feedback.builders import LABEL, RESPONSE, SCORE
from trimtab.feedback.columns import Row, check_writable, is_transcript
from trimtab.feedback.records import Kind, Record, shown_name

MOST_NAMED = 20  # columns of a row that no shape fits

PROMPT = "prompt|question"

# Columns that carry feedback: a row that has one but fits no shape for it is not a bare prompt.
FEEDBACK = frozenset(
    {"chosen", "rejected", "completion", "response", "responses", "output", "messages", "conversations"}
    | {"label", "reward", "score", "scores", "ranks"}
)


@dataclass(frozen=True)
class Shape:
    """One way to write feedback. `columns` must be in a row; "a|b" means either; `optional` ones are used."""

    name: str
    kind: Kind
    columns: tuple[str, ...]
    build: Callable[[Row], Iterator[Record]]
    sample: Mapping[str, Any]
    optional: tuple[str, ...] = ()
    fits: Callable[[Row], bool] = field(default=lambda row: True)  # tells apart shapes with the same columns

    def used(self, row: Container[str]) -> list[str]:
        """The columns of the row that this shape reads."""
        found = [next((name for name in names.split("|") if name in row), "") for names in self.columns]
        return [name for name in (*found, *self.optional) if name in row]

    def missing(self, row: Container[str]) -> list[str]:
        """The columns that the row would need to have this shape."""
        return [names for names in self.columns if not any(name in row for name in names.split("|"))]

    def records(self, row: Row, source: str = "") -> list[Record]:
        """The records that a row of this shape holds; the columns not used go along with each."""
        used = self.used(row)
        others = {name: value for name, value in row.items() if name not in used}
        check_writable(others)
        built = self.build({name: row[name] for name in used})
        return [replace(record, source=source, columns=others) for record in built]


_SYSTEM = ("system",)
_ALPACA = ("input", "history", "system")
_MARGIN = ("margin", "score_chosen", "score_rejected")
_USER = {"from": "human", "value": "1+1?"}
_GOOD = {"role": "assistant", "content": "2"}
_CHAT = [{"role": "user", "content": "1+1?"}, _GOOD]

SHAPES: tuple[Shape, ...] = (
    Shape(
        "ranking",
        "ranking",
        (PROMPT, "responses", "ranks"),
        builders.ranking,
        {"prompt": "1+1=", "responses": ["3", "2"], "ranks": [1, 0]},
        _SYSTEM,
    ),
    Shape(
        "scored responses",
        "score",
        (PROMPT, "responses", "scores"),
        builders.scored,
        {"prompt": "1+1=", "responses": ["3", "2"], "scores": [0.1, 0.9]},
        _SYSTEM,
    ),
    Shape(
        "OASST message tree",
        "ranking",
        ("message_tree_id", "prompt"),
        builders.tree,
        {
            "message_tree_id": "1",
            "prompt": {
                "role": "prompter",
                "text": "1+1?",
                "replies": [
                    {"role": "assistant", "text": "3", "rank": 1},
                    {"role": "assistant", "text": "2", "rank": 0},
                ],
            },
        },
        fits=lambda row: isinstance(row["prompt"], dict),
    ),
    Shape(
        "ShareGPT pair",
        "pair",
        ("conversations", "chosen", "rejected"),
        builders.pair,
        {
            "conversations": [_USER],
            "chosen": {"from": "gpt", "value": "2"},
            "rejected": {"from": "gpt", "value": "3"},
        },
        (*_SYSTEM, *_MARGIN),
    ),
    Shape(
        "ShareGPT thumbs",
        "thumbs",
        ("conversations", LABEL),
        builders.conversation_thumbs,
        {"conversations": [_USER, {"from": "gpt", "value": "2"}], "label": True},
        _SYSTEM,
    ),
    Shape(
        "ShareGPT conversation",
        "demonstration",
        ("conversations",),
        builders.conversation,
        {"conversations": [_USER, {"from": "gpt", "value": "2"}]},
        _SYSTEM,
    ),
    Shape(
        "Alpaca pair",
        "pair",
        ("instruction", "chosen", "rejected"),
        builders.pair,
        {"instruction": "1+1?", "input": "", "chosen": "2", "rejected": "3"},
        (*_ALPACA, *_MARGIN),
    ),
    Shape(
        "Alpaca ranking, best first",
        "ranking",
        ("instruction", "output"),
        builders.best_first,
        {"instruction": "1+1?", "input": "", "output": ["2", "3"]},
        _ALPACA,
        fits=lambda row: isinstance(row["output"], list),
    ),
    Shape(
        "Alpaca thumbs",
        "thumbs",
        ("instruction", "output", LABEL),
        builders.thumbs,
        {"instruction": "1+1?", "input": "", "output": "2", "label": True},
        _ALPACA,
    ),
    Shape(
        "Alpaca",
        "demonstration",
        ("instruction", "output"),
        builders.demonstration,
        {"instruction": "1+1?", "input": "", "output": "2"},
        _ALPACA,
    ),
    Shape(
        "preference pair",
        "pair",
        (PROMPT, "chosen", "rejected"),
        builders.pair,
        {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
        (*_SYSTEM, *_MARGIN),
    ),
    Shape(
        "HH-RLHF transcripts",
        "pair",
        ("chosen", "rejected"),
        builders.transcripts,
        {"chosen": "\n\nHuman: 1+1?\n\nAssistant: 2", "rejected": "\n\nHuman: 1+1?\n\nAssistant: 3"},
        _MARGIN,
        fits=lambda row: is_transcript(row["chosen"]) and is_transcript(row["rejected"]),
    ),
    Shape(
        "preference pair, implicit prompt",
        "pair",
        ("chosen", "rejected"),
        builders.implicit_pair,
        {"chosen": "1+1= 2", "rejected": "1+1= 3"},
        _MARGIN,
    ),
    Shape(
        "thumbs",
        "thumbs",
        (PROMPT, RESPONSE, LABEL),
        builders.thumbs,
        {"prompt": "1+1=", "completion": "2", "label": True},
        _SYSTEM,
    ),
    Shape(
        "scored response",
        "score",
        (PROMPT, RESPONSE, SCORE),
        builders.score,
        {"prompt": "1+1=", "completion": "2", "reward": 0.9},
        _SYSTEM,
    ),
    Shape(
        "demonstration",
        "demonstration",
        (PROMPT, RESPONSE),
        builders.demonstration,
        {"prompt": "1+1=", "completion": "2"},
        _SYSTEM,
    ),
    Shape(
        "messages with a label",
        "thumbs",
        ("messages", LABEL),
        builders.conversation_thumbs,
        {"messages": _CHAT, "label": True},
        _SYSTEM,
    ),
    Shape(
        "messages",
        "demonstration",
        ("messages",),
        builders.conversation,
        {"messages": _CHAT},
        _SYSTEM,
    ),
    Shape(
        "question and answer",
        "demonstration",
        ("question", "answer"),
        builders.demonstration,
        {"question": "1+1?", "answer": "2"},
        _SYSTEM,
    ),
    Shape(
        "prompt",
        "prompt",
        ("prompt",),
        builders.prompt_only,
        {"prompt": "1+1="},
        _SYSTEM,
        fits=lambda row: not FEEDBACK & row.keys(),
    ),
    Shape(
        "text with a label",
        "thumbs",
        ("text", LABEL),
        builders.text_thumbs,
        {"text": "1+1=2", "label": True},
    ),
    Shape(
        "text",
        "demonstration",
        ("text",),
        builders.text_only,
        {"text": "1+1=2"},
        fits=lambda row: not FEEDBACK & row.keys(),
    ),
)


def recognise(row: Row) -> Shape:
    """The first shape that the row fits. Raises UserError that lists the columns and the nearest shape."""
    for shape in _complete(frozenset(row)):
        if shape.fits(row):
            return shape
    raise UserError(_unrecognised(frozenset(row)))


@lru_cache(maxsize=1000)  # most rows of a file have the same columns
def _complete(names: frozenset[str]) -> tuple[Shape, ...]:
    """The shapes whose columns are all there."""
    return tuple(shape for shape in SHAPES if not shape.missing(names))


@lru_cache(maxsize=1000)
def _unrecognised(row: frozenset[str]) -> str:
    """Which shape comes nearest: the one with most of its columns found, then fewest missing."""
    ordered = [shown_name(name, 40) for name in sorted(row)]
    more = f", and {len(row) - MOST_NAMED:,} more" if len(row) > MOST_NAMED else ""
    names = ", ".join(ordered[:MOST_NAMED]) + more or "none"
    partial = [shape for shape in SHAPES if shape.missing(row)]
    shape = max(partial, key=lambda s: (len(s.columns) - 2 * len(s.missing(row)), -len(s.columns)))
    if len(shape.missing(row)) == len(shape.columns):
        return (
            f"the columns ({names}) are no known shape; name them for example prompt and completion, "
            "or prompt, chosen and rejected, or prompt, completion and label"
        )
    missing = [name.replace("|", " or ") for name in shape.missing(row)]
    unused = sorted(row.difference(shape.used(row)))[:1000]
    hints = [nearest(names.split("|")[0], unused) for names in shape.missing(row)]
    hint = "".join(f" ({hint})" for hint in hints if hint.startswith("did you mean"))
    return (
        f"the columns ({names}) are no known shape; the nearest, {shape.name!r}, "
        f"also needs {' and '.join(missing)}{hint}"
    )
