"""A loss or gradient that is no finite number: no step is made with it, and what it was made of is kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from tests import tiny
from tests.online_runs import prepared, weights, words
from trimtab.cli import main

# rewards that are finite, but whose spread is not in float32
HUGE = "def huge(prompts, responses):\n    return [3e38 * (-1) ** i for i in range(len(responses))]\n"


def offline(folder: Path, *options: str) -> list[str]:
    data = tiny.write_jsonl(folder / "pairs.jsonl", tiny.pairs())
    files = ["--model", tiny.model_folder(), "--data", data, "--out", f"{folder}/out", "--precision", "fp32"]
    return ["train", "dpo", *files, "--steps", "4", "--batch-size", "4", "--batch-tokens", "60", *options]


def online(folder: Path, *options: str) -> list[str]:
    (prepared(folder) / "huge.py").write_text(HUGE)
    return words("reinforce", folder, *options, reward=f"{folder}/huge.py:huge")


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_recorded_feedback_stops_before_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first step throws the weights far off, and the second cannot be computed."""
    assert main(offline(tmp_path, "--learning-rate", "1e30", "--warmup", "0")) == 2
    out, said = tmp_path / "out", " ".join(capsys.readouterr().err.split())
    assert "step 2: the loss or its gradient is not a finite number; try a smaller --learning-rate" in said
    assert f"what was computed is in {out}/non-finite" in said
    assert f"trimtab resume {out} goes on from here" in said
    found = out / "non-finite"
    metrics = json.loads((found / "metrics.json").read_text())
    assert metrics["error"].startswith("step 2:") and "nan" in (metrics["loss"], metrics["grad_norm"])
    samples = lines(found / "samples.jsonl")
    assert len(samples) == 8  # 4 pairs
    texts = {row["prompt"].removeprefix("<s>") for row in samples}
    assert texts <= {row["prompt"] for row in tiny.pairs()} and texts
    assert all(len(row["logprobs"]) > 0 and len(row["ref_logprobs"]) > 0 for row in samples)
    assert {name.split(".", 1)[1] for name in load_file(found / "values.safetensors")} == {
        "ref_logprobs",
        "margin",
    }
    assert [row["step"] for row in lines(out / "metrics.jsonl")] == [1]


def test_answers_stop_before_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(online(tmp_path)) == 2
    found = tmp_path / "out" / "non-finite"
    assert f"what was computed is in {found}" in " ".join(capsys.readouterr().err.split())
    samples = lines(found / "samples.jsonl")
    assert sorted(row["score"] for row in samples) == sorted(
        float(np.float32(3e38)) * (-1) ** i for i in range(8)
    )
    parameters = json.loads((found / "parameters.json").read_text())
    assert parameters["weights"] == {}


def test_an_environment_stops_before_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "ppo", "--env", "Pendulum-v1", "--envs", "2", "--steps", "16", "--total-steps", "96"]
    assert main([*command, "--learning-rate", "1e30", "--out", f"{tmp_path}/out"]) == 2
    assert "not a finite number" in " ".join(capsys.readouterr().err.split())
    values = load_file(tmp_path / "out" / "non-finite" / "values.safetensors")
    assert {"0.observations", "0.actions", "0.advantages"} <= set(values)


def test_steps_are_left_out_and_counted(tmp_path: Path) -> None:
    """No step can be computed: all are counted, and the model stays as it was."""
    assert main(online(tmp_path, "--non-finite", "skip", "--refreshes", "3")) == 0
    assert [row["skipped"] for row in lines(tmp_path / "out" / "metrics.jsonl")] == [1, 2, 3]
    trained = weights(tmp_path / "out")
    before = load_file(Path(tiny.model_folder()) / "model.safetensors")
    assert all((trained[f"model.safetensors {name}"] == before[name]).all() for name in before)


def test_the_first_collection_leaves_what_was_computed_and_a_way_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing else: no model, and one sentence; the same command is told how the run goes on."""
    command, out = words("ppo", prepared(tmp_path), "--learning-rate", "1e38"), tmp_path / "out"
    capsys.readouterr()
    assert main(command) == 2
    printed = capsys.readouterr()
    assert "is not a finite number; try a smaller --learning-rate" in printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""
    left = ["checkpoints", "metrics.jsonl", "non-finite", "samples.md", "trimtab.yaml"]
    assert sorted(file.name for file in out.iterdir()) == left
    assert main(command) == 2
    assert f"trimtab resume {out}, or another --out" in " ".join(capsys.readouterr().err.split())
