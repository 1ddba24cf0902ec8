"""The shipped base model: small, loadable, as good as its card says, and ignorant of the held-out half."""

import json
import math
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab.examples.reviews import MODEL
from trimtab.examples.reviews.data import split_sentences
from trimtab.examples.reviews.evaluation import perplexities


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():  # type: ignore[no-untyped-def]
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def measured(model, tokenizer):  # type: ignore[no-untyped-def]
    return perplexities(model, tokenizer)


def test_the_folder_is_small_and_holds_no_pickle() -> None:
    found = [path for path in MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in found) < 12e6
    assert {path.suffix for path in found} == {".safetensors", ".json", ".md"}


def test_the_model_is_a_small_llama(model) -> None:  # type: ignore[no-untyped-def]
    assert type(model).__name__ == "LlamaForCausalLM"
    assert 3e6 <= model.num_parameters() <= 6e6
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert json.loads((MODEL / "config.json").read_text())["dtype"] in ("float16", "bfloat16")


def test_special_tokens_agree(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 2)
    assert len(tokenizer) == 4096 == model.config.vocab_size


def test_every_held_out_sentence_survives_the_tokenizer(tokenizer) -> None:  # type: ignore[no-untyped-def]
    texts = [sentence.text for sentence in split_sentences("held_out")]
    rows = tokenizer(texts)["input_ids"]
    assert all(row[0] == 0 and row.count(0) == 1 for row in rows)
    assert tokenizer.batch_decode(rows, skip_special_tokens=True) == texts


def test_no_token_crosses_the_cut(tokenizer) -> None:  # type: ignore[no-untyped-def]
    whole = tokenizer("the film provides some great insight .")["input_ids"]
    prompt = tokenizer("the film provides some")["input_ids"]
    assert whole == prompt + tokenizer(" great insight .", add_special_tokens=False)["input_ids"]


def test_the_card_tells_the_perplexity(measured) -> None:  # type: ignore[no-untyped-def]
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    for name, value in zip(("token", "word"), measured, strict=True):
        told = re.search(rf"held-out perplexity per {name} \| ([\d.]+) ", card)
        assert told is not None
        assert value == pytest.approx(float(told[1]), rel=0.01)


def test_perplexity_is_what_transformers_computes(model, tokenizer, measured) -> None:  # type: ignore[no-untyped-def]
    """One sentence at a time, through the model's own loss, on a sample that spans the held-out half."""
    total = tokens = 0.0
    held_out = split_sentences("held_out")
    with torch.no_grad():
        for sentence in held_out[::10]:
            ids = torch.tensor([[*tokenizer(sentence.text)["input_ids"], tokenizer.eos_token_id]])
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
    assert math.log(measured[0]) == pytest.approx(total / tokens, rel=0.03)


def test_held_out_sentences_are_not_remembered(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    """Sentences that were trained on are more likely than held-out ones, but none is recited."""
    recited = 0
    for sentence in split_sentences("held_out")[:40]:
        ids = tokenizer(sentence.text)["input_ids"]
        if len(ids) > 16:
            start = torch.tensor([ids[:8]])
            out = model.generate(start, max_new_tokens=8, min_new_tokens=8, do_sample=False)
            recited += out[0, 8:].tolist() == ids[8:16]
    assert recited == 0
