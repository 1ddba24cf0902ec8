"""Whether a run fits into this machine: memory as estimated and as measured, the largest batch, the time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from trimtab.doctor.demand import Demand, demand
from trimtab.doctor.estimate import Estimate, Shape, estimate, shape_of, source_of
from trimtab.doctor.findings import Finding
from trimtab.doctor.measure import PARTS, Measured, Trial, available_memory, measured
from trimtab.errors import UserError
from trimtab.feedback.records import Record
from trimtab.feedback.views import ViewOptions, convert
from trimtab.methods import Method
from trimtab.methods.base import OnlineMethod
from trimtab.online import OnlineConfig
from trimtab.online_jobs import CriticConfig
from trimtab.policies.load import ModelConfig, load_tokenizer, resolve_device
from trimtab.rollouts.collect import CollectConfig
from trimtab.train import OptimiserConfig, RunConfig

GROUP = "fit"
FREE = 0.05  # share of the memory that is left free
FACTOR = 1.5  # within which estimate and measurement agree
SLACK = 150e6  # bytes; what libraries take for themselves (70 to 110 MB in bf16 on a CPU) is not estimated
WORK = {"cuda": 1e15, "cpu": 1e13, "mps": 1e14}  # operations of the whole measurement: about a minute
SMALLEST = 64  # tokens of a micro-batch that is measured
LONG = 24 * 3600.0  # seconds of a run that are worth a warning


@dataclass(frozen=True)
class Case:
    """One run: what it asks for, and the sizes of its model."""

    method: Method[Any]
    config: ModelConfig
    run: OptimiserConfig
    collect: CollectConfig
    critic: CriticConfig
    shape: Shape
    demand: Demand

    def estimate(self, tokens: int) -> Estimate:
        """With so many tokens in the largest micro-batch."""
        online = isinstance(self.method, OnlineMethod)
        needs_critic = isinstance(self.method, OnlineMethod) and self.method.needs_critic
        return estimate(
            self.shape,
            round(tokens * self.demand.read),
            predicted=round(tokens * self.demand.predicted),
            longest=self.demand.row // self.demand.sequences,
            reference=online and (self.config.lora_rank == 0 or self.config.reference is not None),
            critic=self.critic.critic if needs_critic else "none",
        )

    @property
    def slope(self) -> float:
        """Estimated bytes a token."""
        return (self.estimate(2**16).total - self.estimate(2**15).total) / 2**15

    @property
    def cache(self) -> int:
        """Bytes of keys and values of all answers that are written at once."""
        shape = self.shape
        return self.demand.answers * shape.layers * 2 * shape.keys * shape.bytes_of_product


def fit_findings(
    method: Method[Any] | None,
    config: ModelConfig,
    records: Sequence[Record],
    run: OptimiserConfig,
    *,
    views: ViewOptions | None = None,
    collect: CollectConfig | None = None,
    critic: CriticConfig | None = None,
    seconds: float = 300.0,
) -> list[Finding]:
    """Estimate, measurement, how they agree, the largest batch that fits, and the time.

    Call it while no model is held in this process: the measurement, in a process of its own, loads one.

    Args:
        method: as it will be trained; without one all is skipped.
        config: with `model` resolved (see `resolve_model`).
        records: all of the feedback, of the kind that was read; at least one.
        run: a RunConfig; for online methods better an OnlineConfig, whose refreshes the time needs.
        collect, critic: of online methods; their defaults if not given.
        seconds: after which the measurement is given up.
    Raises:
        UserError: there is no tokenizer, or the records cannot be what the method takes.
    """
    if method is None:
        return [Finding(GROUP, "memory, estimated", "skipped", "no --method is given")]
    is_reward_model = method.trains == "reward model"
    try:
        source = source_of(config, reward_model=is_reward_model)
        shape = shape_of(config, reward_model=is_reward_model)
    except UserError as error:
        return [Finding(GROUP, "memory, estimated", "error", str(error), "choose another model")]
    collect, critic = collect or CollectConfig(), critic or CriticConfig()
    wanted = convert(list(records), method.data, views or ViewOptions())
    tokenizer = load_tokenizer(source.tokenizer, config.trust_remote_code)
    asked = demand(method, wanted, tokenizer, run, collect)
    case = Case(method, config, run, collect, critic, shape, asked)
    return case_findings(case, seconds)


def case_findings(case: Case, seconds: float) -> list[Finding]:
    device = resolve_device(case.config.device)
    there = available_memory(device)
    first = estimated_memory(case, there)
    try:
        found = measured(trial_of(case, there), seconds)
    except UserError as error:
        advice = "the estimate is all there is; " + _less(case)
        said = f"it could not be measured: {error}"
        return [first, Finding(GROUP, "memory, measured", "warning", said, advice)]
    return [
        first,
        measured_memory(case, found),
        agreement(case, found),
        largest_batch(case, found),
        time_needed(case, found),
    ]


def trial_of(case: Case, there: int) -> Trial:
    """Two sizes, as near to the run's own as a minute and 80 % of the memory allow.

    Raises UserError if not even the model's weights, gradients and moments fit.
    """
    asked, shape = case.demand, case.shape
    device = resolve_device(case.config.device)
    online = case.method if isinstance(case.method, OnlineMethod) else None
    asked_for = case.run.epochs if isinstance(case.run, OnlineConfig) else None
    epochs = (asked_for or online.epochs) if online else 1
    # 6 operations for a weight and token, two steps of PARTS parts, at half the size, and twice at the size;
    # online methods answer and evaluate before their epochs
    passes = 2 * PARTS * 2.5 * (epochs + 1 if online else 1)
    affordable = int(WORK.get(device.type, 1e13) / (6 * shape.parameters * passes))
    room = 0.8 * there - case.estimate(0).total
    if room < 0:
        raise UserError(f"the model alone takes {_gb(case.estimate(0).total)} of {_gb(there)} that are there")
    size = min(asked.part, affordable, int(room / max(case.slope, 1.0)))
    size = max(size, min(asked.part, 2 * SMALLEST))
    small = size // 2
    longest = min(case.run.max_length, max(8, small // asked.sequences))
    new = min(case.collect.max_new_tokens, max(1, longest // 2))
    kept = {name: getattr(case.run, name) for name in ("learning_rate", "seed", "max_grad_norm")}
    return Trial(
        method=case.method,
        model=case.config,
        run=RunConfig(max_length=longest, **kept),
        records=asked.longest,
        sizes=(small, size),
        collect=replace(case.collect, max_new_tokens=new),
        critic=case.critic,
        epochs=epochs,
        threads=torch.get_num_threads(),
    )


def estimated_memory(case: Case, there: int) -> Finding:
    """From the configuration alone, before anything is loaded."""
    asked, parts = case.demand, case.estimate(case.demand.part)
    answering = parts.weights + parts.moments + parts.reference + parts.critic + case.cache
    total = max(parts.total, answering)
    named = ", ".join(f"{name} {_gb(size)}" for name, size in parts.parts.items() if size >= total / 100)
    said = f"a step takes about {_gb(total)} at {asked.part:,} tokens in its largest part ({named})"
    if answering > parts.total:
        said = f"answering takes about {_gb(total)}, {_gb(case.cache)} of it for keys and values"
    numbers = {**parts.parts, "total": total, "answers": case.cache, "available": there, "tokens": asked.part}
    return _against("memory, estimated", total, there, said, advice=_less(case), numbers=numbers)


def measured_memory(case: Case, found: Measured) -> Finding:
    """Of the steps that were made, carried on to the run's own size where that is larger."""
    last, asked = found.taken[-1], case.demand.part
    need = found.held + slope_of(case, found) * max(0, asked - last.tokens)
    said = f"training held {_gb(found.held)} at {last.tokens:,} tokens"
    if last.tokens < asked:
        said += f", which makes {_gb(need)} at {asked:,}"
    of_python = f"{_gb(found.base)} of it Python and its libraries, " if found.base else ""
    said += f"; {of_python}{_gb(max(0, found.held - last.memory))} kept for later tensors"
    numbers: dict[str, Any] = {"needed": need, "available": found.available, "base": found.base}
    numbers |= {"held": found.held, "sizes": [taken.tokens for taken in found.taken]}
    numbers["peaks"] = [taken.memory for taken in found.taken]
    return _against("memory, measured", need, found.available, said, advice=_less(case), numbers=numbers)


def _against(
    check: str, need: float, there: float, said: str, *, advice: str, numbers: dict[str, Any]
) -> Finding:
    """Memory needed against memory there is."""
    said += f"; there are {_gb(there)}"
    if need > there:
        return Finding(GROUP, check, "error", said, advice, values=numbers)
    if need > (1 - FREE) * there:
        return Finding(GROUP, check, "warning", f"{said}, which is close", advice, values=numbers)
    return Finding(GROUP, check, "ok", said, values=numbers)


def agreement(case: Case, found: Measured) -> Finding:
    """The estimate's error, where both are known."""
    last = found.taken[-1]
    guess, real = case.estimate(last.tokens).total, last.memory - found.base
    ratio = guess / real if real > 0 else math.inf
    said = (
        f"at {last.tokens:,} tokens {_gb(guess)} of tensors were estimated and {_gb(real)} measured, "
        f"{ratio:.2f} times; {1 / FACTOR:.2f} to {FACTOR:g} times, or {_gb(SLACK)}, is admitted"
    )
    numbers = {"estimated": guess, "measured": real, "ratio": ratio}
    if abs(guess - real) <= SLACK or 1 / FACTOR <= ratio <= FACTOR:
        return Finding(GROUP, "estimate and measurement", "ok", said, values=numbers)
    advice = "trust the measurement: this architecture keeps something else than the estimate assumes"
    return Finding(GROUP, "estimate and measurement", "warning", said, advice, values=numbers)


def largest_batch(case: Case, found: Measured) -> Finding:
    """The most --batch-tokens that fit, by the measured bytes a token."""
    last, slope = found.taken[-1], slope_of(case, found)
    room = (1 - FREE) * found.available - found.held
    most = max(0, int(last.tokens + room / slope))
    asked = case.demand
    said = f"a token takes {slope / 1e3:,.0f} kB, so that --batch-tokens {most} fits"
    numbers = {"batch_tokens": most, "bytes_per_token": slope, "longest_row": asked.row}
    if most < asked.row:
        said = f"a token takes {slope / 1e3:,.0f} kB: {most} tokens fit, and the longest row has {asked.row}"
        return Finding(GROUP, "largest batch", "error", said, _less(case, rows=True), values=numbers)
    if most < asked.part:
        advice = f"set --batch-tokens {most}; it changes nothing of what is learned"
        return Finding(GROUP, "largest batch", "warning", said, advice, values=numbers)
    return Finding(GROUP, "largest batch", "ok", said, values=numbers)


def time_needed(case: Case, found: Measured) -> Finding:
    """Of the whole run, at the seconds a token of the last step that was measured."""
    last, asked = found.taken[-1], case.demand
    a_token = found.seconds / last.step_tokens
    whole = a_token * (asked.whole + asked.once / 3)  # a pass forward is a third of forward and backward
    said = f"a step takes about {_duration(a_token * asked.step)}, the whole run {_duration(whole)}"
    numbers = {"seconds": whole, "step_seconds": a_token * asked.step, "tokens_per_second": 1 / a_token}
    if whole <= LONG:
        return Finding(GROUP, "time", "ok", said, values=numbers)
    advice = "take fewer --epochs, --steps or --refreshes, a smaller model, or another machine"
    return Finding(GROUP, "time", "warning", said, advice, values=numbers)


def slope_of(case: Case, found: Measured) -> float:
    """Bytes a token: of tensors by the two sizes, or as estimated where they do not differ.

    Times what the process holds for each byte of them, which falls towards 1 as tensors grow; so this is
    rather too much for sizes beyond those that were measured.
    """
    first, last = found.taken[0], found.taken[-1]
    slope = max(case.slope, 1.0)
    if last.tokens > first.tokens and last.memory > first.memory:
        slope = (last.memory - first.memory) / (last.tokens - first.tokens)
    of_tensors = last.memory - found.base
    return slope * max(1.0, (found.held - found.base) / of_tensors if of_tensors > 0 else 1.0)


def _less(case: Case, rows: bool = False) -> str:
    """What takes less memory, the simplest first."""
    tips = [] if rows else ["lower --batch-tokens, which changes nothing of what is learned"]
    if not case.config.gradient_checkpointing:
        tips.append("add --gradient-checkpointing")
    if case.config.lora_rank == 0:
        tips.append("train an adapter (--lora-rank 16)")
    return "; ".join([*tips, "lower --max-length", "choose a smaller model"])


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    for name, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {name}"
    return f"{seconds:.2g} s"
