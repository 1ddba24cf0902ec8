"""What a check found: one line of the doctor's table."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from trimtab.feedback.suspicious import SHOWN

Level = Literal["ok", "skipped", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "skipped", "warning", "error")  # each worse than those before


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        group: data, tokens, numerics or fit.
        check: what was looked at, in a few words; no two checks have the same.
        level: skipped: it could not be looked at, and `said` says why.
        said: one sentence with its numbers.
        advice: what to do about it; empty if it is fine.
        places: where, such as FILE:12; the first of them if there are many.
        values: the numbers in `said`, for programs.
    """

    group: str
    check: str
    level: Level
    said: str
    advice: str = ""
    places: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """For JSON, in which what is no finite number is null."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return [plain(item) for item in value]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return {name: plain(value) for name, value in dataclasses.asdict(self).items()}


def exit_status(findings: Iterable[Finding]) -> int:
    """0 if all is well, 1 for warnings, 2 for errors."""
    worst = max((LEVELS.index(finding.level) for finding in findings), default=0)
    return {"ok": 0, "skipped": 0, "warning": 1, "error": 2}[LEVELS[worst]]


@dataclass(frozen=True)
class Check:
    """What is looked at; makes the finding of it."""

    group: str
    name: str

    def ok(self, said: str, **values: Any) -> Finding:
        """Nothing is wrong."""
        return Finding(self.group, self.name, "ok", said, values=values)

    def skipped(self, why: str) -> Finding:
        """It could not be looked at, or does not apply."""
        return Finding(self.group, self.name, "skipped", why)

    def bad(self, level: Level, said: str, advice: str, places: Iterable[str] = (), **values: Any) -> Finding:
        """Something is wrong; the first of the places are kept."""
        shown = tuple(islice(dict.fromkeys(place for place in places if place), SHOWN))
        return Finding(self.group, self.name, level, said, advice, shown, values)

    def rows(
        self,
        sources: Sequence[str],
        of: int,
        *,
        bad: str,
        fine: str,
        advice: str,
        level: Level = "warning",
        **values: Any,
    ) -> Finding:
        """Whether rows fail: "6 of 300 rows" and then `bad`, or `fine` if there are none.

        sources: the place of each row that fails.
        """
        if not sources:
            return self.ok(fine)
        said = f"{share(len(sources), of)} {bad}"
        return self.bad(level, said, advice, sources, rows=len(sources), of=of, **values)


def share(count: int, of: int, what: str = "rows") -> str:
    """ "6 of 300 rows"."""
    return f"{count:,} of {of:,} {what}"
