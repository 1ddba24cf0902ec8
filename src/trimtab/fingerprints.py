"""Whether data and models are still what they were."""

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ENDS = 1 << 20  # bytes read at both ends of a file
PART = 1 << 22  # numbers at a time
WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


@torch.no_grad()
def of_weights(digest: Any, named: Iterable[tuple[str, Tensor]]) -> None:
    """Adds weights to a hash by name, shape, and three sums of their bits as whole numbers modulo 2^64.

    Such sums are the same in every order, so on every device and with any number of threads. No change by
    training, quantisation or revision leaves all three as they were, and they cost seconds where hashing a
    large model's bytes costs a minute.
    """
    for name, weight in named:
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        for part in weight.detach().flatten().split(PART):
            bits = part.contiguous().view(WHOLE[part.element_size()]).long()
            place = torch.arange(1, len(bits) + 1, device=bits.device)
            sums = [int(bits.sum()), int((bits * bits).sum()), int((bits * place).sum())]
            digest.update(repr(sums).encode())


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
            with suppress(OSError), file.open("rb") as handle:  # a folder within, or gone meanwhile
                size = file.stat().st_size
                digest.update(f"{file.relative_to(path)} {size}".encode())
                digest.update(handle.read(ENDS))
                handle.seek(max(0, size - ENDS))
                digest.update(handle.read(ENDS))
    return digest.hexdigest()[:32]
