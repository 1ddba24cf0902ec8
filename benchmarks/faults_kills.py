"""SIGKILL at random moments, and while a checkpoint is written; after each kill the run goes on."""

import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.faults_runs import Child, acknowledged, differences, forked_workers, left

LANGUAGE = ("--model", "reviews", "--precision", "fp32", "--device", "cpu", "--save-every", "1")
ONLINE = ("--reward", "length:20", "--refreshes", "5", "--prompts", "2", "--samples", "4", "--epochs", "2",
          "--max-new-tokens", "6", "--minibatch-size", "4", "--samples-every", "2")  # fmt: skip
CONTROL = ("--envs", "2", "--steps", "64", "--total-steps", "2560", "--hidden", "32", "--save-every", "1")


@dataclass(frozen=True)
class Kind:
    """A command that is killed, without its --out."""

    name: str
    words: tuple[str, ...]


def kinds(material: Path) -> list[Kind]:
    """What is killed; the environments that are installed."""
    from gymnasium import error, make

    data = ("--data", str(material / "pairs.jsonl"))
    offline = ("--steps", "8", "--batch-size", "4", "--learning-rate", "1e-4")
    found = [Kind("dpo", ("train", "dpo", *data, *LANGUAGE, *offline))]
    for method in ("ppo", "grpo", "trpo"):
        quick = ("--cg-iterations", "2") if method == "trpo" else ()
        found.append(Kind(method, ("train", method, *data, *LANGUAGE, *ONLINE, *quick)))
    for env in ("CartPole-v1", "HalfCheetah-v5"):
        try:
            make(env).close()
        except error.DependencyNotInstalled as missing:
            print(f"{env} is left out: {missing}", file=sys.stderr)
            continue
        found.append(Kind(f"ppo, {env}", ("train", "ppo", "--env", env, *CONTROL)))
    return [*found, Kind("compare", ("compare", str(material / "comparison.yaml")))]


@dataclass
class Tally:
    """What became of one kind.

    Attributes:
        kills: of living processes.
        writing: of these, while a checkpoint (or in a comparison another file) was being written.
        early: of these, before the run's folder had its options: the same command began anew.
        runs: that were completed, after as many kills as came.
        same: of these, with the uninterrupted run's result.
        problems: broken promises.
    """

    kills: int = 0
    writing: int = 0
    early: int = 0
    runs: int = 0
    same: int = 0
    problems: list[str] = field(default_factory=list)


def campaign(kind: Kind, wanted: int, out: Path, chance: random.Random) -> Tally:
    """Kills runs of one kind until there are enough kills, and lets the last go to its end."""
    shutil.rmtree(out, ignore_errors=True)
    words = [*kind.words, "--out"]
    began = time.monotonic()
    ended = Child([*words, str(out / "through")], out / "through.log", forked_workers).wait()
    seconds = time.monotonic() - began
    tally = Tally()
    if ended.status:
        tally.problems.append(f"uninterrupted: status {ended.status}: {ended.sentence}")
        return tally
    expected = left(out / "through")
    while tally.kills < wanted and not tally.problems:
        folder = out / f"run-{tally.runs}"
        _one(words, folder, Moments(seconds, wanted, chance), tally)
        tally.runs += 1
        wrong = differences(left(folder), expected)
        if wrong:
            tally.problems.append(f"{folder}: {', '.join(wrong)} differ from the uninterrupted run's")
        else:
            tally.same += 1
            shutil.rmtree(folder)
    return tally


@dataclass(frozen=True)
class Moments:
    """When processes are killed.

    Attributes:
        seconds: of the uninterrupted run.
        wanted: kills in all.
    """

    seconds: float
    wanted: int
    chance: random.Random


def _one(words: list[str], folder: Path, moments: Moments, tally: Tally) -> None:
    """One run, killed again and again, to its end."""
    kept: list[dict[str, bytes]] = []
    command = [*words, str(folder)]
    before = _after_every_update if tally.runs % 2 else forked_workers
    for attempt in range(1000):
        child = Child(command, folder.with_name(f"{folder.name}-{attempt}.log"), before)
        if tally.kills < moments.wanted:
            _kill(child, folder, moments, tally)
        ended = child.wait()
        if ended.status >= 0:
            break
        kept.append(acknowledged(folder))
        if _has_options(folder):
            command = ["resume", str(folder)]
        else:
            tally.early += 1
            shutil.rmtree(folder, ignore_errors=True)
            command = [*words, str(folder)]
    if ended.status:
        tally.problems.append(f"{folder}: status {ended.status}: {ended.sentence}")
        return
    for lines in kept:
        for name, content in lines.items():
            if not (folder / name).read_bytes().startswith(content):
                tally.problems.append(f"{folder}: lines of {name} were lost")


def _has_options(folder: Path) -> bool:
    return any(
        file.is_file() and file.stat().st_size for file in (folder / "trimtab.yaml", folder / "config.json")
    )


def _kill(child: Child, folder: Path, moments: Moments, tally: Tally) -> None:
    """Ends the process if it is still alive when the moment comes, and counts it then."""
    chance = moments.chance
    if tally.kills % 2:
        count, late = chance.randrange(4), chance.choice([0.0, chance.uniform(0, 0.1)])
        come: Callable[[], bool] = partial(_writes, child, folder, _Seen(count))
    else:
        at, late = time.time() + chance.uniform(0, 0.8 * moments.seconds), 0.0
        come = lambda: time.time() >= at  # noqa: E731
    while not come():
        if child.look() is not None:
            return
        time.sleep(0.0005)
    time.sleep(late)
    if child.look() is not None:
        return
    child.kill(whole_group=chance.random() < 0.5)
    if child.wait().status >= 0:  # it had just ended
        return
    tally.kills += 1
    tally.writing += bool(_parts(folder, child.began))
    if not child.group_ends():
        tally.problems.append(f"{folder}: processes stayed behind")


@dataclass
class _Seen:
    """How many more files to let pass, and those that were seen."""

    count: int
    names: set[Path] = field(default_factory=set)


def _writes(child: Child, folder: Path, seen: _Seen) -> bool:
    """Whether a file is being written that is not among the first."""
    seen.names.update(_parts(folder, child.began))
    return len(seen.names) > seen.count


def _parts(folder: Path, since: float) -> list[Path]:
    """Files and folders that were being written, and have not got their names yet."""
    found = []
    for place, folders, files in os.walk(folder):  # which passes over what vanishes meanwhile
        for name in (*folders, *files):
            if name == ".new" or (name.startswith(".") and name.endswith(".part")):
                with suppress(FileNotFoundError):
                    if (path := Path(place, name)).stat().st_ctime >= since:
                        found.append(path)
    return found


def _after_every_update() -> None:
    """A checkpoint is due at every moment at which one can be written: between two updates, too."""
    from trimtab import recorder

    forked_workers()
    recorder.Recorder._due = lambda self, whole: True  # type: ignore[method-assign]
