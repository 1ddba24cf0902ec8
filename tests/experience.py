"""Small runs of reinforcement learning: a tiny Llama, prompts, a reward, and a method that is watched."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.models import causal_model, letter_tokenizer
from trimtab.feedback.records import Record
from trimtab.feedback.sequences import Sequences
from trimtab.online import OnlineConfig, Refresh, train_online
from trimtab.policies.actor_critic import ActorCritic, head_critic
from trimtab.policies.language import LanguagePolicy
from trimtab.rollouts.collect import CollectConfig, Collector
from trimtab.rollouts.rewards import WeightedSum
from trimtab.rollouts.rollout import Rollout

PROMPTS = ["the film ", "a cast ", "it was the best of times. it ", "so ", "plots "]


class Spy:
    """A method that does what it does, and keeps what it was given.

    Attributes:
        rollouts: each collection, with its advantages.
        now: the policy's log-probs of each collection before anything was learned from it.
        batches: each micro-batch, with the log-probs that its loss was computed from.
    """

    def __init__(self, method: Any, policy: ActorCritic) -> None:
        self.method, self.policy = method, policy
        self.rollouts: list[Rollout] = []
        self.now: list[Tensor] = []
        self.batches: list[tuple[Rollout, Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def advantages(self, rollout: Rollout) -> Rollout:
        self.rollouts.append(self.method.advantages(rollout))
        self.now.append(self.policy.evaluate(rollout.inputs).logprobs.detach())
        return self.rollouts[-1]

    def loss(self, policy: "Spy", batch: Rollout) -> Any:
        evaluated = []

        class Watched:
            def evaluate(self, *args: Any, **options: Any) -> Any:
                evaluated.append(policy.evaluate(*args, **options))
                return evaluated[-1]

        out = self.method.loss(Watched(), batch)
        self.batches.append((batch, evaluated[0].logprobs.detach()))
        return out


def letters_e(prompts: Sequence[Any], responses: Sequence[str], columns: Any = None) -> list[float]:
    return [float(response.count("e")) - 0.1 * len(response) for response in responses]


def learner(critic: bool = True, seed: int = 0) -> ActorCritic:
    actor = LanguagePolicy(causal_model(seed=seed), letter_tokenizer())
    return ActorCritic(actor, head_critic(actor) if critic else None)


def source(policy: ActorCritic, reward: Any = letters_e, seed: int = 0, **options: Any) -> Collector:
    return Collector(
        policy.actor,
        [Record("prompt", prompt) for prompt in PROMPTS],
        WeightedSum({"e": reward}, {"e": 1.0}),
        CollectConfig(**{"prompts": 4, "samples": 2, "max_new_tokens": 8, **options}),
        samples=2,
        max_length=100,
        seed=seed,
    )


def reference(seed: int = 5) -> Any:
    return torch.no_grad()(LanguagePolicy(causal_model(seed=seed), letter_tokenizer()).logprobs)


def trained(
    method: Any, policy: ActorCritic, collect: dict[str, Any] | None = None, **options: Any
) -> list[Refresh]:
    """Every refresh of a short run with a reference that is another model."""
    settings = {"refreshes": 1, "learning_rate": 1e-3, "schedule": "constant", "warmup": 0.0, **options}
    run = OnlineConfig(**settings)
    collector = source(policy, seed=run.seed, **(collect or {}))
    return list(train_online(method, policy, collector, run, reference()))


def weights(policy: ActorCritic) -> Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters()]).clone()


def rows_of(rollout: Rollout) -> list[tuple[int, ...]]:
    return [tuple(s.tolist()) for s in rollout.inputs.tokens.split(rollout.inputs.lengths.tolist())]


def numbered(lengths: Sequence[int], **fields: Any) -> Rollout:
    """Responses of these lengths to a prompt of one token."""
    inputs = Sequences.pack([([5], [6] * length) for length in lengths])
    mask = inputs.mask
    last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    made = Rollout(
        inputs=inputs,
        mask=mask,
        old_logprobs=-0.5 * mask,
        ref_logprobs=-1.5 * mask,
        rewards=torch.zeros(mask.shape),
        terminated=last,
        ended=last,
        score=torch.arange(len(lengths)) + 1.0,
        fresh=torch.ones(len(lengths), dtype=torch.bool),
    )
    return replace(made, **fields)
