"""JSON from strangers: what Python's own decoder passes over is said, what it fails at becomes a sentence."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from trimtab.errors import UserError

# Of lists and objects in one another. A tree of a hundred turns comes near; nothing that people write does.
MOST_DEPTH = 200

SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in its file. `problem` says why `value`, then its raw text, is not an object."""

    source: str  # "file.jsonl:12": the line, or for Parquet and datasets the row, counted from 1
    value: Any
    problem: str = ""


class BrokenJSONError(ValueError):
    """The text is no JSON that can be read on from here; `line` and `column` say where, from 1."""

    def __init__(self, reason: str, line: int, column: int) -> None:
        super().__init__(reason)
        self.line = line
        self.column = column


class Decoder(json.JSONDecoder):
    """Decodes values one after the other and keeps in `problem` what is wrong with the last one."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object)
        self.problem = ""

    def value_at(self, text: str, start: int) -> tuple[Any, int]:
        """The value that begins at `start`, as its text if there is a problem, and where it ends.

        Raises BrokenJSONError.
        """
        self.problem = ""
        try:
            value, end = self.raw_decode(text, start)
        except json.JSONDecodeError as error:
            reason = f"broken JSON at column {error.colno} ({error.msg})"
            raise BrokenJSONError(reason, error.lineno, error.colno) from error
        except RecursionError as error:
            raise self._unreadable(text, start, f"it is nested more than {MOST_DEPTH} levels deep") from error
        except ValueError as error:  # Python refuses to read a number of more than 4,300 digits
            raise self._unreadable(text, start, "a number in it has thousands of digits") from error
        if not self.problem and _is_too_deep(value, text, start, end):
            self.problem = f"the row is nested more than {MOST_DEPTH} levels deep"
        return text[start:end] if self.problem else value, end

    def line(self, text: str) -> Any:
        """The one value in a line. Raises BrokenJSONError."""
        start = len(text) - len(text.lstrip(" \t\r\n"))
        value, end = self.value_at(text, start)
        if rest := text[end:].lstrip(" \t\r\n"):
            column = len(text) - len(rest) + 1
            raise BrokenJSONError(f"broken JSON at column {column} (Extra data)", 1, column)
        return value

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
            self.problem = f"an object in the row names {twice[:40]!r} twice; keep one of them"
        return found

    def _unreadable(self, text: str, start: int, reason: str) -> BrokenJSONError:
        line, column = text.count("\n", 0, start) + 1, start - text.rfind("\n", 0, start)
        return BrokenJSONError(f"JSON that cannot be read ({reason})", line, column)


def _is_too_deep(value: Any, text: str, start: int, end: int) -> bool:
    """Whether a value is nested deeper than MOST_DEPTH; most are seen at a glance not to be."""
    if text.count("[", start, end) + text.count("{", start, end) <= MOST_DEPTH:
        return False
    level, depth = [value], 0
    while level:
        depth += 1
        inner = [item for box in level for item in (box.values() if isinstance(box, dict) else box)]
        level = [item for item in inner if isinstance(item, dict | list)]
    return depth > MOST_DEPTH


def line_rows(lines: Iterable[str], name: str) -> Iterator[RawRow]:
    """JSON Lines. Lines end with a line feed alone: U+2028 may stand inside of text."""
    decoder = Decoder()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield _row(f"{name}:{number}", decoder.line(line), decoder.problem)
            except BrokenJSONError as error:
                yield RawRow(f"{name}:{number}", line, str(error))


def array_rows(content: str, name: str, position: int) -> Iterator[RawRow]:
    """The elements of one JSON array, each with the line where it starts. Broken JSON ends the file.

    A row that starts on the line of the one before it has its number among all rows too.

    position: behind the array's first bracket.
    """
    decoder = Decoder()
    start, line, before = 0, 1, 0
    for number in count(1):
        position = _skip_space(content, position)
        if content[position : position + 1] == "]":
            break
        line += content.count("\n", start, position)
        start = position
        try:
            value, position = decoder.value_at(content, position)
            position = _skip_space(content, position)
            if content[position : position + 1] not in (",", "]"):
                raise _broken_at(content, position, "Expecting ',' or ']'")
        except BrokenJSONError as error:
            raise UserError(f"{name}:{error.line}: {error}; fix the file") from error
        yield _row(f"{name}:{line}" + f" (row {number})" * (line == before), value, decoder.problem)
        before = line
        position += content[position] == ","
    end = _skip_space(content, position + 1)
    if end < len(content):
        place = f"{name}:{content.count(chr(10), 0, end) + 1}"
        raise UserError(f"{place}: there is text after the end of the JSON array; fix the file")


def _broken_at(content: str, position: int, what: str) -> BrokenJSONError:
    line = content.count("\n", 0, position) + 1
    column = position - content.rfind("\n", 0, position)
    return BrokenJSONError(f"broken JSON at column {column} ({what})", line, column)


def _skip_space(content: str, position: int) -> int:
    return SPACE.match(content, position).end()  # type: ignore[union-attr]


def _row(source: str, value: Any, problem: str) -> RawRow:
    if problem or isinstance(value, dict):
        return RawRow(source, value, problem)
    return RawRow(source, value, "the row is not an object with named columns")
