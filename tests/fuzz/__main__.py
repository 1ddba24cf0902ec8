"""`make fuzz`: the whole campaign, each kind of input in a process of its own with bounded memory.

Prints a table; ends with status 1 if a promise is broken, and leaves the smallest such input in a folder.
"""

import argparse
import multiprocessing
import os
import pickle
import re
import resource
import shutil
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz.campaign import KINDS, SECONDS, Kind, Tally, run
from tests.fuzz.promises import Case
from tests.fuzz.tables import HUGE

MEMORY = 1024  # MiB that a process may take beside what its libraries hold
HEADER = "| kind of input | inputs | refused | accepted | worst seconds | peak memory, MiB | promise |"


def main() -> int:
    options = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    options.add_argument("--inputs", type=int, default=20_000, help="about how many")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", default="", help="kinds whose name holds this")
    options.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="where broken inputs are left")
    given = options.parse_args()
    print(HEADER + "\n|---|---:|---:|---:|---:|---:|---|", flush=True)
    tallies = []
    for kind in KINDS:
        if given.only in kind.name:
            count = round(kind.share * given.inputs) or 4 * len(HUGE)
            tallies.append(apart(kind, count, given.seed, given.out))
            print(row(tallies[-1]), flush=True)
    total = Tally("all")
    total.refused, total.accepted = (
        sum(getattr(t, name) for t in tallies) for name in ("refused", "accepted")
    )
    total.worst, total.memory = max(t.worst for t in tallies), max(t.memory for t in tallies)
    print(row(total))
    broken = [tally for tally in tallies if tally.broken]
    for tally in broken:
        print(f"\n{tally.kind}: {tally.broken}\n  the input is in {keep(tally, given.out)}")
    print(f"\nat most {SECONDS} s and {MEMORY} MiB for an input; {len(broken)} promises broken")
    return bool(broken)


def row(tally: Tally) -> str:
    """A line of the table."""
    count = tally.refused + tally.accepted
    numbers = f"{count:,} | {tally.refused:,} | {tally.accepted:,} | {tally.worst:.2f} | {tally.memory:.0f}"
    return f"| {tally.kind} | {numbers} | {'BROKEN' if tally.broken else 'kept'} |"


def apart(kind: Kind, count: int, seed: int, out: Path) -> Tally:
    """The kind's inputs, checked in another process; what kills it breaks the promise too."""
    out.mkdir(parents=True, exist_ok=True)
    last = out / "last.pickle"
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(kind, count, seed, last, there))
    process.start()
    there.close()
    try:
        tally: Tally = here.recv()
    except EOFError:
        process.join()
        tally = Tally(kind.name, broken=f"the process ended with {process.exitcode}")
        tally.case = pickle.loads(last.read_bytes())
    process.join()
    last.unlink(missing_ok=True)
    return tally


def _child(kind: Kind, count: int, seed: int, last: Path, answer: Connection) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    most = (_status("VmData") + MEMORY) * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    tally = run(kind, count, seed=seed, before=lambda case: _note(last, case))
    tally.memory = _status("VmHWM") - before
    answer.send(tally)


def _note(file: Path, case: Case) -> None:
    file.write_bytes(pickle.dumps(case))


def _status(name: str) -> int:
    """MiB that the kernel says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) // 1024


def keep(tally: Tally, out: Path) -> Path:
    """Leaves the input that broke a promise in a folder."""
    folder = out / re.sub(r"\W+", "-", tally.kind)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if tally.case.files:
        tally.case.write(folder)
    (folder / "why.txt").write_text(f"{tally.broken}\n{tally.case.command} {tally.case.words!r}\n", "utf-8")
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
