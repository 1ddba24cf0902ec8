"""The state of a training as nested values, and its form on the disk: tensors apart, the rest as JSON.

A state is made of dictionaries with text as keys, lists, tuples, numbers, text, None, torch tensors, numpy
arrays, and dataclasses that were declared with `@stateful`. Nothing else can be written or read: no pickles.
"""

import dataclasses
import math
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.stateful import CLASSES


def split(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """(what JSON can hold, the tensors that it names by their places)."""
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, place: str) -> Any:
        if isinstance(value, Tensor | np.ndarray):
            tensors[place] = torch.as_tensor(value).detach().cpu().contiguous()
            return {"$": "tensor" if isinstance(value, Tensor) else "array", "of": place}
        if isinstance(value, dict):
            return {key: plain(item, f"{place}.{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = [plain(item, f"{place}.{number}") for number, item in enumerate(value)]
            return {"$": "tuple", "of": items} if isinstance(value, tuple) else items
        if isinstance(value, float) and not math.isfinite(value):
            return {"$": "float", "of": str(value)}
        if type(value).__name__ in CLASSES:
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return {"$": type(value).__name__, "of": plain(fields, place)}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{place}: a {type(value).__name__} cannot stand in a state")

    found = plain(state, "state")
    return found, _apart(tensors)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same, none of which is a part of another's memory: safetensors refuses those."""
    seen: set[int] = set()

    def own(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        shared = memory.data_ptr() in seen or memory.nbytes() != tensor.nbytes
        seen.add(memory.data_ptr())
        return tensor.clone() if shared else tensor

    return {name: own(tensor) for name, tensor in tensors.items()}


def joined(plain: Any, tensors: dict[str, Tensor]) -> Any:
    """The state that `split` took apart. Raises KeyError for what it cannot have written."""
    if isinstance(plain, list):
        return [joined(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if "$" not in plain:
        return {key: joined(item, tensors) for key, item in plain.items()}
    kind, content = plain["$"], plain["of"]
    if kind in ("tensor", "array"):
        return tensors[content] if kind == "tensor" else tensors[content].numpy()
    made: Any = {"tuple": tuple, "float": float}.get(kind) or (lambda fields: CLASSES[kind](**fields))
    return made(joined(content, tensors))


def moved(state: Any, device: torch.device) -> Any:
    """The same with all its tensors on a device."""
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: moved(item, device) for key, item in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(moved(item, device) for item in state)
    if type(state).__name__ in CLASSES:
        fields = {f.name: moved(getattr(state, f.name), device) for f in dataclasses.fields(state)}
        return type(state)(**fields)
    return state


def random_states() -> dict[str, Any]:
    """Where Python's, numpy's and torch's own random streams stand: a reward function may draw from them."""
    numpy: Any = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Puts the streams back to where `random_states` found them."""
    random.setstate(states["python"])
    key = np.array(states["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**states["numpy"], "state": {**states["numpy"]["state"], "key": key}})
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"][: torch.cuda.device_count()])
