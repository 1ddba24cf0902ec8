"""`trimtab resume` on a comparison: what is missing is done, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.cli import main

COMPARISON = """
name: small
envs: [CartPole-v1]
methods: {ppo: {}, reinforce: {}}
seeds: [0]
settings: {total_steps: 200, envs: 2, steps: 50}
evaluation: {episodes: 2}
jobs: 1
"""


def results(out: Path) -> dict[str, Any]:
    """The latest line of every run, without its clock."""
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return {row["key"]: {k: v for k, v in row.items() if k != "seconds"} for row in rows}


def test_a_comparison_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "small.yaml", tmp_path / "out"
    file.write_text(COMPARISON)
    assert main(["compare", str(file), "--out", str(out)]) == 0
    whole = results(out)
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(lines[:-1]))  # as a kill before the last run's end leaves it
    file.unlink()
    capsys.readouterr()
    assert main(["resume", str(out)]) == 0
    assert results(out) == whole
    said = capsys.readouterr().out
    assert f"runs: {len(lines) - 1}/{len(lines)}" in said or f"runs: {len(lines)}/{len(lines)}" in said
    assert main(["resume", str(out), "--finish"]) == 2
    assert "is a comparison, whose runs are trained to their end" in capsys.readouterr().err


def test_two_processes_do_not_work_in_one_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fcntl = pytest.importorskip("fcntl")
    file, out = tmp_path / "small.yaml", tmp_path / "out"
    file.write_text(COMPARISON)
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["compare", str(file), "--out", str(out)]) == 2
    assert f"{out}: another process is training there" in capsys.readouterr().err
    assert not (out / "results.jsonl").exists()
