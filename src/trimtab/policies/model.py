"""What a language policy and a reward model have in common: weights, tokenizer, precision, saving."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trimtab.policies.trunk import Trunk

OWN = "default"  # peft's name for a model's own adapter; others on its trunk are a critic's or a reward's


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
        """The parameters that are trained, without those of other adapters on the same trunk."""
        others = getattr(self.model, "peft_config", {}).keys() - {OWN}
        named = self.model.named_parameters()
        return [p for name, p in named if p.requires_grad and others.isdisjoint(name.split("."))]

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
        if not self.has_adapter:
            self.model.save_pretrained(folder)
        elif self.model.peft_config[OWN].base_model_name_or_path:
            self.model.save_pretrained(folder, selected_adapters=[OWN])
        else:  # merged in fp32: in bf16 small changes would be lost
            self.model.float().merge_and_unload().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@contextmanager
def keeping_trainable(model: nn.Module) -> Iterator[None]:
    """Afterwards the same parameters are trained as before.

    peft freezes all adapters but the active one whenever it switches adapters or turns them off, and
    autograd then drops the gradients of graphs that still wait for their backward pass.
    """
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    finally:
        for parameter, trained in before:
            parameter.requires_grad_(trained)
