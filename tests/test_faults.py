"""Kills and faults, a few: `make faults` tries many more. Each child is killed by a real SIGKILL."""

import errno
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.faults_ground import at_line, send
from benchmarks.faults_runs import Child, Ended, differences, left
from safetensors import SafetensorError

from tests import tiny
from tests.online_runs import prepared, words
from tests.test_resume import control_words, offline_words
from trimtab import checkpoint, recorder
from trimtab.checkpoint import Checkpoints
from trimtab.cli import main

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
IN_RUST = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def in_a_checkpoint(number: int) -> Callable[[], None]:
    """Has a run kill itself when one file of this checkpoint is written and the other is not."""

    def before() -> None:
        write, calls = checkpoint._write, iter(range(1, 10**6))

        def deadly(tensors: Any, file: Path) -> None:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            write(tensors, file)

        checkpoint._write = deadly

    return before


def killed(command: list[str], before: Callable[[], None], folder: Path) -> Ended:
    return Child(command, folder / "log", before).wait(60)


@pytest.fixture
def offline(tmp_path: Path) -> list[str]:
    return offline_words("dpo", tmp_path, "--save-every", "1")


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    return lambda: " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "moment", [at_line(3, send(signal.SIGKILL)), in_a_checkpoint(4)], ids=["step", "writing"]
)
@pytest.mark.parametrize("kind", ["offline", "control"])
def test_a_killed_run_leaves_what_one_that_was_not_killed_leaves(
    kind: str, moment: Callable[[], None], tmp_path: Path, offline: list[str]
) -> None:
    command = offline if kind == "offline" else control_words("ppo", "--save-every", "1")
    through, out = tmp_path / "through", tmp_path / "out"
    assert main([*command, "--out", str(through)]) == 0
    assert killed([*command, "--out", str(out)], moment, tmp_path).status == -signal.SIGKILL
    assert not (out / "state.json").exists()
    assert len(Checkpoints(out).names()) == 2
    torch.manual_seed(7)
    assert main(["resume", str(out)]) == 0
    assert differences(left(out), left(through)) == []


@pytest.mark.parametrize("error", [FULL, IN_RUST], ids=["Python", "Rust"])
def test_a_full_disk_leaves_the_checkpoints_before(
    error: Exception, tmp_path: Path, offline: list[str], monkeypatch: pytest.MonkeyPatch, said: Any
) -> None:
    from safetensors import torch as safetensors

    through, out = tmp_path / "through", tmp_path / "out"
    assert main([*offline, "--out", str(through)]) == 0
    save = safetensors.save_file

    def full(tensors: Any, file: Path, *given: Any, **named: Any) -> None:
        if "00000003" in str(file):
            raise error
        save(tensors, file, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors, "save_file", full)
        assert main([*offline, "--out", str(out)]) == 2
    assert (
        "could not be written (No space left on device); the one before it is still there; mend that, then: "
        f"trimtab resume {out}" in said()
    )
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == [
        "00000001-000000",
        "00000002-000000",
    ]
    assert main(["resume", str(out)]) == 0
    assert differences(left(out), left(through)) == []


def test_a_disk_that_is_full_from_the_start_has_no_checkpoint_to_speak_of(
    tmp_path: Path, offline: list[str], monkeypatch: pytest.MonkeyPatch, said: Any
) -> None:
    def full(*_: Any) -> None:
        raise FULL

    monkeypatch.setattr(checkpoint, "_write", full)
    assert main([*offline, "--out", f"{tmp_path}/out"]) == 2
    assert "(No space left on device); there is none yet; mend that" in said()


def test_options_that_cannot_be_written_leave_nothing_in_the_way(
    tmp_path: Path, offline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(recorder, "atomic_text", full)
        assert main([*offline, "--out", f"{tmp_path}/out"]) == 1
    assert main([*offline, "--out", f"{tmp_path}/out"]) == 0


def stopped(command: list[str], out: Path, line: int = 2) -> None:
    ended = killed([*command, "--out", str(out)], at_line(line, send(signal.SIGTERM)), out.parent)
    assert ended.status == 143, ended.said


@pytest.mark.parametrize(
    ("option", "name", "sentence"),
    [
        (
            "--model",
            "tokenizer_config.json",
            "the folder of the model (its configuration or tokenizer) is not",
        ),
        ("--model", "config.json", "the folder of the model (its configuration or tokenizer) is not"),
        ("--reference", "model.safetensors", "the reference model is not"),
    ],
)
def test_what_stands_beside_the_weights_must_be_as_it_was(
    option: str, name: str, sentence: str, tmp_path: Path, said: Any
) -> None:
    model, other = tmp_path / "model", tmp_path / "other"
    shutil.copytree(tiny.model_folder(), model)
    shutil.copytree(tiny.model_folder(1), other)
    out = model / "runs" / "out"  # what is written below the model is no part of it
    command = [*offline_words("dpo", tmp_path), option, str(model)]
    stopped(command, out)
    (model / "README.md").write_text("a word more")  # nor is what no program reads
    file = model / name
    before = file.read_bytes()
    changed = json.dumps({**json.loads(before), "new": 1}) if name.endswith("json") else ""
    file.write_bytes(changed.encode() or (other / name).read_bytes())
    assert main(["resume", str(out)]) == 2
    assert f"{sentence} what the run began with" in said()
    file.write_bytes(before)
    assert main(["resume", str(out)]) == 0


def test_a_second_process_does_not_look_at_checkpoints_that_the_first_may_delete(
    tmp_path: Path, offline: list[str], said: Any
) -> None:
    out = tmp_path / "out"
    stopped(offline, out)
    for file in out.glob("checkpoints/*/sums.json"):
        file.unlink()
    with (out / "trimtab.yaml").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["resume", str(out)]) == 2
    assert "another process is training there" in said()


def test_of_two_that_begin_at_the_same_moment_one_leaves_the_folder_to_the_other(
    tmp_path: Path, offline: list[str], monkeypatch: pytest.MonkeyPatch, said: Any
) -> None:
    out = tmp_path / "out"

    def other_begins(_: Path) -> None:
        out.mkdir(exist_ok=True)
        (out / "trimtab.yaml").write_text("of the other")

    monkeypatch.setattr(recorder, "refuse_existing", other_begins)
    assert main([*offline, "--out", str(out)]) == 2
    assert "another process began there" in said()
    assert (out / "trimtab.yaml").read_text() == "of the other"


def test_a_kill_while_checkpoints_are_deleted_leaves_a_complete_run(
    tmp_path: Path, offline: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    through, out = tmp_path / "through", tmp_path / "out"
    assert main([*offline, "--out", str(through)]) == 0

    def before() -> None:
        remove = shutil.rmtree

        def deadly(path: Path, *given: Any, **named: Any) -> None:
            if (out / "state.json").exists() and Path(path).is_dir():
                next(Path(path).rglob("*.safetensors")).unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            remove(path, *given, **named)

        shutil.rmtree = deadly  # type: ignore[assignment]

    assert killed([*offline, "--out", str(out)], before, tmp_path).status == -signal.SIGKILL
    assert main(["resume", str(out)]) == 0
    assert "is complete" in " ".join(capsys.readouterr().out.split())
    assert differences(left(out), left(through)) == []


def test_sample_answers_of_a_run_that_starts_again_are_not_there_twice(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    command = words("grpo", folder, "--refreshes", "2", "--samples-every", "1", out="through")
    assert main(command) == 0
    again = words("grpo", folder, "--refreshes", "2", "--samples-every", "1", out="out")
    assert killed(again, at_line(2, send(signal.SIGKILL)), tmp_path).status == -signal.SIGKILL
    assert "Refresh 1" in (folder / "out" / "samples.md").read_text()
    assert main(["resume", f"{folder}/out"]) == 0
    texts = [(folder / name / "samples.md").read_text() for name in ("out", "through")]
    assert texts[0] == texts[1]


def test_a_checkpoint_of_the_same_moment_takes_the_place_of_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for value in (1, 2, 3):
        checkpoints.save("00000004-000000", {"value": value})
    checkpoints.save("00000004-000001", {"value": 4})
    assert checkpoints.names() == ["00000004-000000-002", "00000004-000001"]
    assert checkpoints.newest() == ("00000004-000001", {"value": 4})


def test_what_a_kill_left_half_written_is_deleted_by_the_next_checkpoint(tmp_path: Path) -> None:
    half = tmp_path / "checkpoints" / ".00000007-000000.part"
    half.mkdir(parents=True)
    Checkpoints(tmp_path).save("00000003-000000", {"value": 1})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000003-000000"]
