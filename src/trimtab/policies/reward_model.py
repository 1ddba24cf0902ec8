"""Reward models: a decoder with a scalar head on the response's last token."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.feedback.sequences import Sequences
from trimtab.policies.save import save
from trimtab.policies.trunk import Trunk


class RewardModel:
    """A transformers sequence classifier with one output, read at the last token by length.

    transformers finds that token by looking for padding; where EOS and padding shared an id it
    would stop one token early, so the loader gives reward models a padding token of their own.
    """

    def __init__(self, model: Any, tokenizer: Any, autocast: torch.dtype | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.autocast = autocast
        self.trunk = Trunk(model)

    @property
    def device(self) -> torch.device:
        return self.trunk.device

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def scores(self, sequences: Sequences) -> Tensor:
        """One score for each response: [S] float32. Only differences mean something."""
        with self.autocasting():
            last = self.trunk.hidden(sequences)[sequences.last_index]
            return self.trunk.hf.score(last)[:, 0].float()

    def save(self, folder: Path) -> None:
        """Writes safetensors, configuration and tokenizer for AutoModelForSequenceClassification."""
        save(self.model, self.tokenizer, folder)

    def autocasting(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)
