"""Runs of trimtab in processes that can be killed, and what such a run leaves behind.

Everything is imported once; each run is a fork of that, so that an attempt takes a second and not ten.
"""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Action = Callable[[], None]

CLOCK = {"seconds", "steps_per_second", "tokens_per_second"}
MEASURED = {"seconds", "peak_memory_mb"}  # of a comparison's run, and different each time
OTHER = {"report.html", "comparison.json", "stages.json"}  # dates and seconds stand in these
NOUNS = ("film", "cast", "plot", "ending", "music", "scene", "idea", "story")


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        status: its exit status; less than 0 after a signal.
        said: all that it printed.
    """

    status: int
    said: str

    @property
    def sentence(self) -> str:
        """Its last word, and if it said none, its first warning."""
        lines = self.said.splitlines()
        words = [line.removeprefix("trimtab: ") for line in lines if line.startswith("trimtab: ")]
        return (words[-1:] or [line for line in lines if line.startswith("[WARNING]")] or [""])[0]


class Child:
    """`trimtab WORDS` in a fork of this process, in a process group of its own.

    Args:
        log: where its output goes.
        before: what is done in the fork first, such as breaking something.
    """

    def __init__(self, words: list[str], log: Path, before: Action | None = None) -> None:
        self.log, self.began = log, time.time()
        self.ended: Ended | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            os._exit(_carried_out(words, log, before))

    def look(self) -> Ended | None:
        """How it ended; None if it has not."""
        if self.ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                said = self.log.read_text(errors="replace") if self.log.exists() else ""
                self.ended = Ended(os.waitstatus_to_exitcode(status), said)
        return self.ended

    def wait(self, seconds: float = 300.0) -> Ended:
        """Raises TimeoutError if it does not end; it is killed then."""
        end = time.monotonic() + seconds
        while (ended := self.look()) is None:
            if time.monotonic() > end:
                self.kill(whole_group=True)
                raise TimeoutError(f"{self.log}: did not end in {seconds:g} seconds")
            time.sleep(0.002)
        return ended

    def kill(self, whole_group: bool = False) -> None:
        """SIGKILL, to its children as well or to it alone."""
        if self.look() is None:
            (os.killpg if whole_group else os.kill)(self.pid, signal.SIGKILL)
        self.wait(30.0)

    def group_ends(self, seconds: float = 10.0) -> bool:
        """Whether its children end, too, after it was killed."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.01)
        return False


def _carried_out(words: list[str], log: Path, before: Action | None) -> int:
    """The exit status of the command."""
    import traceback

    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _new_threads()
        from trimtab.cli import main

        if before is not None:
            before()
        status = main(words)
    except BaseException:
        traceback.print_exc()
        status = 99  # nothing is said so by trimtab itself
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _new_threads() -> None:
    """torch's pool of threads is gone after a fork: one thread makes it anew, before several ask for it."""
    import torch

    torch.set_num_threads(1)


def forked_workers() -> None:
    """A comparison's processes are forks, too: with everything imported."""
    from trimtab.compare import processes

    class Forks:
        @staticmethod
        def get_context(_: str) -> Any:
            import multiprocessing

            return multiprocessing.get_context("fork")

        parent_process = staticmethod(processes.multiprocessing.parent_process)

    begin = processes._begin_worker

    def begin_worker() -> None:
        _new_threads()
        begin()

    processes._begin_worker = begin_worker
    processes.multiprocessing = Forks  # type: ignore[assignment]


def import_everything() -> None:
    """What a run needs, once for all forks; threads stay at one, which a fork can copy."""
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    from importlib import import_module

    for name in ("cli.train", "cli.train_control", "cli.resume", "cli.compare", "online_jobs", "jobs"):
        import_module(f"trimtab.{name}")
    import gymnasium
    import torch

    from trimtab.policies.load import ModelConfig, load_language_policy, resolve_model
    from trimtab.terminal import quiet_libraries

    torch.set_num_threads(1)
    quiet_libraries()
    load_language_policy(ModelConfig(model=resolve_model("reviews"), device="cpu"), trainable=False)
    for env in ("CartPole-v1", "HalfCheetah-v5"):
        try:
            gymnasium.make(env).close()
        except gymnasium.error.DependencyNotInstalled:
            print(f"{env} is not installed", file=sys.stderr)


def write_material(folder: Path) -> None:
    """Small data: pairs.jsonl, and a comparison."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "pairs.jsonl").open("w") as file:
        for noun in NOUNS:
            for word in ("this", "the"):
                row = {"prompt": f"{word} {noun} is", "chosen": " good and a joy.", "rejected": " a bore."}
                file.write(json.dumps(row) + "\n")
    (folder / "comparison.yaml").write_text(
        f"model: reviews\ndata: {folder}/pairs.jsonl\nheld_out: 0.3\nrewards: {{short: 'length:20'}}\n"
        "methods: {dpo: {beta: [0.1, 0.5]}, grpo: {}}\nseeds: [0]\nkeep: all\njobs: 1\n"
        "budget: {steps: 2, responses: 8}\nonline: {refreshes: 1, responses: 8}\n"
        "device: cpu\nprecision: fp32\nevaluation: {prompts: 4, max_new_tokens: 8}\n"
    )


def left(folder: Path) -> dict[str, Any]:
    """What a run or comparison left, by file: without the clock, and with weights as hashes of their bits."""
    return {
        str(file.relative_to(folder)): _content(file) for file in sorted(folder.rglob("*")) if file.is_file()
    }


def _content(file: Path) -> Any:
    from safetensors.torch import load_file

    if file.suffix == ".safetensors":
        return {name: (str(w.dtype), *w.shape, _bits(w)) for name, w in load_file(file).items()}
    if file.name == "metrics.jsonl":
        return [_without(row, CLOCK) for row in _rows(file)]
    if file.name == "results.jsonl":
        return sorted(json.dumps(_without(row, MEASURED)) for row in _rows(file))
    if file.name in OTHER:
        return None
    if file.name == "trimtab.yaml":
        return [line for line in file.read_text().splitlines() if not line.startswith("out:")]
    return file.read_bytes()


def _bits(weight: Any) -> str:
    import torch

    return hashlib.sha256(weight.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _without(row: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The files in which they differ."""
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name, "") != other.get(name, "")]


def acknowledged(folder: Path) -> dict[str, bytes]:
    """What must still be there at the end: the curve up to the newest checkpoint, and finished runs."""
    from trimtab.checkpoint import Checkpoints

    found: dict[str, bytes] = {}
    for name in Checkpoints(folder).names()[-1:]:
        state = json.loads((folder / "checkpoints" / name / "state.json").read_text())
        length = state["curves"]["length"]
        found["metrics.jsonl"] = (folder / "metrics.jsonl").read_bytes()[:length]
    if (results := folder / "results.jsonl").exists():
        content = results.read_bytes()
        found["results.jsonl"] = content[: content.rfind(b"\n") + 1]
    return found
