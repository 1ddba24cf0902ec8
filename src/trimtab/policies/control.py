"""Control policies: actor and critic of an environment with vectors as observations."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.errors import UserError, check_bounds
from trimtab.policies.base import ABSENT, Evaluation
from trimtab.policies.closed_form import ClosedForm
from trimtab.policies.heads import Head
from trimtab.policies.moments import Moments
from trimtab.policies.networks import Array, Flat, Perceptron, mlp
from trimtab.stateful import stateful


@dataclass(frozen=True)
class NetworkConfig:
    """The networks of actor and critic, which share nothing."""

    hidden: tuple[int, ...] = (64, 64)
    """Sizes of the hidden layers."""
    activation: Literal["tanh", "relu", "elu", "silu", "gelu"] = "tanh"
    """Between the layers."""
    orthogonal: bool = True
    """Orthogonal weights at the start, nearly zero for the actor's last layer; else torch's own."""
    log_std: float = 0.0
    """Logarithm of the standard deviation of continuous actions at the start."""
    closed_form: bool = True
    """Gradients written by hand, for tanh and relu: the same numbers, several times faster."""

    def __post_init__(self) -> None:
        if any(size < 1 for size in self.hidden):
            raise UserError(f"hidden is {self.hidden}; every layer needs 1 unit or more")
        check_bounds(self, log_std=(-20, 5))


def cut(values: Tensor, rows: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """`values[rows].split(sizes)`, which take twice as long."""
    return torch.split_with_sizes(values.index_select(0, rows), sizes)


@stateful
@dataclass(frozen=True)
class Steps:
    """What a control policy reads: B rows of T steps, or B single steps.

    Attributes:
        observations: [B, T + 1, O] before each step and after the last one; [B, O] of single steps. Float,
            normalised if the policy normalises.
        actions: [B, T] numbers, or [B, T, A] as drawn, before they are clipped; without T for single steps.
    """

    separable: ClassVar[bool] = True  # a step can be read without those before it

    observations: Tensor
    actions: Tensor

    @property
    def single(self) -> bool:
        return self.observations.dim() == 2

    def select(self, rows: Tensor) -> "Steps":
        return Steps(self.observations[rows], self.actions[rows])

    def cut(self, rows: Tensor, sizes: list[int]) -> list["Steps"]:
        """The rows of these numbers, so many at a time."""
        both = (cut(values, rows, sizes) for values in (self.observations, self.actions))
        return [Steps(*parts) for parts in zip(*both, strict=True)]

    def flattened(self, mask: Tensor) -> "Steps":
        """The steps of a mask [B, T] as single steps."""
        return Steps(self.observations[:, :-1][mask], self.actions[mask])

    @classmethod
    def join(cls, parts: Sequence["Steps"]) -> "Steps":
        return cls(torch.cat([p.observations for p in parts]), torch.cat([p.actions for p in parts]))


class ControlPolicy:
    """An actor, a critic if the method learns one, and the statistics that observations are normalised by.

    Perceptrons have passes written by hand (`closed`, None for other networks): they act, evaluate without
    gradient, and give the gradient of a method's loss. All else goes through torch.

    Args:
        observation_size: O.
        head: what kind of action; its size is that of the actor's outputs.
        actor, critic: modules [M, O] -> [M, A] and [M, 1] in place of perceptrons.
    """

    tokenizer = None
    is_flat = True
    device = torch.device("cpu")
    critic_learning_rate = None  # that of the actor: one optimiser, one norm of the gradient

    def __init__(
        self,
        observation_size: int,
        head: Head,
        config: NetworkConfig,
        *,
        has_critic: bool = True,
        seed: int = 0,
        actor: nn.Module | None = None,
        critic: nn.Module | None = None,
    ) -> None:
        self.head = head
        self.family = head.family
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            gains = (0.01, 1.0) if config.orthogonal else (None, None)
            sizes = (observation_size, *config.hidden)
            body = actor or mlp((*sizes, head.size), config.activation, gains[0])
            judge = critic or mlp((*sizes, 1), config.activation, gains[1])
        self.actor = Flat(head.module(body))
        self.critic = Flat(judge) if has_critic else None
        self.moments = Moments.of(observation_size)
        self.normalises = False
        closed = config.closed_form and Perceptron.suits(body) and Perceptron.suits(judge)
        self.closed = ClosedForm(self.head, self.actor, self.critic) if closed else None

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {"actor": self.actor.vector}

    def critic_parameters(self) -> list[nn.Parameter]:
        return [self.critic.vector] if self.critic else []

    def parameters(self) -> list[nn.Parameter]:
        return [self.actor.vector, *self.critic_parameters()]

    def normalised(self, observations: Array) -> Array:
        """Observations [..., O] as the networks take them, float32."""
        if not self.normalises:
            return observations.astype(np.float32, copy=False)
        return self.moments.normalise(observations)

    def act(self, observations: Array, rng: np.random.Generator | None) -> Array:
        """Actions [M] or [M, A] for normalised observations [M, O]; without `rng` the most likely ones."""
        if self.closed is not None:
            outputs, log_std = self.closed.outputs(observations)
        else:
            with torch.no_grad():
                distributions = self.actor(torch.from_numpy(observations)).numpy()
            outputs, log_std = distributions[:, : self.head.size], distributions[:, self.head.size :]
        return self.head.mode(outputs) if rng is None else self.head.sample(outputs, log_std, rng)

    def evaluate(self, inputs: Steps, *, entropy: bool = False) -> Evaluation:
        """Log-probs, entropy if asked for, and values if there is a critic: [B, T]; T is 1 for single steps.

        Values of next states are there for rows of steps only.
        """
        observations, actions = inputs.observations, inputs.actions
        if inputs.single:
            logprobs, spread, values = self._both(observations, actions, observations)
            return Evaluation(logprobs, spread if entropy else ABSENT, values)
        rows, steps = actions.shape[:2]
        before = observations[:, :-1].flatten(0, 1)
        every = observations.flatten(0, 1)
        logprobs, spread, values = self._both(before, actions.flatten(0, 1), every)
        logprobs, spread = logprobs.view(rows, steps), spread.view(rows, steps) if entropy else ABSENT
        if values is None:
            return Evaluation(logprobs, spread)
        values = values.view(rows, steps + 1)
        return Evaluation(logprobs, spread, values[:, :-1], values[:, 1:])

    def _both(self, observations: Tensor, actions: Tensor, valued: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Log-probs and entropies [M, 1] of observations [M, O], values [N, 1] of others [N, O]."""
        if self.closed is not None and not torch.is_grad_enabled():
            found = self.closed.evaluate(observations.numpy(), actions.numpy(), valued.numpy())
            tensors: Any = (x if x is None else torch.from_numpy(x) for x in found)
            logprobs, entropy, values = tensors
            return logprobs, entropy, values
        distributions = self.actor(observations)
        logprobs, entropy = self.head.logprobs(distributions, actions), self.head.entropy(distributions)
        return logprobs[:, None], entropy[:, None], self.critic(valued) if self.critic else None

    def distributions(self, inputs: Steps) -> Tensor:
        """The distribution of every single step's action: [M, K]."""
        return self.actor(inputs.observations)

    def distributions_with(self, parameters: dict[str, Tensor], inputs: Steps) -> Tensor:
        """`distributions` as if the actor's parameters had these values."""
        return self.actor(inputs.observations, parameters["actor"])

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the policy is, by name."""
        found = {f"actor.{n}": p for n, p in self.actor.pieces(self.actor.vector.detach()).items()}
        if self.critic:
            found |= {f"critic.{n}": p for n, p in self.critic.pieces(self.critic.vector.detach()).items()}
        return found | {f"observations.{name}": value for name, value in self.moments.tensors().items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes over what `tensors` gave. Raises KeyError or ValueError if it is of another policy."""
        for name, network in (("actor.", self.actor), ("critic.", self.critic)):
            if network is not None:
                mine = {n.removeprefix(name): t for n, t in tensors.items() if n.startswith(name)}
                network.load(mine)
        seen = {
            n.removeprefix("observations."): t for n, t in tensors.items() if n.startswith("observations.")
        }
        self.moments = Moments.from_tensors(seen)
        self.normalises = self.moments.count > 0

    def save(self, folder: Path) -> None:
        """Writes policy.safetensors."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        contiguous = {name: tensor.clone().contiguous() for name, tensor in self.tensors().items()}
        save_file(contiguous, folder / "policy.safetensors")
