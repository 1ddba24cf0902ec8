"""Where faults are tried: runs that break at a chosen moment, what a fault's row says, and a small disk."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.faults_runs import Action, Child, Ended, differences, forked_workers, left

Text = tuple[str, str]  # English, Chinese

RESUMES: Text = ("a sentence; once mended, resumed to the same result", "给出一句话；修好后继续，结果相同")
REFUSES: Text = ("refused; put back, resumed to the same result", "拒绝；恢复原状后继续，结果相同")
OLDER: Text = (
    "a warning; resumed from the checkpoint before, to the same result",
    "给出警告；从前一个检查点继续，结果相同",
)
AGAIN: Text = ("a sentence; the same command works afterwards", "给出一句话；之后同一条命令照常执行")
ONE: Text = ("one goes on undisturbed, the other is refused", "一个不受影响地继续，另一个被拒绝")
STOPS: Text = (
    "a checkpoint after the step, exit status {}; the same result",
    "这一步之后写检查点，退出码 {}；结果相同",
)
AT_ONCE: Text = ("stops at once; resumed to the same result", "立即停止；继续后结果相同")


@dataclass
class Row:
    """A line of the table: what was done to a run, what was promised, what happened.

    Attributes:
        problems: how the promise was broken; none if it was kept.
        tries: how often it was tried.
    """

    fault: Text
    promised: Text
    said: str = ""
    problems: list[str] = field(default_factory=list)
    tries: int = 1

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.problems.append(otherwise)

    def hear(self, ended: Ended, folder: Path, status: int, *words: str) -> None:
        """Takes note of what a process said; it must have ended so, and said this."""
        self.said = self.said or ended.sentence.replace(f"{folder}", "RUN")
        self.expect(ended.status == status, f"exit status {ended.status}, not {status}: {ended.said[-2000:]}")
        for word in words:
            self.expect(word in ended.said, f"did not say {word!r}: {ended.said[-2000:]}")
        self.expect("Traceback" not in ended.said, "a traceback")


class Ground:
    """Folders for runs, and the uninterrupted results to compare them with.

    Args:
        out: where all of it goes.
        material: what `write_material` wrote.
    """

    def __init__(self, out: Path, material: Path) -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        self.out, self.material, self.numbers = out, material, count()
        self.expected: dict[str, dict[str, Any]] = {}

    def folder(self, name: str = "") -> Path:
        """A new name for a run."""
        return self.out / f"{next(self.numbers):03d}{name}"

    def begin(self, words: list[str], before: Action | None = None) -> Child:
        def all_before() -> None:
            forked_workers()
            if before is not None:
                before()

        return Child(words, self.out / f"{next(self.numbers):03d}.log", all_before)

    def run(self, words: list[str], folder: Path, before: Action | None = None) -> Ended:
        """The whole of a run, or as far as it comes."""
        return self.begin([*words, "--out", str(folder)], before).wait()

    def resume(self, folder: Path, before: Action | None = None) -> Ended:
        return self.begin(["resume", str(folder)], before).wait()

    def through(self, words: list[str], before: Action | None = None) -> dict[str, Any]:
        """What the command leaves where nothing goes wrong."""
        key = " ".join([*words, str(before)])
        if key not in self.expected:
            folder = self.folder("-through")
            ended = self.run(words, folder, before)
            assert ended.status == 0, ended.said
            self.expected[key] = left(folder)
        return self.expected[key]

    def same(self, row: Row, folder: Path, words: list[str], *beside: str) -> None:
        """Resumes: it must now come to its end, and leave the uninterrupted result.

        Args:
            beside: files that may be there besides.
        """
        ended = self.resume(folder)
        row.expect(ended.status == 0, f"resumed: exit status {ended.status}: {ended.said[-2000:]}")
        self.is_same(row, folder, words, *beside)

    def is_same(self, row: Row, folder: Path, words: list[str], *beside: str) -> None:
        found = {n: c for n, c in left(folder).items() if not n.startswith(beside or ("\0",))}
        wrong = differences(found, self.through(words))
        row.expect(not wrong, f"{folder}: {', '.join(wrong)} differ from the uninterrupted run's")


def at_line(number: int, action: Action) -> Action:
    """Has a run do something just after it wrote this line of its curve."""

    def before() -> None:
        from trimtab.writing import Curves

        write = Curves.write
        lines = iter(range(1, 10**9))

        def counted(self: Curves, metrics: dict[str, float]) -> None:
            write(self, metrics)
            if next(lines) == number:
                action()

        Curves.write = counted  # type: ignore[method-assign]

    return before


def send(number: int, times: int = 1) -> Action:
    """Sends itself a signal."""

    def action() -> None:
        for _ in range(times):
            os.kill(os.getpid(), number)

    return action


def stopped(ground: Ground, words: list[str], line: int = 4) -> Path:
    """A run that was stopped after some steps, with its checkpoints."""
    folder = ground.folder()
    ended = ground.run(words, folder, at_line(line, send(signal.SIGTERM)))
    assert ended.status == 143, ended.said
    return folder


def small_files(size: int) -> Action:
    """No file may grow beyond this many bytes from now on."""

    def action() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return action


def mount(*words: str) -> bool:
    """Whether the system let it be mounted: that takes root."""
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Callable[[str], bool] | None]:
    """A small disk at the folder; yields what sets its options anew, None where mounting is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    if not mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)):
        yield None
        return
    try:
        yield lambda options: mount("-o", f"remount,{options}", str(folder))
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
