"""Columns of a Parquet file of every type that one may hold, and files that are too much."""

import datetime
import decimal
import gzip
import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow
import pyarrow.parquet
from hypothesis import strategies as st

from tests.fuzz.promises import Case

CHAT = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))


def _column(value: Any, kind: Any = None) -> Callable[[int], Any]:
    return lambda rows: pyarrow.array([value] * rows, kind)


COLUMNS: list[Callable[[int], Any]] = [
    _column("a"), _column("b"), _column("b"), _column(True), _column(1), _column(0.5), _column(None),
    _column("", pyarrow.large_string()), _column(b"\xff\x00"), _column(float("nan")), _column(float("inf")),
    _column(datetime.datetime(1, 1, 1)), _column(datetime.timedelta(1)), _column(datetime.time(1)),
    _column(2**62, pyarrow.timestamp("us")), _column(-(2**62), pyarrow.timestamp("ns")),
    _column(decimal.Decimal("1")), _column(decimal.Decimal("1e30")), _column(2**63, pyarrow.uint64()),
    _column(["x", "y"]), _column([]), _column([None]), _column([1, 2]), _column([0.1, None]),
    _column({"role": "user"}),
    _column([{"role": "user", "content": "a"}], CHAT), _column([{"role": "assistant", "content": "b"}], CHAT),
    _column([("k", "v"), ("k", "w")], pyarrow.map_(pyarrow.string(), pyarrow.string())),
    lambda rows: pyarrow.array(["a"] * rows).dictionary_encode(),
    lambda rows: pyarrow.Array.from_buffers(
        pyarrow.string(), rows, [None, pyarrow.py_buffer(b"\0" * 4 * (rows + 1)), pyarrow.py_buffer(b"")]
    ),
    lambda rows: pyarrow.array([b"\xff\xfe"] * rows, pyarrow.binary()).view(pyarrow.string()),
]  # fmt: skip

SMALL, LARGE = 2_000, 200_000
PAIR = '{"prompt": "p", "completion": "c", "x": %s}\n'


def _many_rows(count: int) -> bytes:
    """A file of a kilobyte with so many rows."""
    values = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000, pyarrow.int8()), ["a"])
    table = pyarrow.table({"prompt": values, "completion": values})
    buffer = io.BytesIO()
    with pyarrow.parquet.ParquetWriter(buffer, table.schema, compression="zstd") as writer:
        writer.write_table(pyarrow.concat_tables([table] * (count // 1000)))
    return buffer.getvalue()


def _bomb(unit: bytes, mebibytes: int) -> bytes:
    """A packed file of about a thousandth of what it unpacks to."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9) as file:
        for _ in range(mebibytes):
            file.write(unit * (2**20 // len(unit)))
    return buffer.getvalue()


def _huge() -> list[Callable[[], Case]]:
    """Too deep, too long, too wide, or packed too well; made when they are asked for."""
    made: list[Callable[[], Case]] = []
    for depth in (150, 199, 201, 900, 1000, 5_000, LARGE):
        for left, right in (("[", "]"), ('{"a":', "}")):
            inner = left * depth + ("1" if left != "[" else "") + right * depth
            made.append(lambda inner=inner: Case({"a.jsonl": (PAIR % inner).encode()}, rows=1))  # type: ignore[misc]
            made.append(lambda inner=inner: Case({"a.json": f"[{PAIR % inner}]".encode()}))  # type: ignore[misc]
            made.append(lambda left=left, depth=depth: Case({"a.jsonl": (left * depth).encode()}))  # type: ignore[misc]
    for depth in (30, 90, 99, 101, 400):
        made.append(lambda depth=depth: Case({"a.jsonl": json.dumps(tree(depth)).encode()}, rows=1))  # type: ignore[misc]
    long = "x" * 30_000_000
    made += [
        lambda: Case({"a.jsonl": (PAIR % f'"{long}"').encode()}, rows=1),
        lambda: Case({"a.csv": f'prompt,completion\n"{long}",c\n'.encode()}, rows=1),
        lambda: Case({"a.jsonl": b" " * 10_000_000 + b"\n" * 3_000_000 + PAIR.encode() % b"1"}, rows=1),
        lambda: Case({"a.json": b"[" + b"\n" * 10_000_000 + PAIR.encode() % b"1" + b"]"}, rows=1),
        lambda: Case({"a.jsonl": (PAIR % ("9" * 5000)).encode()}, rows=1),
        lambda: Case({"a.jsonl": (PAIR % ("9" * 1_000_000)).encode()}, rows=1),
        lambda: Case({"a.jsonl": json.dumps({f"c{n}": 1 for n in range(LARGE)}).encode()}, rows=1),
        lambda: Case({"a.csv": (",".join(f"c{n}" for n in range(LARGE)) + "\n1\n").encode()}, rows=1),
        lambda: Case({"a.jsonl": json.dumps(_ranking(LARGE)).encode()}, rows=1),
        lambda: Case({"a.jsonl": json.dumps(_ranking(SMALL)).encode()}, rows=1),
        lambda: Case({"a.jsonl": "".join(f'{{"c{n}": 1}}\n' for n in range(SMALL)).encode()}, rows=SMALL),
        lambda: Case({"a.jsonl.gz": _bomb(b"x", 1500)}),
        lambda: Case({"a.jsonl.gz": _bomb(b"\n", 1500)}),
        lambda: Case({"a.csv.gz": _bomb(b"a,b\n", 1500)}),
        lambda: Case({"a.json.gz": _bomb(b"[" * 64, 1500)}),
        lambda: Case({"a.parquet": _many_rows(30_000_000)}),
    ]  # fmt: skip
    return made


def tree(depth: int) -> dict[str, Any]:
    """Turns of an Open Assistant tree below one another, each with two ranked replies."""
    node: dict[str, Any] = {"role": "assistant", "text": "end", "rank": 0}
    for level in range(depth):
        role = "prompter" if level % 2 == 0 else "assistant"
        twin = {"role": node["role"], "text": "other", "rank": 1}
        node = {"role": role, "text": f"turn {level}", "rank": 0, "replies": [node, twin]}
    return {"message_tree_id": "1", "prompt": node}


def _ranking(count: int) -> dict[str, Any]:
    return {"prompt": "p", "responses": [f"r{n}" for n in range(count)], "ranks": list(range(count))}


HUGE = _huge()
huge_files: st.SearchStrategy[Case] = st.sampled_from(range(len(HUGE))).map(lambda number: HUGE[number]())
