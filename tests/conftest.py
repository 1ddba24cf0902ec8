"""Tests run on one thread, without a network, and keep their caches to themselves."""

import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; more threads are slower on a busy machine
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Reference log-probs of one test are not read by another, nor left in the user's cache."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
