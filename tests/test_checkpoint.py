"""The state of a training on the disk: whole, checked, and made of nothing that could run."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from trimtab.checkpoint import Checkpoints
from trimtab.fingerprints import of_model
from trimtab.states import joined, moved, random_states, set_random_states, split


def test_a_state_survives_the_disk(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    state = {
        "number": 2**100,
        "float": [0.1, float("inf"), float("-inf")],
        "nested": {"tuple": (1, (2, None), True), "text": "ü\n"},
        "tensors": [
            whole,
            whole[2:4],
            torch.ones(2, 3).T,
            torch.tensor(1, dtype=torch.uint8),
            torch.empty(0),
        ],
        "array": np.array([[1.5, 2.5]], dtype=np.float64),
        "bfloat16": torch.ones(2, dtype=torch.bfloat16),
    }
    Checkpoints(tmp_path).save("1", state)
    (_, found) = Checkpoints(tmp_path).newest() or ("", {})
    assert found["number"] == 2**100 and found["float"] == state["float"]
    assert found["nested"] == {"tuple": (1, (2, None), True), "text": "ü\n"}
    for before, after in zip(state["tensors"], found["tensors"], strict=True):
        assert torch.equal(before, after) and before.dtype == after.dtype
    assert isinstance(found["array"], np.ndarray) and found["array"].tolist() == [[1.5, 2.5]]
    assert found["bfloat16"].dtype == torch.bfloat16


def test_what_is_no_state_is_refused() -> None:
    with pytest.raises(TypeError, match=r"state\.a\.1: a set cannot stand in a state"):
        split({"a": [1, {2}]})
    with pytest.raises(KeyError):
        joined({"$": "Popen", "of": {"args": "ls"}}, {})


def test_random_streams_go_on_where_they_were() -> None:
    def draw() -> list[float]:
        return [
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            float(np.random.randn()),
            float(torch.rand(())),
        ]

    random.gauss(0, 1), np.random.randn()  # each keeps a second number for the next call
    plain, tensors = split(random_states())
    text = json.dumps(plain)
    expected = draw()
    draw()
    set_random_states(joined(json.loads(text), tensors))
    assert draw() == expected


def test_moving_reaches_every_tensor() -> None:
    found = moved({"a": [torch.ones(1)], "b": (torch.ones(1), 3)}, torch.device("meta"))
    assert found["a"][0].is_meta and found["b"][0].is_meta and found["b"][1] == 3


def test_fingerprints_depend_on_the_weights_alone() -> None:
    """On another device, or with other threads, the same weights must have the same mark."""
    values = torch.randn(100_003, generator=torch.Generator().manual_seed(0))

    def mark(weight: torch.Tensor, threads: int = 1) -> str:
        model = torch.nn.Linear(1, 1, bias=False)
        model.weight = torch.nn.Parameter(weight[None])
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return of_model(model)
        finally:
            torch.set_num_threads(before)

    nudged = values.clone()
    nudged[77] = torch.nextafter(nudged[77], torch.tensor(9.0))
    assert mark(values) == mark(values.clone(), threads=4)
    assert len({mark(v) for v in (values, values.flip(0), values.bfloat16().float(), nudged)}) == 4


def test_a_damaged_checkpoint_makes_room(tmp_path: Path) -> None:
    """One that is passed over is deleted by the next, which it would sort behind."""
    kept = Checkpoints(tmp_path, keep=1)
    for number in ("00000090-000000", "00000100-000000"):
        Checkpoints(tmp_path, keep=5).save(number, {"n": torch.ones(1)})
    (kept.folder / "00000100-000000" / "state.json").write_text("{")
    assert (kept.newest() or ("",))[0] == "00000090-000000"
    kept.save("00000095-000000", {"n": torch.ones(1)})
    assert kept.names() == ["00000095-000000"]
