"""Bad input that the campaign of `make fuzz` found, or that was found by reading: each ends in a sentence."""

import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from trimtab.data import load_records
from trimtab.errors import UserError
from trimtab.feedback import files, readers
from trimtab.feedback.conversions import ViewOptions
from trimtab.feedback.readers import read, scan
from trimtab.feedback.records import Message, Record
from trimtab.feedback.views import convert
from trimtab.feedback.writers import write

USER = {"role": "user", "content": "1+1?"}
TREE = {"role": "prompter", "text": "1+1?"}


def refusal(path: Path | str, content: str | bytes | None = None) -> str:
    """The sentence with which a file is refused."""
    if content is not None:
        Path(path).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as error:
        read(str(path))
    return str(error.value)


def nested(depth: int) -> str:
    return '{"prompt": "p", "x": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


BAD_LINES: list[tuple[str, str]] = [
    ('{"prompt": "a", "completion": "b", "prompt": "c"}',
     "an object in the row names 'prompt' twice; keep one of them"),
    ('{"prompt": "p", "x": [{"a": 1, "a": 1}]}', "an object in the row names 'a' twice; keep one of them"),
    ('{"prompt": "p", "x": ' + "9" * 4301 + "}",
     "JSON that cannot be read (a number in it has thousands of digits)"),
    (nested(201), "the row is nested more than 200 levels deep"),
    (nested(100_000), "JSON that cannot be read (it is nested more than 200 levels deep)"),
    ('{"prompt": "p", "topic": "\\ud83d"}',
     "the column 'topic' holds half of a character, which is not valid text"),
    ('{"prompt": "p", "\\udc00": 1}',
     "the column '\\udc00' holds half of a character, which is not valid text"),
    ('{"a\\u001b[31mb": 1}',
     "the columns ('a\\x1b[31mb') are no known shape; name them for example prompt and completion, "
     "or prompt, chosen and rejected, or prompt, completion and label"),
    (json.dumps({"prompt": [{"role": "x" * 1000, "content": "y"}]}),
     f"unknown role '{'x' * 36}...; known: assistant, system, tool, user"),
    (json.dumps({"prompt": "p", "completion": "c", "score": "1_5"}),
     "'score' is '1_5', which is not a number"),
    (json.dumps({"prompt": "p", "completion": "c", "system": 5}), "'system' must be text, not a number"),
    (json.dumps({"instruction": "p", "output": "c", "input": False}),
     "'input' must be text, not true or false"),
    (json.dumps({"instruction": "p", "output": "c", "history": 5}),
     "'history' must be a list of [question, answer], not a number"),
    (json.dumps({"message_tree_id": "1", "prompt": {**TREE, "role": []}}), "'role' must be text, not a list"),
    (json.dumps({"message_tree_id": "1", "prompt": {**TREE, "replies": 5}}),
     "'replies' of a message of the tree must be a list, not a number"),
    (json.dumps({"message_tree_id": "1", "prompt": {**TREE, "deleted": "no"}}),
     "'deleted' of a message of the tree must be true or false"),
    (json.dumps({"prompt": "p", "responses": [f"r{n}" for n in range(1001)], "ranks": list(range(1001))}),
     "a ranking record needs at most 1,000 responses, not 1001"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=[reason[:40] for _, reason in BAD_LINES])
def test_a_bad_row_is_named_and_the_rows_beside_it_are_read(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "good"}\n' + line + '\n{"prompt": "good too"}\n')
    reading = scan(str(path))
    assert [(bad.source, bad.reason) for bad in reading.rejected] == [("a.jsonl:2", reason)]
    assert [record.prompt for record in reading.records] == ["good", "good too"]
    assert refusal(path) == f"a.jsonl:2: {reason}; fix the row, or pass --bad-rows skip to leave bad rows out"
    assert len(read(str(path), bad_rows="skip", rejects=tmp_path / "rejected.jsonl")) == 2
    assert json.loads((tmp_path / "rejected.jsonl").read_text())["reason"] == reason


def test_what_is_said_twice_is_kept_among_the_rejected_rows(tmp_path: Path) -> None:
    line = '{"prompt": "a", "prompt": "b"}'
    (tmp_path / "a.jsonl").write_text(line)
    (bad,) = scan(str(tmp_path / "a.jsonl")).rejected
    assert bad.row == line


def test_a_row_that_is_nested_as_deep_as_is_allowed_is_read_and_written(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(nested(200))
    (record,) = read(str(path))
    write([record], tmp_path / "b.jsonl")
    assert read(str(tmp_path / "b.jsonl"))[0].columns == record.columns


def test_an_array_names_the_line_of_what_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert refusal(path, '[{"prompt": "p"},\n{"prompt": "q", "x": ' + "9" * 5000 + "}]") == (
        "a.json:2: JSON that cannot be read (a number in it has thousands of digits); fix the file"
    )
    assert refusal(path, '[{"prompt": "p"}\n]\n\nmore') == (
        "a.json:4: there is text after the end of the JSON array; fix the file"
    )


def test_rows_that_share_a_line_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"prompt": "p"}, {}, {"prompt": "q"},\n{"prompt": "r"}, {}]')
    reading = scan(str(tmp_path / "a.json"))
    assert [record.source for record in reading.records] == ["a.json:1", "a.json:1 (row 3)", "a.json:2"]
    assert [bad.source for bad in reading.rejected] == ["a.json:1 (row 2)", "a.json:2 (row 5)"]


def test_a_row_of_very_many_columns_is_refused_in_a_short_sentence(tmp_path: Path) -> None:
    row = {f"c{n:06}": 1 for n in range(100_000)}
    said = refusal(tmp_path / "a.jsonl", json.dumps(row))
    assert ", c000019, and 99,980 more) are no known shape" in said and len(said) < 500


def test_a_transcript_may_begin_with_any_white_space(tmp_path: Path) -> None:
    """With a single line feed the first turn was lost."""
    row = {"chosen": "\nHuman: 1+1?\n\nAssistant: 2", "rejected": "\nHuman: 1+1?\n\nAssistant: 3"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (record,) = read(str(tmp_path / "a.jsonl"))
    assert (record.prompt, record.responses) == ((Message("user", "1+1?"),), ("2", "3"))


def test_the_system_column_beside_messages_is_not_passed_over(tmp_path: Path) -> None:
    row: dict[str, Any] = {"system": "Be brief.", "messages": [USER, {"role": "assistant", "content": "2"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"label": True}))
    prompt = (Message("system", "Be brief."), Message("user", "1+1?"))
    assert [record.prompt for record in read(str(tmp_path / "a.jsonl"))] == [prompt, prompt]


# Files that are too much, or no files


@pytest.mark.parametrize("unit", [b"x", b"\n", b'{"prompt": "p"}\n'])
def test_a_packed_file_that_hardly_ends_is_refused(tmp_path: Path, unit: bytes) -> None:
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb") as file:
        for _ in range(80):
            file.write(unit * (2**20 // len(unit)))
    path = tmp_path / "a.jsonl.gz"
    assert refusal(path, buffer.getvalue()) == (
        f"{path}: it unpacks to more than 500 times its size, as no feedback does; "
        "if it is meant, unpack it first"
    )
    with pytest.raises(UserError, match="unpacks to more than"):  # before there is a single row
        next(files.raw_rows(str(path)))


def test_text_that_packs_well_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same long prompt in every row."""
    monkeypatch.setattr(files, "UNPACKED", 2**20)
    rows = [json.dumps({"prompt": "Be brief. " * 400, "completion": str(n)}) + "\n" for n in range(500)]
    text = "".join(rows).encode()
    data = gzip.compress(text)
    assert len(text) > 2**20 and 100 * len(data) < len(text) < 500 * len(data)
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    assert len(read(str(tmp_path / "a.jsonl.gz"))) == 500


def parquet(table: pyarrow.Table) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


def test_parquet_files_that_mislead_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["prompt", "prompt"])
    assert refusal(path, parquet(twice)) == f"{path}: it names a column twice; rename one"
    later = pyarrow.table({"prompt": ["p"], "x": pyarrow.array([2**62], pyarrow.timestamp("us"))})
    assert refusal(path, parquet(later)).startswith(f"{path}: cannot read the Parquet file (")
    latin = pyarrow.array([b"caf\xe9"], pyarrow.binary()).view(pyarrow.string())
    assert refusal(path, parquet(pyarrow.table({"prompt": latin}))).startswith(
        f"{path}: cannot read the Parquet file ('utf-8' codec can't decode byte 0xe9"
    )
    monkeypatch.setattr(files, "FEW_ROWS", 0)
    same = pyarrow.table({"prompt": pyarrow.array(["p"] * 500_000)})
    data = parquet(same)
    assert refusal(path, data) == f"{path}: it holds 500,000 rows in {len(data):,} bytes, as no feedback does"


def test_arrow_files_that_mislead_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column of nothing takes no room, however long; a place beyond the text would end the process."""
    path, batch = tmp_path / "a.arrow", pyarrow.record_batch({"prompt": pyarrow.nulls(500_000)})
    monkeypatch.setattr(files, "FEW_ROWS", 0)
    said = refusal(path, arrow(batch))
    assert said == f"{path}: it holds 500,000 rows in {path.stat().st_size:,} bytes, as no feedback does"
    twice = pyarrow.record_batch([pyarrow.array(["a"]), pyarrow.array(["b"])], ["prompt", "prompt"])
    assert refusal(path, arrow(twice)) == f"{path}: it names a column twice; rename one"
    places = pyarrow.array([0, 10**6, 4], pyarrow.int32()).buffers()[1]
    beyond = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, places, pyarrow.py_buffer(b"text")])
    content = arrow(pyarrow.record_batch({"prompt": beyond}))
    assert refusal(path, content).startswith(f"{path}: cannot read the Arrow file (")


def arrow(batch: pyarrow.RecordBatch) -> bytes:
    buffer = io.BytesIO()
    with pyarrow.ipc.new_file(buffer, batch.schema) as writer:
        writer.write_batch(batch)
    return buffer.getvalue()


def test_names_that_no_file_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal("") == "the name of the data is empty; give a file, a folder or a dataset's name"
    assert refusal("a\0b/c").startswith("'a\\x00b/c': there is no such file or folder")
    assert len(refusal("x/" + "y" * 5000)) < 700
    with pytest.raises(UserError, match="the built-in example has no such part") as error:
        load_records("reviews:" + "x" * 5000)
    assert len(str(error.value)) < 400


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert refusal(tmp_path / "pipe.jsonl") == f"{tmp_path}/pipe.jsonl: it is no regular file"
    assert refusal(tmp_path) == f"{tmp_path}/pipe.jsonl: it is no regular file"


def test_a_folder_of_everything_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_ENTRIES", 2)
    for name in "abc":
        (tmp_path / name).touch()
    assert refusal(tmp_path) == f"{tmp_path}: it holds more than 2 files; name the one with the data"


def test_a_folder_named_like_a_file_is_searched_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").mkdir()
    (tmp_path / "all.jsonl" / "a.jsonl").write_text('{"prompt": "p"}')
    assert [record.source for record in read(str(tmp_path))] == ["all.jsonl/a.jsonl:1"]


def test_a_file_larger_than_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(readers, "raw_rows", full)
    assert refusal("a.jsonl") == "a.jsonl: it does not fit into memory; cut it into smaller files"


def test_bad_rows_go_into_a_new_folder_but_never_over_their_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("data.rejected.jsonl")
    path.write_text('{"prompt": "p"}\n{}\n')
    with pytest.raises(UserError, match=r"^data\.rejected\.jsonl: the bad rows would replace the file"):
        read(str(path), bad_rows="skip")
    assert path.read_text() == '{"prompt": "p"}\n{}\n'
    read(str(path), bad_rows="skip", rejects=Path("runs/new/rejected.jsonl"))
    assert json.loads(Path("runs/new/rejected.jsonl").read_text())["source"] == "data.rejected.jsonl:2"
    with pytest.raises(UserError, match="cannot write the bad rows"):
        read(str(path), bad_rows="skip", rejects=path / "rejected.jsonl")


# What was read but could not be written, or converted


def test_a_label_beside_a_prompt_does_not_stop_writing(tmp_path: Path) -> None:
    write([Record("prompt", "p", columns={"label": 1, "topic": "t"})], tmp_path / "a.jsonl")
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"prompt": "p", "topic": "t"}


def deep(depth: int) -> Any:
    return [deep(depth - 1)] if depth else 1


@pytest.mark.parametrize(
    ("name", "columns", "reason"),
    [
        ("a.csv", {"x ": 1}, "CSV loses the space at an end of the column name 'x '; write .jsonl"),
        ("a.csv", {"x" * 3000: []}, f"CSV cannot hold the messages or lists in '{'x' * 36}...; write .jsonl"),
        ("a.parquet", {"x": 2**70}, "a column mixes types, which Parquet cannot hold, or has no type there "),
        ("a.parquet", {"x": deep(120)}, "a column is nested too deeply for Parquet; write .jsonl"),
        ("file/a.jsonl", {}, "cannot write the file (File exists)"),
        (f"{'x' * 300}.jsonl", {}, "cannot write the file (File name too long)"),
    ],
)
def test_what_cannot_be_written_is_said(
    tmp_path: Path, name: str, columns: dict[str, Any], reason: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        write([Record("prompt", "p", columns=columns)], tmp_path / name)
    assert reason in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_threshold_is_a_number(value: float) -> None:
    """Below nan nothing is, so that every response would have been undesirable."""
    with pytest.raises(UserError, match=r"threshold is (nan|inf); it must be a finite number"):
        convert([Record("score", "p", ("a",), scores=(1.0,))], "thumbs", ViewOptions(threshold=value))
