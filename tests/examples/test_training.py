"""How the base model is trained: tokenizer, batches, Muon, and going on where it stopped."""

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from trimtab.errors import UserError
from trimtab.examples.reviews import card, corpus, evaluation
from trimtab.examples.reviews.base_model import Recipe, Training, endless, main
from trimtab.examples.reviews.data import split_sentences
from trimtab.examples.reviews.evaluation import loss_of
from trimtab.examples.reviews.muon import Muon, orthogonalised

ODD = ['café -- it\'s " fun " , naïve .', "在电影里 🎬 !", "a\nb  c", "9 ½ weeks"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return corpus.train_tokenizer(sentence.text for sentence in split_sentences("train")[:2000])


@pytest.mark.parametrize("text", ODD)
def test_the_tokenizer_loses_nothing(tokenizer: PreTrainedTokenizerFast, text: str, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = loaded(text)["input_ids"]
    assert ids[0] == loaded.bos_token_id
    assert loaded.bos_token_id not in ids[1:]
    assert loaded.decode(ids, skip_special_tokens=True) == text
    assert ids == tokenizer(text)["input_ids"]


def test_training_the_tokenizer_twice_gives_the_same(tokenizer: PreTrainedTokenizerFast) -> None:
    again = corpus.train_tokenizer(sentence.text for sentence in split_sentences("train")[:2000])
    assert again.get_vocab() == tokenizer.get_vocab()
    assert len(again) == 4096
    assert again.convert_ids_to_tokens([0, 1, 2]) == ["<s>", "</s>", "<pad>"]


def test_documents_that_quote_a_held_out_sentence_are_left_out(tmp_path: Path) -> None:
    quoted = split_sentences("held_out")[7].text
    path = tmp_path / "documents.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for text in (
            "i liked it . \nso will you .",
            f'they say : " {quoted.upper()} " , and they are right .',
        ):
            file.write(json.dumps({"text": text, "positive": True}) + "\n")
    assert corpus.read_documents(path) == ["i liked it . so will you ."]


def test_missing_documents_are_named() -> None:
    with pytest.raises(UserError, match=r"nowhere\.jsonl\.gz: there is no such file; give the reviews"):
        corpus.read_documents(Path("nowhere.jsonl.gz"))


def test_running_text_holds_every_token_once() -> None:
    source = corpus.RunningText([list(range(0, 1000)), list(range(1000, 3000))])
    first, second = (torch.cat(source.batches(epoch, 512)) for epoch in (0, 1))
    assert first.shape[1] == corpus.CONTEXT
    assert sorted(first.flatten().tolist()) == list(range(int(first.min()), int(first.max()) + 1))
    assert first.shape != second.shape or not torch.equal(first, second)


def test_sentences_come_once_each_padded_and_within_the_budget() -> None:
    rows = [[7] * length for length in (3, 9, 4, 4, 8, 2)]
    batches = corpus.Sentences(rows).batches(epoch=0, tokens=16)
    assert sorted(int((row != corpus.IGNORED).sum()) for batch in batches for row in batch) == [
        2,
        3,
        4,
        4,
        8,
        9,
    ]
    assert all(batch.numel() <= 16 for batch in batches)


def test_endless_goes_on_where_it_stopped() -> None:
    source = corpus.Sentences([[length] * length for length in range(2, 12)])
    whole = endless(source, 20, start=0)
    expected = [next(whole) for _ in range(25)][11:]
    resumed = endless(source, 20, start=11)
    for batch in expected:
        assert torch.equal(next(resumed), batch)


def test_the_loss_is_transformers_own() -> None:
    model = tiny_model()
    batch = corpus.pad([[0, 5, 6, 7, 1], [0, 8, 1]])
    attention = (batch != corpus.IGNORED).long()
    theirs = model(input_ids=batch.clamp(min=0), attention_mask=attention, labels=batch).loss
    assert loss_of(model, batch).item() == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (48, 48)])
def test_muon_moves_as_torch_does(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(shape))
    theirs, start = torch.nn.Parameter(ours.detach().clone()), ours.detach().clone()
    optimizers = Muon([ours], lr=0.01), torch.optim.Muon([theirs], lr=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    # torch computes in bf16, which keeps about three digits
    assert (ours - theirs).norm() < 0.02 * (ours - start).norm()


def test_orthogonalised_has_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(40, 80)))
    assert 0.6 < values.min() < values.max() < 1.3


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    batches = [torch.randint(0, 32, (4, 8), generator=torch.Generator().manual_seed(n)) for n in range(6)]
    unbroken, broken = new_training(), new_training()
    for batch in batches:
        unbroken.step(batch)
    for batch in batches[:3]:
        broken.step(batch)
    broken.save(tmp_path)
    resumed = new_training(seed=5)  # other weights, so that only the state can make them equal
    resumed.load(tmp_path)
    assert resumed.at == broken.at
    for batch in batches[3:]:
        resumed.step(batch)
    for ours, theirs in zip(resumed.model.parameters(), unbroken.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_the_command_writes_a_model_and_goes_on_from_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = split_sentences("held_out")[:24]
    for module in (evaluation, card):  # measured on a few sentences, to be quick
        monkeypatch.setattr(module, "split_sentences", lambda split: few)
    documents = tmp_path / "documents.jsonl.gz"
    with gzip.open(documents, "wt", encoding="utf-8") as file:
        file.write(json.dumps({"text": "i liked it . \n" * 400, "positive": True}) + "\n")
    out, work = tmp_path / "model", tmp_path / "work"
    command = ["--documents", documents, "--out", out, "--work", work, "--minutes", "0.0001"]
    main([str(argument) for argument in command])
    assert "step     1" in capsys.readouterr().out
    main([str(argument) for argument in command])
    printed = capsys.readouterr().out
    assert f"going on from step 1 in {work}" in printed
    assert "minute" not in printed  # its time is over: nothing is trained again
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        ids = AutoTokenizer.from_pretrained(out)(few[0].text, return_tensors="pt")["input_ids"]
        assert bool(torch.isfinite(model(ids).logits).all())
    told = re.search(r"perplexity per token \| ([\d.]+) ", (out / "README.md").read_text(encoding="utf-8"))
    assert told is not None
    assert f"held-out perplexity {told[1]} per token" in printed


def test_the_recipe_warms_up_and_ends_at_zero() -> None:
    recipe = replace(
        Recipe(), learning_rate=1.0, warmup=0.1, sentences_first=0.2, sentences_last=0.8, mixing=0.5
    )
    assert [recipe.rate(p) for p in (0.0, 0.05, 0.1, 0.55, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert [recipe.sentence_share(p) for p in (0.0, 0.5, 0.75, 1.0)] == pytest.approx([0.2, 0.2, 0.5, 0.8])


def tiny_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config)


def new_training(seed: int = 0) -> Training:
    torch.manual_seed(seed)
    training = Training(Recipe(), tiny_model())
    training.at.seconds = 60.0  # past the first moment, at which the learning rate is zero
    return training
