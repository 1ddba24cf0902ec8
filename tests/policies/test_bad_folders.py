"""Folders of models that are damaged, foreign or not what they say: one sentence for each."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.bad_folders import (
    INDEX,
    WEIGHTS,
    Damage,
    config,
    edit,
    in_parts,
    logits,
    refusal,
    without_tokenizer,
)
from tests.models import causal_model, letter_tokenizer

from trimtab.errors import UserError
from trimtab.feedback.records import Message
from trimtab.feedback.tokenise import encode_prompt
from trimtab.policies.load import load_language_policy, load_reward_model


def in_config(**values: Any) -> Damage:
    return lambda folder: edit(folder / "config.json", **values)


def change(folder: Path, name: str, value: float) -> None:
    """One number of one tensor."""
    weights = load_file(folder / WEIGHTS)
    weights[name].view(-1)[7] = value
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def rename_tensor(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["model.layers.0.mlp.up_proj.weihgt"] = weights.pop("model.layers.0.mlp.up_proj.weight")
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def only_a_pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    (folder / WEIGHTS).write_text(text)


def move_inside(folder: Path) -> None:
    (folder / "checkpoint-5").mkdir()
    for file in list(folder.iterdir()):
        if file.is_file():
            file.rename(folder / "checkpoint-5" / file.name)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no config": (
        lambda f: (f / "config.json").unlink(),
        "there is no config.json in this folder; it holds no",
    ),
    "one level too high": (move_inside, "no config.json in this folder; did you mean {folder}/checkpoint-5?"),
    "config cut off": (
        lambda f: (f / "config.json").write_text('{"model_type": "lla'),
        "config.json: not valid JSON (Unterminated string",
    ),
    "config no object": (lambda f: (f / "config.json").write_text("[]"), "config.json: holds no JSON object"),
    "unknown architecture": (
        in_config(model_type="lama"),
        f"'lama', which transformers {transformers.__version__} does not know; did you mean 'llama'?",
    ),
    "impossible sizes": (in_config(num_attention_heads=0), "no configuration could be read from it: "),
    "weights cut off": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1]),
        "model.safetensors: damaged (Error while deserializing header: ",
    ),
    "weights empty": (lambda f: (f / WEIGHTS).write_bytes(b""), "model.safetensors: damaged ("),
    "no weights": (
        lambda f: (f / WEIGHTS).unlink(),
        "there are no weights (model.safetensors) in this folder",
    ),
    "a pointer": (only_a_pointer, "model.safetensors: only a pointer of Git LFS; run `git lfs pull`"),
    "GGUF": (
        lambda f: (f / WEIGHTS).rename(f / "q4.gguf"),
        "q4.gguf cannot be trained; take the safetensors",
    ),
    "a part missing": (
        lambda f: in_parts(f)[1].unlink(),
        "model-00002-of-00003.safetensors: missing, but model.safetensors.index.json names it; copy",
    ),
    "a part damaged": (
        lambda f: in_parts(f)[2].write_bytes(b"x" * 99),
        "model-00003-of-00003.safetensors: damaged (",
    ),
    "an index of nothing": (
        lambda f: in_parts(f) and edit(f / INDEX, weight_map={}),
        "model.safetensors.index.json: names no weights; copy it again",
    ),
    "narrower": (
        in_config(intermediate_size=32),
        "layers.0.mlp.down_proj.weight has the shape [32, 64] in the weights, but config.json "
        "describes [32, 32]",
    ),
    "no layers in config": (in_config(num_hidden_layers=0), "the weights have more layers than config.json"),
    "positions that overflow": (
        in_config(rope_parameters={"rope_type": "default", "rope_theta": -1}),
        "it computes no finite numbers; config.json does not belong to these weights",
    ),
    "an end that is no id": (
        lambda f: edit(f / "generation_config.json", eos_token_id="</s>"),
        "generation_config.json: eos_token_id holds ['</s>'], not ids; correct it",
    ),
    "fewer layers in config": (
        in_config(num_hidden_layers=1),
        "the weights have more layers than config.json",
    ),
    "more layers in config": (
        in_config(num_hidden_layers=3),
        "the weights lack 9 of the tensors that config.json describes, such as model.layers.2.",
    ),
    "a tensor of another name": (
        rename_tensor,
        "lack 1 of the tensors that config.json describes, such as model.",
    ),
    "NaN": (
        lambda f: change(f, "model.layers.1.mlp.up_proj.weight", math.nan),
        "model.layers.1.mlp.up_proj.weight holds values that are no finite numbers",
    ),
    "infinite": (
        lambda f: change(f, "lm_head.weight", -math.inf),
        "lm_head.weight holds values that are no finite",
    ),
    "no tokenizer": (without_tokenizer, "tokenizer"),
    "tokenizer cut off": (
        lambda f: (f / "tokenizer.json").write_text('{"version": "1.0", '),
        "no tokenizer could be read from it: ",
    ),
    "quantised": (
        in_config(quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantised weights (gptq) cannot be trained; train an adapter on them with --lora-rank 16",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_sentence(folder: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(folder)
    said = refusal(folder)
    assert (said.startswith(str(folder)) or "generation_config" in said) and message.format(
        folder=folder
    ) in said


def test_a_bit_that_flips_in_the_header_changes_no_weight_unseen(folder: Path) -> None:
    expected = logits(transformers.AutoModelForCausalLM.from_pretrained(folder))
    file = folder / WEIGHTS
    whole = file.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    refused = 0
    for bit in [*range(0, 64, 9), *range(64, 8 * (8 + header), 8 * header // 30 + 1)]:
        flip(file, bit)
        try:
            policy = load_language_policy(config(folder))
            assert torch.equal(logits(policy.model), expected), bit
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
        file.write_bytes(whole)
    assert refused > 20


def test_parts_that_are_all_there_are_loaded(folder: Path) -> None:
    expected = logits(transformers.AutoModelForCausalLM.from_pretrained(folder))
    assert len(in_parts(folder)) == 3
    assert torch.equal(logits(load_language_policy(config(folder)).model), expected)


def save_other(folder: Path, kind: str, architecture: str, **settings: Any) -> None:
    """A small model of another architecture, with the letters' tokenizer."""
    shutil.rmtree(folder)
    torch.manual_seed(0)
    other = getattr(transformers, architecture)(
        getattr(transformers, f"{kind}Config")(vocab_size=40, **settings)
    )
    other.save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)


BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}


@pytest.mark.parametrize(
    ("kind", "architecture", "settings", "message"),
    [
        ("T5", "T5ForConditionalGeneration", T5, "t5 is not a causal language model"),
        ("Bart", "BartForConditionalGeneration", BART, "bart is not a causal language model"),
        ("Bert", "BertForMaskedLM", BERT, "bert looks at the words that it should predict"),
    ],
)
def test_an_encoder_is_no_causal_language_model(
    folder: Path, kind: str, architecture: str, settings: dict[str, Any], message: str
) -> None:
    save_other(folder, kind, architecture, **settings)
    assert message in refusal(folder)


def test_an_architecture_without_classifier_makes_no_reward_model(folder: Path) -> None:
    causal_model("Mamba").save_pretrained(folder)
    with pytest.raises(UserError, match=r"transformers has no reward models .* of the kind mamba"):
        load_reward_model(config(folder))


def test_a_classifier_of_two_classes_is_no_reward_model(folder: Path) -> None:
    two = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    two.save_pretrained(folder)
    with pytest.raises(UserError, match="its head has 2 outputs; a reward model has one"):
        load_reward_model(config(folder))


def test_a_reward_model_lacks_nothing_but_its_head(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(UserError, match="the weights lack 9 of the tensors"):
        load_reward_model(config(folder))


def test_a_reward_model_with_tied_embeddings_is_no_language_model(tmp_path: Path) -> None:
    causal_model(tie_word_embeddings=True).save_pretrained(tmp_path)
    letter_tokenizer().save_pretrained(tmp_path)
    load_reward_model(config(tmp_path)).save(tmp_path / "reward")
    assert "not a language model, as a reward model is not" in refusal(tmp_path / "reward")


@pytest.mark.parametrize(
    ("rows", "special", "message"),
    [
        (20, {}, r"the tokenizer has ids up to 32 \('\\n'\), but the model's embedding has 20 rows, 0 to 19"),
        (33, {"eos_token": "<|im_end|>"}, r"ids up to 33 \('<\|im_end\|>'\), but .* has 33 rows, 0 to 32"),
    ],
)
@pytest.mark.parametrize("load", [load_language_policy, load_reward_model])
def test_a_tokenizer_with_more_ids_than_rows_is_refused(
    tmp_path: Path, rows: int, special: dict[str, str], message: str, load: Callable[..., Any]
) -> None:
    causal_model(vocab_size=rows).save_pretrained(tmp_path)
    letter_tokenizer(**special).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        load(config(tmp_path))


CHAT = (Message("user", "hi"),)


def test_a_tokenizer_without_chat_template_or_end_writes_a_plain_transcript(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token=None)
    tokenizer = load_language_policy(config(folder)).tokenizer
    assert tokenizer.eos_token is None and tokenizer.chat_template is None
    answered = (*CHAT, Message("assistant", "yes"), Message("user", "no"))
    assert tokenizer.decode(encode_prompt(tokenizer, answered)) == (
        "<s>\n\numan hi\n\nssistant yes\n\numan no\n\nssistant"  # what the letters know of it
    )
    no_start = letter_tokenizer(bos_token=None, eos_token=None)
    with pytest.raises(UserError, match="a prompt has no tokens, and the tokenizer no BOS or EOS"):
        encode_prompt(no_start, "")


def test_of_several_chat_templates_the_default_is_taken() -> None:
    tokenizer = letter_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages[0].content }} there", "tools": "none"}
    assert tokenizer.decode(encode_prompt(tokenizer, CHAT)) == "hi there"
    tokenizer.chat_template = {"tools": "none"}
    with pytest.raises(UserError, match="the chat template refuses a conversation of turns 'user': "):
        encode_prompt(tokenizer, CHAT)


@pytest.mark.parametrize("load", [load_language_policy, load_reward_model])
def test_a_tokenizer_without_padding_serves(folder: Path, load: Callable[..., Any]) -> None:
    edit(folder / "tokenizer_config.json", pad_token=None)
    loaded = load(config(folder))
    assert loaded.tokenizer("ab").input_ids == [4, 5]
