"""What a method is: the feedback it takes, its parameters, its loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

from torch import Tensor

from trimtab.errors import UserError, nearest
from trimtab.feedback.batches import Batch
from trimtab.feedback.records import Kind

Metrics = dict[str, Tensor]
B = TypeVar("B", bound=Batch)
M = TypeVar("M", bound="type[Method[Any]]")


@dataclass(frozen=True, kw_only=True)
class Method(Generic[B]):
    """A way to train. Subclasses are frozen dataclasses whose fields are the method's parameters.

    Class attributes make the summary table of `trimtab methods`:
        name: set by `@method`.
        stage: what it trains; "supervised", "reward model" or "preference".
        data: the kind of feedback that it takes.
        trains: "policy" or "reward model".
        needs_reference: whether batches carry the reference's log-probs.
        needs_mismatched: whether batches carry prompts with responses to other prompts.
        needs_reward_model: whether a reward model must be trained first.
        online: whether it needs new responses of the policy while it trains.
        strength: the parameter that a comparison sweeps.
        learning_rate: of AdamW on all weights; adapters take ten times as much.
        source: paper and equation.
        when: when to use it, in a sentence.
    """

    name: ClassVar[str]
    stage: ClassVar[Literal["supervised", "reward model", "preference"]]
    data: ClassVar[Kind]
    trains: ClassVar[Literal["policy", "reward model"]] = "policy"
    needs_reference: ClassVar[bool] = False
    needs_mismatched: ClassVar[bool] = False
    needs_reward_model: ClassVar[bool] = False
    online: ClassVar[bool] = False
    strength: ClassVar[str | None] = None
    learning_rate: ClassVar[float]
    source: ClassVar[str]
    when: ClassVar[str]

    def prepare(self, policy: Any, batches: list[B]) -> list[B]:
        """Called before each optimiser step with all its micro-batches, without gradient."""
        return batches

    def units(self, batch: B) -> int:
        """How many losses `loss` returns for this batch; the step's loss is their mean."""
        return batch.size

    def loss(self, policy: Any, batch: B) -> tuple[Tensor, Metrics]:
        """Unreduced losses [units], and metrics as tensors whose mean is reported."""
        raise TypeError(f"{type(self).__name__} defines no loss")

    def check(self, **bounds: tuple[float, float]) -> None:
        """Raises UserError if a parameter is outside its (low, high) bounds."""
        for parameter, (low, high) in bounds.items():
            value = getattr(self, parameter)
            if not low <= value <= high:
                raise UserError(f"--{parameter} {value}: {self.name} takes values from {low:g} to {high:g}")


METHODS: dict[str, type[Method[Any]]] = {}


def method(name: str) -> Callable[[M], M]:
    """Registers a method under its name."""

    def register(cls: M) -> M:
        cls.name = name
        METHODS[name] = cls
        return cls

    return register


def find(name: str) -> type[Method[Any]]:
    """The method of this name. Raises UserError that names the nearest one."""
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}; {nearest(name, METHODS)}")
    return METHODS[name]
