"""The gold scorer: as accurate as it must be, the same each time, and hard to fool by repetition."""

import pytest
from sklearn.metrics import accuracy_score

from trimtab.errors import UserError
from trimtab.examples.reviews.data import load
from trimtab.examples.reviews.gold import Gold, gold, main, novelty
from trimtab.feedback.records import Message


def test_it_agrees_with_the_human_on_three_of_four_held_out_sentences() -> None:
    records = load("held_out")
    scores = gold()([str(r.prompt) for r in records], [r.responses[0] for r in records])
    accuracy = accuracy_score([r.desirable for r in records], [score > 0.5 for score in scores])
    assert accuracy >= 0.75
    right, total = gold().accuracy()
    assert right / total == pytest.approx(accuracy)
    assert all(0 <= score <= 1 for score in scores)


def test_it_tells_praise_from_blame() -> None:
    good, bad = gold()(["the film is"] * 2, [" a warm , moving masterpiece .", " a dull , lifeless bore ."])
    assert good > 0.9
    assert bad < 0.1


def test_it_scores_the_whole_sentence() -> None:
    whole, parts = gold()(["", "a warm , moving"], ["a warm , moving film .", " film ."])
    assert whole == parts


def test_two_fits_agree() -> None:
    texts = [str(r.prompt) + r.responses[0] for r in load("held_out")[:50]]
    assert Gold.fit()([""] * 50, texts) == gold()([""] * 50, texts)


def test_repetition_costs_its_share() -> None:
    once, often = gold()(["the film is"] * 2, [" moving moving", " moving" * 30])
    assert often == pytest.approx(once * 4 / 32, abs=1e-12)  # 4 different pairs of 32


def test_people_hardly_repeat_themselves() -> None:
    shares = [novelty(str(r.prompt) + r.responses[0]) for r in load("held_out")]
    assert sum(share > 0.9 for share in shares) > 0.95 * len(shares)
    assert novelty("") == novelty("film") == 1
    assert novelty("a b a b") == pytest.approx(2 / 3)


def test_no_text_has_no_score() -> None:
    assert gold()([], []) == []


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(UserError, match="2 prompts came with 1 responses; give one for each"):
        gold()(["a", "b"], [" c"])


def test_conversations_are_refused() -> None:
    with pytest.raises(UserError, match="reads sentences, not conversations; pass prompts as plain text"):
        gold()([(Message("user", "how is the film ?"),)], [" good"])


def test_the_command_prints_accuracy_and_interval(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    printed = capsys.readouterr().out
    right, total = gold().accuracy()
    assert f"calls {right} of {total} held-out sentences" in printed
    assert "95 % interval" in printed
