"""The boundary of prompt and response, end tokens, chat templates, cutting, KTO's mismatched rows."""

import logging
import math
from typing import Any

import pytest
from tests.models import letter_tokenizer
from tokenizers import Tokenizer, decoders, models, processors
from transformers import GenerationConfig, PreTrainedTokenizerFast

from trimtab.errors import UserError
from trimtab.feedback.batches import Table
from trimtab.feedback.records import Message, Record
from trimtab.feedback.tokenise import PLAIN_CHAT_TEMPLATE, add_mismatched, encode_prompt, end_tokens, tokenise

BOS, EOS, PAD, END = 0, 1, 2, 3
TURNS = (
    "{% for m in messages %}{{ m.role[0] }}.{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}a.{% endif %}"
)
CHAT = (Message("user", "hi"),)


def letters(text: str) -> list[int]:
    return list(letter_tokenizer()(text).input_ids)


def demonstration(prompt: Any, response: str) -> Record:
    return Record("demonstration", prompt, (response,))


def row(tokenizer: Any, prompt: Any, response: str, max_length: int = 64) -> tuple[list[int], list[int]]:
    """The one row that a demonstration becomes."""
    [(prompt_ids, response_ids)] = tokenise(
        [demonstration(prompt, response)], tokenizer, max_length=max_length
    ).rows
    return list(prompt_ids), list(response_ids)


def framing_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Adds special tokens around every text, as Llama's (BOS) and T5's (EOS) do."""
    tokenizer = letter_tokenizer()
    ids = [("<s>", BOS), ("</s>", EOS)]
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Joins "a" and "b" into one token wherever they meet."""
    bpe = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4}, merges=[("a", "b")]))
    bpe.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


def test_a_response_ends_with_one_end_token() -> None:
    assert row(letter_tokenizer(), "hi ", "you") == (letters("hi "), [*letters("you"), EOS])
    assert row(letter_tokenizer(), "hi ", "you</s>") == (letters("hi "), [*letters("you"), EOS])


def test_padding_at_the_end_of_a_text_is_no_end() -> None:
    prompt, response = row(letter_tokenizer(), "hi ", "you<pad>")
    assert prompt == letters("hi ") and response[:3] == letters("you") and response[-1] == EOS
    assert len(response) == 5


def test_padding_that_is_the_end_token_changes_nothing() -> None:
    shared = letter_tokenizer(pad_token="</s>")
    assert row(shared, "hi ", "you") == row(letter_tokenizer(), "hi ", "you")


def test_bos_is_not_doubled_and_eos_does_not_close_the_prompt() -> None:
    assert row(framing_tokenizer("<s> $A"), "hi ", "you") == ([BOS, *letters("hi ")], [*letters("you"), EOS])
    assert row(framing_tokenizer("$A </s>"), "hi ", "you") == (letters("hi "), [*letters("you"), EOS])
    both = framing_tokenizer("<s> $A </s>")
    assert row(both, "hi ", "you") == ([BOS, *letters("hi ")], [*letters("you"), EOS])


def test_an_empty_prompt_is_the_start_token() -> None:
    assert row(letter_tokenizer(), "", "you") == ([BOS], [*letters("you"), EOS])
    assert row(framing_tokenizer("<s> $A"), "", "you") == ([BOS], [*letters("you"), EOS])
    assert encode_prompt(merging_tokenizer(), "") == [0]


def test_no_token_spans_the_boundary() -> None:
    """ "a" + "b" is one token of the whole text; prompt and response keep one each."""
    tokenizer = merging_tokenizer()
    assert list(tokenizer("ab").input_ids) == [4]
    assert row(tokenizer, "a", "b") == ([2], [3, 1])
    assert row(tokenizer, "aab", "ab") == ([2, 4], [4, 1])


def test_a_templates_newline_after_the_end_of_turn_is_dropped() -> None:
    tokenizer = letter_tokenizer(additional_special_tokens=["<end>"])
    tokenizer.chat_template = TURNS
    prompt, response = row(tokenizer, CHAT, "good day")
    assert prompt == [*letters("u.hi"), END, *letters("\na.")]
    assert response == [*letters("good day"), END]  # its own end token: EOS is not put after it


def test_a_template_without_end_token_gets_one() -> None:
    tokenizer = letter_tokenizer()
    tokenizer.chat_template = TURNS.replace("<end>", ".")
    assert row(tokenizer, CHAT, "good day")[1] == [*letters("good day.\n"), EOS]


def test_a_template_that_trims_the_response_is_followed() -> None:
    tokenizer = letter_tokenizer(additional_special_tokens=["<end>"])
    tokenizer.chat_template = TURNS.replace("m.content", "m.content | trim")
    assert row(tokenizer, CHAT, " good day ")[1] == [*letters("good day"), END]


def test_the_plain_template_is_the_transcript_of_hh_rlhf() -> None:
    tokenizer = letter_tokenizer()
    tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    turns = [("system", "be kind"), ("user", "hi"), ("assistant", "yes"), ("user", "so")]
    messages = [{"role": role, "content": content} for role, content in turns]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<s>\n\nbe kind\n\nHuman: hi\n\nAssistant: yes</s>\n\nHuman: so\n\nAssistant:"
    prompt = tuple(Message(role, content) for role, content in turns)
    tokenizer.chat_template = None  # then this template is taken
    assert row(tokenizer, prompt, "good") == (letters(text), [*letters(" good"), EOS])


def test_a_template_that_refuses_is_a_plain_error() -> None:
    tokenizer = letter_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
    with pytest.raises(UserError, match=r"'user'.*no system turn"):
        row(tokenizer, CHAT, "good day")


def test_end_tokens_are_all_that_are_named() -> None:
    assert end_tokens(letter_tokenizer()) == {EOS}
    assert end_tokens(letter_tokenizer(), GenerationConfig(eos_token_id=[5, 6])) == {EOS, 5, 6}
    assert end_tokens(letter_tokenizer(), GenerationConfig(eos_token_id=5)) == {EOS, 5}
    without = letter_tokenizer()
    without.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        end_tokens(without)


def test_long_rows_lose_the_prompts_beginning_and_the_responses_end(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = letter_tokenizer()
    with caplog.at_level(logging.WARNING, logger="trimtab"):
        assert row(tokenizer, "abcdefgh", "xyz", 8) == (letters("efgh"), [*letters("xyz"), EOS])
    assert "1 of 1 sequences" in caplog.text
    assert row(tokenizer, "ab", "uvwxyz", 6) == (letters("ab"), letters("uvwx"))  # cut: it has not ended
    assert row(tokenizer, "abcdefgh", "stuvwxyz", 8) == (letters("efgh"), letters("stuv"))
    framed = row(framing_tokenizer("<s> $A"), "abcdefgh", "xyz", 8)
    assert framed == ([BOS, *letters("fgh")], [*letters("xyz"), EOS])


def test_responses_that_recur_share_a_row() -> None:
    records = [
        Record("pair", "p ", ("a", "b")),
        Record("pair", "p ", ("b", "c"), margin=0.5),
        Record("pair", "q ", ("a", "b")),
    ]
    table = tokenise(records, letter_tokenizer(), max_length=64)
    assert [e.rows for e in table.examples] == [(0, 1), (1, 2), (3, 4)]
    assert [e.margin for e in table.examples] == [0.0, 0.5, 0.0]


def test_scores_are_scaled_and_centred_by_prompt() -> None:
    records = [
        Record("score", "p", ("a", "b"), scores=(1.0, 3.0)),
        Record("score", "q", ("a",), scores=(5.0,)),
    ]
    table = tokenise(records, letter_tokenizer(), max_length=64)
    scale = math.sqrt(8 / 3)  # of 1, 3, 5
    assert [e.score for e in table.examples] == pytest.approx([1 / scale, 3 / scale, 5 / scale])
    # the mean of p's scores; q has a single one, so the file's mean
    assert [e.baseline for e in table.examples] == pytest.approx([2 / scale, 2 / scale, 3 / scale])


def test_equal_scores_are_refused() -> None:
    with pytest.raises(UserError, match="all scores are equal"):
        tokenise([Record("score", "p", ("a", "b"), scores=(2.0, 2.0))], letter_tokenizer(), max_length=64)


def thumbs(counts: list[int]) -> Table:
    """That many thumbs on each of the prompts p, q, r, ..."""
    records = [
        Record("thumbs", prompt, (f"{prompt} {'x' * i}",), desirable=True)
        for prompt, count in zip("pqrstuv", counts, strict=False)
        for i in range(1, count + 1)
    ]
    return tokenise(records, letter_tokenizer(), max_length=64)


@pytest.mark.parametrize(
    "counts", [[1, 1], [1, 1, 1], [2, 2], [3, 2, 1], [2, 1, 1, 1], [5, 4, 1], [1] * 7, [3, 3, 3]]
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_response_meets_its_own_prompt(counts: list[int], seed: int) -> None:
    table = thumbs(counts)
    add_mismatched(table, seed)
    own = {tuple(response): list(prompt) for prompt, response in table.rows[: sum(counts)]}
    used = []
    for example in table.examples:
        prompt, response = table.rows[example.mismatched]
        assert list(prompt) == list(table.rows[example.rows[0]][0])
        assert own[tuple(response)] != list(prompt)
        used.append(tuple(response))
    assert sorted(used) == sorted(own)  # each response once: no bias towards some


@pytest.mark.parametrize("counts", [[1], [2, 1], [4, 1, 2]])
def test_too_much_on_one_prompt_is_refused(counts: list[int]) -> None:
    with pytest.raises(UserError, match="more than half"):
        add_mismatched(thumbs(counts), 0)
