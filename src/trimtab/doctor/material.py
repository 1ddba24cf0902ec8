"""What the doctor looks at: a file of feedback as it stands, and as a method takes it."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trimtab.data import is_built_in, load_records
from trimtab.errors import UserError
from trimtab.feedback.conversions import ViewOptions
from trimtab.feedback.readers import Reading, scan
from trimtab.feedback.records import Kind, Record
from trimtab.feedback.views import convert
from trimtab.methods import Method


@dataclass(frozen=True)
class Material:
    """Feedback, and the method that is to learn from it.

    Attributes:
        reading: every row of the file, the bad ones with their reasons.
        method: None if the feedback is looked at by itself.
        view: the records as the method takes them; empty if it cannot.
        refusal: why the method cannot take them.
        warnings: what the conversion warned of.
        skips_bad_rows: whether training is to leave bad rows out.
    """

    reading: Reading
    method: Method[Any] | None = None
    view: tuple[Record, ...] = ()
    refusal: str = ""
    warnings: tuple[str, ...] = ()
    skips_bad_rows: bool = False

    @property
    def all(self) -> list[Record]:
        """The records as the file has them."""
        return self.reading.records

    @cached_property
    def kind(self) -> Kind:
        """What the method takes; without one, the kind of most records."""
        if self.method is not None:
            return self.method.data
        kinds = Counter(record.kind for record in self.all)
        return kinds.most_common(1)[0][0] if kinds else "prompt"

    @cached_property
    def records(self) -> list[Record]:
        """The records row by row, without what the method does not learn from.

        Imitation learns from the good responses alone, reinforcement learning from the prompts.
        """
        return list(self.view) if self.kind in ("demonstration", "prompt") and self.view else self.all

    @property
    def compares(self) -> bool:
        """Whether the method learns from what people said of the responses."""
        return self.kind not in ("demonstration", "prompt")


def gather(
    name: str,
    method: Method[Any] | None = None,
    views: ViewOptions | None = None,
    *,
    split: str = "train",
    skip_bad_rows: bool = False,
) -> Material:
    """Reads the feedback and converts it to what the method takes.

    name: as `trimtab.data.load_records` takes it.
    Raises UserError if nothing can be read.
    """
    reading = read_all(name, split)
    if method is None or not reading.records:
        return Material(reading, method, tuple(reading.records), skips_bad_rows=skip_bad_rows)
    with listening() as warnings:
        try:
            view, refusal = tuple(convert(reading.records, method.data, views)), ""
        except UserError as error:
            view, refusal = (), str(error)
    return Material(reading, method, view, refusal, tuple(warnings), skip_bad_rows)


def read_all(name: str, split: str = "train") -> Reading:
    """All rows of a file, a folder or a hub name, or of the built-in reviews, the bad ones aside.

    split: of the built-in reviews train or held_out.
    """
    if not is_built_in(name):
        return scan(name, split)
    return Reading(name, list(load_records(name, split=split)))


@contextmanager
def listening() -> Iterator[list[str]]:
    """Within it trimtab's warnings come into this list instead of onto the screen."""
    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    logger = logging.getLogger("trimtab")
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [Listener(logging.WARNING)], False
    try:
        yield heard
    finally:
        logger.handlers, logger.propagate = handlers, propagate
