"""Each conversion, against what a person would write down by hand."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.data import load_records
from trimtab.errors import UserError
from trimtab.feedback.readers import read
from trimtab.feedback.records import Kind, Message, Record, as_conversation
from trimtab.feedback.views import ViewOptions, available, convert

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

# B is better than A, A than D, D than C.
RANKING = Record(
    "ranking", "p", ("a", "b", "c", "d"), ranks=(1, 0, 3, 2), source="f:1", columns={"topic": "x"}
)
TIED = Record("ranking", "p", ("a", "b", "c"), ranks=(0, 0, 1))


def told(records: list[Record]) -> list[tuple[object, ...]]:
    """What matters of each kind, in short."""
    return [
        (*r.responses, *r.ranks, *r.scores, *(x for x in (r.desirable, r.margin) if x is not None))
        for r in records
    ]


def scores(*pairs: tuple[str, str, float]) -> list[Record]:
    return [Record("score", prompt, (response,), scores=(score,)) for prompt, response, score in pairs]


def thumbs(*triples: tuple[str, str, bool]) -> list[Record]:
    return [Record("thumbs", prompt, (response,), desirable=up) for prompt, response, up in triples]


def test_a_ranking_gives_all_pairs_or_the_adjacent_ones() -> None:
    everything = {("b", "a"), ("b", "d"), ("b", "c"), ("a", "d"), ("a", "c"), ("d", "c")}
    assert set(told(convert([RANKING], "pair"))) == everything
    assert set(told(convert([RANKING], "pair", ViewOptions(pairs="adjacent")))) == {
        ("b", "a"),
        ("a", "d"),
        ("d", "c"),
    }
    assert told(convert([TIED], "pair")) == [("a", "c"), ("b", "c")]
    gap = Record("ranking", "p", ("a", "b"), ranks=(0, 5))
    assert told(convert([gap], "pair", ViewOptions(pairs="adjacent"))) == [("a", "b")]


def test_what_is_made_of_a_ranking_keeps_prompt_place_and_columns() -> None:
    pair = convert([RANKING], "pair")[0]
    assert (pair.prompt, pair.source, pair.columns) == ("p", "f:1", {"topic": "x"})


def test_equal_texts_make_no_pair() -> None:
    twice = Record("ranking", "p", ("a", "a", "b"), ranks=(0, 1, 2))
    assert told(convert([twice], "pair")) == [("a", "b"), ("a", "b")]


def test_a_ranking_gives_thumbs_to_the_better_and_the_worse_half() -> None:
    assert told(convert([RANKING], "thumbs")) == [("a", True), ("b", True), ("c", False), ("d", False)]
    three = Record("ranking", "p", ("a", "b", "c"), ranks=(0, 1, 2))
    assert told(convert([three], "thumbs")) == [("a", True), ("c", False)]
    assert told(convert([TIED], "thumbs")) == [("a", True), ("b", True), ("c", False)]


def test_a_ranking_gives_shares_of_the_others_beaten_as_scores() -> None:
    (record,) = convert([RANKING], "score")
    assert record.scores == pytest.approx((2 / 3, 1, 0, 1 / 3))
    (record,) = convert([TIED], "score")
    assert record.scores == (0.75, 0.75, 0)


def test_the_best_of_a_ranking_is_a_demonstration() -> None:
    assert told(convert([RANKING, TIED], "demonstration")) == [("b",), ("a",)]


def test_a_pair_is_a_ranking_of_two() -> None:
    pair = Record("pair", "p", ("good", "bad"), margin=2.0)
    assert told(convert([pair], "ranking")) == [("good", "bad", 0, 1)]
    assert told(convert([pair], "thumbs")) == [("good", True), ("bad", False)]
    assert told(convert([pair], "demonstration")) == [("good",)]
    assert told(convert([pair], "score")) == [("good", "bad", 1.0, 0.0)]
    assert convert([pair], "pair") == [pair]


def test_scores_of_one_prompt_give_a_ranking_and_pairs_with_margins() -> None:
    rows = scores(("p", "a", 1.0), ("q", "x", 9.0), ("p", "b", 3.0), ("p", "c", 2.75))
    assert told(convert(rows, "ranking")) == [("a", "b", "c", 2, 0, 1)]
    assert told(convert(rows, "ranking", ViewOptions(tie_within=0.25))) == [("a", "b", "c", 1, 0, 0)]
    assert set(told(convert(rows, "pair"))) == {("b", "a", 2.0), ("b", "c", 0.25), ("c", "a", 1.75)}
    assert set(told(convert(rows, "pair", ViewOptions(min_margin=2.0)))) == {("b", "a", 2.0)}
    assert set(told(convert(rows, "pair", ViewOptions(tie_within=0.25)))) == {
        ("b", "a", 2.0),
        ("c", "a", 1.75),
    }
    together = Record("score", "p", ("a", "b", "c"), scores=(1.0, 3.0, 2.75))
    assert told(convert([together], "ranking")) == [("a", "b", "c", 2, 0, 1)]


def test_scores_give_thumbs_only_with_a_threshold() -> None:
    rows = scores(("p", "a", 1.0), ("q", "x", 3.0))
    assert told(convert(rows, "thumbs", ViewOptions(threshold=3.0))) == [("a", False), ("x", True)]
    with pytest.raises(UserError, match=r"^thumbs from scores need a threshold: say with threshold which"):
        convert(rows, "thumbs")


def test_scores_give_the_best_or_the_good_as_demonstrations() -> None:
    rows = scores(("p", "a", 1.0), ("p", "b", 3.0), ("q", "x", 2.0))
    assert told(convert(rows, "demonstration")) == [("b",)]
    assert told(convert(rows, "demonstration", ViewOptions(threshold=2.0))) == [("b",), ("x",)]


def test_thumbs_on_one_prompt_give_pairs_and_the_rest_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    rows = thumbs(
        ("p", "a", True),
        ("p", "b", False),
        ("q", "x", True),
        ("p", "c", True),
        ("r", "y", True),
        ("r", "z", True),
    )
    with caplog.at_level(logging.WARNING, logger="trimtab"):
        assert told(convert(rows, "pair")) == [("a", "b"), ("c", "b")]
    assert caplog.messages == [
        "1 of 3 prompts are left out: they have a single response, which is compared with nothing",
        "1 of 2 prompts are left out: they have responses that are all equally good",
    ]
    assert told(convert(rows, "ranking")) == [("a", "b", "c", 0, 1, 0)]
    assert told(convert(rows[:2], "demonstration")) == [("a",)]
    assert told(convert(rows[:2], "score")) == [("a", 1.0), ("b", 0.0)]


def test_thousands_of_thumbs_without_a_prompt_are_not_compared() -> None:
    with pytest.raises(
        UserError, match=r"^10,662 responses to one prompt are too many to compare with each other"
    ):
        convert(read(str(DATA / "reviews/sentences.jsonl")), "pair")


def test_prompts_are_unique_whatever_the_kind() -> None:
    records = [RANKING, *thumbs(("q", "a", True), ("p", "a", True))]
    assert convert(records, "prompt") == [
        Record("prompt", "p", source="f:1", columns={"topic": "x"}), Record("prompt", "q")
    ]  # fmt: skip


def test_the_response_of_a_demonstration_becomes_the_prompts_answer() -> None:
    records = [
        Record("demonstration", "p", ("a",), source="f:1", columns={"topic": "x"}),
        Record("demonstration", "p", ("b",), source="f:2"),
        Record("demonstration", "q", ("c",), columns={"answer": "42"}),
        *thumbs(("r", "d", True)),
    ]
    assert convert(records, "prompt") == [
        Record("prompt", "p", source="f:1", columns={"answer": "a", "topic": "x"}),
        Record("prompt", "q", columns={"answer": "42"}),
        Record("prompt", "r"),
    ]
    assert convert(convert(records, "prompt"), "prompt") == convert(records, "prompt")


def test_word_problems_keep_their_answers_as_prompts() -> None:
    file = DATA / "gsm8k/test.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found = convert(load_records(str(file)), "prompt")
    asked = [as_conversation(record.prompt) for record in found]
    assert [turn.content for (turn,) in asked] == [row["question"] for row in rows]
    assert [dict(record.columns) for record in found] == [{"answer": row["answer"]} for row in rows]
    assert all("#### " in record.columns["answer"] for record in found)


def test_every_assistant_turn_can_be_a_demonstration() -> None:
    hi, hello, sky = Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Sky?")
    record = Record("demonstration", (hi, hello, sky), ("Blue.",), source="f:1")
    assert convert([record], "demonstration") == [record]
    assert convert([record], "demonstration", ViewOptions(turns="all")) == [
        replace(record, prompt=(hi,), responses=("Hello",)), record
    ]  # fmt: skip


def test_each_kind_in_a_mixed_list_is_converted_by_its_own_rule() -> None:
    records = [*thumbs(("p", "a", True), ("p", "b", False)), Record("pair", "q", ("x", "y"))]
    assert told(convert(records, "pair")) == [("a", "b"), ("x", "y")]


@pytest.mark.parametrize("to", ["pair", "ranking", "thumbs", "score"])
def test_a_demonstration_has_nothing_to_compare(to: Kind) -> None:
    records = [*thumbs(("p", "a", True)), Record("demonstration", "p", ("a",), source="f.jsonl:7")]
    with pytest.raises(UserError) as error:
        convert(records, to)
    assert str(error.value) == (
        "1 of 2 records are of the kind demonstration (the first: f.jsonl:7), which cannot become "
        f"{to}: it shows a good response but none that is worse; collect thumbs, pairs or scores, or use it "
        "for supervised fine-tuning"
    )


def test_a_prompt_holds_no_response() -> None:
    with pytest.raises(
        UserError, match="cannot become demonstration: it holds no response; generate responses"
    ):
        convert([Record("prompt", "p")], "demonstration")


def test_a_conversion_that_yields_nothing_says_why() -> None:
    with pytest.raises(UserError) as error:
        convert(thumbs(("p", "a", True), ("q", "b", False)), "pair")
    assert str(error.value) == (
        "the 2 records (thumbs) yield no pair record; pairs need two different responses to the same prompt, "
        "one better than the other"
    )


def test_unknown_names_and_impossible_options_are_refused() -> None:
    with pytest.raises(UserError, match="unknown kind of feedback 'pairs'; did you mean 'pair'"):
        convert([RANKING], "pairs")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="pairs is 'adjacnt'; did you mean 'adjacent'"):
        ViewOptions(pairs="adjacnt")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="min_margin is -1; it must be 0 or more"):
        ViewOptions(min_margin=-1)


def test_what_each_kind_can_become() -> None:
    assert available("demonstration") == ["demonstration", "prompt"]
    assert available("prompt") == ["prompt"]
    for kind in ("pair", "ranking", "thumbs", "score"):
        assert set(available(kind)) == {"demonstration", "pair", "ranking", "thumbs", "score", "prompt"}


def test_real_rankings_give_as_many_pairs_as_their_sizes_say() -> None:
    records = read(str(DATA / "rankings/oasst_en_trees.jsonl"))
    # Without ties, k responses make k(k-1)/2 pairs and k-1 adjacent ones.
    sizes = [len(record.responses) for record in records]
    assert len(convert(records, "pair")) == sum(k * (k - 1) // 2 for k in sizes)
    assert len(convert(records, "pair", ViewOptions(pairs="adjacent"))) == sum(k - 1 for k in sizes)
