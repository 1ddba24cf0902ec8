"""Ways to spoil the folder of a model, and what is said of it then."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from trimtab.errors import UserError
from trimtab.policies.load import ModelConfig, load_language_policy

IDS = torch.tensor([[0, 5, 9, 12, 7]])
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Damage = Callable[[Path], Any]


def config(model: str | Path, **options: Any) -> ModelConfig:
    return ModelConfig(str(model), precision="fp32", device="cpu", **options)


def refusal(model: str | Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_language_policy(config(model, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def pickle_weights(folder: Path, name: str = "pytorch_model.bin") -> None:
    torch.save(load_file(folder / WEIGHTS), folder / name)
    (folder / WEIGHTS).unlink()


def in_parts(folder: Path) -> list[Path]:
    """Writes the weights as several files with an index."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    return sorted(folder.glob("model-*.safetensors"))


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
