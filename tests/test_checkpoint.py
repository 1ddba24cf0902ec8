"""Folders and files that are there whole or not at all."""

from pathlib import Path

import pytest

from trimtab.checkpoint import atomic_folder, atomic_text


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "model"
    with atomic_folder(target) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_text("1")
        assert not target.exists()
    assert (target / "deep" / "weights").read_text() == "1"
    assert [p.name for p in target.parent.iterdir()] == ["model"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "weights").write_text("half")
        raise RuntimeError
    assert (target / "weights").read_text() == "old"


def test_what_an_interruption_left_is_not_mixed_in(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "stale").write_text("half")
        raise RuntimeError
    with atomic_folder(target) as folder:
        (folder / "weights").write_text("new")
    assert [p.name for p in target.iterdir()] == ["weights"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_new_folder_replaces_the_old_one(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with atomic_folder(tmp_path / "model") as folder:
            (folder / name).touch()
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["second"]


def test_text_is_replaced_at_once(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for text in ("{}", '{"é": 1}'):
        atomic_text(file, text)
        assert file.read_text(encoding="utf-8") == text
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
