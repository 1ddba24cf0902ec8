"""Packed, padded to the right, padded to the left or alone: the same log-probs and gradients to 1e-5."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.models import SETTINGS, alone, causal_model, gradients, letter_tokenizer, pack, policy, random_rows
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trimtab.policies.language import LanguagePolicy
from trimtab.policies.packing import NAME, packed_attention
from trimtab.policies.trunk import Trunk

ROWS = [*random_rows(5), ([4], [1]), ([5], [6, 7, 8, 9, 10, 11, 12, 13, 14, 1])]
RUNS_PACKED = {"Llama": True, "Qwen3": True, "Mistral": True, "GPT2": True, "Gemma2": False, "Mamba": False}


def summed(logprobs: Tensor) -> Tensor:
    """One number that weighs every token differently."""
    return (logprobs * torch.linspace(0.5, 1.5, logprobs.numel())).sum()


def left_padded(model: Any) -> Tensor:
    """[M] log-probs of the response tokens by transformers, padded to the left."""
    longest = max(len(p) + len(r) for p, r in ROWS)
    tokens = torch.tensor([[2] * (longest - len(p) - len(r)) + [*p, *r] for p, r in ROWS])
    mask = torch.tensor([[0] * (longest - len(p) - len(r)) + [1] * (len(p) + len(r)) for p, r in ROWS])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logprobs = model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits.log_softmax(-1)
    chosen = logprobs[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    return torch.cat([chosen[i, -len(r) :] for i, (_, r) in enumerate(ROWS)])


@pytest.mark.parametrize("architecture", SETTINGS)
def test_same_logprobs_and_gradients_as_each_sequence_alone(architecture: str) -> None:
    learner = policy(architecture)
    assert learner.trunk.packed == RUNS_PACKED[architecture]
    sequences = pack(ROWS)
    results = {}
    for way in ("as chosen", "padded right", "alone"):
        learner.trunk.packed = RUNS_PACKED[architecture] and way == "as chosen"
        learner.model.zero_grad()
        if way == "alone":
            flat = torch.cat([alone(learner.model, p, r) for p, r in ROWS])
        else:
            flat = learner.logprobs(sequences)[sequences.mask]
        summed(flat).backward()
        results[way] = flat.detach(), gradients(learner.parameters())
    logprobs, gradient = results.pop("alone")
    scale = float(gradient.abs().max())
    for way in results:
        torch.testing.assert_close(results[way][0], logprobs, rtol=0, atol=1e-5)
        torch.testing.assert_close(results[way][1] / scale, gradient / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", [name for name in SETTINGS if name != "Mamba"])
def test_same_logprobs_as_padded_to_the_left(architecture: str) -> None:
    learner, sequences = policy(architecture), pack(ROWS)
    with torch.no_grad():
        ours, theirs = learner.logprobs(sequences)[sequences.mask], left_padded(learner.model)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", SETTINGS)
def test_changing_one_sequence_changes_no_other(architecture: str) -> None:
    learner = policy(architecture)
    changed = [([11, 12, 13], [14, 15, 1]) if i == 2 else row for i, row in enumerate(ROWS)]
    with torch.no_grad():
        before, after = learner.logprobs(pack(ROWS)), learner.logprobs(pack(changed))
    for i, (_, response) in enumerate(ROWS):
        same = torch.allclose(before[i, : len(response)], after[i, : len(response)], rtol=0, atol=1e-5)
        assert same == (i != 2)


@pytest.fixture
def leaking() -> Iterator[None]:
    """Packed attention that forgets where one sequence ends and the next begins."""

    def attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> Any:
        if kwargs.pop("packing", None) is not None:
            mask = None
        return sdpa_attention_forward(module, q, k, v, mask, **kwargs)

    AttentionInterface.register(NAME, attention)
    yield
    AttentionInterface.register(NAME, packed_attention)


@pytest.mark.usefixtures("leaking")
def test_a_leak_is_found_and_avoided() -> None:
    learner, sequences = policy("Llama"), pack(ROWS)
    assert not learner.trunk.packed
    with torch.no_grad():
        logprobs = learner.logprobs(sequences)
        learner.trunk.hf.set_attn_implementation(NAME)
        learner.trunk.packed = True
        leaked = learner.logprobs(sequences)
        learner.trunk.hf.set_attn_implementation("sdpa")
        expected = torch.cat([alone(learner.model, p, r) for p, r in ROWS])
    torch.testing.assert_close(logprobs[sequences.mask], expected, rtol=0, atol=1e-5)
    assert not torch.allclose(leaked[sequences.mask], expected, rtol=0, atol=1e-2)


def test_gradient_checkpointing_gives_the_same_gradient() -> None:
    learner, sequences = policy("Llama"), pack(ROWS)
    learner.model.train()
    summed(learner.logprobs(sequences).flatten()).backward()
    expected = gradients(learner.parameters())
    learner.model.zero_grad()
    learner.model.gradient_checkpointing_enable({"use_reentrant": False})
    summed(learner.logprobs(sequences).flatten()).backward()
    torch.testing.assert_close(gradients(learner.parameters()), expected, rtol=0, atol=1e-5)


def test_trying_out_packing_leaves_the_model_as_it_was() -> None:
    model = causal_model("Gemma2")
    model.train()
    before = model.config._attn_implementation
    assert not Trunk(model).packed
    assert model.training
    assert model.config._attn_implementation == before


def test_bf16_autocast_is_near_fp32() -> None:
    exact = policy("Llama")
    rounded = LanguagePolicy(causal_model("Llama"), letter_tokenizer(), autocast=torch.bfloat16)
    sequences = pack(ROWS)
    with torch.no_grad():
        difference = (exact.logprobs(sequences) - rounded.logprobs(sequences)).abs()
    assert 1e-4 < float(difference.max()) < 0.3
