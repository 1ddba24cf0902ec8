"""Adapters that are damaged, or whose base is: one sentence for each."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests import tiny
from tests.bad_folders import WEIGHTS, config, edit, refusal, without_tokenizer
from tests.models import causal_model, letter_tokenizer

from trimtab.errors import UserError
from trimtab.policies.load import load_language_policy, load_reward_model


def grown(adapter: Path, folder: Path, **settings: Any) -> None:
    """Puts another base in the place of the adapter's."""
    shutil.rmtree(folder)
    causal_model(**settings).save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)


def deeper(adapter: Path, folder: Path) -> None:
    """Names of modules in every layer, as most adapters have them, say how many layers there must be."""
    edit(adapter / "adapter_config.json", target_modules=["q_proj"])
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({k: v for k, v in weights.items() if "q_proj" in k}, adapter / "adapter_model.safetensors")
    grown(adapter, folder, num_hidden_layers=3)


def nan_in_adapter(adapter: Path, folder: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    next(iter(weights.values())).view(-1)[0] = math.nan
    save_file(weights, adapter / "adapter_model.safetensors")


def in_adapter(**values: Any) -> Callable[[Path, Path], None]:
    return lambda adapter, folder: edit(adapter / "adapter_config.json", **values)


ADAPTERS: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "base gone": (
        lambda a, f: shutil.rmtree(f),
        "the base of this adapter cannot be loaded (base_model_name_or_path in its adapter_config.json says "
        "where that is): {folder}: no such folder",
    ),
    "base damaged": (
        lambda a, f: (f / WEIGHTS).write_bytes(b"xx"),
        "the base of this adapter cannot be loaded (",
    ),
    "base unnamed": (
        in_adapter(base_model_name_or_path=None),
        "adapter_config.json: names no base; put its folder",
    ),
    "base wider": (
        lambda a, f: grown(a, f, hidden_size=64),
        "the adapter does not fit its base {folder}: base_model.model.model.layers.0.self_attn.q_proj."
        "lora_A.default.weight has the shape [2, 32], where [2, 64] is needed",
    ),
    "base deeper": (
        deeper,
        "the adapter does not fit its base {folder}, as base_model.model.model.layers.2.self_attn.q_proj.",
    ),
    "base shallower": (lambda a, f: grown(a, f, num_hidden_layers=1), "does not fit its base {folder}, as "),
    "base quantised": (
        lambda a, f: edit(
            f / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
        ),
        "its base has quantised weights (bitsandbytes), into which no adapter is merged without loss",
    ),
    "no weights": (
        lambda a, f: (a / "adapter_model.safetensors").unlink(),
        "there are no weights (adapter_model.safetensors) in this folder",
    ),
    "weights cut off": (
        lambda a, f: (a / "adapter_model.safetensors").write_bytes(b"x" * 50),
        "adapter_model.safetensors: damaged (",
    ),
    "configuration cut off": (
        lambda a, f: (a / "adapter_config.json").write_text("{"),
        "adapter_config.json: not valid JSON (",
    ),
    "unknown kind": (in_adapter(peft_type="LORE"), "an adapter of an unknown peft_type, 'LORE'"),
    "other modules": (in_adapter(target_modules=["query"]), "no adapter could be read from it: "),
    "NaN": (nan_in_adapter, "holds values that are no finite numbers"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_damaged_adapter_is_refused_in_one_sentence(folder: Path, adapter: Path, name: str) -> None:
    damage, message = ADAPTERS[name]
    damage(adapter, folder)
    said = refusal(adapter)
    assert said.startswith(str(adapter)) and message.format(folder=folder) in said


def test_an_adapter_without_tokenizer_takes_that_of_its_base(adapter: Path) -> None:
    without_tokenizer(adapter)
    assert load_language_policy(config(adapter)).tokenizer.get_vocab()["a"] == 4


def test_a_reward_models_adapter_without_head_is_no_reward_model(tmp_path: Path) -> None:
    load_reward_model(config(tiny.model_folder(), lora_rank=2)).save(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if ".score." not in k}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(UserError, match="not a reward model: its adapter has no score head"):
        load_reward_model(config(tmp_path), trainable=False)
