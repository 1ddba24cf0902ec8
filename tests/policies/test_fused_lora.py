"""LoRA in one function, beside peft's own layers."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from tests import tiny
from tests.models import gradients, pack, random_rows
from torch import Tensor, nn

from trimtab.policies import fused_lora
from trimtab.policies.fused_lora import adapted
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.load import ModelConfig, load_language_policy
from trimtab.rollouts.generate import Sampling, generate

ROWS = random_rows(5, seed=3)
LAYERS, PROJECTIONS = 2, 7


def policy(model: str | None = None, **options: Any) -> LanguagePolicy:
    """With an adapter that says something: at its start it adds nothing."""
    options = {"precision": "fp32", "device": "cpu", "lora_rank": 2, **options}
    found = load_language_policy(ModelConfig(model or tiny.model_folder(), **options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return found


def numbers(learner: LanguagePolicy) -> tuple[Tensor, Tensor]:
    """Log-probs, and the gradient of their squares."""
    sequences = pack(ROWS)
    for parameter in learner.parameters():
        parameter.grad = None
    logprobs = learner.logprobs(sequences)[sequences.mask]
    logprobs.square().sum().backward()
    return logprobs.detach(), gradients(learner.parameters())


@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_peft(monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    learner = policy(tiny.model_folder(attention_bias=bias))
    assert learner.trunk.fused
    calls: list[int] = []
    forward = fused_lora._Lora.forward
    monkeypatch.setattr(fused_lora._Lora, "forward", lambda *a: calls.append(1) or forward(*a))
    ours = numbers(learner)
    assert len(calls) == LAYERS * PROJECTIONS
    learner.trunk.without(["fused-lora"])
    theirs = numbers(learner)
    assert len(calls) == LAYERS * PROJECTIONS
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5 * float(other.abs().max()))


def test_bf16_is_as_near_to_float32_as_it_is_with_peft() -> None:
    exact, rounded = numbers(policy()), policy(precision="bf16")
    ours = numbers(rounded)
    rounded.trunk.without(["fused-lora"])
    for truth, mine, other in zip(exact, ours, numbers(rounded), strict=True):
        assert not torch.equal(mine, other)
        assert float((mine - truth).norm()) < 1.2 * float((other - truth).norm())


def test_answers_are_the_same() -> None:
    learner = policy()
    prompts, sampling = [prompt for prompt, _ in ROWS], Sampling(max_new_tokens=8)
    ours = generate(learner, prompts, sampling, samples=2, seed=0)
    learner.trunk.without(["fused-lora"])
    theirs = generate(learner, prompts, sampling, samples=2, seed=0)
    assert [r.tokens for group in ours for r in group] == [r.tokens for group in theirs for r in group]


def test_without_the_adapter_it_is_the_base() -> None:
    learner, sequences = policy(), pack(ROWS)
    base = load_language_policy(ModelConfig(tiny.model_folder(), precision="fp32", device="cpu"))
    with learner.reference():
        found = learner.logprobs(sequences)
    torch.testing.assert_close(found, base.logprobs(sequences).detach(), rtol=0, atol=1e-6)


def layer(**settings: Any) -> Any:
    """A linear layer with peft's LoRA, whose weights are all far from zero."""
    torch.manual_seed(0)
    module = nn.ModuleDict({"linear": nn.Linear(6, 5)})
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["linear"], **settings), module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return module["linear"]


def test_of_one_layer_by_hand() -> None:
    """y = W x + b + s B A x"""
    module, x = layer(lora_alpha=6), torch.randn(4, 6)
    down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
    whole = module.base_layer.weight + 3.0 * up @ down
    found = adapted(module, x)
    assert found.grad_fn is not None and "Lora" in found.grad_fn.name()
    torch.testing.assert_close(found, x @ whole.T + module.base_layer.bias)
    with torch.no_grad():  # another way to the same numbers
        assert torch.equal(adapted(module, x), found) and not adapted(module, x).requires_grad


def merged(module: Any) -> None:
    module.merge()


def disabled(module: Any) -> None:
    module.enable_adapters(False)


def hooked(module: Any) -> None:
    module.lora_B["default"].register_forward_hook(lambda *given: given[-1] * 2)


def hooked_backwards(module: Any) -> None:
    module.register_full_backward_hook(lambda *_: None)


def replaced(module: Any) -> None:
    base = module.base_layer
    base.forward = lambda x: nn.functional.linear(x.round(), base.weight, base.bias)


def learning(module: Any) -> None:
    module.base_layer.weight.requires_grad_(True)


def second(module: Any) -> None:
    module.update_layer("other", r=2, lora_alpha=2, config=LoraConfig(r=2, init_lora_weights=False))
    module.set_adapter(["default", "other"])


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({"use_dora": True}, None),
        ({"lora_bias": True}, None),
        ({"lora_dropout": 0.5}, None),
        ({}, merged),
        ({}, disabled),
        ({}, hooked),
        ({}, hooked_backwards),
        ({}, replaced),
        ({}, learning),
        ({"bias": "lora_only"}, None),
        ({}, second),
    ],
    ids=[
        "dora",
        "bias",
        "dropout",
        "merged",
        "disabled",
        "hooked",
        "hooked backwards",
        "replaced",
        "learning",
        "bias learns",
        "second",
    ],
)
def test_what_is_no_plain_lora_is_called_as_it_is(settings: dict[str, Any], change: Any) -> None:
    module, x = layer(**settings).train(), torch.randn(4, 6)
    if change:
        change(module)
    torch.manual_seed(1)
    expected = module(x)
    torch.manual_seed(1)
    found = adapted(module, x)
    assert torch.equal(found, expected)
    assert fused_lora._only_adapter(module) is None


def test_dropout_rests_in_evaluation_and_then_the_layer_is_plain() -> None:
    module, x = layer(lora_dropout=0.5).eval(), torch.randn(4, 6)
    assert fused_lora._only_adapter(module) == "default"
    torch.testing.assert_close(adapted(module, x), module(x))


def test_second_derivatives_fail_rather_than_being_wrong() -> None:
    module, x = layer(), torch.randn(4, 6, requires_grad=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(adapted(module, x).square().sum(), x, create_graph=True)
