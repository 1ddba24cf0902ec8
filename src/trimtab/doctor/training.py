"""Checks of what is kept of a model: its reference in the cache, its base below the adapter, its folder."""

from dataclasses import replace
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryDirectory
from typing import Any

import torch

from trimtab.doctor.bench import (
    EXACT,
    GROUP,
    LONGEST,
    ROUNDED,
    Bench,
    Gap,
    exactly,
    judged,
    moved_adapter,
    reference_of,
    skipped,
    values,
)
from trimtab.doctor.findings import Finding
from trimtab.errors import UserError
from trimtab.feedback.batches import Table
from trimtab.policies.load import load_language_policy, load_reward_model
from trimtab.policies.reward_model import RewardModel
from trimtab.reference import attach_reference, cache_folder, cached_file, reference_mode
from trimtab.train import make_table

LARGEST_SAVED = 8e9  # bytes; writing more takes minutes


def cached_reference(bench: Bench) -> Finding:
    """What the cache says of this data, or of the few rows, beside the reference as it is now."""
    name, method = "cached reference", bench.method
    if method is None or not method.needs_reference:
        return skipped(name, f"{method.name} needs no reference" if method else bench.why_no_table)
    if bench.table is None:
        return skipped(name, f"nothing is cached: {bench.why_no_table}")
    reference, few, folder = reference_of(bench), bench.table, cache_folder() / "reference"
    if any(folder.glob("*.safetensors")):  # of this data too, it may be: then that is what training will read
        whole = make_table(method, bench.records, bench.model.tokenizer, bench.run, bench.views)
        file = cached_file(whole, reference, bench.run.batch_tokens)
        if file.exists():
            return _beside_live(bench, whole, reference, f"of this data in {file}", f"delete {file}")
    attach_reference(few, reference, batch_tokens=bench.run.batch_tokens)  # writes it, or reads it
    advice = f"delete {folder}"
    return _beside_live(bench, few, reference, "of a few rows", advice)


@torch.no_grad()
def _beside_live(bench: Bench, table: Table, reference: Any, which: str, advice: str) -> Finding:
    """What the cache holds of a table, on at most 8 of its rows, beside the reference itself."""
    attach_reference(table, reference, batch_tokens=bench.run.batch_tokens)
    kept = table.ref_logprobs or []
    lengths = [len(prompt) + len(response) for prompt, response in table.rows]
    rows = [row for row, length in enumerate(lengths) if length <= LONGEST] or [lengths.index(min(lengths))]
    rows = rows[:: max(1, len(rows) // 8)]
    with reference_mode(reference):
        live = [reference.logprobs(table.sequences([row], reference.device))[0].cpu() for row in rows]
    gap = Gap.of(torch.cat([kept[row] for row in rows]), torch.cat(live))
    # in bf16 the same row is rounded differently beside others and alone
    is_exact = bench.is_exact and reference.autocast is None
    found, limit = (gap.most, EXACT) if is_exact else (gap.mean, ROUNDED)
    said = (
        f"cached log-probs {which} are {found:.2g} nats a token from the reference's; {limit:g} is admitted"
    )
    numbers = {"distance": found, "tolerance": limit, "most": gap.most, "mean": gap.mean}
    if found <= limit:
        return Finding(GROUP, "cached reference", "ok", said, values=numbers)
    said += ": the file holds something else than this reference says"
    return Finding(GROUP, "cached reference", "error", said, advice, values=numbers)


@torch.no_grad()
def adapter_off(bench: Bench) -> Finding:
    """The adapter changes nothing at first; once it does, turning it off brings the base back."""
    name, model = "adapter off and base", bench.model
    if not model.has_adapter:
        return skipped(name, "all weights are trained: there is no --lora-rank")
    if isinstance(model, RewardModel):
        return skipped(name, "a reward model needs no reference")
    with exactly(model):
        base = values(model, bench.sequences)
        with moved_adapter(model):
            on = values(model, bench.sequences)
            with model.reference():
                off = values(model, bench.sequences)
    if Gap.of(on, base).most == 0:
        said = "the adapter changes nothing even when its weights are moved: nothing would be learned"
        return Finding(GROUP, name, "error", said, "choose other --lora-targets", values={"distance": 0.0})
    advice = "leave --lora-rank out, or give --reference the model's folder"
    means = "the reference would drift away with the policy"
    return judged(name, bench, Gap.of(off, base), "adapter off and base", means=means, advice=advice)


def saved_and_loaded(bench: Bench) -> Finding:
    """What the run would write at its end, read back. The model may be merged with its adapter after this."""
    name, model = "saved and loaded", bench.model
    parameters = model.parameters() if model.has_adapter else list(model.model.parameters())
    size = sum(p.numel() * p.element_size() for p in parameters)
    if size > LARGEST_SAVED:
        return skipped(name, f"the model has {size / 1e9:.0f} GB; writing them would take minutes")
    with TemporaryDirectory(prefix="trimtab-doctor-") as folder:
        if disk_usage(folder).free < 1.1 * size:
            said = f"{folder} has no room for the {size / 1e9:.1f} GB of the model"
            return Finding(GROUP, name, "warning", said, "make room, or set TMPDIR to another disk")
        with torch.no_grad(), exactly(model), moved_adapter(model):
            before = values(model, bench.sequences)
            model.save(Path(folder))
        load = load_reward_model if isinstance(model, RewardModel) else load_language_policy
        config = replace(bench.config, model=folder, reference=None, lora_rank=0, precision="fp32")
        try:
            loaded = load(config, trainable=False)
        except (UserError, ValueError, KeyError, RuntimeError) as error:
            said = f"what is saved cannot be loaded: {str(error).splitlines()[0]}".replace(
                folder, "the folder"
            )
            return Finding(GROUP, name, "error", said, "choose another model: training would be lost")
        with torch.no_grad():
            gap = Gap.of(before, values(loaded, bench.sequences))
    means = "the saved model is not the trained one"
    advice = "choose another model: a weight is not written, or read in another way"
    return judged(name, bench, gap, "the model in memory and the saved one", means=means, advice=advice)
