"""The reference's log-probs: computed once, before training, and kept on disk."""

import hashlib
import json
import logging
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor

from trimtab.atomic import atomic_file
from trimtab.feedback.batches import Table, by_prompt
from trimtab.feedback.compact import TokenRows
from trimtab.feedback.numbers import cache_folder, room_for
from trimtab.fingerprints import of_weights
from trimtab.policies.language import LanguagePolicy
from trimtab.room import ERRORS, Room

log = logging.getLogger("trimtab")

__all__ = ["attach_reference", "cache_folder", "cached_file", "reference_mode"]

Progress = Callable[[int, int], None]  # (done, total)


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
    ends = TokenRows.of(table.rows).lengths()[:, 1].cumsum()
    found = _read(file, ends)
    if found is not None:
        table.ref_logprobs = found
        return True
    values = _compute(table, reference, batch_tokens, progress, ends)
    table.ref_logprobs = Logprobs(values, ends)
    _write(file, values)
    return False


class Logprobs(Sequence[Tensor]):
    """Log-probs of the tokens of each response, end to end in one array, which may be a mapped file.

    Args:
        values: [M] of all responses.
        ends: [R] where each response ends among them.
    """

    def __init__(self, values: np.ndarray, ends: np.ndarray) -> None:
        self.values, self.ends = values, ends

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, row: int) -> Tensor: ...
    @overload
    def __getitem__(self, row: slice) -> list[Tensor]: ...
    def __getitem__(self, row: int | slice) -> Tensor | list[Tensor]:
        if isinstance(row, slice):
            return [self[place] for place in range(*row.indices(len(self)))]
        start = self.ends[row - 1] if row % len(self) else 0
        return torch.tensor(self.values[start : self.ends[row]])


def cached_file(table: Table, reference: LanguagePolicy, batch_tokens: int) -> Path:
    """Where the log-probs of this data by this model are kept: by all that their last digits depend on."""
    last_digits = f"{batch_tokens} {torch.get_num_threads()} {reference.device.type}"
    return cache_folder() / "reference" / f"{_fingerprint(table, reference, last_digits)}.safetensors"


def _write(file: Path, logprobs: np.ndarray | Tensor) -> None:
    """A safetensors file with a sum of its bytes, written without a copy of them in memory."""
    values = np.ascontiguousarray(logprobs, "<f4")
    described = {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, values.nbytes]}
    head = json.dumps({"__metadata__": {"sha256": _sum(values)}, "logprobs": described}).encode()
    head += b" " * (-len(head) % 8)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file, shared=True) as new:
        new.write(struct.pack("<Q", len(head)) + head)
        new.write(values.data)


def _read(file: Path, ends: np.ndarray) -> Logprobs | None:
    """What is in the cache; None if there is nothing, or not what was written."""
    if not file.exists():
        return None
    try:
        with file.open("rb") as content:
            (size,) = struct.unpack("<Q", content.read(8))
            if size > file.stat().st_size:
                raise ValueError("its head is longer than the file")
            checksum = json.loads(content.read(size))["__metadata__"]["sha256"]
        values = np.asarray(np.memmap(file, "<f4", "r", 8 + size))
        if len(values) == ends[-1] and checksum == _sum(values):
            return Logprobs(values, ends)
    except (OSError, ValueError, struct.error, KeyError, TypeError) as error:
        log.info("%s: %s", file, error)
    log.warning("%s is damaged: the reference's log-probs are computed anew", file)
    return None


def _sum(logprobs: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(logprobs).data).hexdigest()


@torch.no_grad()
def _compute(
    table: Table, reference: LanguagePolicy, batch_tokens: int, progress: Progress | None, ends: np.ndarray
) -> np.ndarray:
    """The log-probs of all responses, [M]."""
    found, done = room_for(int(ends[-1]), "<f4"), 0
    room = Room(batch_tokens, "tokens")
    with reference_mode(reference):
        for chunk in by_prompt(table.rows, batch_tokens, shared=reference.trunk.shares):
            for rows, values in _evaluated(table, reference, chunk, batch_tokens, room):
                for row, logprobs in zip(rows, values, strict=True):
                    found[ends[row] - len(logprobs) : ends[row]] = logprobs
            done += len(chunk)
            if progress:
                progress(done, len(table.rows))
    return found


def _evaluated(
    table: Table, reference: LanguagePolicy, chunk: list[int], most: int, room: Room
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Rows of a chunk of `most` tokens and the log-probs of their responses, in parts that memory takes."""

    def cut(rows: list[int]) -> list[list[int]]:
        parts = by_prompt([table.rows[row] for row in rows], room.size, shared=reference.trunk.shares)
        return [[rows[place] for place in part] for part in parts]

    left = [chunk] if room.size == most else cut(chunk)
    while left:
        rows = left.pop()
        try:
            sequences = table.sequences(rows, reference.device)
            values = reference.logprobs(sequences).cpu()
        except ERRORS as error:
            lengths = [len(prompt) + len(response) for prompt, response in (table.rows[row] for row in rows)]
            room.halve(error, sum(lengths), max(lengths))
            left = [part for whole in (*left, rows) for part in cut(whole)]  # some may be too large by now
            continue
        yield rows, [line[mask].numpy() for line, mask in zip(values, sequences.mask.cpu(), strict=True)]


def reference_mode(policy: LanguagePolicy) -> AbstractContextManager[None]:
    """The policy as its own reference: adapter off, or just as it is where there is none."""
    return policy.reference() if policy.has_adapter else nullcontext()


def _fingerprint(table: Table, policy: LanguagePolicy, more: str) -> str:
    """Of the frozen weights, the precision and the tokens: what the log-probs depend on."""
    digest = hashlib.sha256(f"{policy.autocast!r} {more}".encode())
    named = policy.model.named_parameters()
    of_weights(digest, ((n, w) for n, w in named if not (policy.has_adapter and "lora_" in n)))
    TokenRows.of(table.rows).add_to(digest)
    return digest.hexdigest()[:32]
