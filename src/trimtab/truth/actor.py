"""Actor and critic as tables, and where their experience comes from: drawn, or enumerated with weights."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.feedback.sequences import Sequences
from trimtab.methods import find
from trimtab.methods.base import Metrics, OnlineMethod
from trimtab.objectives.distributions import CATEGORICAL, categorical_entropy
from trimtab.policies.base import ABSENT, Evaluation
from trimtab.rollouts.collect import CollectConfig, describe, with_rewards
from trimtab.rollouts.rollout import Collection, Rollout
from trimtab.truth.populations import COUNT
from trimtab.truth.world import (
    END,
    LONGEST,
    PROMPTS,
    ROWS,
    VOCABULARY,
    TabularPolicy,
    World,
    distribution,
    prefix_codes,
    prompts,
)

EVERY = Sequences.pack(ROWS)


class TabularActor:
    """What methods ask of an actor (`policies.base.Actor`), by two tables in float64.

    The policy starts as the world's reference, the values at zero.
    """

    device = torch.device("cpu")
    family = CATEGORICAL
    is_flat = False
    critic_learning_rate = 0.1

    def __init__(self, world: World, critic: bool = True) -> None:
        self.policy = TabularPolicy(world)
        self.table = nn.Parameter(torch.zeros(PROMPTS, VOCABULARY**LONGEST, dtype=torch.float64))
        self.has_critic = critic

    def named_parameters(self) -> dict[str, Tensor]:
        return {"logits": self.policy.logits}

    def critic_parameters(self) -> list[Tensor]:
        return [self.table] if self.has_critic else []

    def parameters(self) -> list[Tensor]:
        return [self.policy.logits, *self.critic_parameters()]

    def evaluate(self, inputs: Sequences, *, entropy: bool = False) -> Evaluation:
        """Log-probs, entropy if asked for, and values if there is a critic: each [S, R]."""
        logprobs, spread = self.policy.logprobs(inputs), ABSENT
        if entropy:
            spread = inputs.unpack(categorical_entropy(self.distributions(inputs)))
        if not self.has_critic:
            return Evaluation(logprobs, spread)
        states = self.table[prompts(inputs)[:, None], prefix_codes(inputs)]
        return Evaluation(logprobs, spread, states[:, :-1] * inputs.mask, states[:, 1:] * inputs.mask)

    def distributions(self, inputs: Sequences) -> Tensor:
        """The whole distribution of every response token as log-probs: [M, V]."""
        return self.distributions_with({"logits": self.policy.logits}, inputs)

    def distributions_with(self, parameters: dict[str, Tensor], inputs: Sequences) -> Tensor:
        """`distributions` as if the table had these values."""
        rows = parameters["logits"].log_softmax(-1)[prompts(inputs)[:, None], prefix_codes(inputs)[:, :-1]]
        return rows[inputs.mask]


class Drawn:
    """A source of responses drawn from the policy, as many to each prompt, in groups.

    Args:
        policy: whose `logprobs` are read; it answers as it is at each refresh.
        rows: answers in a collection; a multiple of the prompts times the group's size.
    """

    unit = "tokens"

    def __init__(self, world: World, policy: Any, rows: int, group: int = 1, seed: int = 0) -> None:
        self.world, self.policy, self.rows, self.group = world, policy, rows, group
        self.generator = torch.Generator().manual_seed(seed)

    def collect(self, refresh: int) -> Collection:
        chances = torch.tensor(distribution(self.policy))
        drawn = chances.multinomial(self.rows // PROMPTS, replacement=True, generator=self.generator)
        rows = (drawn + COUNT * torch.arange(PROMPTS)[:, None]).flatten()
        return Collection(experience(self.world, self.policy, rows, self.group), [])

    def remember(self, rollout: Rollout) -> None:
        """Nothing is kept here."""

    def with_rewards(self, rollout: Rollout, beta: float) -> Rollout:
        return with_rewards(rollout, CollectConfig(), beta)

    def describe(self, rollout: Rollout) -> dict[str, float]:
        return describe(rollout)


class Enumerated(Drawn):
    """Every group of responses once, with its probability under the policy as it is at each refresh."""

    def __init__(self, world: World, policy: Any, group: int = 1) -> None:
        super().__init__(world, policy, PROMPTS * COUNT**group * group, group)
        members = torch.cartesian_prod(*[torch.arange(COUNT)] * group).view(-1, group)  # [Y^G, G]
        self.members = members + COUNT * torch.arange(PROMPTS)[:, None, None]  # [P, Y^G, G]

    def collect(self, refresh: int) -> Collection:
        chances = torch.tensor(distribution(self.policy)).flatten()[self.members].prod(-1, keepdim=True)
        weights = chances.expand(self.members.shape) / (PROMPTS * self.group)
        rollout = experience(self.world, self.policy, self.members.flatten(), self.group)
        parts = {name: getattr(rollout, name) for name in rollout.__dataclass_fields__}
        return Collection(Weighted(**parts, weights=weights.flatten()), [])


@dataclass(frozen=True, kw_only=True)
class Weighted(Rollout):
    """Experience with the probability of each row.

    Attributes:
        weights: [B], 1 in sum.
    """

    weights: Tensor


class Expectation:
    """A method whose mean over what was collected is an expectation: each row counts by its weight."""

    def __init__(self, method: OnlineMethod) -> None:
        self.method = method

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def units(self, batch: Weighted) -> int:
        return 1

    def loss(self, policy: Any, batch: Weighted) -> tuple[Tensor, Metrics]:
        losses, metrics = self.method.loss(policy, batch)
        each = 1 if len(losses) == batch.size else batch.mask.sum(-1)  # a loss a response, or one a token
        return losses * batch.weights.repeat_interleave(torch.as_tensor(each)), metrics


def online_method(name: str, **parameters: Any) -> OnlineMethod:
    """The reinforcement-learning method of this name."""
    made: Any = find(name)
    method: OnlineMethod = made(**parameters)
    return method


@torch.no_grad()
def experience(world: World, policy: Any, rows: Tensor, group: int = 1) -> Rollout:
    """These rows of ROWS [B] as the policy wrote them just now; `group` neighbours share a prompt."""
    inputs = EVERY.select(rows)
    mask = inputs.mask
    last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    logprobs = policy.logprobs(inputs)
    return Rollout(
        inputs=inputs,
        mask=mask,
        old_logprobs=logprobs,
        rewards=torch.zeros_like(logprobs),
        terminated=last & (inputs.unpack(inputs.targets) == END),
        ended=last,
        score=torch.tensor(world.reward.ravel())[rows],
        fresh=torch.ones(len(rows), dtype=torch.bool),
        group_size=group,
        longest=LONGEST,
    )
