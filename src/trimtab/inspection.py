"""What a step was made of whose loss or gradient is no finite number."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.feedback.sequences import Sequences
from trimtab.train import NonFiniteError

FOLDER = "non-finite"


def write_inspection(out: Path, error: NonFiniteError, policy: Any) -> Path:
    """Writes RUN/non-finite: metrics.json, parameters.json, samples.jsonl and values.safetensors.

    samples.jsonl has a line for each answer: its texts, the policy's log-probs as they are, and every number
    that a loss may read of it. values.safetensors has the same numbers, and the steps of environments.
    """
    from safetensors.torch import save_file

    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    _json(folder / "metrics.json", {"error": str(error), **error.metrics})
    _json(folder / "parameters.json", _parameters(policy))
    values: dict[str, Tensor] = {}
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as file:
        for number, batch in enumerate(error.batches):
            numbers = _numbers(batch)
            values |= {f"{number}.{name}": value for name, value in numbers.items()}
            for row in _samples(batch, numbers, policy):
                file.write(json.dumps(_finite(row), ensure_ascii=False) + "\n")
    own = {name: value.detach().cpu().contiguous().clone() for name, value in values.items()}
    save_file(own, folder / "values.safetensors")
    return folder


def _parameters(policy: Any) -> dict[str, Any]:
    """Which weights, and which of their gradients, hold numbers that are not finite, and how many."""
    named = getattr(policy, "model", None) or getattr(getattr(policy, "actor", None), "model", None)
    found = named.named_parameters() if named is not None else policy.named_parameters().items()
    bad: dict[str, Any] = {"weights": {}, "gradients": {}}
    for name, weight in found:
        for kind, tensor in (("weights", weight), ("gradients", weight.grad)):
            if tensor is not None and (count := int((~torch.isfinite(tensor)).sum())):
                bad[kind][name] = count
    return bad


def _numbers(batch: Any) -> dict[str, Tensor]:
    """Every tensor in a batch or rollout but the tokens."""
    found = {f.name: getattr(batch, f.name) for f in fields(batch)}
    inputs = found.get("inputs")
    if inputs is not None and not isinstance(inputs, Sequences):
        found |= {f.name: getattr(inputs, f.name) for f in fields(inputs)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


@torch.no_grad()
def _samples(batch: Any, numbers: dict[str, Tensor], policy: Any) -> list[dict[str, Any]]:
    """A line for each answer in a batch; none for steps in an environment."""
    sequences = getattr(batch, "sequences", None) or getattr(batch, "inputs", None)
    if not isinstance(sequences, Sequences):
        return []
    evaluate = getattr(policy, "evaluate", None) or getattr(policy, "logprobs", None)
    logprobs = getattr(out := evaluate(sequences), "logprobs", out) if evaluate else None
    rows = []
    bounds = torch.stack([sequences.starts, sequences.prompt_lengths, sequences.lengths], 1).tolist()
    for place, (start, prompt, length) in enumerate(bounds):
        tokens = sequences.tokens[start : start + length].tolist()
        row: dict[str, Any] = {
            "prompt": policy.tokenizer.decode(tokens[:prompt]),
            "response": policy.tokenizer.decode(tokens[prompt:]),
        }
        if logprobs is not None:
            row["logprobs"] = logprobs[place, : length - prompt].tolist()
        of_rows = {name: value for name, value in numbers.items() if len(value) == len(sequences)}
        row |= {name: value[place].tolist() for name, value in of_rows.items()}
        rows.append(row)
    return rows


def _finite(value: Any) -> Any:
    """The same as JSON can hold it: nan, inf and -inf as text."""
    if isinstance(value, float) and value - value != 0.0:
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def _json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(_finite(content), indent=1), encoding="utf-8")
