"""The summary counts what is there, and suspicious rows are found and named."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from trimtab.feedback.inspect import Spread, Summary, show, summary
from trimtab.feedback.readers import scan
from trimtab.feedback.records import Message, Record
from trimtab.feedback.suspicious import findings

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def found(*records: Record) -> dict[str, tuple[int, int, tuple[str, ...]]]:
    """Finding -> count, of, sources, with each record's place its number from 1."""
    placed = [
        Record(r.kind, r.prompt, r.responses, r.ranks, r.scores, r.desirable, r.margin, f"f:{n}")
        for n, r in enumerate(records, start=1)
    ]
    return {f.what: (f.count, f.of, f.sources) for f in findings(placed)}


def up(response: str, prompt: str = "") -> Record:
    return Record("thumbs", prompt, (response,), desirable=True)


def down(response: str, prompt: str = "") -> Record:
    return Record("thumbs", prompt, (response,), desirable=False)


def test_sound_records_raise_no_suspicion() -> None:
    assert found(up("fine", "Sky?"), down("poor", "Sky?"), Record("pair", "Sea?", ("deep", "dry"))) == {}


def test_each_suspicion_names_its_rows() -> None:
    pair = Record("pair", "p", ("a", "b"))
    assert found(pair, pair, down("x"), up("y")) == {"the same record as an earlier one": (1, 4, ("f:2",))}
    opposite = "the opposite of an earlier record on the same prompt"
    assert found(pair, Record("pair", "p", ("b", "a")), Record("pair", "q", ("b", "a"))) == {
        opposite: (1, 3, ("f:2",))
    }
    ranking = Record("ranking", "p", ("c", "b", "a"), ranks=(0, 1, 2))
    assert found(pair, ranking) == {opposite: (1, 2, ("f:2",))}
    assert found(up("a", "p"), down("a", "p"), down("a", "q")) == {opposite: (1, 3, ("f:2",))}
    twice = Record("ranking", "p", ("a", "a", "b"), ranks=(0, 1, 2))
    assert found(twice) == {"the same response twice in one record": (1, 1, ("f:1",))}
    assert found(up("...!"), down("no")) == {"a response without a letter or digit": (1, 2, ("f:1",))}
    assert found(up("我们的工\ufffd\ufffd"), down("fiancÃ©"), down("fiancé Ã")) == {
        "text that seems to be decoded wrongly": (2, 3, ("f:1", "f:2"))
    }
    assert found(up("a\x00b"), down("tab\tis fine\n")) == {"control characters in the text": (1, 2, ("f:1",))}
    asked = (Message("user", "What is the sky?"),)
    demonstration = Record("demonstration", asked, ("What is the sky? It is blue.",))
    assert found(demonstration) == {"a response that repeats its prompt": (1, 1, ("f:1",))}
    assert found(pair, Record("prompt", "q")) == {
        "a prompt without a response among other records": (1, 2, ("f:2",))
    }
    long = [Record("demonstration", "", ("a" * n,)) for n in (10, 11, 12, 1001)]
    assert found(*long) == {
        "a response of more than 1,000 characters (ten times the median)": (1, 4, ("f:4",))
    }


def test_length_bias_is_told_from_sixty_percent_on() -> None:
    longer = [Record("pair", f"p{n}", ("long", "s")) for n in range(19)]
    shorter = [Record("pair", f"q{n}", ("s", "long")) for n in range(6)]
    (what,) = found(*longer, *shorter)
    assert what.startswith("pairs whose better response is the longer one: a model can win by being longer")
    assert found(*longer, *shorter)[what] == (19, 25, ())
    assert found(*longer[:12], *(Record("pair", f"r{n}", ("s", "long")) for n in range(8))) == {}


def test_unbalanced_thumbs_are_told() -> None:
    rows = [up(f"good {n}") for n in range(19)]
    ((what, counts),) = found(*rows, down("bad")).items()
    assert (
        what
        == "thumbs that are desirable: weigh the rarer label more (KTO's desirable and undesirable weights)"
    )
    assert counts == (19, 20, ())
    assert found(*rows[:9], down("bad")) == {}


def test_a_spread_has_the_deciles_of_its_numbers() -> None:
    assert Spread.of(range(11)) == Spread(0, 5, 9, 10)
    assert Spread.of([3]) == Spread(3, 3, 3, 3)


@pytest.fixture
def small(tmp_path: Path) -> Summary:
    rows = [
        {"prompt": "Sky?", "completion": "Blue.", "label": True},
        {"prompt": "Sky?", "completion": "Green.", "label": False},
        {
            "messages": [
                {"role": "user", "content": "你好"},
                {"role": "assistant", "content": "[bold]Hi[/bold]"},
            ]
        },
        {"prompt": "Sky?", "completion": "", "label": True},
    ]
    path = tmp_path / "small.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return summary(scan(str(path)))


def test_a_summary_counts(small: Summary) -> None:
    assert small.rows == 4
    assert small.shapes == {"thumbs": 2, "messages": 1}
    assert small.kinds == {"thumbs": 2, "demonstration": 1}
    assert (small.prompts, small.conversations) == (2, 1)
    assert small.judgements == {"desirable": "1 of 2 thumbs (50%)"}
    assert small.spreads["response, characters"] == Spread.of([5, 6, 15])
    assert small.spreads["responses to a prompt"] == Spread.of([2, 1])
    assert [(bad.source, bad.reason) for bad in small.rejected] == [("small.jsonl:4", "empty response")]
    assert [to for to, _ in small.becomes["demonstration"]] == ["prompt"]


def shown(of: Summary) -> str:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(show(of))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_summary_is_shown_as_plain_text(small: Summary) -> None:
    text = shown(small)
    parts = ["4, 1 of them bad", "messages (1)", "2 thumbs, 1 demonstration", "1 of 2 thumbs (50%)"]
    parts += ["[bold]Hi[/bold]", "你好", "undesirable ones", "small.jsonl:4", "empty response"]
    assert [part for part in parts if part not in text] == []
    assert max(map(len, text.splitlines())) <= 80


def test_a_real_file_shows_its_broken_text() -> None:
    found = summary(scan(str(DATA / "demos/dpo_zh_demo.json")))
    assert found.kinds == {"pair": 300}
    broken = next(f for f in found.findings if f.what == "text that seems to be decoded wrongly")
    raw = (DATA / "demos/dpo_zh_demo.json").read_text(encoding="utf-8").splitlines()
    assert broken.count == 6
    assert broken.sources[0] == "dpo_zh_demo.json:682"
    assert any("\ufffd" in line for line in raw[681:700])
    assert "line 682, 918" in " ".join(shown(found).split())


def test_trees_without_a_ranking_are_counted() -> None:
    found = summary(scan(str(DATA / "rankings/oasst_en_trees.jsonl")))
    assert (found.rows, found.kinds, found.without_feedback) == (100, {"ranking": 207}, 5)
    assert "5 rows (no two ranked responses)" in shown(found)
