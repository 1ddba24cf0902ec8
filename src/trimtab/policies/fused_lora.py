"""peft's LoRA in one function with its backward pass, for the fused forward pass.

    y = x W^T + b + s (x A^T) B^T      (Hu et al. 2022, arXiv:2106.09685, eq. 3)

peft adds the two paths up in passes over [N, O] and [N, I] of their own, forwards and backwards, and under
autocast takes x to the adapter's float32 and back. Here a matrix product adds to what the other has written.
"""

from typing import Any

import torch
from torch import Tensor, nn

from trimtab.policies.cpu_attention import refuse_second_derivatives


def adapted(module: nn.Module, x: Tensor) -> Tensor:
    """What a layer makes of x [N, I], which is in the run's precision: [N, O].

    All that is not a frozen linear layer with one plain LoRA, such as DoRA, dropout, several adapters at once
    or a quantised base, is called as it is.
    """
    name = _only_adapter(module)
    if name is None:
        return module(x)
    lora: Any = module
    base, dtype = lora.base_layer, x.dtype
    weights = (base.weight, base.bias, lora.lora_A[name].weight, lora.lora_B[name].weight)
    given = [weight if weight is None else weight.to(dtype) for weight in weights]
    inputs = (x, *given, lora.scaling[name])
    if not torch.is_grad_enabled():  # token by token, what an autograd function costs beside is seen
        return _sum(inputs)[0]
    return _Lora.apply(*inputs)


def _only_adapter(module: Any) -> str | None:
    """The name of a layer's one adapter in use; None if `_Lora` does not compute what it does."""
    if type(module).__qualname__ != "Linear" or type(module).__module__ != "peft.tuners.lora.layer":
        return None
    names = [name for name in module.active_adapters if name in module.lora_A]
    if module.disable_adapters or module.merged or len(names) != 1 or names[0] in module.lora_variant:
        return None
    [name] = names
    parts = (module, module.base_layer, module.lora_A[name], module.lora_B[name])
    plain = all(type(part) is nn.Linear for part in parts[1:]) and parts[3].bias is None
    drops = module.training and not isinstance(module.lora_dropout[name], nn.Identity)
    base = module.base_layer
    learns = plain and (base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad))
    return name if plain and not (drops or learns or any(map(_is_watched, parts))) else None


def _is_watched(part: nn.Module) -> bool:
    """Whether a call does more than the class says: hooks, or a `forward` of the object's own."""
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return any(hooks) or "forward" in vars(part)


def _sum(inputs: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """y [N, O] and x A^T [N, R] of x, W, b or None, A, B and s."""
    x, weight, bias, down, up, scale = inputs
    low = x @ down.T
    return nn.functional.linear(x, weight, bias).addmm_(low, up.T, alpha=scale), low


class _Lora(torch.autograd.Function):
    """dx = g W + h A, dA = h^T x, dB = s g^T (x A^T), with h = s g B. The base is frozen."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, weight, _, down, up, scale = inputs
        out, low = _sum(inputs)
        ctx.save_for_backward(x, weight, down, up, low)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        x, weight, down, up, low = ctx.saved_tensors
        grad = grads[0]
        of_low = (grad @ up).mul_(ctx.scale)
        of_x = (grad @ weight).addmm_(of_low, down) if ctx.needs_input_grad[0] else None
        return of_x, None, None, of_low.T @ x, (grad.T @ low).mul_(ctx.scale), None
