"""Whether the numbers can be trusted: the user's own model on a few of its rows, computed in two ways each.

check                    | two ways to the same number
-------------------------|------------------------------------------------------------------
left and right padding   | padded rows, and each row alone, in transformers' own pass
packed and alone         | training's pass, and each row alone
shared prompts           | a prompt read once for all its responses, and again for each
fused pass               | trimtab's pass through the Llama family, and transformers' modules
bf16 and fp32            | the run's precision, and single precision
first ratio              | without gradient, and with it
sampling and scoring     | what sampling noted of its tokens, and what training says of them
cached reference         | the file on disk, and the reference now
micro-batches            | a step in one part, and in as many as there are rows
finite gradients         | (a backward pass in the run's precision)
adapter off and base     | a moved adapter turned off, and the model before
saved and loaded         | the model in memory, and the folder that it is written to
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trimtab.doctor import forward, steps, training
from trimtab.doctor.bench import GROUP, Bench, Check, make_bench
from trimtab.doctor.findings import Finding
from trimtab.errors import UserError, ran_out_of_memory
from trimtab.feedback.records import Record
from trimtab.feedback.views import ViewOptions
from trimtab.methods import Method
from trimtab.policies.load import ModelConfig, load_language_policy, load_reward_model
from trimtab.train import RunConfig

CHECKS: dict[str, Check] = {
    "left and right padding": forward.padding,
    "packed and alone": forward.packed_rows,
    "shared prompts": forward.shared_prompts,
    "fused pass": forward.fused_pass,
    "bf16 and fp32": forward.rounding,
    "first ratio": forward.first_ratio,
    "sampling and scoring": forward.sampling,
    "cached reference": training.cached_reference,
    "micro-batches": steps.micro_batches,
    "finite gradients": steps.finite_gradients,
    "adapter off and base": training.adapter_off,
    "saved and loaded": training.saved_and_loaded,  # last: saving may merge the adapter away
}
TAKES_TWO = ("bf16 and fp32", "saved and loaded")  # which training itself does not


def numeric_findings(
    method: Method[Any] | None,
    config: ModelConfig,
    records: Sequence[Record],
    run: RunConfig,
    *,
    views: ViewOptions | None = None,
    temperature: float = 1.0,
) -> list[Finding]:
    """One finding for each of CHECKS, in their order.

    Args:
        method: as it will be trained; without one, what needs a method is skipped.
        config: with `model` resolved (see `resolve_model`).
        records: all of the feedback, of the kind that was read; at least one.
        run: its max_length, batch_tokens and seed are looked at.
        temperature: of sampling, for methods that learn online.
    Raises:
        UserError: the model cannot be loaded, or the records cannot be what the method takes.
    """
    if not records:
        raise UserError("there is no feedback to try the model on")
    load: Any = (
        load_reward_model if method is not None and method.trains == "reward model" else load_language_policy
    )
    try:
        model = load(config, seed=run.seed)
    except ValueError as error:  # the model's numbers do not fit what its class says of it
        return [
            Finding(GROUP, "the model's logits", "error", f"{config.model}: {error}", "choose another model")
        ]
    return checked(
        make_bench(model, config, records, run, method=method, views=views, temperature=temperature)
    )


def checked(bench: Bench) -> list[Finding]:
    """The findings of all checks on a bench. One that runs out of memory says so."""
    found = [_tried(name, check, bench) for name, check in CHECKS.items()]
    return [replace(finding, values=_finite(finding.values)) for finding in found]


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinite numbers, nor what is no number: null stands for them."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def _tried(name: str, check: Check, bench: Bench) -> Finding:
    try:
        return check(bench)
    except (RuntimeError, MemoryError) as error:
        if ran_out_of_memory(error) is None:
            raise
    if name in TAKES_TWO:
        return Finding(GROUP, name, "skipped", "there is not enough memory for a second model in fp32")
    said = "there was not enough memory to look at it"
    return Finding(GROUP, name, "error", said, "see the group `fit`: training takes more than this check")
