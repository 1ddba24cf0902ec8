"""Log-probabilities of chosen tokens, and the means and sums that are taken of them."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad

from trimtab.objectives.sizes import rounded_up, rounds_up

HELD = 2**23  # logits held at once
HELD_ON_CPU = 2**18  # there, where the cache holds them: 1 MB in fp32
ALIGNED = 64


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

    The head and the softmax run over blocks of rows and of the vocabulary; the backward pass computes each
    block's logits again instead of keeping them, but below a frozen head, as with adapters, where the forward
    pass can do all that needs them. Exact: the same sums as the plain computation.

    Args:
        hidden: [N, H] last hidden states at the positions that predict.
        weight: [V, H] output embedding.
        targets: [N] the tokens that were chosen, all of the vocabulary.
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
    if device == "cpu" and len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(weight):
        raise IndexError(f"targets must be from 0 to {len(weight) - 1}, the vocabulary")
    if torch.is_autocast_enabled(device):  # autocast does not reach into the backward pass below
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    count = len(hidden)
    if rounded and rounds_up(hidden):
        spare = rounded_up(count) - count
        hidden, targets = pad(hidden, (0, 0, 0, spare)), pad(targets, (0, spare))
    logprobs, spread = _BlockedLogprobs.apply(
        hidden, weight, targets, bias, temperature, entropy, early and torch.is_grad_enabled()
    )
    return logprobs[:count], spread[:count]


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _block(count: int, vocabulary: int, device: torch.device) -> tuple[int, int]:
    """Rows and columns of the logits that are held at once; columns in the steps that kernels like."""
    most = HELD_ON_CPU if device.type == "cpu" else HELD
    rows = max(1, min(count, max(math.isqrt(most), most // vocabulary)))
    columns = max(1, most // rows)
    return rows, columns - columns % ALIGNED if columns > ALIGNED else columns


def _part(bias: Tensor | None, columns: slice) -> Tensor | None:
    return None if bias is None else bias[columns]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """[n, B] in float32, of a product in the run's precision."""
    logits = linear(hidden, weight, bias).float()
    return logits if temperature == 1 else logits.div_(temperature)


def _placed(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """[n, 1] where in these columns each target is, or any place, and whether it is there."""
    place = targets[:, None] - columns.start
    last = columns.stop - columns.start - 1
    return place.clamp(0, last), (place >= 0) & (place <= last)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left @ right, in their precision, to what may have a higher one."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


class _Softmax:
    """What is known of some rows' distributions after some columns of their logits l (Milakov & Gimelshein
    2018, arXiv:1805.02867).

    Attributes, all [n, 1], with m the largest logit so far:
        top: m.
        chosen: the target's logit.
        others, weighted: sums of e^(l - m) and of e^(l - m) (l - m) over all but the target, which is added
            at the end: so 1 - p = others / total, below a frozen head, keeps its digits where p is nearly 1.
    """

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets
        lowest = torch.finfo(torch.float32).min  # from -inf a first block of -inf would be no number
        self.top = targets.new_full((len(targets), 1), lowest, dtype=torch.float32)
        self.chosen, self.others, self.weighted = (torch.zeros_like(self.top) for _ in range(3))

    def take(self, logits: Tensor, columns: slice, with_entropy: bool) -> tuple[Tensor, Tensor]:
        """e^(l - m) of these columns [n, B], 0 at the target, and what earlier sums shrink by [n, 1].

        The logits are overwritten.
        """
        place, inside = _placed(self.targets, columns)
        own = logits.gather(1, place)
        self.chosen = torch.where(inside, own, self.chosen)
        before, self.top = self.top, torch.maximum(self.top, logits.amax(1, keepdim=True))
        shrink = (before - self.top).exp()
        logits.sub_(self.top)
        masses = logits.exp() if with_entropy else logits.exp_()
        masses.scatter_(1, place, (own - self.top).exp_().masked_fill_(inside, 0.0))
        if with_entropy:
            earlier = (self.weighted + (before - self.top) * self.others) * shrink
            self.weighted = earlier + (masses * logits).sum(1, keepdim=True)
        self.others = self.others * shrink + masses.sum(1, keepdim=True)
        return masses, shrink

    def results(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-prob of the target, log-sum-exp and entropy, [n], and the sum of e^(l - m), [n, 1]."""
        above = self.chosen - self.top
        own = above.exp()
        total = self.others + own
        log_total = total.log()
        entropy = log_total - (self.weighted + own * above) / total
        return (above - log_total)[:, 0], (self.top + log_total)[:, 0], entropy[:, 0], total


class _BlockedLogprobs(torch.autograd.Function):
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
        height, width = _block(len(hidden), len(weight), hidden.device)
        for rows in _slices(len(hidden), height):
            softmax = _Softmax(targets[rows])
            toward = hidden.new_zeros(hidden[rows].shape, dtype=torch.float32) if ctx.is_frozen else None
            for columns in _slices(len(weight), width):
                logits = _logits(hidden[rows], weight[columns], _part(bias, columns), temperature)
                masses, shrink = softmax.take(logits, columns, with_entropy)
                if toward is not None:
                    _add_product(toward.mul_(shrink), masses.to(weight.dtype), weight[columns])
            logprobs[rows], normaliser[rows], spread, total = softmax.results()
            if with_entropy:
                entropy[rows] = spread
            if of_hidden is not None and toward is not None:
                own = weight[targets[rows]] * softmax.others
                of_hidden[rows] = own.sub_(toward).div_(total * temperature)
        kept = (hidden, weight, targets, bias, normaliser, entropy) if of_hidden is None else (of_hidden,)
        ctx.save_for_backward(*kept)
        ctx.temperature, ctx.with_entropy = temperature, with_entropy
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """[N], [N] -> gradients of hidden [N, H], weight [V, H] and bias [V], those that are asked for."""
        if ctx.is_frozen:
            [of_hidden] = ctx.saved_tensors
            scaled = torch.mul(of_hidden, grads[0][:, None], out=torch.empty_like(of_hidden))
            return scaled, None, None, None, None, None, None
        hidden, weight, _, bias, *_ = ctx.saved_tensors
        needed = (*ctx.needs_input_grad[:2], ctx.needs_input_grad[3])
        # sums over blocks keep fp32, whatever the precision of the run
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(given, dtype=torch.float32) if is_needed else None
            for given, is_needed in zip((hidden, weight, bias), needed, strict=True)
        )
        height, width = _block(len(hidden), len(weight), hidden.device)
        for rows, columns in product(_slices(len(hidden), height), _slices(len(weight), width)):
            found = _of_logits(ctx, rows, columns, *grads)
            low = found.to(weight.dtype)
            if of_hidden is not None:
                _add_product(of_hidden[rows], low, weight[columns])
            if of_weight is not None:
                _add_product(of_weight[columns], low.T, hidden[rows])
            if of_bias is not None:
                of_bias[columns] += found.sum(0)
        of_hidden, of_weight, of_bias = (
            None if gradient is None else gradient.to(given.dtype)
            for gradient, given in zip((of_hidden, of_weight, of_bias), (hidden, weight, bias), strict=True)
        )
        return of_hidden, of_weight, None, of_bias, None, None, None


def _of_logits(ctx: Any, rows: slice, columns: slice, grad: Tensor, grad_entropy: Tensor) -> Tensor:
    """The gradient of a block's logits, [n, B] in float32, before they are divided by the temperature."""
    hidden, weight, targets, bias, normaliser, entropy = ctx.saved_tensors
    log_p = _logits(hidden[rows], weight[columns], _part(bias, columns), ctx.temperature)
    log_p.sub_(normaliser[rows, None])
    of_chosen = grad[rows, None] / ctx.temperature
    weights = -of_chosen
    if ctx.with_entropy:
        surprise = log_p + entropy[rows, None]
        weights = surprise.mul_(-grad_entropy[rows, None] / ctx.temperature).add_(weights)
    place, inside = _placed(targets[rows], columns)
    return log_p.exp_().mul_(weights).scatter_add_(1, place, of_chosen * inside)


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of each row over the positions where the policy chose the token: [B, T] -> [B]."""
    return values.masked_fill(~mask, 0.0).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row over its chosen positions: [B, T] -> [B]. A row without any gives NaN."""
    return masked_sum(values, mask) / mask.sum(-1)
