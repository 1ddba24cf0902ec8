"""A small part of `make fuzz`: the same kinds of bad input and the same promises, a few inputs of each."""

import json
from pathlib import Path

import pytest

from tests.fuzz import tables
from tests.fuzz.campaign import KINDS, Kind, run
from tests.fuzz.promises import Case, check_feedback, check_sentence

SLOW = {"trimtab.yaml": 5, "command lines": 10, "names of files and datasets": 8}
LARGE = "too deep, too long, too wide, packed bombs"
HERE = [kind for kind in KINDS if kind.name != LARGE]


@pytest.mark.parametrize("kind", HERE, ids=lambda kind: kind.name)
def test_every_kind_of_bad_input_is_refused_in_a_sentence_or_taken_as_it_is(kind: Kind) -> None:
    tally = run(kind, SLOW.get(kind.name, 60))
    assert tally.broken == "", f"{tally.case}"
    assert tally.refused > 0


@pytest.mark.parametrize("depth", [30, 99, 101])
def test_a_tree_is_read_as_deep_as_is_allowed(tmp_path: Path, depth: int) -> None:
    case = Case({"a.jsonl": json.dumps(tables.tree(depth)).encode()}, rows=1)
    assert check_feedback(case, tmp_path) == (depth < 100)


def broken(check: object) -> str:
    """What the campaign says of a check that breaks a promise."""
    kind = Kind("broken", HERE[0].cases, check, 1.0)  # type: ignore[arg-type]
    return run(kind, 20).broken


def test_the_campaign_sees_a_traceback_a_long_sentence_and_a_row_passed_over(tmp_path: Path) -> None:
    def fails(case: Case, folder: Path) -> bool:
        raise KeyError("prompt")

    assert broken(fails) == "KeyError: 'prompt'"
    with pytest.raises(AssertionError, match="names none of"):
        check_sentence("the row is bad", ["a.jsonl:1"])
    with pytest.raises(AssertionError, match="cannot be printed"):
        check_sentence("a.jsonl:1: \x1b[31m")
    with pytest.raises(AssertionError, match="a message of 701 characters"):
        check_sentence("x" * 701)
    with pytest.raises(AssertionError, match="2 rows were written, 1 read"):
        check_feedback(Case({"a.jsonl": b'{"prompt": "p"}\n'}, rows=2), tmp_path)


def test_the_campaign_sees_what_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(case: Case, folder: Path) -> bool:
        while True:
            pass

    monkeypatch.setattr("tests.fuzz.campaign.SECONDS", 0.05)
    assert broken(hangs).startswith("TimeoutError: it took more than 0.05 seconds")


def test_the_campaign_sees_records_that_do_not_survive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loses(path: str, **options: object) -> list[object]:
        return []

    case = Case({"a.jsonl": b'{"prompt": "p"}\n'}, rows=1)
    assert check_feedback(case, tmp_path)
    monkeypatch.setattr("tests.fuzz.promises.read", loses)
    with pytest.raises(AssertionError):
        check_feedback(case, tmp_path)


def test_the_smallest_input_that_breaks_a_promise_is_kept() -> None:
    def dislikes(case: Case, folder: Path) -> bool:
        assert b"label" not in next(iter(case.files.values()))
        return True

    tally = run(Kind("label", HERE[0].cases, dislikes, 1.0), 200)
    (content,) = tally.case.files.values()
    assert tally.broken.startswith("AssertionError") and b"label" in content and len(content) < 200
