"""The built-in sentences: what is shipped, how it is cut, and that nothing held out can be learned from."""

import gzip
import json
from importlib.resources import files
from pathlib import Path

import pytest

from trimtab.errors import UserError
from trimtab.examples.reviews.data import (
    clean,
    load,
    normalised,
    prompt_and_response,
    sentences,
    split_of,
    split_sentences,
)

ORIGINAL = Path(__file__).parents[3] / "shared" / "data" / "reviews" / "sentences.jsonl"


def test_the_shipped_file_is_the_original() -> None:
    packed = files("trimtab.examples.reviews").joinpath("sentences.jsonl.gz").read_bytes()
    assert gzip.decompress(packed) == ORIGINAL.read_bytes()
    assert packed[4:8] == bytes(4)  # gzip's time stamp: the same bytes whenever it is packed


def test_all_sentences_are_there_half_of_them_positive() -> None:
    assert len(sentences()) == 10_662
    assert sum(sentence.positive for sentence in sentences()) == 5_331
    row = json.loads(ORIGINAL.read_text(encoding="utf-8").splitlines()[8_000])
    assert (sentences()[8_000].line, sentences()[8_000].positive) == (8_001, row["positive"])


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a charming tale \x96 as pleasant", "a charming tale -- as pleasant"),
        ("a \x91direct-to-video' film", "a 'direct-to-video' film"),
        ("o . henry's <b>gift</b>", "o . henry's gift"),
        ("too  many   spaces ", "too many spaces"),
        ("the château , 9 ½ weeks & s&m", "the château , 9 ½ weeks & s&m"),
    ],
)
def test_clean(raw: str, expected: str) -> None:
    assert clean(raw) == expected


def test_no_stray_characters_are_left() -> None:
    for sentence in sentences():
        assert sentence.text.isprintable()
        assert "  " not in sentence.text
        assert sentence.text == sentence.text.strip() != ""


def test_the_cut_is_the_same_every_time() -> None:
    # Literals: another hash or another Python would give other prompts, and other results.
    assert prompt_and_response(
        "take care of my cat offers a refreshingly different slice of asian cinema ."
    ) == (
        "take care of my",
        " cat offers a refreshingly different slice of asian cinema .",
    )
    assert [record.prompt for record in load("train")[:3]] == [
        "the rock is destined",
        "the gorgeously elaborate",
        "if you sometimes like",
    ]


def test_prompt_and_response_make_up_the_sentence() -> None:
    lengths = set()
    for sentence in (*split_sentences("train"), *split_sentences("held_out")):
        prompt, response = prompt_and_response(sentence.text)
        assert prompt + response == sentence.text
        assert response.startswith(" ")
        assert len(response.split()) >= 2
        lengths.add(len(prompt.split(" ")))
    assert lengths == {3, 4, 5, 6}


def test_a_sentence_of_four_words_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match="a sentence of 4 words is too short to cut; it needs 5"):
        prompt_and_response("a very funny movie")


def test_the_halves_share_no_prompt_no_opening_and_no_text() -> None:
    train, held_out = load("train"), load("held_out")
    assert {r.prompt for r in train}.isdisjoint(r.prompt for r in held_out)
    opening = {" ".join(str(r.prompt).split(" ")[:3]) for r in train}
    assert opening.isdisjoint(" ".join(str(r.prompt).split(" ")[:3]) for r in held_out)
    texts = {normalised(str(r.prompt) + r.responses[0]) for r in train}
    assert texts.isdisjoint(normalised(str(r.prompt) + r.responses[0]) for r in held_out)


def test_a_prompt_is_in_the_half_of_its_sentence() -> None:
    assert {split_of(str(record.prompt)) for record in load("held_out")} == {"held_out"}
    assert {split_of(str(record.prompt)) for record in load("train")} == {"train"}


def test_the_records_carry_the_label_and_the_line() -> None:
    rows = [json.loads(line) for line in ORIGINAL.read_text(encoding="utf-8").splitlines()]
    for record in load("held_out"):
        row = rows[int(record.source.removeprefix("sentences.jsonl:")) - 1]
        assert record.kind == "thumbs"
        assert record.desirable == row["positive"]
        assert str(record.prompt) + record.responses[0] == clean(row["text"])


def test_about_fifteen_percent_are_held_out() -> None:
    train, held_out = len(load("train")), len(load("held_out"))
    # 10,662 sentences, less 183 that are too short and one that occurs twice
    assert train + held_out == 10_478
    assert 0.13 < held_out / (train + held_out) < 0.18


def test_an_unknown_split_names_the_nearest() -> None:
    with pytest.raises(UserError, match="no split 'heldout'; did you mean 'held_out'"):
        load("heldout")  # type: ignore[arg-type]
