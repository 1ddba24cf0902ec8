"""What methods ask of the thing they train."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trimtab.feedback.sequences import Sequences
from trimtab.objectives.distributions import Family


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


class Scorer(Protocol):
    """Gives one score for each response: [S]."""

    tokenizer: Any

    @property
    def device(self) -> torch.device: ...

    def scores(self, sequences: Sequences) -> Tensor: ...


ABSENT: Any = None  # what was not asked for, or what there is no critic for


@dataclass(frozen=True)
class Evaluation:
    """What actor and critic say of steps that were taken. All [B, T], zero beyond a row's end.

    Attributes:
        logprobs: of the actions taken, in nats.
        entropy: of the distributions they were taken from, in nats; None if it was not asked for.
        values, next_values: of the states before and after each step; None without a critic.
    """

    logprobs: Tensor
    entropy: Tensor = ABSENT
    values: Tensor = ABSENT
    next_values: Tensor = ABSENT


class Actor(Trainable, Protocol):
    """A policy that learns from what it does. `inputs` are Sequences, or observations with actions.

    `distributions` gives the whole distributions of the M steps [M, K], in the order of the mask's rows;
    `family` says what they mean; `distributions_with` gives them for other values of some of the policy's
    `named_parameters`, and can be differentiated forwards. A critic without a learning rate of its own
    learns at the policy's, and one norm bounds both gradients. `is_flat`: all parameters stand in one or two
    vectors.
    """

    family: Family
    is_flat: bool

    def evaluate(self, inputs: Any, *, entropy: bool = False) -> Evaluation: ...
    def named_parameters(self) -> dict[str, nn.Parameter]: ...
    @property
    def critic_learning_rate(self) -> float | None: ...
    def critic_parameters(self) -> list[nn.Parameter]: ...
    def distributions(self, inputs: Any) -> Tensor: ...
    def distributions_with(self, parameters: dict[str, Tensor], inputs: Any) -> Tensor: ...
