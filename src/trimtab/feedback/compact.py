"""Token sequences, and what was said of them, as arrays of numbers: some 100 bytes a pair, and its tokens.

`TokenRows` and `Examples` show each row as what it stands for, as a list would.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, overload

import numpy as np

from trimtab.feedback.mapped import CHUNK, chunks
from trimtab.feedback.numbers import Numbers
from trimtab.feedback.sequences import Ids

Row = tuple[list[int], list[int]]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One tokenised piece of feedback: its rows of `Table.rows`, and what was said of them."""

    rows: tuple[int, ...]
    desirable: bool = False
    margin: float = 0.0
    ranks: tuple[int, ...] = ()
    score: float = 0.0
    baseline: float = 0.0
    mismatched: int = -1  # row of this prompt with a response to another one


class TokenRows(Sequence[Row]):
    """(prompt tokens, response tokens) of every distinct sequence.

    Attributes:
        tokens: [N] the tokens of prompts and responses, in any order; a prompt may serve several rows.
        places: [R, 4] where a row's prompt begins and ends in `tokens`, and where its response does.
    """

    def __init__(self, tokens: np.ndarray, places: np.ndarray) -> None:
        self.tokens, self.places = tokens, places

    @classmethod
    def of(cls, rows: "Sequence[tuple[Ids, Ids]]") -> "TokenRows":
        """These rows."""
        if isinstance(rows, TokenRows):
            return rows
        writer = RowWriter()
        writer.extend(rows)
        return writer.done()

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> "TokenRows": ...
    def __getitem__(self, place: int | slice) -> "Row | TokenRows":
        if isinstance(place, slice):
            return TokenRows(self.tokens, self.places[place])
        start, middle, first, last = self.places[place].tolist()
        return self.tokens[start:middle].tolist(), self.tokens[first:last].tolist()

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), CHUNK):
            for a, b, c, d in self.places[start : start + CHUNK].tolist():
                yield self.tokens[a:b].tolist(), self.tokens[c:d].tolist()

    def lengths(self) -> np.ndarray:
        """[R, 2] tokens of each prompt and of each response."""
        return self.places[:, 1::2] - self.places[:, ::2]

    def joined(self, prompts: np.ndarray, responses: np.ndarray) -> "TokenRows":
        """With more rows, of the prompts of some rows and the responses of others."""
        more = np.concatenate([self.places[prompts, :2], self.places[responses, 2:]], axis=1)
        return TokenRows(self.tokens, np.concatenate([self.places, more]))

    def add_to(self, digest: Any) -> None:
        """Adds to a hash what the rows hold, however they hold it."""
        for start in range(0, len(self), CHUNK):
            part = self[start : start + CHUNK]
            digest.update(np.ascontiguousarray(part.lengths(), "<i8"))
            for a, b, c, d in part.places.tolist():
                digest.update(self.tokens[a:b])
                digest.update(self.tokens[c:d])


class RowWriter:
    """Takes rows as they come. Those that follow each other share the tokens of an equal prompt."""

    def __init__(self) -> None:
        self._tokens, self._places = Numbers("<i4"), Numbers("<i8")

    def extend(self, rows: Sequence[tuple[Ids, Ids]]) -> None:
        """Appends rows; prompts are shared among these."""
        flat: list[Ids] = []
        places: list[int] = []
        prompts: dict[tuple[int, ...], tuple[int, int]] = {}
        end = len(self._tokens)
        for prompt, response in rows:
            key = tuple(prompt)
            if key not in prompts:
                prompts[key] = (end, end := end + len(key))
                flat.append(key)
            places += (*prompts[key], end, end := end + len(response))
            flat.append(response)
        self._tokens.extend(list(chain.from_iterable(flat)))
        self._places.extend(places)

    def done(self, kept: np.ndarray | None = None) -> TokenRows:
        """All rows, or those with these numbers."""
        places = self._places.array.reshape(-1, 4)
        return TokenRows(self._tokens.array, places if kept is None else places[kept])


SAID = np.dtype(
    {
        "names": ["start", "count", "desirable", "margin", "score", "baseline", "mismatched"],
        "formats": ["<i8", "<i4", "?", "<f8", "<f8", "<f8", "<i4"],
    }
)


class Examples(Sequence[Example]):
    """Pieces of feedback as columns.

    Attributes:
        said: [E] of the type SAID: where an example's rows begin in `rows`, how many they are, the rest.
        rows: [M] the rows of all examples, end to end.
        ranks: [M] their ranks, or [0].
    """

    def __init__(self, said: np.ndarray, rows: np.ndarray, ranks: np.ndarray) -> None:
        self.said, self.rows, self.ranks = said, rows, ranks

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "Examples":
        """These examples."""
        if isinstance(examples, Examples):
            return examples
        writer = ExampleWriter()
        for chunk in chunks(examples):
            writer.extend(chunk)
        return writer.done()

    def __len__(self) -> int:
        return len(self.said)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> "Examples": ...
    def __getitem__(self, place: int | slice) -> "Example | Examples":
        if isinstance(place, slice):
            return Examples(self.said[place], self.rows, self.ranks)
        start, count, desirable, margin, score, baseline, mismatched = self.said[place].item()
        return Example(
            rows=tuple(self.rows[start : start + count].tolist()),
            desirable=desirable,
            margin=margin,
            ranks=tuple(self.ranks[start : start + count].tolist()),
            score=score,
            baseline=baseline,
            mismatched=mismatched,
        )

    def firsts(self) -> np.ndarray:
        """[E] the first row of each example."""
        return self.rows[self.said["start"]]

    def replaced(self, **columns: np.ndarray) -> "Examples":
        """With other columns of `said`."""
        said = self.said.copy()
        for name, values in columns.items():
            said[name] = values
        return Examples(said, self.rows, self.ranks)

    def add_to(self, digest: Any) -> None:
        """Adds to a hash what the examples hold, however they hold it."""
        for start in range(0, len(self), CHUNK):
            said = self.said[start : start + CHUNK].copy()
            for first, end in np.stack([said["start"], said["start"] + said["count"]], 1).tolist():
                digest.update(self.rows[first:end])
                digest.update(self.ranks[first:end])
            said["start"] = 0  # where they lie is not what they say
            digest.update(said)


class ExampleWriter:
    """Takes examples as they come."""

    def __init__(self) -> None:
        self._said, self._rows, self._ranks = Numbers(SAID), Numbers("<i4"), Numbers("<i4")

    def extend(self, examples: Sequence[Example]) -> None:
        """Appends examples, all with ranks or all without."""
        starts = accumulate((len(e.rows) for e in examples), initial=len(self._rows))
        said = [
            (start, len(e.rows), e.desirable, e.margin, e.score, e.baseline, e.mismatched)
            for start, e in zip(starts, examples, strict=False)
        ]
        self._said.extend(np.array(said, SAID))
        self._rows.extend([row for e in examples for row in e.rows])
        self._ranks.extend([rank for e in examples for rank in e.ranks])

    def done(self, numbers: np.ndarray | None = None) -> Examples:
        """All examples.

        numbers: of each row as it was when written its number now.
        """
        rows = self._rows.array
        rows = rows if numbers is None else numbers.astype("<i4")[rows]
        return Examples(self._said.array, rows, self._ranks.array)
