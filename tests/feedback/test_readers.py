"""Files are read whatever their format, and every bad row is named by its file and line."""

import gzip
import json
import logging
from collections import Counter
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from trimtab.errors import UserError
from trimtab.feedback.readers import read, scan
from trimtab.feedback.records import Message, Record

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FIX = "; fix the row, or pass --bad-rows skip to leave bad rows out"
ROWS = [
    {"prompt": "天空？", "completion": "蓝\u2028色\r\n", "label": True},
    {"prompt": "b", "completion": "c", "label": False},
]
RECORDS = [
    Record("thumbs", "天空？", ("蓝\u2028色\r\n",), desirable=True),
    Record("thumbs", "b", ("c",), desirable=False),
]


def lines(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def written(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def plain(records: list[Record]) -> list[Record]:
    """Without the places."""
    return [Record(r.kind, r.prompt, r.responses, r.ranks, r.scores, r.desirable, r.margin) for r in records]


CSV = 'prompt,completion,label\r\n"天空？","蓝\u2028色\r\n",True\r\nb,c,False\r\n'
FILES: dict[str, bytes] = {
    "a.jsonl": lines(*ROWS).encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + lines(*ROWS).encode(),
    "crlf-and-blank.jsonl": lines(*ROWS).replace("\n", "\r\n\r\n").encode(),
    "no-end.jsonl": lines(*ROWS).encode().rstrip(),
    "utf16.jsonl": lines(*ROWS).encode("utf-16"),
    "array.json": json.dumps(ROWS, indent=2).encode(),
    "array-in.jsonl": json.dumps(ROWS).encode(),
    "lines-in.json": lines(*ROWS).encode(),
    "a.csv": CSV.encode(),
    "bom.csv": b"\xef\xbb\xbf" + CSV.encode(),
    "a.jsonl.gz": gzip.compress(lines(*ROWS).encode()),
    "a.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "a.csv.gz": gzip.compress(CSV.encode()),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_records(tmp_path: Path, name: str) -> None:
    assert plain(read(written(tmp_path, name, FILES[name]))) == RECORDS


def test_parquet_and_datasets_folders_give_the_same_records(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert plain(read(str(tmp_path / "a.parquet"))) == RECORDS
    both = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    )
    both.save_to_disk(tmp_path / "saved")
    assert plain(read(str(tmp_path / "saved"))) == RECORDS
    assert plain(read(str(tmp_path / "saved"), split="test")) == RECORDS[:1]
    with pytest.raises(UserError, match="there is no split 'tset'; did you mean 'test'"):
        read(str(tmp_path / "saved"), split="tset")
    both["train"].save_to_disk(tmp_path / "single")
    assert plain(read(str(tmp_path / "single"))) == RECORDS


def test_a_folder_is_read_in_order_and_by_split(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about")
    written(tmp_path, "b.jsonl", lines(ROWS[1]))
    written(tmp_path, "a.jsonl", lines(ROWS[0]))
    written(tmp_path, "a.rejected.jsonl", lines({"source": "a.jsonl:1", "reason": "no", "row": 1}))
    found = read(str(tmp_path))
    assert plain(found) == RECORDS
    assert [record.source for record in found] == ["a.jsonl:1", "b.jsonl:1"]
    written(tmp_path, "train-00000.jsonl", lines(ROWS[0]))
    written(tmp_path, "test.jsonl", lines(ROWS[1]))
    assert plain(read(str(tmp_path))) == RECORDS[:1]
    assert plain(read(str(tmp_path), split="test")) == RECORDS[1:]


def test_sources_are_lines_where_rows_start(tmp_path: Path) -> None:
    indented = written(tmp_path, "a.json", json.dumps(ROWS, indent=2))
    assert [record.source for record in read(indented)] == ["a.json:2", "a.json:7"]
    table = written(tmp_path, "a.csv", 'prompt,completion\n"two\nlines",x\n\nb,c\n')
    assert [record.source for record in read(table)] == ["a.csv:2", "a.csv:5"]


def test_rows_of_different_shapes_may_stand_in_one_file(tmp_path: Path) -> None:
    path = written(
        tmp_path, "a.jsonl", lines({"prompt": "p"}, {"prompt": "p", "chosen": "a", "rejected": "b"})
    )
    reading = scan(path)
    assert [record.kind for record in reading.records] == ["prompt", "pair"]
    assert reading.shapes == {"prompt": 1, "preference pair": 1}


GOOD = {"prompt": "p", "completion": "c"}
BAD_FILES: list[tuple[str, str | bytes, str]] = [
    ("a.jsonl", lines(GOOD) + '{"prompt": "p", \n',
     f"a.jsonl:2: broken JSON at column 17 (Expecting property name enclosed in double quotes){FIX}"),
    ("a.jsonl", lines(GOOD, ["p", "c"]), f"a.jsonl:2: the row is not an object with named columns{FIX}"),
    ("a.jsonl", lines(GOOD) + "\n" + lines({"prompt": "p", "completion": " "}),
     f"a.jsonl:3: empty response{FIX}"),
    ("a.json", '[\n{"prompt": "p", "completion": "c"},\n{"prompt": "p"\n"completion": "c"}]',
     "a.json:4: broken JSON at column 1 (Expecting ',' delimiter); fix the file"),
    ("a.json", '[\n{"prompt": "p"},\n{"prompt": "q"}',
     "a.json:3: broken JSON at column 16 (Expecting ',' or ']'); fix the file"),
    ("a.json", '[{"prompt": "p"}] x',
     "a.json:1: there is text after the end of the JSON array; fix the file"),
    ("a.csv", "prompt,completion\np,c\np\n", f"a.csv:3: the row has 1 cells, but the header has 2{FIX}"),
    ("a.csv", "prompt,prompt\np,c\n", "a.csv:1: the header names a column twice; rename one"),
    ("a.csv", 'prompt,completion\np,c\n"p,c\n', "a.csv:3: broken CSV (unexpected end of data); fix the file"),
    ("a.csv", "prompt,completion,label\np,c,\n",
     f"a.csv:2: 'label' is empty; a label is true or false, 1 or 0, up or down{FIX}"),
    ("a.jsonl", '{"prompt": "ok", "completion": "é"}\n'.encode() + b'{"prompt": "caf\xe9"}\n',
     "a.jsonl:2: the file is not UTF-8 text (byte 0xe9); save it as UTF-8, for example with "
     "iconv -t UTF-8 -f and its encoding"),
    ("a.jsonl", '{"prompt": "p", "completion": "\\ud83d"}\n',
     f"a.jsonl:1: 'completion' holds half of a character (U+D83D), which is not valid text{FIX}"),
    ("a.jsonl", lines({"chosen": "a", "prompt": "p"}),
     "a.jsonl:1: the columns (chosen, prompt) are no known shape; the nearest, 'preference pair', "
     f"also needs rejected{FIX}"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES, ids=[case[2][:40] for case in BAD_FILES])
def test_a_bad_row_stops_with_file_line_and_reason(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(UserError) as error:
        read(written(tmp_path, name, content))
    assert str(error.value) == message


def test_files_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "pairs.jsonl", "")
    written(tmp_path, "cut.jsonl.gz", gzip.compress(lines(*ROWS).encode())[:20])
    written(tmp_path, "bad.parquet", b"not parquet")
    written(tmp_path, "a.tsv", "a")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "pairs.jsonl": "^pairs.jsonl: there are no rows in it$",
        "pair.jsonl": r"^pair.jsonl: there is no such file or folder; did you mean 'pairs.jsonl'\?$",
        "cut.jsonl.gz": r"^cut.jsonl.gz: cannot read the file \(Compressed file ended",
        "bad.parquet": r"^bad.parquet: cannot read the Parquet file \(Parquet magic bytes not found",
        "a.tsv": "^a.tsv: the name must end in one of .json, .jsonl, .csv, .parquet, .json.gz,",
        "empty": "^empty: the folder holds no data files; their names end in .json,",
    }.items():
        with pytest.raises(UserError, match=message):
            read(name)


def test_an_unknown_dataset_fails_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the hub\nand a trace")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError) as error:
        read("someone/pairs")
    assert str(error.value) == (
        "someone/pairs: there is no such file or folder here, and the dataset of that name cannot be loaded "
        "from the hub (Couldn't reach the hub)"
    )


def test_a_dataset_of_the_hub_is_read_by_name_and_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(path: str, config: str | None, split: str) -> datasets.Dataset:
        asked.append((path, config, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert plain(read("someone/thumbs:main", split="test")) == RECORDS
    assert asked == [("someone/thumbs", "main", "test")]


def test_bad_rows_are_skipped_only_if_asked_and_are_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = '{"prompt": "p", "completion": "\\ud83d"}\n{broken\n'
    path = written(tmp_path, "data.jsonl", lines(GOOD) + bad)
    with caplog.at_level(logging.WARNING, logger="trimtab"):
        assert plain(read(path, bad_rows="skip")) == [Record("demonstration", "p", ("c",))]
    assert [json.loads(line) for line in (tmp_path / "data.rejected.jsonl").read_text().splitlines()] == [
        {"source": "data.jsonl:2",
         "reason": "'completion' holds half of a character (U+D83D), which is not valid text",
         "row": {"prompt": "p", "completion": "\ud83d"}},
        {"source": "data.jsonl:3",
         "reason": "broken JSON at column 2 (Expecting property name enclosed in double quotes)",
         "row": "{broken"},
    ]  # fmt: skip
    assert caplog.messages == [
        f"{path}: 2 of 3 rows are bad and left out; they and the reasons are in data.rejected.jsonl"
    ]
    read(path, bad_rows="skip", rejects=tmp_path / "elsewhere.jsonl")
    assert len((tmp_path / "elsewhere.jsonl").read_text().splitlines()) == 2


def test_a_file_of_bad_rows_only_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "data.jsonl", lines({"a": 1}, {"a": 2}))
    with pytest.raises(
        UserError, match=r"none of its 2 rows holds feedback; the first bad row: the columns \(a\)"
    ):
        read(path, bad_rows="skip", rejects=tmp_path / "out.jsonl")


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("reviews/sentences.jsonl", "thumbs", 10_662),
        ("reviews/documents.jsonl.gz", "thumbs", 2_000),
        ("rankings/oasst_zh.json", "ranking", 775),
        ("demos/dpo_en_demo.json", "pair", 300),
        ("demos/dpo_zh_demo.json", "pair", 300),
        ("demos/kto_en_demo.json", "thumbs", 300),
        ("demos/alpaca_zh_demo.json", "demonstration", 1_000),
        ("gsm8k/test.jsonl", "demonstration", 1_319),
    ],
)
def test_real_files_hold_what_their_sources_say(name: str, kind: str, count: int) -> None:
    assert Counter(record.kind for record in read(str(DATA / name))) == {kind: count}


def test_rankings_of_more_than_two_in_the_real_files() -> None:
    chinese = read(str(DATA / "rankings/oasst_zh.json"))
    assert sum(len(record.responses) > 2 for record in chinese) == 341
    # 155 prompts have three ranked replies or more; four of them have only synthetic ones, which are dropped.
    english = read(str(DATA / "rankings/oasst_en_trees.jsonl"))
    sizes = [len(record.responses) for record in english if len(record.responses) > 2]
    assert (len(english), len(sizes), min(sizes), max(sizes)) == (207, 151, 3, 9)


def test_a_real_conversation_keeps_its_turns() -> None:
    record = read(str(DATA / "demos/kto_en_demo.json"))[0]
    assert isinstance(record.prompt, tuple)
    assert record.prompt[-1].role == "user"
    assert isinstance(record.prompt[0], Message)
