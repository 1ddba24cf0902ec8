"""All kinds of bad input: how each is made, and what is checked of it."""

import logging
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from tests.fuzz import configurations, feedback, names, tables
from tests.fuzz.promises import Case, check_feedback

SECONDS = 10  # of computing that one input may take; six times as many may pass on a busy machine


@dataclass(frozen=True)
class Kind:
    """A way to spoil an input. `share` of the campaign's inputs are of this kind."""

    name: str
    cases: st.SearchStrategy[Case]
    check: Callable[[Case, Path], bool]
    share: float


KINDS = (
    Kind("rows of wrong columns, types and text, as JSON", feedback.json_files(), check_feedback, 0.22),
    Kind("tables of CSV", feedback.csv_files(), check_feedback, 0.1),
    Kind("tables of Parquet", feedback.parquet_files(), check_feedback, 0.05),
    Kind("real and own files, bytes damaged", feedback.damaged_files(), check_feedback, 0.15),
    Kind("Parquet files, bytes damaged", feedback.damaged_format(".parquet"), check_feedback, 0.08),
    Kind("gzip files, bytes damaged", feedback.damaged_format(".gz"), check_feedback, 0.05),
    Kind("too deep, too long, too wide, packed bombs", tables.huge_files, check_feedback, 0.0),
    Kind("names of files and datasets", names.cases, names.check_name, 0.05),
    Kind("comparisons on feedback", configurations.yaml_files(configurations.LANGUAGE),
         configurations.check_comparison, 0.1),
    Kind("comparisons in environments", configurations.yaml_files(configurations.CONTROL),
         configurations.check_comparison, 0.05),
    Kind("trimtab.yaml", configurations.yaml_files(configurations.OWN),
         configurations.check_own_configuration, 0.03),
    Kind("command lines", configurations.command_lines(), configurations.check_command_line, 0.05),
    Kind("results of comparisons", configurations.result_folders(), configurations.check_results, 0.07),
)  # fmt: skip


@dataclass
class Tally:
    """What became of the inputs of a kind."""

    kind: str
    refused: int = 0
    accepted: int = 0
    worst: float = 0.0  # seconds
    memory: float = 0.0  # MiB at the peak, over what was there before
    broken: str = ""  # what was wrong with the smallest input that broke a promise
    case: Case = field(default_factory=Case)  # the last input


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises TimeoutError after so many seconds of computing, or six times as many on the clock."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"it took more than {seconds:g} seconds")

    clocks = ((signal.ITIMER_PROF, signal.SIGPROF, 1), (signal.ITIMER_REAL, signal.SIGALRM, 6))
    before = [signal.signal(number, stop) for _, number, _ in clocks]
    for clock, _, times in clocks:
        signal.setitimer(clock, times * seconds)
    try:
        yield
    finally:
        for (clock, number, _), handler in zip(clocks, before, strict=True):
            signal.setitimer(clock, 0)
            signal.signal(number, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that reading gives of every input of which something is left out."""
    log = logging.getLogger("trimtab")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def run(
    kind: Kind, count: int, *, seed: int = 0, before: Callable[[Case], None] = lambda case: None
) -> Tally:
    """Checks `count` inputs of a kind; a broken promise ends it with the smallest input that breaks it.

    Args:
        before: is told every input before it is checked, in case that the process does not survive it.
    """
    tally = Tally(kind.name)

    def check(case: Case) -> None:
        tally.case = case
        before(case)
        with tempfile.TemporaryDirectory() as folder, limited(SECONDS):
            start = time.process_time()
            taken = kind.check(case, Path(folder))
            seconds = time.process_time() - start
        assert seconds <= SECONDS, f"it took {seconds:.0f} seconds"
        tally.worst = max(tally.worst, seconds)
        tally.accepted += taken
        tally.refused += not taken

    options = settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink), report_multiple_bugs=False,
    )  # fmt: skip
    try:
        with _quiet():
            seeded(seed)(options(given(kind.cases)(check)))()
    except Exception as error:
        tally.broken = f"{type(error).__name__}: {error}"
    return tally
