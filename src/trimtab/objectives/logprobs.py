"""Log-probabilities of chosen tokens, and the means and sums that are taken of them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad

from trimtab.objectives.sizes import rounded_up, rounds_up

CHUNK_ELEMENTS = 2**23  # logits held at once: 32 MB in fp32; larger chunks were not faster on CPU
PIECE_ELEMENTS = 2**18  # of these worked on at once on a CPU, whose cache holds them


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    rounded: bool = True,
    early: bool = True,
) -> Tensor:
    """log softmax((hidden @ weight.T + bias) / temperature)[targets], without ever holding all the logits.

    The head and the softmax run over chunks of rows; the backward pass computes each chunk's logits again
    instead of keeping them, but below a frozen head, as with adapters, where the forward pass can do all that
    needs them. Exact: the same sums as the plain computation.

    Args:
        hidden: [N, H] last hidden states at the positions that predict.
        weight: [V, H] output embedding.
        targets: [N] the tokens that were chosen.
        bias: [V] or None.
        rounded: whether rows may be added to reach a number that comes again (`sizes`).
        early: whether the gradient of `hidden` is made in the forward pass where the head is frozen.
    Returns:
        [N] float32 log-probabilities, in nats.
    """
    return _apply((hidden, weight, targets, bias), temperature, False, rounded, early)[0]


def token_logprobs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    rounded: bool = True,
) -> tuple[Tensor, Tensor]:
    """The same, and the entropy of each distribution in nats: [N], [N] float32, both differentiable."""
    return _apply((hidden, weight, targets, bias), temperature, True, rounded, early=False)


def _apply(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None],
    temperature: float,
    entropy: bool,
    rounded: bool,
    early: bool,
) -> tuple[Tensor, Tensor]:
    hidden, weight, targets, bias = inputs
    device = hidden.device.type
    if torch.is_autocast_enabled(device):  # autocast does not reach into the backward pass below
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    count = len(hidden)
    if rounded and rounds_up(hidden):
        spare = rounded_up(count) - count
        hidden, targets = pad(hidden, (0, 0, 0, spare)), pad(targets, (0, spare))
    logprobs, spread = _ChunkedLogprobs.apply(
        hidden, weight, targets, bias, temperature, entropy, early and torch.is_grad_enabled()
    )
    return logprobs[:count], spread[:count]


def _chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> Iterator[tuple[slice, Tensor, list[tuple[slice, Tensor]]]]:
    """Some rows, their logits in the run's precision, and these in pieces, which share their memory."""
    size, count = max(1, CHUNK_ELEMENTS // len(weight)), len(hidden)
    small = max(1, PIECE_ELEMENTS // len(weight)) if hidden.device.type == "cpu" else size
    for start in range(0, count, size):
        rows = slice(start, min(start + size, count))
        logits = linear(hidden[rows], weight, bias)
        places = range(start, rows.stop, small)
        pieces = [slice(place, min(place + small, rows.stop)) for place in places]
        yield rows, logits, [(piece, logits[piece.start - start : piece.stop - start]) for piece in pieces]


def _exact(logits: Tensor, temperature: float) -> Tensor:
    """In float32: the logits themselves if they are, and the temperature is 1."""
    return logits.float() if temperature == 1 else logits.float() / temperature


class _ChunkedLogprobs(torch.autograd.Function):
    """d logp_i / d logits_i = onehot(target_i) - p_i;  d H_i / d logits_i = -p_i (log p_i + H_i).

    Where the head is frozen, d logp_i / d hidden_i = (onehot(target_i) - p_i) W / temperature is all that the
    backward pass will ask for, times a number for each row: it is made while the logits are there.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        """[N, H], [V, H], [N], [V] or None -> [N], [N]; keeps one log-sum-exp a row for the backward pass."""
        hidden, weight, targets, bias, temperature, with_entropy, early = inputs
        needs_hidden, needs_weight, _, needs_bias = ctx.needs_input_grad[:4]
        ctx.is_frozen = early and needs_hidden and not (needs_weight or needs_bias)
        logprobs = hidden.new_empty(len(hidden), dtype=torch.float32)
        normaliser, entropy = torch.empty_like(logprobs), torch.zeros_like(logprobs)
        of_hidden = torch.empty_like(hidden) if ctx.is_frozen else None
        share = logprobs.new_full((), 1 / temperature)
        for rows, whole, pieces in _chunks(hidden, weight, bias):
            for part, piece in pieces:
                logits = _exact(piece, temperature)
                normaliser[part] = logits.logsumexp(-1)
                logprobs[part] = logits.gather(-1, targets[part, None])[:, 0] - normaliser[part]
                if with_entropy:
                    p = (logits - normaliser[part, None]).exp_()
                    entropy[part] = normaliser[part] - p.mul_(logits).sum(-1)
                if of_hidden is not None:
                    log_p = logits.sub_(normaliser[part, None])
                    _differentiate(piece, log_p, targets[part], -share, share.expand(len(piece), 1))
            if of_hidden is not None:
                torch.mm(whole, weight, out=of_hidden[rows])
        kept = (hidden, weight, targets, bias, normaliser, entropy) if of_hidden is None else (of_hidden,)
        ctx.save_for_backward(*kept)
        ctx.temperature, ctx.with_entropy = temperature, with_entropy
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """[N], [N] -> gradients of hidden [N, H], weight [V, H] and bias [V], those that are asked for."""
        grad, grad_entropy = grads
        if ctx.is_frozen:
            [of_hidden] = ctx.saved_tensors
            scaled = torch.mul(of_hidden, grad[:, None], out=torch.empty_like(of_hidden))
            return scaled, None, None, None, None, None, None
        hidden, weight, targets, bias, normaliser, entropy = ctx.saved_tensors
        needs_hidden, needs_weight, _, needs_bias = ctx.needs_input_grad[:4]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # sums over rows keep fp32, whatever the precision of the run
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        for rows, whole, pieces in _chunks(hidden, weight, bias):
            for part, piece in pieces:
                log_p = _exact(piece, ctx.temperature).sub_(normaliser[part, None])
                of_chosen = grad[part, None].float() / ctx.temperature
                weights = of_chosen.neg()
                if ctx.with_entropy:
                    surprise = log_p + entropy[part, None]
                    weights = surprise.mul_(-grad_entropy[part, None] / ctx.temperature).add_(weights)
                found = _differentiate(piece, log_p, targets[part], weights, of_chosen)
                if grad_bias is not None:
                    grad_bias += found.sum(0)
            if grad_hidden is not None:
                grad_hidden[rows] = whole @ weight
            if grad_weight is not None:
                grad_weight += whole.T @ hidden[rows]
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None,
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _differentiate(
    piece: Tensor, log_p: Tensor, targets: Tensor, weights: Tensor, of_chosen: Tensor
) -> Tensor:
    """weights p + of_chosen onehot(target), in float32; logits [n, V] are replaced by it, and log_p too.

    Args:
        weights: [n, V], or what spreads to that.
        of_chosen: [n, 1].
    """
    found = log_p.exp_().mul_(weights).scatter_add_(-1, targets[:, None], of_chosen)
    if found.data_ptr() != piece.data_ptr():
        piece.copy_(found)
    return found


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of each row over the positions where the policy chose the token: [B, T] -> [B]."""
    return values.masked_fill(~mask, 0.0).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row over its chosen positions: [B, T] -> [B]. A row without any gives NaN."""
    return masked_sum(values, mask) / mask.sum(-1)
