"""Reference log-probs: equal to the model's own, cached by model, precision and tokens."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.models import alone, letter_tokenizer
from trimtab.feedback import numbers
from trimtab.feedback.batches import Table
from trimtab.feedback.readers import read
from trimtab.feedback.tokenise import tokenise
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.load import ModelConfig, load_language_policy
from trimtab.reference import attach_reference, cache_folder


@pytest.fixture
def table(tmp_path: Path) -> Table:
    file = tiny.write_jsonl(tmp_path / "pairs.jsonl", tiny.pairs())
    return tokenise(read(file), letter_tokenizer(), max_length=64)


def load(seed: int = 0, **options: object) -> LanguagePolicy:
    config = ModelConfig(tiny.model_folder(seed), precision="fp32")
    return load_language_policy(ModelConfig(**{**vars(config), **options}))


def cached() -> list[Path]:
    return sorted((cache_folder() / "reference").glob("*"))


def test_they_are_the_models_own(table: Table) -> None:
    policy = load()
    attach_reference(table, policy, batch_tokens=100)  # several batches, out of order
    assert table.ref_logprobs is not None
    for (prompt, response), logprobs in zip(table.rows, table.ref_logprobs, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(logprobs, alone(policy.model, prompt, response), rtol=0, atol=1e-5)


def test_a_second_time_they_come_from_the_disk(table: Table) -> None:
    assert attach_reference(table, load(), batch_tokens=100) is False
    first = table.ref_logprobs
    table.ref_logprobs = None
    seen: list[int] = []
    assert attach_reference(table, load(), batch_tokens=100, progress=lambda done, _: seen.append(done))
    assert first is not None and table.ref_logprobs is not None and not seen
    assert all(torch.equal(a, b) for a, b in zip(first, table.ref_logprobs, strict=True))
    assert [file.suffix for file in cached()] == [".safetensors"]


def test_other_weights_precision_or_tokens_are_computed_anew(table: Table) -> None:
    attach_reference(table, load(), batch_tokens=100)
    assert not attach_reference(table, load(seed=1), batch_tokens=100)
    assert not attach_reference(table, load(precision="bf16"), batch_tokens=100)
    nudged = load()
    with torch.no_grad():
        nudged.parameters()[3].view(-1)[5] += 1e-3
    assert not attach_reference(table, nudged, batch_tokens=100)
    assert not attach_reference(table, load(), batch_tokens=101)  # other parts have other last digits
    (prompt, response), *others = table.rows
    table.rows = [(prompt, [*response[:-2], 5, 1]), *others]
    assert not attach_reference(table, load(), batch_tokens=100)
    assert len(cached()) == 6


def test_an_adapter_is_off_whatever_it_learned(table: Table) -> None:
    attach_reference(table, load(), batch_tokens=100)
    whole = table.ref_logprobs
    adapted = load(lora_rank=2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(1.0)
    attach_reference(table, adapted, batch_tokens=100)
    assert whole is not None and table.ref_logprobs is not None
    for a, b in zip(whole, table.ref_logprobs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert attach_reference(table, adapted, batch_tokens=100)


@pytest.mark.parametrize("how", ["cut short", "a flipped bit", "empty"])
def test_a_damaged_cache_is_computed_anew(how: str, table: Table) -> None:
    """A bit that flipped in a number leaves a file that can be read: only its sum tells."""
    attach_reference(table, load(), batch_tokens=100)
    first = table.ref_logprobs
    [file] = cached()
    content = bytearray(file.read_bytes())
    content[-3] ^= 64
    damaged = {"cut short": content[:-10], "a flipped bit": content, "empty": b""}
    file.write_bytes(damaged[how])
    table.ref_logprobs = None
    assert attach_reference(table, load(), batch_tokens=100) is False
    assert first is not None and table.ref_logprobs is not None
    assert all(torch.equal(a, b) for a, b in zip(first, table.ref_logprobs, strict=True))
    assert attach_reference(table, load(), batch_tokens=100) is True


def test_in_files_they_are_the_same_as_in_memory(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    attach_reference(table, load(), batch_tokens=100)
    assert table.ref_logprobs is not None
    in_memory = list(table.ref_logprobs)
    cached()[0].unlink()
    monkeypatch.setattr(numbers, "FEW_BYTES", 16)
    for from_cache in (False, True):
        assert attach_reference(table, load(), batch_tokens=100) is from_cache
        assert all(torch.equal(a, b) for a, b in zip(in_memory, table.ref_logprobs, strict=True))
        assert torch.equal(table.ref_logprobs[-1], in_memory[-1])
        batch = table.batch([3, 0])
        of_chosen = [in_memory[table.examples[i].rows[0]] for i in (3, 0)]
        assert batch.ref_logprobs is not None
        for line, expected in zip(batch.ref_logprobs, of_chosen, strict=False):
            assert torch.equal(line[: len(expected)], expected)


def test_the_file_is_one_that_safetensors_reads(table: Table) -> None:
    attach_reference(table, load(), batch_tokens=100)
    assert table.ref_logprobs is not None
    assert torch.equal(load_file(cached()[0])["logprobs"], torch.cat(list(table.ref_logprobs)))
