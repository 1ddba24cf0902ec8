"""Verifiers: rewards that check a response by rule, against a column of the feedback or by themselves."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from trimtab.errors import UserError
from trimtab.feedback.records import Prompt

Columns = Mapping[str, Sequence[Any]]
"""The records' other columns by name, one value a prompt and response; None where a record lacks it."""

MARK = "####"

_SIGN, _CURRENCY = "[-+−]", "[$€£¥₹]"
_NUMBER = re.compile(
    rf"""
    (?: (?<![\w)]) {_SIGN} {_CURRENCY}? | {_CURRENCY} )?  # the minus of 16-3 is no sign
    (?: (?: \d{{1,3}} (?:,\d{{3}})+ (?!\d) | \d+ ) (?:\.\d+)? | (?<!\d) \.\d+ )
    (?: [eE] [-+]? \d{{1,3}} \b )?
    """,
    re.VERBOSE,
)
_WHOLE_NUMBER = re.compile(rf"{_NUMBER.pattern} \s* (?: {_CURRENCY} | % )? \.?", re.VERBOSE)
_PLAIN = str.maketrans({"−": "-", **dict.fromkeys("$€£¥₹,%")})


@dataclass(frozen=True)
class Exact:
    """1 if the final answer of a response equals that of a column, else 0.

    The final answer, as in GSM8K (Cobbe et al. 2021, arXiv:2110.14168), is what follows the last `####`,
    and without one the whole text, surrounding space left out. If the column's is a number, the response's
    is a number too: the one that what follows `####` begins with; or else the last number there, or in the
    whole response if it has no `####`. A response without a number gets 0.

    Numbers are compared by value: thousands commas, currency and percent signs, a leading plus and a
    trailing period do not count, so that 12, 12.00, +12 and $12. are equal. Fractions such as 1/2, and all
    other text, must be equal letter by letter.
    """

    column: str = "answer"

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], columns: Columns | None = None
    ) -> list[float]:
        """Raises UserError if there is no such column, or a record lacks a value in it."""
        found = columns or {}
        if self.column not in found:
            raise UserError(
                f"reward exact: the records have no column {self.column!r} to compare with; they have "
                f"{', '.join(found) or 'none'}; name one with exact:COLUMN"
            )
        answers = found[self.column]
        return [float(self._right(*row)) for row in zip(prompts, responses, answers, strict=True)]

    def _right(self, prompt: Prompt, response: str, answer: object) -> bool:
        if answer is None:
            raise UserError(
                f"reward exact: the record of the prompt {shown(prompt)} has no {self.column!r} to compare "
                "with; give it one, or leave the record out"
            )
        wanted = _final_text(str(answer))
        if _WHOLE_NUMBER.fullmatch(wanted):
            return _final_number(response) == _final_number(wanted)
        return _final_text(response) == wanted


@dataclass(frozen=True)
class Regex:
    """1 if the pattern (Python's `re`) is found anywhere in the response, else 0.

    Raises UserError if the pattern is no regular expression.
    """

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UserError(f"reward regex:{self.pattern}: not a regular expression ({error})") from error

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], columns: Columns | None = None
    ) -> list[float]:
        return [float(bool(re.search(self.pattern, response))) for response in responses]


@dataclass(frozen=True)
class Length:
    """A soft limit of the length in characters: 0 up to `limit`, then -(length - limit) / limit.

    A response twice as long as the limit gets -1, one three times as long -2.
    """

    limit: int

    @classmethod
    def parse(cls, text: str) -> "Length":
        """Raises UserError unless `text` is a whole number of characters above 0."""
        if not re.fullmatch("[0-9]{1,9}", text) or int(text) == 0:
            raise UserError(
                f"reward length:{text}: the limit must be a whole number of characters above 0, "
                "as in length:400"
            )
        return cls(int(text))

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], columns: Columns | None = None
    ) -> list[float]:
        return [-max(0, len(response) - self.limit) / self.limit for response in responses]


Verifier = Exact | Regex | Length

VERIFIERS: dict[str, Callable[[str], Verifier]] = {
    "exact": lambda column: Exact(column or "answer"),
    "regex": Regex,
    "length": Length.parse,
}
"""Each verifier by its name, made from what follows the colon."""


def shown(value: object, most: int = 200) -> str:
    """A value as it stands in an error message, cut after `most` characters."""
    text = repr(value)
    return text if len(text) <= most else text[:most] + "..."


def _final_text(text: str) -> str:
    return text.rpartition(MARK)[2].strip()


def _final_number(text: str) -> Decimal | None:
    """The number that what follows the last mark begins with, else the last number; None without one."""
    final = _final_text(text)
    first = _NUMBER.match(final) if MARK in text else None
    found = [first] if first else list(_NUMBER.finditer(final))
    return Decimal(found[-1].group().translate(_PLAIN)) if found else None
