"""Many texts are tokenised at once, with what each gives by itself: the plain way is written down here."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.feedback.test_tokenise import TURNS, framing_tokenizer, merging_tokenizer
from tests.models import LETTERS, letter_tokenizer
from transformers import PreTrainedTokenizerFast

from trimtab.errors import UserError
from trimtab.feedback.encoding import PLAIN_CHAT_TEMPLATE, encode_together
from trimtab.feedback.records import Message, Prompt
from trimtab.feedback.tokenise import encode


def alone(tokenizer: Any, prompt: Prompt, response: str) -> tuple[list[int], list[int]]:
    """One prompt and its response, by calls of the tokenizer with a single text each."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if isinstance(prompt, str):
        prompt_ids, tail = list(tokenizer(prompt).input_ids), response
        if len(prompt_ids) > 1 and prompt_ids[-1] == tokenizer.eos_token_id:
            prompt_ids.pop()
        whole_ids = list(tokenizer(prompt + response).input_ids) if prompt else []
    else:
        opening = render(tokenizer, prompt, True)
        whole = render(tokenizer, (*prompt, Message("assistant", response)), False)
        tail = whole[len(opening) :] if whole.startswith(opening) else response
        prompt_ids, whole_ids = plain(tokenizer, opening), plain(tokenizer, whole)
    prompt_ids = prompt_ids or [start]
    fits = len(whole_ids) > len(prompt_ids) and whole_ids[: len(prompt_ids)] == prompt_ids
    response_ids = whole_ids[len(prompt_ids) :] if fits else plain(tokenizer, tail)
    never = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
    special = {tokenizer.eos_token_id} | (set(tokenizer.all_special_ids) - never)
    for last in reversed(range(len(response_ids))):
        if response_ids[last] in special:
            if not tokenizer.decode(response_ids[last + 1 :]).strip():
                return prompt_ids, response_ids[: last + 1]
            break
    return prompt_ids, [*response_ids, tokenizer.eos_token_id]


def plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def render(tokenizer: Any, messages: Any, open_turn: bool) -> str:
    turns = [{"role": m.role, "content": m.content} for m in messages]
    template = tokenizer.chat_template or PLAIN_CHAT_TEMPLATE
    return str(
        tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=open_turn, chat_template=template
        )
    )


def with_template(template: str, tokenizer: Any = None) -> Any:
    tokenizer = tokenizer or letter_tokenizer(additional_special_tokens=["<end>"])
    tokenizer.chat_template = template
    return tokenizer


TOKENIZERS = {
    "letters": letter_tokenizer(),
    "padded with the end": letter_tokenizer(pad_token="</s>"),
    "BOS before": framing_tokenizer("<s> $A"),
    "EOS after": framing_tokenizer("$A </s>"),
    "both": framing_tokenizer("<s> $A </s>"),
    "merging": merging_tokenizer(),
    "turns": with_template(TURNS),
    "trimmed turns": with_template(TURNS.replace("m.content", "m.content | trim")),
    "without the earlier turns": with_template("{{ messages[-1].content }}</s>\n"),
    "turns and BOS": with_template(TURNS.replace("<end>", "</s>"), framing_tokenizer("<s> $A")),
}
text = st.lists(
    st.sampled_from([*LETTERS, "ab", "</s>", "<end>", "<pad>", "<s>", "  ", "\n"]), max_size=6
).map("".join)
turns = st.tuples(text.map(lambda content: Message("user", content)))
talks = st.tuples(text, text, text).map(lambda said: tuple(map(Message, ("user", "assistant", "user"), said)))


@pytest.mark.parametrize("name", TOKENIZERS)
@given(texts=st.lists(st.tuples(text | turns | talks, text), min_size=1, max_size=8))
def test_many_texts_at_once_are_each_what_they_are_alone(name: str, texts: list[tuple[Prompt, str]]) -> None:
    tokenizer = TOKENIZERS[name]
    found = [(list(prompt), list(response)) for prompt, response in encode_together(tokenizer, texts)]
    assert found == [alone(tokenizer, prompt, response) for prompt, response in texts]


class Counting(PreTrainedTokenizerFast):
    """A tokenizer with a way of its own to take a text."""

    def __call__(self, text: str, **settings: Any) -> Any:  # type: ignore[override]
        assert isinstance(text, str)
        return super().__call__(text.replace("x", ""), **settings)


def test_a_tokenizer_with_a_way_of_its_own_is_asked_text_by_text() -> None:
    usual = letter_tokenizer()
    own = Counting(tokenizer_object=usual.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    assert encode([("axb", "cxd")], own, max_length=9) == encode([("ab", "cd")], usual, max_length=9)


def test_padding_and_truncation_that_were_set_before_are_not_taken_over() -> None:
    tokenizer = letter_tokenizer()
    expected = encode([("ab", "c"), ("abcdefgh", "d")], tokenizer, max_length=64)
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=20)
    assert encode([("ab", "c"), ("abcdefgh", "d")], tokenizer, max_length=64) == expected
    assert [len(prompt) for prompt, _ in expected] == [2, 8]


def test_the_conversation_that_a_template_refuses_is_named_among_others() -> None:
    tokenizer = with_template(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + TURNS
    )
    fine, refused = (Message("user", "hi"),), (Message("system", "be kind"), Message("user", "hi"))
    with pytest.raises(UserError, match=r"turns 'system user': no system turn"):
        encode([(fine, "a"), (refused, "b"), (fine, "c")], tokenizer, max_length=64)
