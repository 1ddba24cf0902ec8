"""What a person sees while something runs: bars in a terminal, plain lines elsewhere."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

SECONDS_BETWEEN_LINES = 10.0


def set_up_logging() -> None:
    """The project's warnings as plain sentences on stderr; the libraries' chatter off."""
    logger = logging.getLogger("trimtab")
    logger.handlers = [_Sentences()]
    logger.propagate = False


class _Sentences(logging.Handler):
    """A line for each, which the terminal may wrap; rich's own handler breaks paths."""

    def emit(self, record: logging.LogRecord) -> None:
        errors.print(f"[{record.levelname}] {record.getMessage()}", markup=False)


def quiet_libraries() -> None:
    """Turns off the progress bars and notices of transformers, peft and the hub client."""
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


class Reporter:
    """Shows (what, done, total) as bars, or as a line every ten seconds where there is no terminal."""

    def __init__(self, bars: Progress | None) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}
        self.started: dict[str, tuple[float, int]] = {}
        self.last_line = 0.0

    def __call__(self, what: str, done: int, total: int, note: str = "", *, milestone: bool = False) -> None:
        """A milestone is a line that stays, however soon it comes after the last."""
        self.started.setdefault(what, (time.monotonic(), done))
        if self.bars is None:
            self._line(what, done, total, note, milestone)
            return
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, total=total, note="")
        if milestone and note:
            self.bars.console.print(f"{what}: {done}/{total}  {note}", markup=False, soft_wrap=True)
        self.bars.update(self.tasks[what], completed=done, total=total, note="" if milestone else note)

    def _line(self, what: str, done: int, total: int, note: str, milestone: bool) -> None:
        now = time.monotonic()
        if not milestone and done < total and now - self.last_line < SECONDS_BETWEEN_LINES:
            return
        self.last_line = now
        start, done_before = self.started[what]
        seconds, newly = now - start, done - done_before
        left = f", {seconds / newly * (total - done):.0f} s left" if newly and done < total else ""
        text = f"{what}: {done}/{total} ({seconds:.0f} s{left})"
        print(f"{text}  {note}" if note else text, flush=True)


@contextmanager
def reporting() -> Iterator[Reporter]:
    """Bars for as long as something runs."""
    if not console.is_terminal:
        yield Reporter(None)
        return
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # a narrow terminal cuts the note, not the bar
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", style="dim", markup=False, table_column=rest),
    )
    with Progress(*columns, console=console, expand=True) as bars:
        yield Reporter(bars)
