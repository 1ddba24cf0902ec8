"""What a language policy and a reward model have in common: weights, tokenizer, precision, saving."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trimtab.policies.trunk import Trunk


class TransformersModel:
    """A transformers model with its tokenizer.

    Args:
        model: a transformers model, or a PeftModel around one.
        tokenizer: its tokenizer; saved with it.
        autocast: dtype for matrix products, or None for the weights' own.
    """

    def __init__(self, model: Any, tokenizer: Any, autocast: torch.dtype | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.autocast = autocast
        self.trunk = Trunk(model)

    @property
    def device(self) -> torch.device:
        return self.trunk.device

    @property
    def has_adapter(self) -> bool:
        return hasattr(self.model, "disable_adapter")

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def autocasting(self) -> AbstractContextManager[Any]:
        """The precision in which the model computes."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    def save(self, folder: Path) -> None:
        """Writes safetensors, configuration, tokenizer and chat template for from_pretrained.

        An adapter is written alone and names the folder of its base. Where its base was itself merged
        from an adapter there is no such folder: then the whole model is written, and cannot be used on.
        """
        model = self.model
        for adapter in getattr(model, "peft_config", {}).values():
            if not adapter.base_model_name_or_path:
                model = model.float().merge_and_unload()  # in bf16 small changes would be lost
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
