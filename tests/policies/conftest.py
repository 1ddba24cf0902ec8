"""Healthy folders to spoil, and traps for what must not happen."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from tests import tiny
from tests.bad_folders import config

from trimtab.policies.load import load_language_policy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a healthy one."""
    return Path(shutil.copytree(tiny.model_folder(), tmp_path / "model"))


@pytest.fixture
def adapter(tmp_path: Path, folder: Path) -> Path:
    """A trained adapter on `folder`."""
    policy = load_language_policy(config(folder, lora_rank=2))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3)
    policy.save(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def unpickled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all files that are read as pickles."""
    read: list[str] = []

    def load(file: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        read.append(str(file))
        return {}

    monkeypatch.setattr(torch, "load", load)
    return read


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], None]:
    """Puts folders into the hub's cache, where they are found without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def publish(name: str, folder: Path) -> None:
        commit = "0123456789" * 4
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / commit)
        if not (folder / "config.json").exists():  # it is kept that the hub had none
            absent = repository / ".no_exist" / commit / "config.json"
            absent.parent.mkdir(parents=True)
            absent.touch()
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)

    return publish
