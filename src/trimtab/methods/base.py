"""What a method is: the feedback it takes, its parameters, its loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args

from torch import Tensor

from trimtab.errors import UserError, nearest
from trimtab.feedback.batches import Batch
from trimtab.feedback.records import Kind
from trimtab.objectives.coefficients import ziegler
from trimtab.rollouts.rollout import Rollout

Metrics = dict[str, Tensor]
Stage = Literal["supervised", "reward model", "preference", "reinforcement learning"]
STAGES: tuple[Stage, ...] = get_args(Stage)
B = TypeVar("B", bound=Batch | Rollout)
M = TypeVar("M", bound="type[Method[Any]]")


@dataclass(frozen=True, kw_only=True)
class Method(Generic[B]):
    """A way to train. Subclasses are frozen dataclasses whose fields are the method's parameters.

    Class attributes make the summary table of `trimtab methods`:
        name: set by `@method`.
        stage: where in the road it stands.
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
    stage: ClassVar[Stage]
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


@dataclass(frozen=True, kw_only=True)
class OnlineMethod(Method[Rollout]):
    """A method that learns from what the policy does: n times collect, then k epochs on what was collected.

    `advantages` is called once for each collection, `whole_step` once with all of it in micro-batches,
    then `loss` for every micro-batch of the epochs.

    Class attributes:
        samples: responses to each prompt, if the run does not say.
        fewest_samples: how many of them it needs at least, to compare them.
        epochs: passes over each collection, if the run does not say.
        trains_actor: whether the optimiser moves the policy; TRPO moves it in `whole_step`.
    """

    stage = "reinforcement learning"
    data = "prompt"
    needs_reference = True
    needs_reward_model = True
    online = True
    strength = "beta"
    samples: ClassVar[int] = 4
    fewest_samples: ClassVar[int] = 1
    epochs: ClassVar[int] = 1
    trains_actor: ClassVar[bool] = True

    beta: float = 0.05
    """Price of a nat of KL to the reference, in units of the score: the leash."""
    kl_target: float | None = None
    """KL to the reference, in nats a response, that beta is steered to (Ziegler et al.); none leaves it."""

    def __post_init__(self) -> None:
        self.check(beta=(0.0, 1e3))
        if self.kl_target is not None:
            self.check(kl_target=(1e-6, 1e6))

    @property
    def needs_critic(self) -> bool:
        """Whether values of states are learned beside the policy."""
        return False

    @property
    def has_whole_step(self) -> bool:
        """Whether `whole_step` is more than the one here, which does nothing."""
        return type(self).whole_step is not OnlineMethod.whole_step

    @property
    def measures_step(self) -> bool:
        """Whether `adapt` wants `old_kl` measured after the epochs, by a pass of its own."""
        return False

    @property
    def reward_beta(self) -> float:
        """Share of beta's price that is paid in the rewards; the rest is a loss of the method's own."""
        return 1.0

    def coefficients(self) -> dict[str, float]:
        """What changes while training goes on, as it is at the start."""
        return {"beta": self.beta}

    def adapt(self, coefficients: Mapping[str, float], kl: float, old_kl: float) -> dict[str, float]:
        """The coefficients for the next collection.

        Args:
            kl: to the reference, in nats a response, of the collection.
            old_kl: from the policy before the update to the one after it, in nats a step.
        """
        if self.kl_target is None:
            return dict(coefficients)
        return {**coefficients, "beta": ziegler(coefficients["beta"], kl, self.kl_target)}

    def scheduled(self, coefficients: Mapping[str, float], progress: float) -> dict[str, float]:
        """The coefficients as they are after this share, 0 to 1, of the training."""
        return dict(coefficients)

    def advantages(self, rollout: Rollout) -> Rollout:
        """The collection with advantages, and returns if a critic learns."""
        raise TypeError(f"{type(self).__name__} defines no advantages")

    def whole_step(self, policy: Any, parts: list[Rollout]) -> dict[str, float]:
        """A step on the whole collection at once, before the epochs; returns metrics."""
        return {}

    @property
    def whitens_minibatches(self) -> bool:
        """Whether advantages are brought to mean 0 and standard deviation 1 in every minibatch."""
        return False

    @property
    def may_stop(self) -> bool:
        """Whether `too_far` is asked at every step."""
        return False

    def too_far(self, old_kl: float) -> bool:
        """Whether the epochs stop here, the policy having gone this many nats a step from the old one."""
        return False


@dataclass(frozen=True, kw_only=True)
class CriticMethod(OnlineMethod):
    """An online method with a learned value of states: advantages by GAE, losses of single steps."""

    gamma: float = 1.0
    """Discount of later rewards."""
    lam: float = 0.95
    """GAE's mixture: 1 trusts the returns, 0 the critic."""
    whiten: bool = True
    """Bring each collection's advantages to mean 0 and standard deviation 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(gamma=(0.0, 1.0), lam=(0.0, 1.0))

    @property
    def needs_critic(self) -> bool:
        return True

    def advantages(self, rollout: Rollout) -> Rollout:
        whitened = self.whiten and not self.whitens_minibatches
        return rollout.with_gae(gamma=self.gamma, lam=self.lam, whitened=whitened)

    def units(self, batch: Rollout) -> int:
        return batch.steps


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
