"""Whether data and models are still what they were."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ENDS = 1 << 20  # bytes read at both ends of a file
PART = 1 << 24  # numbers in float64 at a time


@torch.no_grad()
def of_weights(digest: Any, named: Iterable[tuple[str, Tensor]]) -> None:
    """Adds weights to a hash by name, shape, sum and sum of squares in float64.

    No change by training, quantisation or revision leaves all of these as they were, and they cost a second
    where hashing a large model's bytes costs a minute.
    """
    for name, weight in named:
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        for part in weight.detach().flatten().split(PART):
            values = part.double()
            digest.update(f"{float(values.sum()).hex()} {float(values.square().sum()).hex()}".encode())


def of_model(model: torch.nn.Module) -> str:
    """Of all its weights."""
    digest = hashlib.sha256()
    of_weights(digest, model.named_parameters())
    return digest.hexdigest()[:32]


def of_rows(rows: Iterable[Any]) -> str:
    """Of what is written down in the same way each time: dataclasses, tuples, text, numbers."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:32]


def of_paths(names: Iterable[str]) -> str:
    """Of those names that are files or folders here: their files by name, size, and both ends."""
    digest = hashlib.sha256()
    for path in map(Path, names):
        files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
        for file in files:
            if file.is_file():
                digest.update(f"{file.relative_to(path)} {file.stat().st_size}".encode())
                with file.open("rb") as handle:
                    digest.update(handle.read(ENDS))
                    handle.seek(max(0, file.stat().st_size - ENDS))
                    digest.update(handle.read(ENDS))
    return digest.hexdigest()[:32]
