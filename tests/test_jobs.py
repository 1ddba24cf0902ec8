"""Training jobs: the same numbers whatever does not concern them, and the reference that was asked for."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from trimtab.errors import UserError
from trimtab.feedback.conversions import ViewOptions
from trimtab.jobs import DataConfig, Job, run_job, shown
from trimtab.methods import find
from trimtab.policies.load import ModelConfig
from trimtab.train import RunConfig

RUN = RunConfig(steps=3, batch_size=4, learning_rate=1e-3, max_length=64)


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, int, int, str]] = []

    def __call__(self, what: str, done: int, total: int, note: str = "", *, milestone: bool = False) -> None:
        self.lines.append((what, done, total, note))


def train(folder: Path, method: str = "dpo", run: RunConfig = RUN, **model: Any) -> list[dict[str, float]]:
    """Runs a job into `folder`; returns its curve without the times."""
    data = tiny.write_jsonl(folder.parent / "pairs.jsonl", tiny.pairs())
    config = ModelConfig(**{"model": tiny.model_folder(), "precision": "fp32", **model})
    run_job(Job(find(method)(), config, DataConfig(data), ViewOptions(), run, folder), Log())
    return [{k: v for k, v in m.items() if k != "seconds"} for m in tiny.read_jsonl(folder / "metrics.jsonl")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def equal(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("method", ["dpo", "reward_model"])
def test_a_seed_repeats_bit_for_bit(method: str, rank: int, tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = train(tmp_path / "a", method, lora_rank=rank)
    torch.manual_seed(2)  # whatever ran before in the process
    assert train(tmp_path / "b", method, lora_rank=rank) == first
    assert equal(tmp_path / "a", tmp_path / "b")
    train(tmp_path / "c", method, dataclasses.replace(RUN, seed=1), lora_rank=rank)
    assert not equal(tmp_path / "a", tmp_path / "c")


def test_the_first_loss_is_log_two_with_the_model_as_reference(tmp_path: Path) -> None:
    assert train(tmp_path / "out")[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)


def test_another_reference_is_another_loss(tmp_path: Path) -> None:
    curve = train(tmp_path / "out", reference=tiny.model_folder(1))
    assert abs(curve[0]["loss"] - 0.6931472) > 1e-3
    same = train(tmp_path / "same", reference=tiny.model_folder())
    assert same == train(tmp_path / "own")


@pytest.mark.parametrize("rank", [0, 2])
def test_gradient_checkpointing_changes_no_number(rank: int, tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", lora_rank=rank)
    checkpointed = train(tmp_path / "checkpointed", lora_rank=rank, gradient_checkpointing=True)
    for one, two in zip(plain, checkpointed, strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("names", ["fused", "shared-prompts", "packing, fused"])
def test_leaving_techniques_out_changes_no_number(names: str, tmp_path: Path) -> None:
    for one, two in zip(train(tmp_path / "all"), train(tmp_path / "less", without=names), strict=True):
        for name in ("loss", "grad_norm"):
            assert two[name] == pytest.approx(one[name], rel=1e-5)


@pytest.mark.parametrize("name", ["fused-lora", "frozen-head"])
def test_leaving_out_what_serves_adapters_changes_no_number(name: str, tmp_path: Path) -> None:
    ways = {"all": None, "less": name}
    one, two = (train(tmp_path / out, lora_rank=2, without=left_out) for out, left_out in ways.items())
    for both in zip(one, two, strict=True):
        assert both[0]["loss"] == pytest.approx(both[1]["loss"], rel=1e-5)
        assert both[0]["grad_norm"] == pytest.approx(both[1]["grad_norm"], rel=1e-5)


def test_an_unknown_technique_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(UserError, match="without: there is no technique 'fuse'; did you mean 'fused'"):
        ModelConfig("unused", without="packing,fuse")


@pytest.mark.parametrize("rank", [0, 2])
def test_bf16_runs_on_a_cpu_and_saves_what_it_holds(rank: int, tmp_path: Path) -> None:
    exact, rounded = (
        train(tmp_path / "fp32", lora_rank=rank),
        train(tmp_path / "bf16", lora_rank=rank, precision="bf16"),
    )
    assert rounded[0]["loss"] == pytest.approx(exact[0]["loss"], abs=1e-6)
    assert rounded[-1]["loss"] == pytest.approx(exact[-1]["loss"], abs=0.05)
    assert {w.dtype for w in weights(tmp_path / "bf16").values()} == {torch.float32}


def test_parts_of_a_batch_change_no_number(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    parts = train(tmp_path / "parts", run=dataclasses.replace(RUN, batch_tokens=40))
    for curve in (whole, parts):  # nothing is preferred before the first step: rounding decides who is ahead
        assert curve[0]["margin"] == pytest.approx(0, abs=1e-6)
        del curve[0]["accuracy"]
    for one, two in zip(whole, parts, strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_progress_tells_each_step(tmp_path: Path) -> None:
    data = tiny.write_jsonl(tmp_path / "pairs.jsonl", tiny.pairs())
    log = Log()
    model = ModelConfig(tiny.model_folder(), precision="fp32")
    run_job(Job(find("dpo")(), model, DataConfig(data), ViewOptions(), RUN, tmp_path / "out"), log)
    steps = [(done, total) for what, done, total, _ in log.lines if what == "training dpo"]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert log.lines[0][:3] == ("reference log-probs", 16, 16)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("1")
    with pytest.raises(UserError, match="exists already"):
        train(tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["precious"]


def test_shown_leaves_out_what_a_person_does_not_follow() -> None:
    metrics = {"step": 1.0, "loss": 0.123456, "accuracy": 1.0, "grad_norm": 2.0, "seconds": 3.0}
    assert shown(metrics) == "loss 0.1235  accuracy 1"
