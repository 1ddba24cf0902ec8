"""What is written is read again as the same records; nothing is overwritten or half written."""

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab.errors import UserError
from trimtab.feedback.readers import read
from trimtab.feedback.records import Kind, Message, Prompt, Record
from trimtab.feedback.writers import write

ANY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
RESPONSE = TEXT.filter(str.strip)
NUMBER = st.floats(-1e6, 1e6)
CONVERSATION = st.builds(
    lambda system, turns, last: (*system, *turns, Message("user", last)),
    st.sampled_from([(), (Message("system", "Be brief."),)]),
    st.lists(st.tuples(TEXT, TEXT), max_size=2).map(
        lambda both: tuple(m for q, a in both for m in (Message("user", q), Message("assistant", a)))
    ),
    TEXT,
)


@st.composite
def records(draw: st.DrawFn, kind: Kind, prompts: st.SearchStrategy[Prompt]) -> Record:
    prompt = draw(prompts)
    columns: dict[str, Any] = {"topic": draw(TEXT)}
    if kind == "prompt":
        return Record(kind, prompt, columns=columns)
    fewest, most = {"pair": (2, 2), "ranking": (2, 4), "score": (1, 3)}.get(kind, (1, 1))
    responses = tuple(draw(st.lists(RESPONSE, min_size=fewest, max_size=most, unique=True)))
    count = len(responses)
    return Record(
        kind, prompt, responses, columns=columns,
        ranks=draw(st.permutations(range(count)).map(tuple)) if kind == "ranking" else (),
        scores=tuple(draw(NUMBER) for _ in responses) if kind == "score" else (),
        desirable=draw(st.booleans()) if kind == "thumbs" else None,
        margin=draw(st.none() | st.floats(0, 1e6)) if kind == "pair" else None,
    )  # fmt: skip


def check_round_trip(wanted: list[Record], path: Path, shape: str = "trl") -> None:
    """Writes and reads; only the places may differ."""
    write(wanted, path, shape, overwrite=True)
    found = read(str(path))
    fields = ("kind", "prompt", "responses", "ranks", "scores", "desirable", "margin", "columns")
    assert [[getattr(r, f) for f in fields] for r in found] == [
        [getattr(r, f) for f in fields] for r in wanted
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
@pytest.mark.parametrize("kind", ["demonstration", "pair", "ranking", "thumbs", "score", "prompt"])
@given(data=st.data())
@ANY
def test_json_keeps_every_record(tmp_path: Path, kind: Kind, name: str, data: st.DataObject) -> None:
    prompts = st.one_of(st.just(""), TEXT, CONVERSATION)
    check_round_trip(data.draw(st.lists(records(kind, prompts), min_size=1, max_size=4)), tmp_path / name)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("kind", ["demonstration", "pair", "ranking", "thumbs", "prompt"])
@given(data=st.data())
@ANY
def test_tables_keep_every_record(tmp_path: Path, kind: Kind, name: str, data: st.DataObject) -> None:
    prompts = data.draw(st.sampled_from([TEXT, CONVERSATION]))  # one type to a column
    check_round_trip(data.draw(st.lists(records(kind, prompts), min_size=1, max_size=4)), tmp_path / name)


@pytest.mark.parametrize("kind", ["demonstration", "pair", "thumbs", "prompt"])
@given(data=st.data())
@ANY
def test_csv_keeps_text(tmp_path: Path, kind: Kind, data: st.DataObject) -> None:
    check_round_trip(data.draw(st.lists(records(kind, TEXT), min_size=1, max_size=4)), tmp_path / "a.csv")


@pytest.mark.parametrize("shape", ["sharegpt", "alpaca"])
@pytest.mark.parametrize("kind", ["demonstration", "pair", "thumbs"])
@given(data=st.data())
@ANY
def test_other_shapes_keep_conversations(tmp_path: Path, kind: Kind, shape: str, data: st.DataObject) -> None:
    check_round_trip(
        data.draw(st.lists(records(kind, CONVERSATION), min_size=1, max_size=4)), tmp_path / "a.jsonl", shape
    )


def test_kinds_may_be_mixed_in_json_lines(tmp_path: Path) -> None:
    scored = Record("score", "p", ("a",), scores=(1.0,))
    check_round_trip([Record("prompt", "p"), Record("pair", "p", ("a", "b")), scored], tmp_path / "a.jsonl")


def test_the_rows_are_those_of_trl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(
        [Record("pair", (Message("user", "天空？"),), ("蓝", "绿"), margin=0.5, columns={"topic": "x"})], path
    )
    assert json.loads(path.read_text()) == {
        "prompt": [{"role": "user", "content": "天空？"}],
        "chosen": [{"role": "assistant", "content": "蓝"}],
        "rejected": [{"role": "assistant", "content": "绿"}],
        "margin": 0.5,
        "topic": "x",
    }
    assert "天空" in path.read_text()
    write([Record("thumbs", "p", ("a",), desirable=False)], path, overwrite=True)
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
    assert loaded[0] == {"prompt": "p", "completion": "a", "label": False}


def test_a_column_that_would_change_the_shape_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(
        [
            Record(
                "demonstration", "p", ("a",), columns={"label": 1, "reward": 2, "system": "x", "topic": "t"}
            )
        ],
        path,
    )
    assert json.loads(path.read_text()) == {"prompt": "p", "completion": "a", "topic": "t"}


def test_columns_that_some_rows_lack_reach_tables(tmp_path: Path) -> None:
    rows = [Record("pair", "p", ("a", "b")), Record("pair", "q", ("a", "b"), margin=2.0)]
    for name in ("a.parquet", "a.csv"):
        check_round_trip(rows, tmp_path / name)
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["prompt", "chosen", "rejected", "margin"],
            ["p", "a", "b", ""],
            ["q", "a", "b", "2.0"],
        ]


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("precious")
    with pytest.raises(UserError) as error:
        write([Record("prompt", "p")], path)
    assert str(error.value) == (
        f"{path} exists already; choose another name, or pass --overwrite to replace it"
    )
    assert path.read_text() == "precious"


CHAT = Record("demonstration", (Message("user", "p"),), ("a",))
BAD: list[tuple[str, str, list[Record], str]] = [
    ("a.txt", "trl", [CHAT],
     "{path}: the name must end in one of .json, .jsonl, .csv, .parquet, .json.gz, .jsonl.gz, .csv.gz, "
     ".arrow"),
    ("a.jsonl", "alpca", [CHAT], "unknown shape 'alpca'; did you mean 'alpaca'?"),
    ("a.csv", "trl", [CHAT],
     "{path}: CSV cannot hold the messages or lists in 'prompt'; write .jsonl or .parquet"),
    ("a.parquet", "trl", [Record("prompt", "p"), Record("pair", "p", ("a", "b"))],
     "{path}: a table cannot mix preference pair and prompt rows; write .jsonl"),
    ("a.jsonl", "sharegpt", [Record("ranking", "p", ("a", "b"), ranks=(0, 1))],
     "the sharegpt shape has no place for a ranking record; write the trl shape"),
    ("a.jsonl", "alpaca", [Record("demonstration", "", ("a",), source="f:1")],
     "f:1: the alpaca shape needs a prompt, and this one is empty"),
    ("a.jsonl", "alpaca", [Record("demonstration", (Message("user", "p"), Message("tool", "x")), ("a",))],
     "an Alpaca row holds turns of user and assistant in alternation only"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shape", "wanted", "message"), BAD, ids=[case[3][:40] for case in BAD])
def test_what_cannot_be_written_is_refused_and_leaves_no_file(
    tmp_path: Path, name: str, shape: str, wanted: list[Record], message: str
) -> None:
    with pytest.raises(UserError) as error:
        write(wanted, tmp_path / name, shape)
    assert str(error.value) == message.format(path=tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_column_of_mixed_types_does_not_go_into_parquet(tmp_path: Path) -> None:
    rows = [Record("prompt", "p", columns={"x": 1}), Record("prompt", "q", columns={"x": "one"})]
    for name, what in (("a.parquet", "Parquet"), ("a.arrow", "Arrow")):
        with pytest.raises(UserError, match=f"{name}: a column mixes types, which {what} cannot hold"):
            write(rows, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
