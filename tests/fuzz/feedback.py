"""Files of feedback that people, programs and disks have spoilt."""

import copy
import gzip
import io
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from hypothesis import strategies as st

from tests.fuzz.promises import Case
from tests.fuzz.values import JUNK, NESTED, ODD_TEXT, TEXT, damaged, edited
from trimtab.feedback.readers import read
from trimtab.feedback.shapes import SHAPES
from trimtab.feedback.writers import write

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL = (
    "demos/dpo_en_demo.json", "demos/kto_en_demo.json", "demos/alpaca_zh_demo.json", "rankings/oasst_zh.json",
    "rankings/oasst_en_trees.jsonl", "gsm8k/test.jsonl", "mt_bench/question.jsonl", "reviews/sentences.jsonl",
)  # fmt: skip
FORMATS = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz")
MORE = [
    "label",
    "score",
    "scores",
    "ranks",
    "responses",
    "system",
    "margin",
    "history",
    "input",
    "text",
    "answer",
]
MORE += ["kto_tag", "rating", "score_chosen", "score_rejected", "messages", "question", "replies", "x", "x "]
ROWS: list[dict[str, Any]] = [dict(shape.sample) for shape in SHAPES]


@cache
def real_rows() -> list[dict[str, Any]]:
    """A short row of every real file, and the sample of every shape."""
    rows = copy.deepcopy(ROWS)
    for name in REAL:
        if (DATA / name).exists():
            text = (DATA / name).read_text(encoding="utf-8")
            found = (
                json.loads(text) if text.startswith("[") else [json.loads(t) for t in text.split("\n") if t]
            )
            rows += sorted(found, key=lambda row: len(json.dumps(row)))[:2]
    return rows


@cache
def written_files() -> list[tuple[str, bytes]]:
    """What our own writers make of each shape's sample, in every format and layout that takes it."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "rows.jsonl"
        for row in real_rows():
            source.write_text(json.dumps(row) + "\n" + json.dumps(row))
            records = [record for record in _records(source) for _ in range(2)]
            for ending in FORMATS:
                target = Path(folder) / f"file{ending}"
                try:
                    write(records, target, overwrite=True)
                except Exception:  # not every kind goes into every format
                    continue
                found.append((target.name, target.read_bytes()))
    return [(name, data) for name, data in found if len(data) < 6000]


def _records(source: Path) -> list[Any]:
    try:
        return read(str(source))
    except Exception:  # a real file whose rows are no feedback
        return []


@st.composite
def odd_rows(draw: st.DrawFn) -> list[Any]:
    """One to three rows, each near a known shape."""
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        row = draw(edited(draw(st.sampled_from(real_rows()))))
        for name in draw(st.lists(st.sampled_from(MORE), max_size=2)):
            if isinstance(row, dict):
                row[name] = copy.deepcopy(draw(NESTED))
        rows.append(row)
    return rows


@st.composite
def json_files(draw: st.DrawFn) -> Case:
    """Well-formed JSON whose rows are not what they should be."""
    rows = draw(odd_rows())
    ascii_only = draw(st.booleans())
    count = len(rows) if ascii_only and isinstance(rows[0], dict) else None
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    if draw(st.booleans()):
        return Case({"a.json": _bytes("[" + ",\n".join(lines) + "]")}, rows=count)
    return Case({"a.jsonl": _bytes("\n".join(lines) + "\n")}, rows=count)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@st.composite
def damaged_files(draw: st.DrawFn) -> Case:
    """A file of ours after accidents to its bytes, within the gzip if it has one or to the gzip itself."""
    name, data = draw(st.sampled_from(written_files()))
    if name.endswith(".gz") and draw(st.booleans()):
        return Case({name: gzip.compress(draw(damaged(gzip.decompress(data))), 1)})
    return Case({name: draw(damaged(data))})


def damaged_format(*endings: str) -> st.SearchStrategy[Case]:
    """As `damaged_files`, of these formats only."""

    @st.composite
    def files(draw: st.DrawFn) -> Case:
        name, data = draw(st.sampled_from([f for f in written_files() if f[0].endswith(endings)]))
        return Case({name: draw(damaged(data))})

    return files()


@st.composite
def csv_files(draw: st.DrawFn) -> Case:
    """Tables whose cells, quotes and line ends are at odds with the header."""
    header = list(draw(st.sampled_from(ROWS))) + draw(
        st.lists(st.sampled_from(MORE + ODD_TEXT[:12]), max_size=2)
    )
    end = draw(st.sampled_from(("\n", "\r\n", "\r")))
    lines = [",".join(map(_quoted, header))]
    for _ in range(draw(st.integers(0, 3))):
        count = len(header) + draw(st.sampled_from((0, 0, 0, 0, 1, -1)))
        cells = [str(draw(JUNK))[:400] for _ in range(count)]
        quote = draw(st.sampled_from((_quoted, str)))
        lines.append(",".join(map(quote, cells)))
    encoding = draw(st.sampled_from(("utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1")))
    return Case({"a.csv": end.join(lines).encode(encoding, "replace")})


def _quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


@st.composite
def parquet_files(draw: st.DrawFn) -> Case:
    """Tables of types that JSON does not know, of columns of the same name, of rows without number."""
    from tests.fuzz.tables import COLUMNS

    names = list(draw(st.sampled_from(ROWS))) + draw(st.lists(st.sampled_from(MORE), max_size=2))
    plain = COLUMNS[:3] if draw(st.booleans()) else COLUMNS  # texts alone, or anything
    columns: list[Callable[[int], Any]] = [draw(st.sampled_from(plain)) for _ in names]
    if draw(st.booleans()):
        names[-1] = draw(st.one_of(st.sampled_from(names), TEXT.filter(_is_sayable)))
    rows = draw(st.sampled_from((0, 1, 2, 2, 3)))
    table = pyarrow.Table.from_arrays([make(rows) for make in columns], names)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="none")
    unique = len(set(names)) == len(names)
    return Case({"a.parquet": buffer.getvalue()}, rows=rows if unique and rows else None)


def _is_sayable(text: str) -> bool:
    return text.isprintable()
