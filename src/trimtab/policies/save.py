"""Models written in the field's formats."""

from pathlib import Path
from typing import Any


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes safetensors, configuration, tokenizer and chat template for from_pretrained.

    An adapter is written alone and names the folder of its base. Where its base was itself merged from
    an adapter there is no such folder: then the whole model is written, and `model` cannot be used on.
    """
    for adapter in getattr(model, "peft_config", {}).values():
        if not adapter.base_model_name_or_path:
            model = model.float().merge_and_unload()  # in bf16 small changes would be lost
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
