"""The decoders of the Llama family for packed rows: transformers' modules, with fewer passes over memory.

On small models most of a training step is neither matrix products nor attention but what stands between them:
norms, rotations and activations that autocast and autograd take apart into a dozen passes, with copies from
one precision to the other. Here each is one function with its backward pass. The residual stream stays in
the precision of the embeddings and what enters a matrix product is in the run's, as under autocast.

    x = x + o(attention(rope(q(h)), rope(k(h)), v(h)))   h = norm(x)
    x = x + down(silu(gate(h)) * up(h))                  h = norm(x)

The trunk tries it on each model, with a few tokens, beside transformers' own forward pass, and leaves it
where the two differ.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trimtab.policies.cpu_attention import refuse_second_derivatives

Look = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
Linear = Callable[[Any, Tensor], Tensor]
FAMILY = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")


def is_of_family(decoder: Any) -> bool:
    """Whether a transformers decoder is built of the parts that `fused_hidden` calls.

    Hooks on layers, attention, MLPs and norms would not be called: a decoder that has some is none.
    """
    if type(decoder).__name__ not in FAMILY:
        return False
    of_config = getattr(decoder.config, "sliding_window", None)  # where Mistral's layers find theirs
    windows = [getattr(layer.self_attn, "sliding_window", of_config) for layer in decoder.layers]
    parts = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
    skipped = [decoder, decoder.norm, *decoder.layers]
    skipped += [getattr(layer, part) for layer in decoder.layers for part in parts]
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in skipped)
    hooked = hooked or any(hasattr(module, "_hf_hook") for module in decoder.modules())  # on many devices
    return set(windows) == {None} and not hooked and decoder.config.hidden_act in ("silu", "swish")


def fused_hidden(decoder: Any, tokens: Tensor, positions: Tensor, look: Look, linear: Linear) -> Tensor:
    """[N] tokens at these positions -> [N, H] hidden states.

    Args:
        look: attention: (its module, queries [N, heads, D], keys and values [N, groups, D]) ->
            [N, heads, D]; called once for each layer in turn.
        linear: a projection: (its module, [N, I]) -> [N, O].
    """
    device = tokens.device.type
    x = decoder.embed_tokens(tokens)
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    cos, sin = (part[0, :, None].to(dtype) for part in decoder.rotary_emb(x, positions[None]))
    low, high = sin.chunk(2, -1)
    sin = torch.cat([-low, high], -1)  # as `_rotated` takes it
    for layer in decoder.layers:
        arguments = (layer, x, (cos, sin), look, linear)
        if decoder.training and getattr(layer, "gradient_checkpointing", False):
            x = layer._gradient_checkpointing_func(_layer, *arguments)
        else:
            x = _layer(*arguments)
    return _norm(decoder.norm, x, dtype)


def _layer(layer: Any, x: Tensor, turns: tuple[Tensor, Tensor], look: Look, linear: Linear) -> Tensor:
    """[N, H] -> [N, H], with cosines and signed sines [N, 1, D] of the positions."""
    attention, mlp, dtype = layer.self_attn, layer.mlp, turns[0].dtype
    heads = (len(x), -1, attention.head_dim)
    h = _norm(layer.input_layernorm, x, dtype)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (linear(projection, h).view(heads) for projection in projections)
    if hasattr(attention, "q_norm"):
        query, key = _norm(attention.q_norm, query, dtype), _norm(attention.k_norm, key, dtype)
    query, key = (_applied(_Rotation, _rotated, part, *turns) for part in (query, key))
    x = x + linear(attention.o_proj, look(attention, query, key, value).flatten(1))
    h = _norm(layer.post_attention_layernorm, x, dtype)
    gated = _applied(_Swiglu, _gated, linear(mlp.gate_proj, h), linear(mlp.up_proj, h))
    return x + linear(mlp.down_proj, gated)


def _norm(module: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., H] over its last dimension, in this precision."""
    return _applied(_RmsNorm, _normed, x, module.weight, module.variance_epsilon, dtype)


def _applied(function: Any, plain: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """An autograd function, or its formula without gradient: for a few tokens its call takes as long."""
    return function.apply(*inputs) if torch.is_grad_enabled() else plain(*inputs)


def _normed(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    return _scaled(x, _scale(x, eps), weight).to(dtype)


def _scaled(x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    return (x * scale).mul_(weight)


def _scale(x: Tensor, eps: float) -> Tensor:
    """r of `_RmsNorm`; not the square of a norm, whose root and square cost digits."""
    return x.to(_sums(x)).square().mean(-1, keepdim=True).add_(eps).rsqrt_()


class _RmsNorm(torch.autograd.Function):
    """y = w x r with r = (mean x^2 + eps)^-1/2 (Zhang & Sennrich 2019); dx = r (w g - x r^2 mean(w g x))."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, weight, eps, dtype = inputs
        scale = _scale(x, eps)
        ctx.save_for_backward(x, weight, scale)
        return _scaled(x, scale, weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        x, weight, scale = ctx.saved_tensors
        grad, normed = grads[0].to(scale.dtype), x * scale
        along = grad * normed
        of_weight = along.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        mean = along.mul_(weight).mean(-1, keepdim=True)
        of_x = grad.mul(weight).addcmul_(normed, mean, value=-1).mul_(scale)
        return of_x.to(x.dtype), of_weight, None, None


class _Rotation(torch.autograd.Function):
    """Rotary positions (Su et al. 2021): (a, b) -> (a cos - b sin, b cos + a sin); back by the other angle.

    [N, heads, D] with cos and signed sin [N, 1, D]: (c, c) and (-s, s).
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        x, cos, sin = inputs
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        cos, sin = ctx.saved_tensors
        return _rotated(grads[0], cos, sin, -1), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, direction: int = 1) -> Tensor:
    """(a, b) (c, c) + (b, a) (-s, s)"""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin, value=direction)


class _Swiglu(torch.autograd.Function):
    """silu(gate) up (Shazeer 2020), whose product is computed again instead of kept."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        gate, up = inputs
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        gate, up = ctx.saved_tensors
        of_gate = torch.ops.aten.silu_backward(grads[0], gate).mul_(up)
        return of_gate, _gated(gate, grads[0])


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return torch.nn.functional.silu(gate).mul_(up)


def _sums(x: Tensor) -> torch.dtype:
    """In which sums over x are taken."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
