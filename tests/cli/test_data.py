"""`trimtab data show` and `trimtab data convert`."""

from pathlib import Path

import pytest

from tests import tiny
from trimtab.cli import main


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def thumbs(tmp_path: Path) -> str:
    return tiny.write_jsonl(tmp_path / "thumbs.jsonl", tiny.thumbs())


def test_show_counts_what_is_there(thumbs: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", thumbs]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "records 16 thumbs" in shown and "8 different" in shown


def test_thumbs_become_pairs(thumbs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pairs.jsonl"
    assert main(["data", "convert", thumbs, str(out), "--to", "pair"]) == 0
    assert tiny.read_jsonl(out) == tiny.pairs()
    assert "8 records are in" in capsys.readouterr().out
    assert main(["data", "convert", thumbs, str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["data", "convert", thumbs, str(out), "--overwrite"]) == 0
    assert len(tiny.read_jsonl(out)) == 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shown.jsonl", "out.jsonl", "--to", "pair"], "which cannot become pair: it shows a good response"),
        (["thumbs.jsonl", "out.txt"], "out.txt: the name must end in one of .json, .jsonl"),
        (["thumbs.jsonl"], "OUT is missing; see trimtab data convert --help"),
        (["thumbs.jsonl", "out.jsonl", "--to", "pairs"], "invalid choice 'pairs' for argument '--to'"),
        (["nothing.jsonl", "out.jsonl"], "nothing.jsonl: there is no such file or folder"),
        (["bad.jsonl", "out.jsonl"], "bad.jsonl:1: "),
        (["thumbs.jsonl", "out.jsonl", "--threshold", "x"], "--threshold x: expected a number"),
    ],
)
def test_what_cannot_be_converted(
    words: list[str], message: str, thumbs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_jsonl(tmp_path / "shown.jsonl", tiny.demonstrations())
    (tmp_path / "bad.jsonl").write_text('{"prompt": 1}\n')
    before = sorted(tmp_path.iterdir())
    assert main(["data", "convert", *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert sorted(tmp_path.iterdir()) == before


def test_bad_rows_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "f.jsonl", tmp_path / "out.jsonl"
    file.write_text('{"prompt": "a", "chosen": " b", "rejected": " c"}\n{"prompt": "a", "chosen": " b"}\n')
    assert main(["data", "convert", str(file), str(out), "--bad-rows", "skip"]) == 0
    assert len(tiny.read_jsonl(out)) == 1
    (bad,) = tiny.read_jsonl(tmp_path / "out.jsonl.rejected.jsonl")
    assert bad["source"] == "f.jsonl:2"
    assert "1 of 2 rows are bad and left out" in capsys.readouterr().err.replace("\n", " ")
