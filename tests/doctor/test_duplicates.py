"""Near-duplicates: similarity by enumeration, recall on planted copies, and what is not one."""

import random

import pytest

from trimtab.doctor import duplicates
from trimtab.doctor.duplicates import near_duplicates, similarity
from trimtab.feedback.records import Record

WORDS = "sea tide moon wind stone bread light iron glass river cloud field horse clock paper winter song"


def text(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS.split(), k=words))


def changed(original: str, words: int, seed: int = 0) -> str:
    """The text with so many words in another place of it replaced."""
    split = original.split()
    for place in random.Random(seed).sample(range(len(split)), words):
        split[place] = "zebra"
    return " ".join(split)


def shown(response: str, prompt: str = "", source: str = "") -> Record:
    return Record("demonstration", prompt, (response,), source=source)


def jaccard(a: str, b: str) -> float:
    one, other = ({t[n : n + 5] for n in range(len(t) - 4)} for t in (a, b))
    return len(one & other) / len(one | other)


def test_similarity_is_the_jaccard_index_of_runs_of_five_characters() -> None:
    assert similarity("abcdef", "bcdefg") == pytest.approx(1 / 3)  # of abcde, bcdef, cdefg one is in both
    assert similarity("ABC  def", "abc def") == 1.0
    assert similarity("abc", "abd") == 0.0 and similarity("abc", "abc") == 1.0
    assert similarity("", "") == 1.0 and similarity("", "abc") == 0.0
    assert similarity("我们今天去看大海", "我们今天去看大山") == pytest.approx(3 / 5)
    for seed in range(20):
        a, b = text(seed), changed(text(seed), seed)
        assert similarity(a, b) == pytest.approx(jaccard(a, b))


def test_planted_copies_are_found_and_nothing_else() -> None:
    originals = [shown(text(n), source=f"f:{n}") for n in range(200)]
    copies = [shown(changed(text(n), 2, n), source=f"g:{n}") for n in range(100)]
    near = {n for n in range(100) if jaccard(text(n), copies[n].responses[0]) >= 0.8}
    found = near_duplicates([*originals, *copies])
    assert len(near) > 60
    assert {(a.source, b.source) for a, b in found} <= {(f"g:{n}", f"f:{n}") for n in near}
    assert len(found) >= 0.95 * len(near)


def test_a_sample_of_the_shingles_finds_copies_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MOST_SHINGLES", 5_000)  # of about 20,000
    rows = [shown(text(n), source=f"f:{n}") for n in range(40)]
    copies = [shown(text(n).upper() + " !", source=f"g:{n}") for n in range(20)]
    assert len(near_duplicates([*rows, *copies])) >= 18


@pytest.mark.parametrize(
    "other",
    [
        shown(text(1), "another prompt altogether, with its own words"),
        Record("thumbs", text(9), (text(1),), desirable=True),
        shown(text(2), text(9)),
    ],
)
def test_another_prompt_response_or_kind_is_no_duplicate(other: Record) -> None:
    assert near_duplicates([shown(text(1), text(9)), other]) == []
    assert len(near_duplicates([shown(text(1), text(9)), shown(text(1) + ".", text(9))])) == 1


def test_a_reversed_pair_or_label_is_no_duplicate() -> None:
    both = text(1), text(2)
    assert near_duplicates([Record("pair", "p", both), Record("pair", "p", both[::-1])]) == []
    up, down = (Record("thumbs", "p", (text(1) + end,), desirable=not end) for end in ("", "."))
    assert near_duplicates([up, down]) == []


def test_exact_duplicates_are_told_elsewhere() -> None:
    assert near_duplicates([shown(text(1)), shown(text(1))]) == []
