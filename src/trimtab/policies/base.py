"""What methods ask of the thing they train."""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trimtab.feedback.sequences import Sequences


class Trainable(Protocol):
    """A model whose parameters are trained and which can be saved."""

    tokenizer: Any

    @property
    def device(self) -> torch.device: ...
    def parameters(self) -> list[nn.Parameter]: ...
    def save(self, folder: Path) -> None: ...


class Policy(Trainable, Protocol):
    """Gives log-probs of responses: [S, R], zero beyond a response's end."""

    def logprobs(self, sequences: Sequences) -> Tensor: ...


class Scorer(Trainable, Protocol):
    """Gives one score for each response: [S]."""

    def scores(self, sequences: Sequences) -> Tensor: ...
