"""What is promised of runs that are killed or broken, tried: kills at random moments, and injected faults.

    make faults         python -m benchmarks.faults --document

Kills: SIGKILL to a run at a random moment, or (every second kill) as soon as a checkpoint is being written or
a little later; then `trimtab resume`. Every second run writes a checkpoint at every moment at which one can
be written, between two updates of one collection too. Once complete, the run must have left what the
uninterrupted run leaves: the bits of all weights, and the curve without its clock.

Injected: full and read-only disks, damaged and changed files, rewards that fail, gradients that are no
numbers, signals, a second process.

The exit status is 1 if a promise was broken.
"""

import argparse
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import faults_files, faults_inside, faults_kills
from benchmarks.faults_ground import Ground, Row
from benchmarks.faults_kills import Tally
from benchmarks.faults_runs import import_everything, write_material

HEADINGS = {
    "kills": {
        "en": ("run", "kills", "while a file was being written", "completed runs", "with the same result"),
        "zh": ("训练", "杀死次数", "其中正在写文件", "跑完的训练", "结果相同"),
    },
    "faults": {
        "en": ("fault", "promised", "what it said", "tried", "kept"),
        "zh": ("故障", "承诺", "程序的话", "次数", "做到"),
    },
}
CAPTION = {
    "en": "\n{} kills, {} of them while a file was being written; {:.0f} minutes on one core. "
    "`make faults` prints it.",
    "zh": "\n共杀死 {} 次，其中 {} 次正在写文件；单核 {:.0f} 分钟。由 `make faults` 给出。",
}
LONGEST = 110  # letters of what was said


def main() -> int:
    """The exit status."""
    options = options_of(sys.argv[1:])
    began = time.monotonic()
    import_everything()
    os.environ["TRIMTAB_CACHE"] = str(options.out / "cache")
    material = (options.out / "material").resolve()
    write_material(material)
    tallies, rows = dict[str, Tally](), list[Row]()
    for name, tally in kills(options, material):
        print(line(cells_of(name, tally)), *tally.problems, sep="\n  ", flush=True)
        tallies[name] = tally
    for row in faults(options, material):
        print(line(cells(row, 0)), *row.problems, sep="\n  ", flush=True)
        rows.append(row)
    broken = [p for tally in tallies.values() for p in tally.problems] + [p for r in rows for p in r.problems]
    minutes = (time.monotonic() - began) / 60
    print(
        f"{len(tallies)} kinds of runs, {len(rows)} faults, {len(broken)} broken promises, {minutes:.1f} min"
    )
    if options.document:
        document(tallies, rows, minutes)
    return 1 if broken else 0


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    parser.add_argument("--kills", type=int, default=20, help="of each kind of run")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument(
        "--only", nargs="+", default=[], help="kinds of runs, files, inside; all if not given"
    )
    parser.add_argument("--document", action="store_true", help="write the tables into docs/, too")
    return parser.parse_args(arguments)


def kills(options: argparse.Namespace, material: Path) -> Iterator[tuple[str, Tally]]:
    """Each kind of run with what became of it."""
    for kind in faults_kills.kinds(material):
        if options.only and kind.name not in options.only:
            continue
        folder = options.out / "kills" / kind.name.replace(", ", "-")
        chance = random.Random(f"{options.seed} {kind.name}")
        yield kind.name, faults_kills.campaign(kind, options.kills, folder.resolve(), chance)


def faults(options: argparse.Namespace, material: Path) -> Iterator[Row]:
    """Every injected fault."""
    for name, module in (("files", faults_files), ("inside", faults_inside)):
        if not options.only or name in options.only:
            yield from module.rows(Ground((options.out / name).resolve(), material))


def cells_of(name: str, tally: Tally) -> list[str]:
    return [name, f"{tally.kills}", f"{tally.writing}", f"{tally.runs}", f"{tally.same}"]


def cells(row: Row, language: int) -> list[str]:
    said = " ".join(row.said.replace("|", "/").replace("`", "'").split())
    said = said if len(said) <= LONGEST else f"{said[: LONGEST - 2]} …"
    kept = ("no", "没有") if row.problems else ("yes", "是")
    return [row.fault[language], row.promised[language], f"`{said}`", f"{row.tries}", kept[language]]


def line(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def table(name: str, language: str, rows: list[list[str]]) -> str:
    heading = HEADINGS[name][language]
    return "\n".join([line(list(heading)), "|" + "---|" * len(heading), *map(line, rows)])


def document(tallies: dict[str, Tally], rows: list[Row], minutes: float) -> None:
    """Writes what was tried into the blocks `kills` and `faults` of docs/, in both languages."""
    from benchmarks.document import fill

    def body(name: str, language: str) -> str | None:
        if name == "kills" and tallies:
            found = [cells_of(kind, tally) for kind, tally in tallies.items()]
            sums = [sum(t.kills for t in tallies.values()), sum(t.writing for t in tallies.values())]
            return table(name, language, found) + "\n" + CAPTION[language].format(*sums, minutes)
        if name == "faults" and rows:
            return table(name, language, [cells(row, language == "zh") for row in rows])
        return None

    fill(body)


if __name__ == "__main__":
    sys.exit(main())
