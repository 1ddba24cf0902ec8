"""Responses of a language policy: the prompt is read once for all its samples, finished rows leave."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.errors import UserError, check_bounds, check_positive
from trimtab.feedback.sequences import Ids
from trimtab.policies.language import LanguagePolicy


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn."""

    max_new_tokens: int = 256
    """Longest response; one that reaches it is cut off, not ended."""
    temperature: float = 1.0
    """Of the softmax; 0 takes the most likely token."""
    batch_size: int = 64
    """Prompts that are answered at once."""

    def __post_init__(self) -> None:
        check_positive(self, "max_new_tokens", "batch_size")
        check_bounds(self, temperature=(0, math.inf))


@dataclass(frozen=True)
class Response:
    """Tokens of one response, its end token included, and whether it came to an end by itself."""

    tokens: list[int]
    ended: bool


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
    was_training = policy.model.training
    policy.model.eval()
    for start in range(0, len(order), sampling.batch_size):
        chunk = order[start : start + sampling.batch_size]
        responses = _answer(policy, [prompts[i] for i in chunk], sampling, samples, generator)
        for place, i in enumerate(chunk):
            answers[i] = responses[place * samples : (place + 1) * samples]
    policy.model.train(was_training)
    return answers


def _answer(
    policy: LanguagePolicy,
    prompts: list[Ids],
    sampling: Sampling,
    samples: int,
    generator: torch.Generator,
) -> list[Response]:
    """One batch: read the prompts, then step by step choose a token and drop the rows that ended."""
    tokens, mask = _left_padded(prompts, policy.device)
    logits, cache = _read(policy, tokens, mask, cache=None)
    logits = logits.repeat_interleave(samples, 0)
    mask = mask.repeat_interleave(samples, 0)
    cache.batch_repeat_interleave(samples)
    ends = torch.tensor(sorted(policy.end_tokens), device=policy.device)
    rows = torch.arange(len(logits), device=policy.device)
    chosen: list[list[int]] = [[] for _ in rows]
    ended = [False] * len(rows)
    for step in range(sampling.max_new_tokens):
        token = _choose(logits, sampling.temperature, generator)
        finished = torch.isin(token, ends)
        for row, t, end in zip(rows.tolist(), token.tolist(), finished.tolist(), strict=True):
            chosen[row].append(t)
            ended[row] = end
        if step == sampling.max_new_tokens - 1 or bool(finished.all()):
            break
        if bool(finished.any()):
            going = (~finished).nonzero()[:, 0]
            rows, token, mask = rows[going], token[going], mask[going]
            cache.batch_select_indices(going)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits, cache = _read(policy, token[:, None], mask, cache)
    return [Response(c, e) for c, e in zip(chosen, ended, strict=True)]


def _read(policy: LanguagePolicy, tokens: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """Logits [B, V] that follow the last token, and the cache grown by the tokens."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    with policy.autocasting():
        out = policy.model(
            input_ids=tokens,
            attention_mask=None if bool(mask.all()) else mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    if getattr(out, "past_key_values", None) is None:
        name = type(policy.trunk.hf).__name__
        raise UserError(f"{name} has no key-value cache; responses are generated only by models with one")
    return out.logits[:, -1].float(), out.past_key_values


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    # one uniform number a row; torch.multinomial draws one for each token of the vocabulary
    mass = (logits / temperature).softmax(-1).cumsum(-1)
    point = torch.rand(len(mass), 1, generator=generator, device=mass.device) * mass[:, -1:]
    return torch.searchsorted(mass, point, right=True).clamp(max=mass.shape[1] - 1)[:, 0]


def _left_padded(prompts: list[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(len(p) for p in prompts)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, longest - len(prompt) :] = True
    return tokens.to(device), mask.to(device)
