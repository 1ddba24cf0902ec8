"""Memory that runs out costs time, not the run: less is computed at once, and the numbers stay the same."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.online_runs import curve, prepared, same, weights, words
from trimtab import jobs
from trimtab.cli import main
from trimtab.feedback.readers import read
from trimtab.methods import find
from trimtab.policies.load import ModelConfig, load_language_policy
from trimtab.policies.trunk import Trunk
from trimtab.reference import attach_reference
from trimtab.rollouts import generate as generating
from trimtab.room import Room
from trimtab.train import RunConfig, make_table, train

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture
def small() -> Any:
    """A machine on which a model can read so many tokens at once, and answer so many prompts."""

    def machine(tokens: int, monkeypatch: pytest.MonkeyPatch, prompts: int = 10**9) -> None:
        hidden, answer = Trunk.hidden, generating._answer

        def reads(self: Trunk, sequences: Any) -> Any:
            if len(sequences.tokens) > tokens:
                raise FULL
            return hidden(self, sequences)

        def answers(policy: Any, asked: Any, *rest: Any) -> Any:
            if len(asked) > prompts:
                raise RuntimeError(
                    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
                )
            return answer(policy, asked, *rest)

        monkeypatch.setattr(Trunk, "hidden", reads)
        monkeypatch.setattr(generating, "_answer", answers)

    return machine


def close(one: Path, other: Path) -> bool:
    """Rounding differs with the parts that a step is computed in."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], rtol=1e-4, atol=1e-6) for name in a)


@pytest.mark.parametrize("method", ["dpo", "kto", "reward_model"])
def test_recorded_feedback(
    method: str,
    tmp_path: Path,
    small: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:

    def reference(*given: Any, batch_tokens: int, **rest: Any) -> bool:
        """The same for all runs: its last digits depend on how many tokens are read at once."""
        return attach_reference(*given, batch_tokens=8192, **rest)

    monkeypatch.setattr(jobs, "attach_reference", reference)
    data = tiny.write_jsonl(tmp_path / "data.jsonl", tiny.thumbs() if method == "kto" else tiny.pairs())
    files = ["--model", tiny.model_folder(), "--data", data, "--precision", "fp32", "--device", "cpu"]
    command = ["train", method, *files, "--steps", "3", "--batch-size", "4", "--learning-rate", "1e-3"]
    assert main([*command, "--out", f"{tmp_path}/large"]) == 0
    capsys.readouterr()
    with monkeypatch.context() as full:
        small(64, full)
        assert main([*command, "--out", f"{tmp_path}/small"]) == 0
    said = re.findall(
        r"out of memory: from here on (\d+) tokens are computed at once", capsys.readouterr().err
    )
    assert 1 <= len(said) <= 3
    assert close(tmp_path / "small", tmp_path / "large")
    assert main([*command, "--batch-tokens", said[-1], "--out", f"{tmp_path}/parts"]) == 0
    assert same(weights(tmp_path / "small"), weights(tmp_path / "parts"))  # as if it had been asked for


def test_the_reference(
    small: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = load_language_policy(ModelConfig(str(tiny.model_folder()), precision="fp32", device="cpu"))
    data = tiny.write_jsonl(tmp_path / "data.jsonl", tiny.pairs())

    def computed(tokens: int) -> list[torch.Tensor]:
        """With so many tokens that memory takes."""
        monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / str(tokens)))
        table = make_table(find("dpo")(), read(data), policy.tokenizer, RunConfig())
        with monkeypatch.context() as full:
            small(tokens, full)
            assert not attach_reference(table, policy, batch_tokens=128)
        assert table.ref_logprobs is not None and len(table.ref_logprobs) == len(table.rows)
        return list(table.ref_logprobs)

    whole = computed(10**9)
    assert not caplog.records
    for one, other in zip(computed(64), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert len(caplog.records) == 1  # said once, not for every part
    with pytest.raises(torch.OutOfMemoryError):
        computed(2)


def test_rows_of_the_reference_that_fit_are_computed_whatever_was_cut_before(
    small: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Parts that were cut when more seemed to fit, with rows of many lengths, are cut again."""
    policy = load_language_policy(ModelConfig(str(tiny.model_folder()), precision="fp32", device="cpu"))
    data = tiny.write_jsonl(tmp_path / "data.jsonl", tiny.pairs(tiny.PROMPTS[:2]))
    table = make_table(find("dpo")(), read(data), policy.tokenizer, RunConfig())
    # the prompt's token, its length, the answer's
    sizes = [(9, 1, 35), (10, 4, 15), (11, 4, 25), (11, 4, 25)]
    table.rows = [([token] * prompt, [5] * answer) for token, prompt, answer in sizes]
    small(41, monkeypatch)
    assert not attach_reference(table, policy, batch_tokens=128)
    assert table.ref_logprobs is not None
    assert [len(logprobs) for logprobs in table.ref_logprobs] == [35, 15, 25, 25]


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_answers(
    method: str,
    tmp_path: Path,
    small: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = words(method, prepared(tmp_path), "--epochs", "2", "--minibatch-size", "4")
    place = command.index("--out")
    command = command[:place] + command[place + 2 :]
    with monkeypatch.context() as full:
        small(64, full, prompts=1)
        assert main([*command, "--out", f"{tmp_path}/small"]) == 0
    said = capsys.readouterr().err
    tokens = re.findall(r"(\d+) tokens are computed at once", said)
    assert tokens and re.findall(r"(\d+) prompts are computed at once", said) == ["2", "1"]
    command += ["--batch-tokens", tokens[-1], "--generate-batch", "1"]
    assert main([*command, "--out", f"{tmp_path}/asked"]) == 0
    assert curve(tmp_path / "small") == curve(tmp_path / "asked")
    assert same(weights(tmp_path / "small"), weights(tmp_path / "asked"))


def test_one_row_that_is_too_much_ends_the_run(
    tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.write_jsonl(tmp_path / "data.jsonl", tiny.pairs())
    small(3, monkeypatch)
    command = ["train", "dpo", "--model", tiny.model_folder(), "--data", data, "--out", f"{tmp_path}/out"]
    assert main([*command, "--steps", "2"]) == 1
    assert "there is not enough memory (2.00 GiB more were asked for)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_errors_are_not_taken_for_it() -> None:
    room = Room(8, "tokens")
    with pytest.raises(RuntimeError, match="shapes"):
        room.halve(RuntimeError("shapes do not fit"), 8)
    with pytest.raises(torch.OutOfMemoryError):
        room.halve(FULL, 9, least=8)
    room.halve(FULL, 9, least=5)
    assert room.size == 5
    room.halve(FULL, 4)
    assert room.size == 2


def test_a_resumed_run_knows_how_much_fits(
    tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its parts, and with them its last digits, would be others."""
    policy = load_language_policy(ModelConfig(model=tiny.model_folder(), precision="fp32"))
    run = RunConfig(steps=2, batch_size=4)
    records = read(tiny.write_jsonl(tmp_path / "d.jsonl", tiny.demonstrations()))
    table = make_table(find("sft")(), records, policy.tokenizer, run)
    small(64, monkeypatch)
    training = train(find("sft")(), policy, table, run)
    next(iter(training))
    again = train(find("sft")(), policy, table, dataclasses.replace(run))
    again.load(training.state())
    assert training.room.size == again.room.size < 8192
