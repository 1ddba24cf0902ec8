"""Checks of the forward pass: the same rows by other ways lead to the same numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from trimtab.doctor.bench import (
    GROUP,
    ROUNDED,
    Bench,
    Gap,
    by_transformers,
    exactly,
    judged,
    moved_adapter,
    sampled,
    skipped,
    values,
)
from trimtab.doctor.findings import Finding, Level
from trimtab.errors import UserError
from trimtab.feedback.sequences import Sequences
from trimtab.policies.load import (
    load_language_policy,
    load_reward_model,
    resolve_device,
    resolve_model,
    resolve_precision,
)
from trimtab.policies.packing import WORTH
from trimtab.policies.reward_model import RewardModel


@torch.no_grad()
def padding(bench: Bench) -> Finding:
    """Sampling pads prompts on their left, training pads on the right where it cannot pack."""
    model, sequences = bench.model, bench.sequences
    with exactly(model):
        alone = by_transformers(model, sequences, "alone")
        gaps = {side: Gap.of(alone, by_transformers(model, sequences, side)) for side in ("left", "right")}
    worse = max(gaps, key=lambda side: gaps[side].most)
    told = {
        "left": ("answers to prompts of several lengths are drawn wrongly", "--generate-batch 1"),
        "right": ("rows that are trained on together change each other", "--batch-tokens 1"),
    }
    means, option = told[worse]
    online = bench.method is not None and bench.method.online
    return judged(
        "left and right padding",
        bench,
        gaps[worse],
        f"rows padded on the {worse} and single ones",
        means=means,
        advice=f"use {option}: it handles one at a time, which needs no padding; or another model",
        level="error" if online or (worse == "right" and not model.trunk.packed) else "warning",
    )


@torch.no_grad()
def packed_rows(bench: Bench) -> Finding:
    """Training's own pass, as the run makes it, beside each row alone in transformers'."""
    name, model = "packed and alone", bench.model
    if not model.trunk.packed:
        return skipped(name, f"{type(model.trunk.decoder).__name__} runs padded here, not packed")
    with exactly(model):
        gap = Gap.of(values(model, bench.sequences), by_transformers(model, bench.sequences, "alone"))
    means = "sequences in one row see each other, or other positions"
    advice = "add --without packing; it is slower, and exact"
    return judged(name, bench, gap, "packed rows and single ones", means=means, advice=advice)


@torch.no_grad()
def shared_prompts(bench: Bench) -> Finding:
    """A prompt that is read once for several responses, beside the same prompt read for each."""
    name, model = "shared prompts", bench.model
    if not (model.trunk.packed and model.trunk.shared):
        return skipped(name, "every prompt is read with its response here")
    prompt = max((prompt for prompt, _ in bench.rows), key=len)
    rows = [(prompt, response[: WORTH * len(prompt)]) for _, response in bench.rows]
    sequences = Sequences.pack(rows, model.device)
    with exactly(model):
        shared = values(model, sequences)
        with _without(model, "shared"):
            gap = Gap.of(shared, values(model, sequences))
    means = "responses do not see the prompt as it is"
    advice = "add --without shared-prompts; it is slower, and exact"
    return judged(name, bench, gap, "a prompt read once and read again", means=means, advice=advice)


@torch.no_grad()
def fused_pass(bench: Bench) -> Finding:
    """trimtab's pass through the Llama family beside transformers' modules."""
    name, model = "fused pass", bench.model
    if not model.trunk.fused:
        return skipped(name, f"{type(model.trunk.decoder).__name__} runs in transformers' modules here")
    with exactly(model), moved_adapter(model):
        fused = values(model, bench.sequences)
        with _without(model, "fused"):
            gap = Gap.of(fused, values(model, bench.sequences))
    means = "the fast pass computes something else than the model"
    advice = "add --without fused; it is slower, and exact"
    return judged(name, bench, gap, "the fused pass and transformers' own", means=means, advice=advice)


@contextmanager
def _without(model: Any, technique: str) -> Iterator[None]:
    """Within it the trunk does without a technique that it has."""
    setattr(model.trunk, technique, False)
    try:
        yield
    finally:
        setattr(model.trunk, technique, True)


@torch.no_grad()
def rounding(bench: Bench) -> Finding:
    """How far bf16 moves the numbers that training looks at."""
    name, model = "bf16 and fp32", bench.model
    precision = resolve_precision(bench.config.precision, resolve_device(bench.config.device))
    if precision == "fp32":
        return skipped(name, "the run computes in fp32")
    rounded = values(model, bench.sequences)
    exact = model
    if not bench.is_exact:  # below an adapter, which changes nothing yet, the weights are rounded too
        load = load_reward_model if isinstance(model, RewardModel) else load_language_policy
        start = replace(bench.config, model=resolve_model(bench.config.model), lora_rank=0, precision="fp32")
        exact = load(start, seed=bench.run.seed)
    with exactly(exact):
        gap = Gap.of(rounded, values(exact, bench.sequences))
    numbers = {"distance": gap.mean, "tolerance": ROUNDED, "most": gap.most, "mean": gap.mean}
    said = (
        f"bf16 moves them by {gap.mean:.2g} {bench.unit} on average, {gap.most:.2g} at most; "
        f"{ROUNDED:g} is admitted on average"
    )
    if gap.mean <= ROUNDED:
        return Finding(GROUP, name, "ok", said, values=numbers)
    said += ": rounding may hide what feedback changes"
    return Finding(GROUP, name, "warning", said, "use --precision fp32", values=numbers)


@torch.no_grad()
def first_ratio(bench: Bench) -> Finding:
    """Log-probs without gradient, as old and reference ones are computed, beside training's own."""
    model, sequences = bench.model, bench.sequences
    old = values(model, sequences)
    with torch.enable_grad():
        new = values(model, sequences).detach()
    gap = Gap.of(old, new)
    off = Gap.of((new - old).exp(), torch.ones_like(old)).most
    tolerance = 1e-6 if model.device.type == "cpu" else 1e-3
    what = "the score of the same row twice" if isinstance(model, RewardModel) else "exp(new - old)"
    said = (
        f"{what} is {off:.2g} away from where it should be before the first update; {tolerance:g} is admitted"
    )
    numbers = {"distance": off, "tolerance": tolerance, "most": gap.most, "mean": gap.mean}
    if off <= tolerance:
        return Finding(GROUP, "first ratio", "ok", said, values=numbers)
    return Finding(
        GROUP,
        "first ratio",
        "error",
        f"{said}: two passes over the same rows differ, as with dropout, and training learns the noise",
        "set the dropouts in the model's config.json to 0, and look for a module that draws random numbers",
        values=numbers,
    )


@torch.no_grad()
def sampling(bench: Bench) -> Finding:
    """The log-probs that sampling notes of its tokens, beside those of training's forward pass."""
    name, model = "sampling and scoring", bench.model
    if isinstance(model, RewardModel):
        return skipped(name, "a reward model writes nothing")
    level: Level = "error" if bench.method is not None and bench.method.online else "warning"
    try:
        with exactly(model):
            gap = _sampling_gap(bench)
        rounded = _sampling_gap(bench) if model.autocast is not None else None
    except UserError as error:
        return Finding(GROUP, name, level, f"nothing could be sampled: {error}", "choose another model")
    advice = "add --without fused, then --generate-batch 1; if neither helps, choose another model"
    means = "gradients are those of another policy than the one that answers"
    what = "log-probs of the sampler and of the scorer"
    if rounded is not None and rounded.mean > ROUNDED >= gap.mean:
        said = f"{what} differ by {rounded.mean:.2g} nats a token on average in bf16; {ROUNDED:g} is admitted"
        numbers = {"distance": rounded.mean, "tolerance": ROUNDED, "most": rounded.most, "mean": rounded.mean}
        return Finding(GROUP, name, "warning", f"{said}: {means}", "use --precision fp32", values=numbers)
    return judged(name, bench, gap, what, means=means, advice=advice, level=level)


def _sampling_gap(bench: Bench) -> Gap:
    model = bench.model
    prompts = list({tuple(prompt): prompt for prompt, _ in bench.rows}.values())
    drawn = sampled(bench, prompts)
    sequences = Sequences.pack([(prompt, response.tokens) for prompt, response in drawn], model.device)
    noted = torch.tensor([value for _, response in drawn for value in response.logprobs], device=model.device)
    return Gap.of(noted, model.logprobs(sequences, bench.temperature)[sequences.mask])
