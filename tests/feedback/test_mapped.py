"""Feedback on the disk is the feedback that a list would hold, and takes no memory that grows with it."""

import datetime
import os
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pandas import Timestamp
from tests import tiny
from tests.models import letter_tokenizer

from trimtab.cli import main
from trimtab.data import split_by_prompt
from trimtab.errors import UserError
from trimtab.feedback import files, mapped, numbers
from trimtab.feedback.batches import Table
from trimtab.feedback.compact import Example, Examples, TokenRows
from trimtab.feedback.conversions import ViewOptions
from trimtab.feedback.mapped import MappedRecords, kept
from trimtab.feedback.numbers import Numbers, numbered
from trimtab.feedback.readers import read, scan
from trimtab.feedback.records import KINDS, Message, Record
from trimtab.feedback.tokenise import add_mismatched, tokenise
from trimtab.feedback.views import VIEWS, convert, stream
from trimtab.methods import find
from trimtab.train import RunConfig, make_table

TALK = (Message("system", "be\u2028kind"), Message("user", "天空?"))
ODD = {
    "day": datetime.date(2020, 1, 2),
    "when": datetime.datetime(2020, 1, 2, 3, 4, 5, 6, datetime.UTC),
    "hour": datetime.time(3, 4),
    "long": datetime.timedelta(-1, 2, 3),
    "raw": b"\x00",
    "price": Decimal("1.10"),
    "nested": {"a": [1, None, 2.5, {"deep": b"\xff"}]},
    "none": None,
    "lone": "\ud800",
    "$trimtab": ["date", "of one's own"],
    "exact": Timestamp("2020-01-02T03:04:05.000000007"),
}
OF_EACH_KIND = [
    Record("pair", "p", ("good", "bad"), margin=0.25, source="a.jsonl:1", columns=ODD),
    Record("pair", TALK, ("a", "b")),
    Record("demonstration", "", ("\x00 text",), source="b (row 2)"),
    Record("ranking", TALK, ("x", "y", "z"), ranks=(1, 0, 1)),
    Record("score", "p", ("a", "b"), scores=(1e-300, -2.0)),
    Record("thumbs", "q", ("a",), desirable=False),
    Record("thumbs", "q", ("b",), desirable=True, columns={"topic": "sky"}),
    Record("prompt", TALK),
]


def on_disk(records: Sequence[Record], monkeypatch: pytest.MonkeyPatch) -> MappedRecords:
    """These records as a file that is far from large enough to need it."""
    with monkeypatch.context() as patch:
        patch.setattr(mapped, "FEW_RECORDS", 0)
        found = kept(records)
    assert isinstance(found, MappedRecords)
    return found


def many(count: int) -> list[Record]:
    """Records of all kinds on few prompts, in no order."""
    draw = random.Random(0)
    some = [replace(draw.choice(OF_EACH_KIND), source=f"a.jsonl:{line}") for line in range(count)]
    return [r if isinstance(r.prompt, tuple) else replace(r, prompt=draw.choice("pqrst")) for r in some]


def test_records_come_back_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(on_disk(OF_EACH_KIND, monkeypatch)) == OF_EACH_KIND
    [first, *_] = on_disk(OF_EACH_KIND, monkeypatch)
    assert [type(v) for v in (first.margin, first.columns["day"])] == [float, datetime.date]
    assert str(first.columns["price"]) == "1.10"


def test_a_column_of_a_strange_type_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    strange = Record("demonstration", "p", ("a",), columns={"number": 1j}, source="a.jsonl:7")
    with pytest.raises(UserError, match=r"^a\.jsonl:7: a column holds a value of type complex"):
        on_disk([strange], monkeypatch)


def test_records_are_found_by_place_slice_and_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    records = many(2500)  # several record batches
    found = on_disk(records, monkeypatch)
    assert len(found) == 2500 and list(found) == records
    assert [found[0], found[-1], found[1001]] == [records[0], records[-1], records[1001]]
    assert list(found[990:2010:7]) == records[990:2010:7]
    places = [2499, 3, 3, 1500, 0]
    chosen = found.select(places)
    assert list(chosen) == [records[place] for place in places] and chosen[1:3][1] == records[3]
    with pytest.raises(IndexError):
        found[2500]


def test_long_texts_make_small_record_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "CHUNK_CHARACTERS", 1000)
    monkeypatch.setattr(mapped, "FEW_CHARACTERS", 5000)
    records = [Record("demonstration", "p", ("x" * 90,), columns={"y": "z" * 10}) for _ in range(95)]
    found = kept(records)
    assert isinstance(found, MappedRecords) and list(found) == records
    assert max(batch.num_rows for batch in found._batches) <= 10


@pytest.mark.parametrize("to", KINDS)
def test_every_conversion_gives_the_same_from_the_disk(to: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [r for r in many(400) if (r.kind, to) in VIEWS]
    options = ViewOptions(threshold=0.5)
    assert len({record.kind for record in records}) >= 2
    expected = convert(records, to, options)
    assert isinstance(expected, list) and expected
    assert convert(on_disk(records, monkeypatch), to, options) == expected
    monkeypatch.setattr(mapped, "FEW_RECORDS", 0)
    from_disk = convert(records, to, options)
    assert isinstance(from_disk, MappedRecords) and list(from_disk) == expected


def test_kinds_that_cannot_be_converted_are_counted_on_the_disk_too(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [r for r in many(50) if r.kind in ("demonstration", "pair")]
    sentences = []
    for held in (records, on_disk(records, monkeypatch)):
        with pytest.raises(UserError) as error:
            next(stream(held, "pair"))
        sentences.append(str(error.value))
    assert sentences[0] == sentences[1] and "of the kind demonstration (the first: a.jsonl:" in sentences[0]


def test_a_split_is_the_same_from_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    records = many(300)
    for here, there in zip(
        split_by_prompt(records, 0.4), split_by_prompt(on_disk(records, monkeypatch), 0.4), strict=True
    ):
        assert isinstance(there, MappedRecords) and here == list(there)


def test_large_files_are_mapped_and_bad_rows_told_as_in_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = tiny.pairs([f"p {n}" for n in range(30)])
    rows[20] = {"prompt": "no response", "chosen": ""}
    file = tiny.write_jsonl(tmp_path / "pairs.jsonl", rows)
    answers = []
    for few in (20_000, 5):
        monkeypatch.setattr(mapped, "FEW_RECORDS", few)
        caplog.clear()
        with pytest.raises(UserError) as error:
            read(file)
        records = read(file, bad_rows="skip", rejects=tmp_path / "bad.jsonl")
        assert isinstance(records, MappedRecords) == (few == 5)
        bad = (tmp_path / "bad.jsonl").read_text()
        answers.append((str(error.value), bad, list(caplog.messages), list(records)))
    assert answers[0] == answers[1] and "pairs.jsonl:21" in answers[0][0] and len(answers[0][3]) == 29
    assert type(scan(file).records) is list  # what is looked at from all sides stays in memory


def test_arrow_parquet_and_folders_saved_by_datasets_are_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    rows = tiny.pairs([f"p {n}" for n in range(40)])
    data = datasets.Dataset.from_list(rows)
    data.save_to_disk(str(tmp_path / "saved"))
    data.to_parquet(str(tmp_path / "pairs.parquet"))
    [stream_of_arrow] = (tmp_path / "saved").glob("*.arrow")  # the form that `datasets` writes
    shutil.copy(stream_of_arrow, tmp_path / "pairs.arrow")
    monkeypatch.setattr(mapped, "FEW_RECORDS", 5)
    for name in ("saved", "pairs.parquet", "pairs.arrow"):
        records = read(str(tmp_path / name))
        assert isinstance(records, MappedRecords)
        assert [(r.prompt, *r.responses) for r in records] == [
            (row["prompt"], row["chosen"], row["rejected"]) for row in rows
        ]
        assert [records[0].source, records[39].source] == [f"{name}:1", f"{name}:40"]


@pytest.mark.parametrize("content", [b"", b"ARROW1\0\0 cut", b"\xff\xff\xff\xff\x10\0\0\0"])
def test_an_arrow_file_that_is_damaged_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.arrow: cannot read the Arrow file \("):
        read(str(tmp_path / "a.arrow"))


@pytest.mark.parametrize("size", [2, 3, 5, 7])
def test_a_text_that_is_read_in_parts_is_the_same_text(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts end within characters, within line ends and within quoted cells."""
    monkeypatch.setattr(files, "PART", size)
    line = '{"prompt": "天👍", "completion": "é\u2028"}\r\n\n'
    cells = 'prompt,completion\r\n"天,\r\n👍","é\n"\r\r\nb,c\r'
    for name, content, expected in (
        ("a.jsonl", (line * 2).encode("utf-8-sig"), [("天👍", "é\u2028", 1), ("天👍", "é\u2028", 3)]),
        ("b.jsonl", (line * 2).encode("utf-16"), [("天👍", "é\u2028", 1), ("天👍", "é\u2028", 3)]),
        ("c.json", (" \n[" + line + "]").encode(), [("天👍", "é\u2028", 2)]),
        ("d.csv", cells.encode(), [("天,\r\n👍", "é\n", 2), ("b", "c", 6)]),
    ):
        (tmp_path / name).write_bytes(content)
        found = [(r.prompt, r.responses[0], int(r.source.split(":")[1])) for r in read(str(tmp_path / name))]
        assert found == expected, name
    (tmp_path / "bad.jsonl").write_bytes(line.encode() + b'{"prompt": "\xe5\xa4\n')
    with pytest.raises(UserError, match=r"bad.jsonl:3: the file is not UTF-8 text .byte 0xe5."):
        read(str(tmp_path / "bad.jsonl"))


def test_numbers_are_the_same_in_memory_and_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "FEW_BYTES", 40)
    found = Numbers("<i4")
    for start, end in ((0, 4), (4, 4), (4, 9)):
        found.extend(list(range(start, end)))
    assert found.array.tolist() == list(range(9)) and found.array.flags.writeable  # 36 bytes
    found.extend(np.arange(9, 30))
    held = found.array
    found.extend([30])
    assert held.tolist() == list(range(30)) and not held.flags.writeable
    assert found.array.tolist() == list(range(31)) and len(found) == 31


def test_marks_are_numbered_as_a_dictionary_would() -> None:
    draw = random.Random(0)
    for count in (1, 2, 10, 500):
        words = [draw.choice("abcdefgh") * draw.randint(1, 3) for _ in range(count)]
        order = {word: number for number, word in enumerate(dict.fromkeys(words))}
        found, firsts = numbered(np.frombuffer(b"".join(map(numbers.mark, words)), numbers.MARK))
        assert found.tolist() == [order[word] for word in words]
        assert firsts.tolist() == [words.index(word) for word in order]


def test_files_have_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    records = on_disk(OF_EACH_KIND, monkeypatch)
    assert not list(numbers.cache_folder().glob("*")) and len(list(records)) == len(OF_EACH_KIND)


def test_a_cache_folder_that_cannot_be_written_is_a_plain_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"too large for memory cannot be kept there.*set TRIMTAB_CACHE"):
        on_disk(OF_EACH_KIND, monkeypatch)


# Tables


def table(count: int, monkeypatch: pytest.MonkeyPatch, kind: str = "pair") -> Table:
    """With its numbers in files."""
    draw = random.Random(1)
    words = ["a good film", "bad", "so so", "the end.", "no"]
    records = [
        Record("pair", f"film {chr(97 + n % 7)}{chr(97 + n % 10)} ", tuple(draw.sample(words, 2)))
        for n in range(count)
    ]
    monkeypatch.setattr(numbers, "FEW_BYTES", 64)
    return make_table(find(kind)(), records, letter_tokenizer(), RunConfig(max_length=64))


def test_responses_that_recur_a_thousand_records_later_share_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    data = table(2300, monkeypatch, "orpo")
    assert len(data.rows) == 70 * 5 and len(set(map(repr, data.rows))) == 70 * 5
    firsts = list(dict.fromkeys(row for example in data.examples for row in example.rows))
    assert firsts == list(range(70 * 5))  # numbered as they come
    again = tokenise(convert_pairs(data), letter_tokenizer(), max_length=64)
    assert list(again.examples) == list(data.examples)


def convert_pairs(data: Table) -> list[Record]:
    """The table's pairs as text."""
    tokenizer = letter_tokenizer()

    def text(ids: Any) -> str:
        return tokenizer.decode(ids).removesuffix("</s>")

    return [
        Record("pair", text(data.rows[e.rows[0]][0]), tuple(text(data.rows[row][1]) for row in e.rows))
        for e in data.examples
    ]


def test_a_table_has_one_fingerprint_however_it_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    data = table(300, monkeypatch, "kto")
    plain = Table(data.kind, list(data.rows), list(data.examples))
    assert isinstance(data.rows, TokenRows) and isinstance(data.examples, Examples)
    behind = np.concatenate([[9, 9], data.rows.tokens])  # the same rows elsewhere among other tokens
    moved = Table(data.kind, TokenRows(behind.astype("<i4"), data.rows.places + 2), plain.examples)
    assert data.fingerprint() == plain.fingerprint() == moved.fingerprint()
    for changed in (
        replace(plain, rows=[([*plain.rows[0][0], 5], plain.rows[0][1]), *plain.rows[1:]]),
        replace(plain, rows=[(plain.rows[0][0], [*plain.rows[0][1][:-1], 5]), *plain.rows[1:]]),
        replace(
            plain, rows=[(plain.rows[0][0][:-1], [plain.rows[0][0][-1], *plain.rows[0][1]]), *plain.rows[1:]]
        ),
        replace(plain, examples=[replace(plain.examples[0], desirable=False), *plain.examples[1:]]),
        replace(plain, examples=[replace(plain.examples[0], rows=(1,)), *plain.examples[1:]]),
        replace(plain, examples=plain.examples[1:]),
    ):
        assert changed.fingerprint() != plain.fingerprint()


def test_examples_come_back_as_they_were() -> None:
    examples = [
        Example(rows=(3, 1, 2), ranks=(1, 0, 2), margin=0.5, score=-1.5, baseline=0.25, mismatched=7),
        Example(rows=(4, 0), ranks=(0, 0), desirable=True),
    ]
    held = Examples.of(examples)
    assert list(held) == examples and held[-1] == examples[1] and list(held[1:]) == examples[1:]
    with pytest.raises(IndexError):
        held[2]


@pytest.mark.parametrize("seed", [0, 1])
def test_mismatched_rows_are_those_of_the_plain_way(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = table(200, monkeypatch, "kto")
    rows, examples = list(data.rows), [replace(e, mismatched=-1) for e in data.examples]
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        groups[tuple(rows[example.rows[0]][0])].append(i)
    shuffled = list(groups.values())
    random.Random(seed).shuffle(shuffled)
    order = [i for group in shuffled for i in group]
    shift = max(map(len, shuffled))
    own = Table("thumbs", list(rows)[: 70 * 5], examples)
    rows = list(own.rows)
    for place, i in enumerate(order):
        other = order[(place + shift) % len(order)]
        rows.append((rows[examples[i].rows[0]][0], rows[examples[other].rows[0]][1]))
        examples[i] = replace(examples[i], mismatched=len(rows) - 1)
    add_mismatched(own, seed)
    assert list(own.rows) == rows and list(own.examples) == examples


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo", "reward_model"])
def test_a_run_takes_the_same_steps_from_the_disk(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading, converting, the reference and the steps, by the command; the checkpoint's data is the same."""
    file = tiny.write_jsonl(tmp_path / "pairs.jsonl", tiny.pairs())
    words = ["train", method, "--model", tiny.model_folder(), "--data", file, "--batch-size", "3"]
    curves = []
    for name in ("memory", "disk"):
        if name == "disk":
            monkeypatch.setattr(mapped, "FEW_RECORDS", 0)
            monkeypatch.setattr(numbers, "FEW_BYTES", 0)
            monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "another cache"))
        assert main([*words, "--precision", "fp32", "--out", str(tmp_path / name)]) == 0
        lines = tiny.read_jsonl(tmp_path / name / "metrics.jsonl")
        curves.append([{k: v for k, v in line.items() if k != "seconds"} for line in lines])
    assert curves[0] == curves[1] and len(curves[0]) >= 2


# Memory

WITHIN = """
import resource, sys
from trimtab.data import load_records, split_by_prompt
from trimtab.feedback import mapped
from trimtab.methods import find
from trimtab.policies.load import ModelConfig, load_language_policy
from trimtab.train import RunConfig, make_table, train
import pyarrow.ipc

file, model, mapped.FEW_RECORDS, limit = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
mapped.FEW_CHARACTERS = mapped.FEW_RECORDS * 10**4
policy = load_language_policy(ModelConfig(model, precision="fp32"))
method, run = find("orpo")(), RunConfig(steps=1, batch_size=2)
next(iter(train(method, policy, make_table(method, load_records(sys.argv[5]), policy.tokenizer, run), run)))
[used] = [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData")]
resource.setrlimit(resource.RLIMIT_DATA, (used + limit, used + limit))
records = load_records(file)
table = make_table(method, records, policy.tokenizer, run)
print(len(records), len(table), next(iter(train(method, policy, table, run)))["loss"] > 0)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit counts what it should on Linux")
@pytest.mark.slow
def test_feedback_larger_than_memory_is_trained_on(tmp_path: Path) -> None:
    """12,000 pairs with 8 KB beside each, in 64 MB: held in memory they do not fit, mapped they do."""
    rows = (
        {**row, "notes": str(n).zfill(8000)} for n, row in enumerate(tiny.pairs(["the film is"] * 12_000))
    )
    large = tiny.write_jsonl(tmp_path / "large.jsonl", rows)
    small = tiny.write_jsonl(tmp_path / "small.jsonl", tiny.pairs())
    said = []
    for few in ("100", "1000000"):
        words = [large, tiny.model_folder(), few, str(64 * 2**20), small]
        done = subprocess.run(
            [sys.executable, "-c", WITHIN, *words],
            env=os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"},  # its own asks for a gigabyte ahead
            capture_output=True,
            text=True,
            check=False,
        )
        said.append((done.stdout, done.stderr[-2000:]))
    assert said[0][0] == "12000 12000 True\n", said[0][1]
    assert "large.jsonl: it does not fit into memory" in said[1][1], said[1]
