"""Feedback by name, and the split that keeps evaluation prompts out of training."""

from pathlib import Path

import pytest

from tests import tiny
from trimtab.data import is_built_in, load_records, split_by_prompt
from trimtab.errors import UserError
from trimtab.feedback.records import Message, Record


def thumbs(prompt: str | tuple[Message, ...], response: str) -> Record:
    return Record(kind="thumbs", prompt=prompt, responses=(response,), desirable=True)


def test_no_prompt_is_on_both_sides_and_no_record_is_lost() -> None:
    records = [thumbs(f"prompt {i % 60}", f"response {i}") for i in range(300)]
    train, held_out = split_by_prompt(records, 0.25)
    assert not {r.prompt for r in train} & {r.prompt for r in held_out}
    assert sorted(r.responses for r in train + held_out) == sorted(r.responses for r in records)
    assert 5 <= len({r.prompt for r in held_out}) <= 25  # 15 of 60 expected


def test_a_prompt_stays_on_its_side_when_data_grows() -> None:
    few = [thumbs(f"prompt {i}", "yes") for i in range(50)]
    more = [thumbs(f"prompt {i}", "yes") for i in reversed(range(100))]
    before = {r.prompt for r in split_by_prompt(few, 0.3)[1]}
    after = {r.prompt for r in split_by_prompt(more, 0.3)[1]}
    assert before == after & {r.prompt for r in few}


def test_conversations_are_split_by_their_turns() -> None:
    records = [thumbs((Message("user", f"question {i % 20}"),), f"answer {i}") for i in range(40)]
    train, held_out = split_by_prompt(records, 0.5)
    assert not {r.prompt for r in train} & {r.prompt for r in held_out}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_empty_side_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="2 records cannot be split"):
        split_by_prompt([thumbs("a", "x"), thumbs("b", "y")], share)


def test_reviews_name_the_built_in_example() -> None:
    train, held_out = load_records("reviews"), load_records("reviews", split="held_out")
    assert {r.kind for r in train} == {"thumbs"}
    assert not {r.prompt for r in train} & {r.prompt for r in held_out}
    shown = load_records("reviews:demonstrations")
    assert {r.kind for r in shown} == {"demonstration"}
    assert [r.responses for r in shown] == [r.responses for r in train]


def test_an_unknown_part_of_the_reviews_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'reviews:demonstrations'"):
        load_records("reviews:demonstration")


def test_a_file_that_is_named_like_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_built_in("reviews") and is_built_in("reviews:demonstrations")
    assert not is_built_in("reviews.jsonl") and not is_built_in("reviews_2.jsonl")
    (tmp_path / "reviews").mkdir()
    tiny.write_jsonl(tmp_path / "reviews" / "mine.jsonl", tiny.pairs())
    assert not is_built_in("reviews")
    assert {r.kind for r in load_records("reviews")} == {"pair"}


def test_bad_rows_are_skipped_and_written_down(tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl"
    file.write_text('{"prompt": "a", "chosen": " b", "rejected": " c"}\n{"prompt": "a", "chosen": " b"}\n')
    with pytest.raises(UserError, match=r"^f\.jsonl:2: "):
        load_records(str(file))
    records = load_records(str(file), bad_rows="skip", rejects=tmp_path / "bad.jsonl")
    assert len(records) == 1
    assert [row["source"] for row in tiny.read_jsonl(tmp_path / "bad.jsonl")] == ["f.jsonl:2"]
