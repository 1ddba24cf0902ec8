"""Imports go to strictly lower layers, or stay within their package."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "trimtab"

LAYERS = (
    {
        "allocator",
        "errors",
        "objectives",
        "atomic",
        "hub",
        "optimisers",
        "stateful",
        "fingerprints",
        "interruption",
        "terminal",
    },  # these import nothing of ours
    {"states", "room"},
    {"config", "feedback", "runs", "checkpoint"},
    {"examples", "presets", "resuming"},
    {"policies"},
    {"reference", "rollouts", "data"},
    {"methods"},
    {"train", "evaluate"},
    {"learner", "inspection"},
    {"online"},
    {"writing"},
    {"recorder"},
    {"jobs"},
    {"online_jobs", "control_jobs", "play"},
    {"compare", "doctor"},
    {"cli", "truth"},  # leaves: nothing imports them
)
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
FILES = sorted(file for file in SOURCE.rglob("*.py") if file != SOURCE / "__init__.py")


def part_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(file: Path) -> Iterator[str]:
    """Every module of ours that the file imports anywhere, functions included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "trimtab" and name.count("."))


def test_every_part_has_a_layer() -> None:
    assert {part_of(file) for file in FILES} == set(LAYER)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_go_down(file: Path) -> None:
    here = part_of(file)
    for module in imported(file):
        there = module.split(".")[1]
        assert there == here or LAYER[there] < LAYER[here], f"{file} imports {module}"


def test_methods_do_not_import_each_other() -> None:
    for file in (SOURCE / "methods").glob("*.py"):
        if file.stem != "__init__":
            ours = {m for m in imported(file) if m.startswith("trimtab.methods")}
            assert all(m.startswith("trimtab.methods.base.") for m in ours), f"{file}: {ours}"


@pytest.mark.parametrize("words", [["--help"], ["--version"], []])
def test_first_words_come_fast(words: list[str]) -> None:
    """Without a command nothing heavy is imported."""
    code = f"import sys; from trimtab.cli import main; main({words!r}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "numpy", "rich", "tyro", "yaml"} & set(done.stderr.split())
