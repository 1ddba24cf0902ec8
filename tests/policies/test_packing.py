"""Packed, fused, padded to the right, to the left or alone: the same log-probs and gradients to 1e-5."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.models import SETTINGS, alone, causal_model, gradients, letter_tokenizer, pack, policy, random_rows
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trimtab.feedback.sequences import Sequences
from trimtab.policies import cpu_attention, packing
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.packing import NAME, Packing, packed_attention
from trimtab.policies.trunk import Trunk

RANDOM = random_rows(5)
ROWS = [
    *RANDOM,
    ([4], [1]),
    ([5], [6, 7, 8, 9, 10, 11, 12, 13, 14, 1]),
    (RANDOM[0][0], [9, 1]),  # three responses to one prompt, which is read once
    ([4], [8, 7, 6]),
    (RANDOM[0][0], [5]),
]
OFF = {"as chosen": (), "in transformers' modules": ("fused",), "prompts read again": ("shared",)}
RUNS_FUSED = {"Llama", "Qwen3"}
RUNS_PACKED = {"Llama": True, "Qwen3": True, "Mistral": True, "GPT2": True, "Gemma2": False, "Mamba": False}


def summed(logprobs: Tensor) -> Tensor:
    """One number that weighs every token differently."""
    return (logprobs.flatten() * torch.linspace(0.5, 1.5, logprobs.numel())).sum()


def left_padded(model: Any) -> Tensor:
    """[M] log-probs of the response tokens by transformers, padded to the left."""
    longest = max(len(p) + len(r) for p, r in ROWS)
    tokens = torch.tensor([[2] * (longest - len(p) - len(r)) + [*p, *r] for p, r in ROWS])
    mask = torch.tensor([[0] * (longest - len(p) - len(r)) + [1] * (len(p) + len(r)) for p, r in ROWS])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logprobs = model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits.log_softmax(-1)
    chosen = logprobs[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    return torch.cat([chosen[i, -len(r) :] for i, (_, r) in enumerate(ROWS)])


@pytest.mark.parametrize("kernels", ["ours", "torch's"])
@pytest.mark.parametrize("architecture", SETTINGS)
def test_same_logprobs_and_gradients_as_each_sequence_alone(
    architecture: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels == "torch's":
        monkeypatch.setattr(packing, "suits", lambda query: False)
    learner = policy(architecture)
    assert learner.trunk.packed == RUNS_PACKED[architecture]
    assert learner.trunk.fused == (architecture in RUNS_FUSED)
    sequences = pack(ROWS)
    logprobs = torch.cat([alone(learner.model, p, r) for p, r in ROWS])
    summed(logprobs).backward()
    gradient = gradients(learner.parameters())
    scale = float(gradient.abs().max())
    for way in (*OFF, "padded right"):
        learner = policy(architecture)
        for name in OFF.get(way, ("packed",)):
            setattr(learner.trunk, name, False)
        flat = learner.logprobs(sequences)[sequences.mask]
        summed(flat).backward()
        torch.testing.assert_close(flat, logprobs, rtol=0, atol=1e-5)
        found = gradients(learner.parameters())
        torch.testing.assert_close(found / scale, gradient / scale, rtol=0, atol=1e-5)


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


def test_a_prompt_is_read_once_for_all_its_responses() -> None:
    sequences = Sequences.pack([([7, 8], [1, 2]), ([9], [3]), ([7, 8], [4, 5, 6])])
    found = Packing.of(sequences)
    assert sequences.tokens[found.read].tolist() == [7, 8, 1, 2, 9, 3, 4, 5, 6]
    assert found.slots.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 6, 7, 8]
    assert Packing.of(sequences, shared=False).slots.tolist() == list(range(11))
    assert Packing.of(sequences.select(torch.tensor([2, 0]))).slots.tolist() == [0, 1, 2, 3, 4, 0, 1, 5, 6]
    assert Packing.of(sequences.select(torch.tensor([1]))).slots.tolist() == [0, 1]


def test_a_response_much_longer_than_its_prompt_is_read_with_it() -> None:
    sequences = Sequences.pack([([7], [1, 2]), ([7], [3, 4, 5, 6]), ([7], [3, 4, 5, 6, 8])])
    assert Packing.of(sequences).slots.tolist() == [0, 1, 2, 0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]


def test_rectangles_hold_every_query_once_and_little_padding() -> None:
    for rows in (random_rows(40, seed=3), ROWS):
        found = Packing.of(pack(rows))
        places = torch.cat([r.queries.flatten()[r.real] for r in found.rectangles()])
        assert places.sort().values.tolist() == list(range(len(found.read)))
        assert places[found.order].tolist() == list(range(len(found.read)))
        for rectangle in found.rectangles():
            tokens = sum(len(set(row)) for row in rectangle.keys.tolist())
            assert rectangle.keys.numel() <= 1.25 * tokens


@pytest.mark.parametrize("fused", [True, False])
def test_second_derivatives_fail_rather_than_being_wrong(fused: bool) -> None:
    learner = policy("Llama")
    learner.trunk.fused = fused
    parameters = learner.parameters()
    hidden = learner.trunk.hidden(pack(ROWS)).square().sum()
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(hidden, parameters, create_graph=True, allow_unused=True)


@pytest.mark.parametrize("window", [7, 20, None])
def test_a_sliding_window_longer_than_the_probe_is_kept(window: int | None) -> None:
    learner = policy("Mistral", sliding_window=window)
    assert learner.trunk.packed and learner.trunk.fused == (window is None)
    rows = [(list(range(4, 16)) * 2, list(range(5, 15)) * 3), ([4], [5, 6])]
    sequences = pack(rows)
    with torch.no_grad():
        ours = learner.logprobs(sequences)[sequences.mask]
        theirs = torch.cat([alone(learner.model, *row) for row in rows])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


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


@pytest.mark.parametrize("fused", [True, False])
def test_gradient_checkpointing_gives_the_same_gradient(fused: bool) -> None:
    learner, sequences = policy("Llama"), pack(ROWS)
    learner.trunk.fused = fused
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


@pytest.mark.parametrize("short", [0, 400])
@pytest.mark.parametrize("fused", [True, False])
def test_bf16_autocast_is_near_fp32(fused: bool, short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "SHORT", short)
    exact = policy("Llama")
    rounded = LanguagePolicy(causal_model("Llama"), letter_tokenizer(), autocast=torch.bfloat16)
    rounded.trunk.fused = fused
    found = []
    for learner in (exact, rounded):
        sequences = pack(ROWS)
        logprobs = learner.logprobs(sequences)[sequences.mask]
        summed(logprobs).backward()
        found.append((logprobs.detach(), gradients(learner.parameters())))
    assert 1e-4 < float((found[0][0] - found[1][0]).abs().max()) < 0.3
    assert float(torch.cosine_similarity(found[0][1], found[1][1], dim=0)) > 0.999
