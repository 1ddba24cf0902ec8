"""The reference's log-probs: computed once, before training, and kept on disk."""

import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from trimtab.atomic import atomic_bytes
from trimtab.feedback.batches import Table, by_prompt
from trimtab.fingerprints import of_weights
from trimtab.policies.language import LanguagePolicy

log = logging.getLogger("trimtab")

Progress = Callable[[int, int], None]  # (done, total)


def cache_folder() -> Path:
    """Where reference log-probs are kept: $TRIMTAB_CACHE, or trimtab in the user's cache folder."""
    if folder := os.environ.get("TRIMTAB_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "trimtab"


def attach_reference(
    table: Table, reference: LanguagePolicy, *, batch_tokens: int, progress: Progress | None = None
) -> bool:
    """Fills in `table.ref_logprobs`. Returns whether they came from the cache.

    Args:
        reference: the frozen model; a policy with an adapter is asked with the adapter off. A policy
            that is about to be trained is its own reference as long as no step was taken.
        batch_tokens: tokens that are read at once.
    """
    file = cached_file(table, reference, batch_tokens)
    lengths = [len(response) for _, response in table.rows]
    found = _read(file, sum(lengths))
    if found is not None:
        table.ref_logprobs = list(found.split(lengths))
        return True
    table.ref_logprobs = _compute(table, reference, batch_tokens, progress)
    _write(file, torch.cat(table.ref_logprobs))
    return False


def cached_file(table: Table, reference: LanguagePolicy, batch_tokens: int) -> Path:
    """Where the log-probs of this data by this model are kept: by all that their last digits depend on."""
    last_digits = f"{batch_tokens} {torch.get_num_threads()} {reference.device.type}"
    return cache_folder() / "reference" / f"{_fingerprint(table, reference, last_digits)}.safetensors"


def _write(file: Path, logprobs: Tensor) -> None:
    """With a sum of its bytes."""
    from safetensors.torch import save

    file.parent.mkdir(parents=True, exist_ok=True)
    content = save({"logprobs": logprobs}, metadata={"sha256": _sum(logprobs)})
    atomic_bytes(file, content, shared=True)


def _read(file: Path, count: int) -> Tensor | None:
    """What is in the cache; None if there is nothing, or not what was written."""
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as content:
            logprobs: Tensor = content.get_tensor("logprobs")
            if len(logprobs) == count and (content.metadata() or {}).get("sha256") == _sum(logprobs):
                return logprobs
    except (SafetensorError, OSError) as error:
        log.info("%s: %s", file, error)
    log.warning("%s is damaged: the reference's log-probs are computed anew", file)
    return None


def _sum(logprobs: Tensor) -> str:
    return hashlib.sha256(logprobs.contiguous().numpy().tobytes()).hexdigest()


@torch.no_grad()
def _compute(
    table: Table, reference: LanguagePolicy, batch_tokens: int, progress: Progress | None
) -> list[Tensor]:
    logprobs: list[Tensor] = [torch.empty(0)] * len(table.rows)
    done = 0
    with reference_mode(reference):
        for chunk in by_prompt(table.rows, batch_tokens):
            sequences = table.sequences(chunk, reference.device)
            values = reference.logprobs(sequences)
            for row, line, mask in zip(chunk, values.cpu(), sequences.mask.cpu(), strict=True):
                logprobs[row] = line[mask].clone()
            done += len(chunk)
            if progress:
                progress(done, len(table.rows))
    return logprobs


def reference_mode(policy: LanguagePolicy) -> AbstractContextManager[None]:
    """The policy as its own reference: adapter off, or just as it is where there is none."""
    return policy.reference() if policy.has_adapter else nullcontext()


def _fingerprint(table: Table, policy: LanguagePolicy, more: str) -> str:
    """Of the frozen weights, the precision and the tokens: what the log-probs depend on."""
    digest = hashlib.sha256(f"{policy.autocast!r} {more}".encode())
    named = policy.model.named_parameters()
    of_weights(digest, ((n, w) for n, w in named if not (policy.has_adapter and "lora_" in n)))
    for prompt, response in table.rows:
        digest.update(f"{prompt}|{response}\n".encode())
    return digest.hexdigest()[:32]
