"""What ends a command though the user did nothing wrong: memory, disks, and defects of ours."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import tiny
from trimtab.cli import main
from trimtab.errors import ran_out_of_memory, storage_failed

Fault = Callable[[], object]
Say = Callable[..., tuple[int, str]]
COMMAND = "import sys; from trimtab.cli import main; raise SystemExit(main(sys.argv[1:]))"


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs a command whose work ends in a fault; gives its exit status and what it says."""

    def run(fault: Fault, *words: str) -> tuple[int, str]:
        monkeypatch.setattr(import_module(f"trimtab.cli.{words[0]}"), "run", lambda _: fault())
        status = main(list(words))
        printed = capsys.readouterr()
        assert printed.out == ""
        return status, printed.err

    return run


def cuda() -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total of 4 GiB."
    )


def full_disk() -> None:
    with open("/dev/full", "w") as file:
        file.write("x")


def closed_folder() -> None:
    raise PermissionError(errno.EACCES, "Permission denied", "/closed/run")


def read_only() -> None:
    raise OSError(errno.EROFS, "Read-only file system", "/cdrom/run")


MEMORY: dict[str, tuple[Fault, str]] = {
    "torch on a CPU": (lambda: torch.empty(2**50), " (4503599627370496 bytes more were asked for)"),
    "torch on CUDA": (cuda, " (2.50 GiB more were asked for)"),
    "numpy": (lambda: np.empty(2**50), " (8.00 PiB more were asked for)"),
    "Python": (lambda: bytearray(2**62), ""),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_that_is_not_enough_is_said_with_what_to_try(failing: Say, name: str) -> None:
    fault, asked = MEMORY[name]
    status, said = failing(fault, "train", "dpo")
    assert status == 1
    assert said == (
        f"trimtab: there is not enough memory{asked}; try a smaller --batch-tokens or --max-length, "
        "--lora-rank 16 instead of all weights, --gradient-checkpointing, or fewer --generate-batch; "
        "`trimtab doctor` says what fits\n"
    )


def test_each_command_names_its_own_options(failing: Say) -> None:
    assert "try fewer --envs or --steps" in failing(cuda, "train", "ppo", "--env=CartPole-v1")[1]
    assert "try fewer --jobs, or in its file a smaller batch_tokens" in failing(cuda, "compare", "x.yaml")[1]
    assert "try again with less at once" in failing(cuda, "report", "x")[1]


@pytest.mark.parametrize(
    ("fault", "words", "said"),
    [
        (
            full_disk,
            ["--out", "runs/x"],
            "runs/x: the disk is full; free some space, or write to another disk",
        ),
        (full_disk, ["--out=runs/y"], "runs/y: the disk is full; free some space, or write to another disk"),
        (full_disk, [], "the output: the disk is full; free some space, or write to another disk"),
        (
            closed_folder,
            ["--out", "runs/x"],
            "/closed/run: there is no permission to use it; change its permissions, or choose another folder",
        ),
        (read_only, [], "/cdrom/run: the disk is read-only; choose another folder"),
    ],
)
def test_a_disk_that_takes_nothing_is_named(failing: Say, fault: Fault, words: list[str], said: str) -> None:
    assert failing(fault, "train", "dpo", *words) == (1, f"trimtab: {said}\n")


def test_a_defect_of_ours_says_so_and_keeps_its_traceback(failing: Say) -> None:
    status, said = failing(lambda: {}["no such key"], "train", "dpo")
    lines = said.splitlines()
    assert status == 1
    assert lines[0] == (
        "trimtab: this is a defect of trimtab, not of your input; please report it in trimtab's issue "
        "tracker, with the command and all that follows"
    )
    assert lines[1] == "Traceback (most recent call last):" and lines[-1] == "KeyError: 'no such key'"


def test_other_errors_are_of_neither_kind() -> None:
    others = [RuntimeError("shape mismatch"), ValueError("out of memory"), FileNotFoundError(2, "none", "x")]
    assert [ran_out_of_memory(error) for error in others] == [None, None, None]
    assert [storage_failed(error, "x") for error in others] == [None, None, None]


def process(*words: str, limit: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMMAND, *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, preexec_fn=limit, env=os.environ
    )


def test_a_model_that_may_not_be_written_to_its_end_is_said(tmp_path: Path) -> None:
    """As on a full disk, the files written in Rust say no path."""
    data = tiny.write_jsonl(tmp_path / "d.jsonl", tiny.demonstrations())
    words = ["--model", tiny.model_folder(), "--data", data, "--out", str(tmp_path / "out"), "--steps", "1"]
    done = process(
        "train", "sft", *words, limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000,) * 2)
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"trimtab: {tmp_path}/out: a file may not grow larger here; write to another disk, or raise the "
        "limit (ulimit -f)"
    )
    assert "Traceback" not in done.stderr


LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import trimtab.jobs, trimtab.online_jobs, transformers.models.llama.modeling_llama
from trimtab.cli import main
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 600_000_000,) * 2)
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="says how much memory a process has")
def test_a_batch_that_memory_cannot_hold_is_said(tmp_path: Path) -> None:
    """Not even one row: its MLP takes two tensors of 320 MB."""
    wide = tiny.model_folder(hidden_size=16, num_hidden_layers=1, intermediate_size=200_000)
    data = tiny.write_jsonl(tmp_path / "d.jsonl", tiny.demonstrations([f"a {'good film ' * 40}"] * 4))
    words = ["--model", wide, "--data", data, "--out", str(tmp_path / "out"), "--precision", "fp32"]
    command = [sys.executable, "-c", LITTLE_MEMORY, "train", "sft", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("trimtab: there is not enough memory")
    assert "Traceback" not in done.stderr


def test_a_folder_below_a_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.write_jsonl(tmp_path / "d.jsonl", tiny.demonstrations())
    words = ["--model", tiny.model_folder(), "--data", data, "--out", f"{data}/run", "--steps", "1"]
    assert main(["train", "sft", *words]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"trimtab: {data}/") and said.count("\n") == 1
    assert said.endswith(": a part of this path is a file, not a folder; choose another folder\n")


def test_a_reader_that_goes_away_is_no_failure_to_speak_of() -> None:
    code = (
        "import sys, trimtab.cli.methods as m; from trimtab.cli import main\n"
        "m.run = lambda words: [print('x' * 9999, flush=True) for _ in range(99)] and 0\n"
        "raise SystemExit(main(['methods']))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
