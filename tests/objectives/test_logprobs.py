"""Log-probs block by block against torch's own log_softmax, and the masked reductions."""

import math

import pytest
import torch
from torch import Tensor

from trimtab.objectives import logprobs
from trimtab.objectives.logprobs import masked_mean, masked_sum, token_logprobs, token_logprobs_and_entropy

VOCABULARY = 11
BLOCKS = [(1, 1), (3, 4), (7, 11), (2, 100), (100, 5)]  # rows and columns of 7 and 11: uneven, exact, single


def inputs(rows: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 5, generator=generator, dtype=dtype)
    weight = torch.randn(VOCABULARY, 5, generator=generator, dtype=dtype)
    bias = torch.randn(VOCABULARY, generator=generator, dtype=dtype)
    return hidden, weight, torch.randint(VOCABULARY, (rows,), generator=generator), bias


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> Tensor:
    return plain_and_entropy(hidden, weight, targets, bias)[0]


def plain_and_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    logits = torch.nn.functional.linear(hidden, weight, bias)
    whole = torch.log_softmax(logits.float() / temperature, -1)
    return whole[torch.arange(len(targets)), targets], -(whole.exp() * whole).sum(-1)


def test_literal() -> None:
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[math.log(1.0)], [math.log(3.0)]])
    value = token_logprobs(hidden, weight, torch.tensor([1]))
    assert value.tolist() == pytest.approx([math.log(0.75)])


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_equal_log_softmax(
    monkeypatch: pytest.MonkeyPatch, block: tuple[int, int], with_bias: bool
) -> None:
    monkeypatch.setattr(logprobs, "_block", lambda *_: block)
    hidden, weight, targets, bias = inputs(dtype=torch.float32)
    upstream = torch.linspace(-1, 2, len(targets))
    results = []
    for function in (token_logprobs, plain):
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        if with_bias:
            leaves.append(bias.clone().requires_grad_())
        value = function(leaves[0], leaves[1], targets, leaves[2] if with_bias else None)
        (value * upstream).sum().backward()
        results.append((value, *(leaf.grad for leaf in leaves)))
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_below_a_frozen_head_the_gradient_is_the_same(
    monkeypatch: pytest.MonkeyPatch, block: tuple[int, int], temperature: float, dtype: torch.dtype
) -> None:
    """Where the head learns the logits are computed twice, and where it is frozen once."""
    monkeypatch.setattr(logprobs, "_block", lambda *_: block)
    hidden, weight, targets, bias = (t.to(dtype) if t.is_floating_point() else t for t in inputs())
    calls = []
    monkeypatch.setattr(logprobs, "linear", lambda *a: calls.append(1) or torch.nn.functional.linear(*a))
    results = []
    for learns, early in ((False, True), (False, False), (True, True)):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_(learns)
        value = token_logprobs(*leaves, targets, bias, temperature=temperature, rounded=False, early=early)
        value.backward(torch.linspace(-1, 2, len(targets)))
        results.append((value, leaves[0].grad, len(calls)))
        calls.clear()
    (value, gradient, once), *others = results
    for same, expected, twice in others:
        assert torch.equal(value, same) and gradient.dtype == dtype and twice == 2 * once
        tolerance = 1e-6 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(gradient, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("learns", [False, True])
def test_words_that_cannot_be_chosen(
    monkeypatch: pytest.MonkeyPatch, block: tuple[int, int], learns: bool
) -> None:
    """A bias of minus infinity, for a whole block and more."""
    monkeypatch.setattr(logprobs, "_block", lambda *_: block)
    hidden, weight, _, bias = inputs(dtype=torch.float32)
    bias[:6] = -torch.inf
    targets = torch.tensor([6, 7, 8, 9, 10, 6, 7])
    results = []
    for function in (token_logprobs, plain):
        leaf, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_(learns)
        value = function(leaf, head, targets, bias)
        value.sum().backward()
        results.append((value, leaf.grad))
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-6)


def test_what_is_no_number_stays_so_and_what_is_no_word_is_refused() -> None:
    hidden, weight, targets, _ = inputs(dtype=torch.float32)
    hidden[2, 0] = torch.nan
    found = token_logprobs(hidden, weight, targets)
    assert found.isnan().tolist() == [False, False, True, False, False, False, False]
    for wrong in (-100, VOCABULARY):
        with pytest.raises(IndexError, match="from 0 to 10"):
            token_logprobs(hidden, weight, torch.full((7,), wrong))
    assert token_logprobs(hidden[:0], weight, targets[:0]).shape == (0,)


@pytest.mark.parametrize("vocabulary", [1, 40, 8_192, 151_936])
@pytest.mark.parametrize("count", [1, 7, 500, 999, 20_000])
def test_a_block_is_no_larger_than_what_is_held(vocabulary: int, count: int) -> None:
    for device, most in (("cpu", logprobs.HELD_ON_CPU), ("cuda", logprobs.HELD)):
        rows, columns = logprobs._block(count, vocabulary, torch.device(device))
        assert 1 <= rows <= count and columns >= 1 and rows * columns <= most
        assert columns % 64 == 0 or columns < 64
        if count * vocabulary > most:  # and not much smaller
            assert min(rows, count) * min(columns, vocabulary) > 0.4 * min(most, count * vocabulary)


def test_entropy_of_shifted_logits_keeps_its_digits() -> None:
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[1000.0], [1000.0], [999.0]])
    entropy = token_logprobs_and_entropy(hidden, weight, torch.tensor([0]))[1]
    chances = torch.tensor([1.0, 1.0, math.exp(-1)]) / (2 + math.exp(-1))
    assert entropy.item() == pytest.approx(-float((chances * chances.log()).sum()), rel=1e-6)


def test_without_gradients_none_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets, _ = inputs(dtype=torch.float32)
    hidden.requires_grad_()
    made: list[int] = []
    monkeypatch.setattr(logprobs, "_add_product", lambda *_: made.append(1))
    with torch.no_grad():
        token_logprobs(hidden, weight, targets)
    assert not made


@pytest.mark.parametrize("shift", [6.0, 8.0])
def test_of_a_nearly_sure_choice_below_a_frozen_head_bf16_keeps_the_gradient(shift: float) -> None:
    """1 - p is taken in float32: p itself would be 1 in bf16."""
    hidden = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[shift], [0.0]], dtype=torch.bfloat16)
    token_logprobs(hidden, weight, torch.tensor([0])).sum().backward()
    assert hidden.grad.item() == pytest.approx(shift / (1 + math.exp(shift)), rel=0.02)


def test_literal_temperature_and_entropy() -> None:
    """Odds of 3 to 1 are 9 to 1 at half the temperature."""
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[math.log(1.0)], [math.log(3.0)]])
    value, entropy = token_logprobs_and_entropy(hidden, weight, torch.tensor([1]), temperature=0.5)
    assert value.tolist() == pytest.approx([math.log(0.9)])
    assert token_logprobs(hidden, weight, torch.tensor([1]), temperature=0.5).tolist() == value.tolist()
    assert entropy.tolist() == pytest.approx([-0.9 * math.log(0.9) - 0.1 * math.log(0.1)])


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
@pytest.mark.parametrize("part", ["log-probs", "entropy", "both"])
def test_gradients_of_entropy_equal_autograd(
    monkeypatch: pytest.MonkeyPatch, block: tuple[int, int], temperature: float, part: str
) -> None:
    monkeypatch.setattr(logprobs, "_block", lambda *_: block)
    hidden, weight, targets, bias = inputs(dtype=torch.float32)
    upstream = torch.linspace(-1, 2, len(targets)) * (part != "entropy")
    upstream_entropy = torch.linspace(3, -1, len(targets)) * (part != "log-probs")
    results = []
    for function in (token_logprobs_and_entropy, plain_and_entropy):
        leaves = [leaf.clone().requires_grad_() for leaf in (hidden, weight, bias)]
        value, entropy = function(leaves[0], leaves[1], targets, leaves[2], temperature=temperature)
        (value @ upstream + entropy @ upstream_entropy).backward()
        results.append((value, entropy, *(leaf.grad for leaf in leaves)))
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-5)


def test_a_sure_choice_has_no_entropy_and_no_gradient_of_it() -> None:
    hidden = torch.tensor([[200.0]], requires_grad=True)
    weight, targets = torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([0])
    value, entropy = token_logprobs_and_entropy(hidden, weight, targets)
    entropy.sum().backward()
    assert value.tolist() == [0.0] and entropy.tolist() == [0.0] and hidden.grad.tolist() == [[0.0]]


def test_only_what_needs_a_gradient_gets_one() -> None:
    hidden, weight, targets, _ = inputs(dtype=torch.float32)
    hidden.requires_grad_()
    token_logprobs(hidden, weight, targets).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_autocast_runs_in_bf16_with_fp32_sums() -> None:
    hidden, weight, targets, bias = inputs(dtype=torch.float32)
    hidden.requires_grad_()
    weight.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = token_logprobs(hidden, weight, targets, bias)
    value.sum().backward()
    bf16 = plain(hidden.bfloat16(), weight.bfloat16(), targets, bias.bfloat16())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, bf16, rtol=0, atol=1e-6)
    assert not torch.allclose(value, plain(hidden, weight, targets, bias), rtol=0, atol=1e-6)
    assert hidden.grad is not None and weight.grad is not None
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize("learns", [False, True])
def test_second_derivative_fails_rather_than_being_wrong(learns: bool) -> None:
    hidden, weight, targets, _ = inputs(dtype=torch.float32)
    hidden.requires_grad_(), weight.requires_grad_(learns)
    total = token_logprobs(hidden, weight, targets).sum()
    (gradient,) = torch.autograd.grad(total, hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.square().sum().backward()


def test_masked_reductions() -> None:
    values = torch.tensor([[1.0, 2.0, 99.0], [4.0, float("nan"), float("inf")]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_sum(values, mask).tolist() == [3.0, 4.0]
    assert masked_mean(values, mask).tolist() == [1.5, 4.0]
