"""The methods that docs/adding-a-method.md writes, each registered for one test."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.docs.pages import DOCS, blocks

from trimtab.methods import METHODS


@contextmanager
def registered(name: str, number: int, folder: Path) -> Iterator[Any]:
    """The method of this code block."""
    path = folder / f"{name}_of_the_docs.py"
    path.write_text(blocks(DOCS / "adding-a-method.md", "python")[number], encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield METHODS[name]
    finally:
        del sys.modules[path.stem], METHODS[name]


@pytest.fixture
def hinge(tmp_path: Path) -> Iterator[Any]:
    with registered("hinge", 0, tmp_path) as method:
        yield method


@pytest.fixture
def best_of_n(tmp_path: Path) -> Iterator[Any]:
    with registered("best_of_n", 2, tmp_path) as method:
        yield method
