"""Responses of a language policy: the prompt is read once for all its samples, finished rows leave."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.errors import check_bounds, check_positive
from trimtab.feedback.sequences import Ids
from trimtab.policies.language import LanguagePolicy
from trimtab.rollouts.decoding import decoding

BLOCK = 128  # tokens whose probabilities are summed before one among them is looked for
MOST_FINISHED = 0.25  # share of rows that may idle before they leave: leaving copies the cache


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn."""

    max_new_tokens: int = 256
    """Longest response; one that reaches it is cut off, not ended."""
    temperature: float = 1.0
    """Of the softmax; 0 takes the most likely token."""
    batch_size: int = 64
    """Prompts that are answered at once."""
    top_k: int | None = None
    """Draw among this many most likely tokens only."""
    top_p: float | None = None
    """Draw among the most likely tokens only that together have this probability."""

    def __post_init__(self) -> None:
        check_positive(self, "max_new_tokens", "batch_size", "top_k", "top_p")
        check_bounds(self, temperature=(0, math.inf), top_p=(0, 1))


@dataclass(frozen=True)
class Response:
    """Tokens of one response, its end token included.

    Attributes:
        ended: whether it came to an end by itself.
        logprobs: of each token at the sampling's temperature, in nats, without regard to top-k and top-p.
    """

    tokens: list[int]
    ended: bool
    logprobs: list[float]


@torch.no_grad()
def generate(
    policy: LanguagePolicy,
    prompts: Sequence[Ids],
    sampling: Sampling,
    *,
    samples: int = 1,
    seed: int = 0,
) -> list[list[Response]]:
    """Draws `samples` responses to each prompt, with a random stream of its own.

    Prompts of like length are answered together, so that little is padded.

    Args:
        prompts: tokens of each prompt.
    Returns:
        for each prompt its responses, in the order given.
    """
    generator = torch.Generator(policy.device).manual_seed(seed)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[Response]] = [[] for _ in prompts]
    with (
        training_mode(policy.model, False),
        policy.autocasting(),
    ):  # around all steps: the weights in the lower precision are kept within it
        for start in range(0, len(order), sampling.batch_size):
            chunk = order[start : start + sampling.batch_size]
            responses = _answer(policy, [prompts[i] for i in chunk], sampling, samples, generator)
            for place, i in enumerate(chunk):
                answers[i] = responses[place * samples : (place + 1) * samples]
    return answers


@contextmanager
def training_mode(model: Any, trains: bool) -> Iterator[None]:
    """Within it the model is in this mode; afterwards in that of before, whatever happens."""
    before = model.training
    model.train(trains)
    try:
        yield
    finally:
        model.train(before)


def decode(policy: LanguagePolicy, response: Response) -> str:
    """A response as text, without its end token."""
    return str(policy.tokenizer.decode(response.tokens, skip_special_tokens=True))


def _answer(
    policy: LanguagePolicy,
    prompts: list[Ids],
    sampling: Sampling,
    samples: int,
    generator: torch.Generator,
) -> list[Response]:
    """One batch: read the prompts, then step by step choose a token and drop the rows that ended."""
    model = decoding(policy, sampling.max_new_tokens, samples)
    logits = model.read(prompts, samples)
    ends = torch.tensor(sorted(policy.end_tokens), device=policy.device)
    rows = torch.arange(len(logits), device=policy.device)
    steps: list[Tensor] = []  # [3, B] row, token, whether it ends
    logprobs: list[Tensor] = []
    done = torch.zeros(len(rows), dtype=torch.bool, device=policy.device)
    for step in range(sampling.max_new_tokens):
        token, logprob = _choose(logits, sampling, generator)
        ends_here = torch.isin(token, ends)
        steps.append(torch.stack([rows, token, ends_here])[:, ~done])
        logprobs.append(logprob[~done])
        done = done | ends_here
        finished = int(done.sum())
        if step == sampling.max_new_tokens - 1 or finished == len(rows):
            break
        if finished > len(rows) * MOST_FINISHED:
            going = (~done).nonzero()[:, 0]
            rows, token, done = rows[going], token[going], done[going]
            model.keep(going)
        logits = model.step(token)
    return _responses(len(prompts) * samples, torch.cat(steps, dim=1), torch.cat(logprobs))


def _responses(count: int, steps: Tensor, logprobs: Tensor) -> list[Response]:
    """[3, N] rows, tokens and ends in the order in which they were drawn, as responses."""
    tokens: list[list[int]] = [[] for _ in range(count)]
    values: list[list[float]] = [[] for _ in range(count)]
    ended = [False] * count
    for row, token, end, value in zip(*steps.tolist(), logprobs.tolist(), strict=True):
        tokens[row].append(token)
        values[row].append(value)
        ended[row] = bool(end)
    return [Response(*parts) for parts in zip(tokens, ended, values, strict=True)]


def _choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A token for each row, [B], and its log-prob, [B]."""
    probs = (logits if sampling.temperature in (0, 1) else logits / sampling.temperature).softmax(-1)
    if sampling.temperature == 0:
        token = probs.argmax(-1)
    else:
        # one uniform number a row; torch.multinomial draws one for each token of the vocabulary
        share = torch.rand(len(probs), 1, generator=generator, device=probs.device)
        token = _at(_kept(probs, sampling), share)
    return token, probs.gather(-1, token[:, None])[:, 0].log()


def _at(masses: Tensor, share: Tensor) -> Tensor:
    """The token at which the running sum of [B, V] masses exceeds this share, [B, 1], of the whole: [B].

    Sums of blocks come first, then those within the block that it falls into: a running sum over a whole
    vocabulary, number after number, takes ten times as long.
    """
    count = masses.shape[1] // BLOCK
    whole, tail = masses[:, : count * BLOCK].unflatten(-1, (count, BLOCK)), masses[:, count * BLOCK :]
    sums = torch.cat([whole.sum(-1), tail.sum(-1, keepdim=True)], -1)
    running = sums.cumsum(-1)
    point = share * running[:, -1:]
    block = _passed(running, point)
    rest = point - (running - sums).gather(-1, block)
    tokens = block * BLOCK + torch.arange(BLOCK, device=block.device)
    last = masses.shape[1] - 1
    within = masses.gather(-1, tokens.clamp(max=last)).masked_fill_(tokens > last, 0.0)
    return tokens.gather(-1, _passed(within.cumsum(-1), rest))[:, 0].clamp(max=last)


def _passed(running: Tensor, point: Tensor) -> Tensor:
    """The first place whose running sum is above the point, [B, 1]; whatever the rounding, one with mass.

    Of sums that are no numbers the last: the loss will show what is wrong.
    """
    below_all = running[:, -1:] * (1 - torch.finfo(running.dtype).eps)
    place = torch.searchsorted(running, point.clamp(min=0).minimum(below_all), right=True)
    return place.clamp(max=running.shape[1] - 1)


def _kept(probs: Tensor, sampling: Sampling) -> Tensor:
    """[B, V] probabilities, zero where top-k or top-p leaves a token out."""
    if sampling.top_k is not None and sampling.top_k < probs.shape[1]:
        least = probs.topk(sampling.top_k).values[:, -1:]
        probs = probs.masked_fill(probs < least, 0.0)
    if sampling.top_p is not None:
        falling, order = probs.sort(descending=True)
        before = falling.cumsum(-1) - falling
        beyond = before >= sampling.top_p * falling.sum(-1, keepdim=True)
        probs = probs.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), 0.0)
    return probs
