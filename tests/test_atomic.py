"""Folders and files that are there whole or not at all."""

from pathlib import Path

import pytest

from trimtab.atomic import added_files, atomic_folder, atomic_text


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


def test_added_files_join_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "critic").mkdir()
    for name in ("curve", "weights", "critic/stale"):
        (tmp_path / name).write_text("old")
    with added_files(tmp_path) as folder:
        (folder / "critic").mkdir()
        (folder / "critic" / "head").write_text("new")
        (folder / "weights").write_text("new")
        assert (tmp_path / "weights").read_text() == "old"  # until all are written
    found = {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {"curve": "old", "weights": "new", "critic/head": "new"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["critic", "curve", "weights"]


def test_files_that_could_not_be_written_are_not_added(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("old")
    with pytest.raises(RuntimeError), added_files(tmp_path) as folder:
        (folder / "weights").write_text("half")
        (folder / "other").write_text("whole")
        raise RuntimeError
    assert (tmp_path / "weights").read_text() == "old" and not (tmp_path / "other").exists()
    with added_files(tmp_path) as folder:  # what was left is not mixed in
        (folder / "weights").write_text("new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("weights", "new")]
