"""Models in and out: whole, adapted, merged, with and without a score head."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM
from tests import tiny
from tests.models import alone, causal_model, letter_tokenizer, pack
from transformers import AutoModelForCausalLM

from trimtab.errors import UserError
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.load import ModelConfig, load_language_policy, load_reward_model

IDS = torch.tensor([[0, 5, 9, 12, 7]])


def config(model: str | Path, **options: Any) -> ModelConfig:
    return ModelConfig(str(model), precision=options.pop("precision", "fp32"), **options)


def adapted(model: str | Path, folder: Path, **options: Any) -> LanguagePolicy:
    """Trains an adapter, or pretends to, and saves it."""
    policy = load_language_policy(config(model, lora_rank=2, **options))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return policy


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits.float()


def test_an_adapter_is_merged_when_it_is_loaded(tmp_path: Path) -> None:
    policy = adapted(tiny.model_folder(), tmp_path)
    expected = logits(policy.model)
    policy.save(tmp_path)
    merged = load_language_policy(config(tmp_path), trainable=False)
    assert not merged.has_adapter
    torch.testing.assert_close(logits(merged.model), expected, rtol=0, atol=1e-5)
    assert (expected - logits(AutoModelForCausalLM.from_pretrained(tiny.model_folder()))).abs().max() > 0.1


def test_an_adapter_is_found_again_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny.model_folder(), tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    policy = adapted("base", tmp_path / "adapter")
    expected = logits(policy.model)
    policy.save(tmp_path / "adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = AutoPeftModelForCausalLM.from_pretrained("../adapter")
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_adapter_on_a_merged_model_is_saved_whole(tmp_path: Path, precision: str) -> None:
    """Its base is in no folder; an adapter alone would come back on the wrong base."""
    first = adapted(tiny.model_folder(), tmp_path / "first")
    first.save(tmp_path / "first")
    second = adapted(tmp_path / "first", tmp_path / "second", precision=precision)
    expected = logits(second.model.float())  # the bf16 base below the fp32 adapter, without rounding
    second.save(tmp_path / "second")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "second")
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-4)
    assert (expected - logits(load_language_policy(config(tmp_path / "first")).model)).abs().max() > 0.1
    assert not (tmp_path / "second" / "adapter_config.json").exists()


def test_a_reward_model_from_an_adapter_has_its_trunk_and_a_head_of_the_seed(tmp_path: Path) -> None:
    policy = adapted(tiny.model_folder(), tmp_path)
    policy.save(tmp_path)
    merged = load_language_policy(config(tmp_path))
    one, again, two = (load_reward_model(config(tmp_path), seed=seed).model for seed in (1, 1, 2))
    assert torch.equal(one.score.weight, again.score.weight)
    assert not torch.equal(one.score.weight, two.score.weight)
    trunk = dict(one.model.named_parameters())
    for name, weight in merged.model.model.named_parameters():
        torch.testing.assert_close(trunk[name], weight)


def test_a_reward_models_adapter_brings_its_head(tmp_path: Path) -> None:
    model = load_reward_model(config(tiny.model_folder(), lora_rank=2), seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25)
    model.save(tmp_path)
    frozen = load_reward_model(config(tmp_path), trainable=False)
    torch.testing.assert_close(logits(frozen.model), logits(model.model), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="the adapter of a reward model; a language model is needed here"):
        load_language_policy(config(tmp_path))


def test_a_reward_model_is_no_language_model(tmp_path: Path) -> None:
    load_reward_model(config(tiny.model_folder())).save(tmp_path)
    with pytest.raises(UserError, match=r"not a language model.*no lm_head\.weight"):
        load_language_policy(config(tmp_path))
    with pytest.raises(UserError, match="not a reward model: it has no score head"):
        load_reward_model(config(tiny.model_folder()), trainable=False)


def test_tied_embeddings_lack_no_head(tmp_path: Path) -> None:
    causal_model(tie_word_embeddings=True).save_pretrained(tmp_path)
    letter_tokenizer().save_pretrained(tmp_path)
    policy = load_language_policy(config(tmp_path))
    expected = logits(AutoModelForCausalLM.from_pretrained(tmp_path))
    torch.testing.assert_close(logits(policy.model), expected, rtol=0, atol=1e-5)


def test_what_is_trained() -> None:
    whole = load_language_policy(config(tiny.model_folder()))
    assert len(whole.parameters()) == len(list(whole.model.parameters()))
    frozen = load_language_policy(config(tiny.model_folder()), trainable=False)
    assert not frozen.parameters() and not frozen.model.training
    lora = load_language_policy(config(tiny.model_folder(), lora_rank=2, lora_targets="q_proj, v_proj"))
    names = {n for n, p in lora.model.named_parameters() if p.requires_grad}
    assert len(names) == 8 and all("q_proj" in n or "v_proj" in n for n in names)  # 2 layers x 2 x (A, B)


def test_a_tokenizer_whose_padding_ends_responses_gets_another(tmp_path: Path) -> None:
    causal_model(vocab_size=33).save_pretrained(tmp_path)  # the new token needs a new row
    letter_tokenizer(pad_token="</s>").save_pretrained(tmp_path)
    model = load_reward_model(config(tmp_path))
    pad = model.tokenizer.pad_token_id
    assert pad not in (None, model.tokenizer.eos_token_id)
    assert model.model.config.pad_token_id == pad < model.model.get_input_embeddings().num_embeddings


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nothing", r"\./nothing: no such folder; a model is a folder or a hub name"),
        (
            "some-owner/some-model",
            "neither a folder here nor an earlier download, and the hub does not answer; check the name",
        ),
        ("{empty}", "there is no config.json in this folder; it holds no model that transformers saved"),
        (__file__, r"test_load\.py: a file; a model is a folder, or a hub name"),
        ("review", r"review: neither a folder here .*; did you mean 'reviews'\?"),
        ("{base}-1", r"-1: no such folder; did you mean '{base}'\?"),
        ("", "there is no config.json in this folder"),
    ],
)
def test_names_that_are_no_model(tmp_path: Path, name: str, message: str) -> None:
    base = shutil.copytree(tiny.model_folder(), tmp_path / "base")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message.format(base=base)) as caught:
        load_language_policy(config(name.format(empty=tmp_path / "empty", base=base)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": -1}, "lora_rank is -1; it must be 0 or more"),
        ({"lora_alpha": 0}, "lora_alpha is 0; it must be a number above 0"),
        ({"lora_rank": 2, "lora_targets": "nothing"}, "--lora-targets nothing: "),
        ({"device": "abacus"}, "--device abacus: not available here"),
    ],
)
def test_options_out_of_bounds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_language_policy(config(tiny.model_folder(), **options))


DROPPING: dict[str, dict[str, Any]] = {
    "OPT": {"dropout": 0.5, "attention_dropout": 0.5, "hidden_size": 32, "ffn_dim": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32,
            "max_position_embeddings": 64},
    "GPTJ": {"attn_pdrop": 0.5, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64},
    "Falcon": {"attention_dropout": 0.5, "hidden_dropout": 0.5, "hidden_size": 32, "num_hidden_layers": 2,
               "num_attention_heads": 4},
}  # fmt: skip


@pytest.mark.parametrize("architecture", DROPPING)
def test_nothing_is_dropped_in_training(tmp_path: Path, architecture: str) -> None:
    """In modules, in attributes, and in configurations that are read as the model runs."""
    settings = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    made = getattr(transformers, f"{architecture}Config")(**settings, **DROPPING[architecture])
    torch.manual_seed(0)
    model = getattr(transformers, f"{architecture}ForCausalLM")(made)
    model.save_pretrained(tmp_path)
    letter_tokenizer().save_pretrained(tmp_path)
    policy = load_language_policy(config(tmp_path))
    prompt, response = [0, 5, 9], [12, 7, 1]
    assert policy.model.training
    found = policy.logprobs(pack([(prompt, response)]))[0]
    torch.testing.assert_close(found, alone(model.eval(), prompt, response), rtol=0, atol=1e-5)
