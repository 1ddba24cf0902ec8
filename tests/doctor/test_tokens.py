"""Every check on tokens finds a planted faulty text, tokenizer or template, and passes sound ones."""

from typing import Any

import pytest
from tests.models import letter_tokenizer
from tests.tiny import BAD, CHAT_TEMPLATE, GOOD, PROMPTS
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from trimtab.doctor.encoded import evenly
from trimtab.doctor.findings import Finding
from trimtab.doctor.lengths import Limits, limits_of
from trimtab.doctor.material import Material
from trimtab.doctor.tokens import token_findings
from trimtab.feedback.readers import Reading
from trimtab.feedback.records import Message, Record
from trimtab.methods import METHODS

PAIRS = [Record("pair", p, (GOOD, BAD), source=f"f:{n}") for n, p in enumerate(PROMPTS, 1)]
TURNS = (
    Message("system", "be kind"),
    Message("user", "hi"),
    Message("assistant", "yes"),
    Message("user", "so"),
)
TALKS = [
    Record("demonstration", TURNS, (text,), source=f"f:{n}") for n, text in enumerate(("good", "well"), 1)
]
CLOSED = CHAT_TEMPLATE.replace(r"{{ m.content }}", "{{ m.content }}{{ eos_token }}")
LIMITS = Limits(96, positions=96, vocabulary=33)


def shown(*responses: str, prompt: Any = "p ") -> list[Record]:
    return [Record("demonstration", prompt, (r,), source=f"f:{n}") for n, r in enumerate(responses, 1)]


def found(
    records: list[Record], tokenizer: Any = None, limits: Limits = LIMITS, stops: Any = None
) -> dict[str, Finding]:
    material = Material(Reading("f", records), view=tuple(records))
    findings = token_findings(material, tokenizer or letter_tokenizer(), limits, stops)
    assert len({finding.check for finding in findings}) == len(findings)
    return {finding.check: finding for finding in findings}


def bad(findings: dict[str, Finding]) -> dict[str, str]:
    return {f.check: f.said for f in findings.values() if f.level in ("warning", "error")}


def chat(template: str = CLOSED, **special: Any) -> PreTrainedTokenizerFast:
    tokenizer = letter_tokenizer(**special)
    tokenizer.chat_template = template
    return tokenizer


def framing(tokenizer: PreTrainedTokenizerFast, template: str = "<s> $A") -> PreTrainedTokenizerFast:
    """Adds special tokens around every text, as Llama's does."""
    ids = [("<s>", 0), ("</s>", 1)]
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer


def merging() -> PreTrainedTokenizerFast:
    """Joins "a" and "b" into one token wherever they meet."""
    bpe = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4}, merges=[("a", "b")]))
    bpe.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    ("records", "tokenizer"),
    [
        (PAIRS, letter_tokenizer()),
        (PAIRS, framing(letter_tokenizer(), "<s> $A </s>")),
        (PAIRS, letter_tokenizer(pad_token="</s>")),
        (TALKS, chat()),
        (TALKS, letter_tokenizer()),
        (TALKS, framing(chat("{{ bos_token }}" + CLOSED))),
        ([Record("prompt", p) for p in PROMPTS], letter_tokenizer()),
        ([Record("prompt", TURNS)], chat()),
    ],
)
def test_sound_text_passes_every_check(records: list[Record], tokenizer: Any) -> None:
    findings = found(records, tokenizer)
    assert bad(findings) == {}
    assert findings["end token"].said.startswith("responses end with '</s>'")


def test_a_tokenizer_without_end_token_is_an_error() -> None:
    without = letter_tokenizer()
    without.eos_token = None
    (finding,) = found(PAIRS, without).values()
    assert (finding.check, finding.level) == ("end token", "error")
    assert "no end-of-sequence token" in finding.said
    unknown = found(PAIRS, letter_tokenizer(unk_token="</s>"))["end token"]
    assert unknown.level == "error" and "is the unknown token" in unknown.said


def test_a_doubled_start_token_is_found() -> None:
    finding = found([*PAIRS, *shown("good", prompt="<s>p ")], framing(letter_tokenizer()))["start token"]
    assert (finding.level, finding.values["rows"]) == ("error", 1)
    twice = chat("{{ bos_token }}<s>" + CLOSED)
    assert found(TALKS, twice)["start token"].said == "2 of 2 sequences begin with '<s>' twice"
    # a template that writes it and a tokenizer that adds it are no harm to trimtab, which adds none
    once = found(TALKS, framing(chat("{{ bos_token }}" + CLOSED)))["start token"]
    assert once.level == "ok" and "would put a second '<s>'" in once.said


def test_a_template_that_leaves_out_the_start_token_is_found() -> None:
    finding = found(TALKS, framing(chat()))["start token"]
    assert (finding.level, finding.places) == ("warning", ("f:1", "f:2"))


def test_a_response_whose_end_is_no_end_to_sampling_is_found() -> None:
    """The template closes turns with <end>, the tokenizer's end token is </s>."""
    template = CLOSED.replace("eos_token", "'<end>'")
    tokenizer = chat(template, additional_special_tokens=["<end>"])
    finding = found(TALKS, tokenizer)["end of responses"]
    assert finding.level == "error"
    assert finding.said.startswith("2 of 2 responses end with '<end>', but an answer is over at '</s>'")
    assert (
        found(TALKS, tokenizer, stops=GenerationConfig(eos_token_id=[1, 3]))["end of responses"].level == "ok"
    )
    scored = Material(Reading("f", TALKS), METHODS["reward_model"](), tuple(TALKS))
    skipped = {f.check: f.level for f in token_findings(scored, tokenizer, LIMITS)}
    assert skipped["end of responses"] == "skipped"  # a reward model writes no answers
    assert (
        found(shown("good", "good<pad>"))["end of responses"].level == "ok"
    )  # padding is no end: it gets one


def test_a_token_across_the_boundary_is_found() -> None:
    finding = found(shown("b", "aa", prompt="a"), merging())["boundary"]
    assert (finding.level, finding.places) == ("warning", ("f:1",))
    assert finding.said.startswith("1 of 2 rows have a token that spans")
    talk = merging()
    talk.chat_template = (
        "{% for m in messages %}{{ 'a' if m.role == 'assistant' else '' }}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    asked = (Message("user", "b"),)  # "ba" is asked, and "bab" holds the token "ab"
    records = [Record("demonstration", asked, (text,), source=text) for text in ("a", "b")]
    assert found(records, talk)["boundary"].places == ("b",)


def test_responses_without_tokens_are_found() -> None:
    finding = found(shown("good", "你好", "</s>"))["responses without tokens"]
    assert (finding.level, finding.places) == ("error", ("f:2", "f:3"))


def test_text_that_the_tokenizer_loses_is_found() -> None:
    findings = found(shown("good", "café 42", "well"))
    finding = findings["text that is read back"]
    assert (finding.level, finding.places) == ("warning", ("f:2",))
    assert finding.said == "1 of 4 texts hold letters or digits that the tokenizer loses: 24é"
    assert found(shown("GOOD", "WELL"))["text that is read back"].level == "error"
    lowering = letter_tokenizer()
    lowering._tokenizer.normalizer = normalizers.Lowercase()
    assert found(shown("GOOD", "WELL"), lowering)["text that is read back"].level == "ok"


def test_an_unknown_token_is_a_token_that_says_nothing() -> None:
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "p": 4}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    findings = found(shown("a", "你", prompt="p"), tokenizer)
    assert findings["responses without tokens"].level == "ok"
    assert findings["special tokens in the text"].level == "ok"
    finding = findings["text that is read back"]
    assert (finding.level, finding.places, finding.values["lost"]) == ("warning", ("f:2",), ["你"])


def test_special_tokens_in_the_text_are_found() -> None:
    findings = found(shown("good</s>", "go</s>od", "a <s> b", "a < s"))
    finding = findings["special tokens in the text"]
    assert (finding.level, finding.places) == ("warning", ("f:2", "f:3"))  # at the very end it is right
    assert finding.values["tokens"] == {"</s>": 1, "<s>": 1}
    asked = found(shown("good", prompt="x</s>"))["special tokens in the text"]
    assert asked.values["rows"] == 1


@pytest.mark.parametrize(
    ("records", "limit", "prompts", "responses"),
    [
        (shown("abc", prompt="p" * 20), 10, 1, 0),
        (shown("abcdefghijkl"), 10, 0, 1),
        (shown("abcdefghijkl", prompt="p" * 20), 10, 1, 1),
    ],
)
def test_what_is_cut_is_counted(records: list[Record], limit: int, prompts: int, responses: int) -> None:
    finding = found([*records, *shown("a")], limits=Limits(limit))["what is cut"]
    assert finding.level == "warning" and finding.values["prompts"] == prompts
    assert finding.values["responses"] == responses and finding.places == ("f:1",)
    longest = max(len(r.prompt) + len(r.responses[0]) + 1 for r in records)  # a letter a token, and the end
    assert finding.values["longest"] == longest and f"--max-length {longest} cuts none" in finding.advice
    assert found(records, limits=Limits(longest))["what is cut"].level == "ok"


def test_room_is_kept_for_answers_that_the_model_writes() -> None:
    records = [Record("prompt", "p" * 20, source="f:1")]
    assert found(records, limits=Limits(30, new_tokens=10))["what is cut"].level == "ok"
    finding = found(records, limits=Limits(30, new_tokens=11))["what is cut"]
    assert (finding.level, finding.values["prompts"], finding.values["longest"]) == ("warning", 1, 31)


def test_sequences_longer_than_the_model_reads_are_an_error() -> None:
    records = shown("a" * 20, "b")
    finding = found(records, limits=Limits(64, positions=22))["length that the model reads"]
    assert (finding.level, finding.places) == ("error", ("f:1",))  # 2 + 20 + 1
    assert found(records, limits=Limits(64, positions=23))["length that the model reads"].level == "ok"
    assert found(records, limits=Limits(22, positions=22))["length that the model reads"].level == "ok"
    config = LlamaConfig(max_position_embeddings=77, vocab_size=99)
    assert limits_of(config, 64) == Limits(64, 0, 77, 99)


def test_tokens_that_the_model_lacks_are_an_error() -> None:
    records = shown("abc", "xyz", prompt="p")  # a is 4, z is 29
    assert found(records, limits=Limits(64, vocabulary=30))["vocabulary"].level == "ok"
    finding = found(records, limits=Limits(64, vocabulary=29))["vocabulary"]
    assert (finding.level, finding.places) == ("error", ("f:2",))


def test_pairs_that_are_the_same_tokens_are_found() -> None:
    name = "chosen and rejected in tokens"
    assert found(PAIRS)[name].level == "ok"
    dropped = Record("pair", "p", ("good", "good你"), source="f:9")
    assert found([*PAIRS, dropped])[name].places == ("f:9",)
    tail = Record("pair", "p", ("a" * 20 + "b", "a" * 20 + "c"), source="f:9")
    assert found([tail], limits=Limits(10))[name].level == "warning"
    assert found([tail], limits=Limits(30))[name].level == "ok"


def test_a_template_that_refuses_is_an_error() -> None:
    raising = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CLOSED
    )
    plain = Record("demonstration", (Message("user", "hi"),), ("good",), source="f:9")
    finding = found([*TALKS, plain], chat(raising))["conversations it takes"]
    assert (finding.level, finding.places) == ("error", ("f:1", "f:2"))
    assert "no system turn" in finding.said


def test_a_template_that_drops_a_turn_is_found() -> None:
    dropping = CLOSED.replace("in messages", "in messages if m.role != 'system'")
    finding = found(TALKS, chat(dropping))["turns it keeps"]
    assert finding.level == "error" and "system in 2" in finding.said
    thoughts = CLOSED.replace(
        "{{ m.content }}", "{{ m.content if loop.last or m.role != 'assistant' else '' }}"
    )
    finding = found(TALKS, chat(thoughts))["turns it keeps"]
    assert (finding.level, finding.values["roles"]) == ("warning", {"assistant": 2})


def test_a_template_whose_prompt_is_no_prefix_is_found() -> None:
    """The prompt opens with the number of turns, which the response changes."""
    findings = found(TALKS, chat("{{ 'x' * messages | length }}" + CLOSED))
    finding = findings["prompt as a prefix"]
    assert (finding.level, finding.places) == ("warning", ("f:1", "f:2"))
    assert findings["boundary"].level == "skipped"  # there is none


def test_plain_prompts_beside_a_template_are_found() -> None:
    finding = found(PAIRS, chat())["chat template"]
    assert finding.level == "warning" and finding.said.startswith("8 of 8 rows have a prompt of plain text")


def test_a_sample_is_spread_over_all() -> None:
    assert evenly(range(10), 5) == [0, 2, 4, 6, 8]
    assert evenly("abc", 5) == ["a", "b", "c"]
