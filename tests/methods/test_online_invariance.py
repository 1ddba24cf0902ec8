"""Micro-batches, packing, padding and the order of rows change no online method's loss or gradient."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tests.models import causal_model, gradients, letter_tokenizer, random_rows
from torch import Tensor

from trimtab.feedback.batches import by_tokens
from trimtab.feedback.sequences import Sequences
from trimtab.learner import Parts
from trimtab.methods import METHODS, find
from trimtab.policies.actor_critic import ActorCritic, head_critic
from trimtab.policies.language import LanguagePolicy
from trimtab.rollouts.collect import CollectConfig, with_rewards
from trimtab.rollouts.rollout import Rollout
from trimtab.train import backward

ARCHITECTURES = ["Llama", "Qwen3", "GPT2", "Mistral", "Gemma2"]
ONLINE = sorted(name for name, method in METHODS.items() if method.online)
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("reinforce", {"baseline": "value"}),
    ("a2c", {"entropy_bonus": 0.3}),
    ("ppo", {"value_clip": 0.05, "entropy_bonus": 0.3}),
    ("grpo", {"aggregation": "dr_grpo", "clip_high": 0.3}),
    ("grpo", {"aggregation": "dapo", "kl": "reward"}),
]
CASES = [(name, {}, architecture) for name in ONLINE for architecture in ARCHITECTURES]
CASES += [(name, parameters, "Llama") for name, parameters in VARIANTS]
ROWS, GROUP = 8, 4
ORDER = [3, 7, 0, 5, 2, 6, 1, 4]


@cache
def learner(architecture: str, critic: bool) -> ActorCritic:
    actor = LanguagePolicy(causal_model(architecture), letter_tokenizer())
    made = ActorCritic(actor, head_critic(actor) if critic else None)
    with torch.no_grad():
        for parameter in made.critic_parameters():
            parameter.add_(0.3)
    return made


@torch.no_grad()
def collection(method: Any, policy: ActorCritic, architecture: str) -> Rollout:
    """Answers of very unequal length, with advantages; ratios are off 1, as in a later epoch."""
    inputs = Sequences.pack(random_rows(ROWS, seed=4))
    mask = inputs.mask
    last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    reference = LanguagePolicy(causal_model(architecture, seed=5), letter_tokenizer())
    out, generator = policy.evaluate(inputs), torch.Generator().manual_seed(0)
    noise = 0.2 * torch.randn(mask.shape, generator=generator) * mask
    rollout = Rollout(
        inputs=inputs,
        mask=mask,
        old_logprobs=out.logprobs + noise,
        rewards=torch.zeros(mask.shape),
        terminated=last,
        ended=last,
        score=torch.randn(ROWS, generator=generator),
        fresh=torch.ones(ROWS, dtype=torch.bool),
        ref_logprobs=reference.logprobs(inputs),
        values=out.values,
        next_values=out.next_values,
        group_size=GROUP,
        longest=20,
        coefficients=method.coefficients(),
    )
    return method.advantages(with_rewards(rollout, CollectConfig(), method.beta * method.reward_beta))


def parts_of(rollout: Rollout, batch_tokens: int) -> Parts:
    lengths = rollout.inputs.lengths.tolist()
    return [torch.tensor(part) for part in by_tokens(lengths, batch_tokens)]


def step(method: Any, policy: ActorCritic, rollout: Rollout, parts: Parts) -> tuple[float, Tensor]:
    """Loss and gradient of one minibatch, in these micro-batches."""
    for parameter in policy.parameters():
        parameter.grad = None
    loss = float(backward(method, policy, [rollout.select(rows) for rows in parts])["loss"])
    return loss, gradients(policy.parameters())


def ways(rollout: Rollout) -> list[Parts]:
    """All at once, each row alone, some together, and in an order without any order."""
    parts = [parts_of(rollout, 10**6), parts_of(rollout, 1), parts_of(rollout, 60)]
    assert [len(p) for p in parts[:2]] == [1, ROWS]
    assert 1 < len(parts[2]) < ROWS
    return [*parts, [torch.tensor(ORDER)], [torch.tensor(ORDER[:3]), torch.tensor(ORDER[3:])]]


@pytest.mark.parametrize(("name", "parameters", "architecture"), CASES)
def test_loss_and_gradient_of_a_minibatch(name: str, parameters: dict[str, Any], architecture: str) -> None:
    method: Any = find(name)(**parameters)
    policy = learner(architecture, method.needs_critic)
    rollout = collection(method, policy, architecture)
    packed = policy.actor.trunk.packed
    try:
        found = [step(method, policy, rollout, parts) for parts in ways(rollout)]
        policy.actor.trunk.packed = False
        found += [step(method, policy, rollout, parts) for parts in ways(rollout)[:2]]
    finally:
        policy.actor.trunk.packed = packed
    (loss, gradient), *others = found
    assert float(gradient.abs().max()) > 1e-3
    assert len(method.loss(policy, rollout)[0]) == method.units(rollout)
    for other_loss, other_gradient in others:
        assert other_loss == pytest.approx(loss, rel=1e-5, abs=1e-5)
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["Llama", "Gemma2"])  # packed, and padded
@pytest.mark.parametrize(("fisher_every", "how_many"), [(1, 4), (3, 3)])  # of every third the order counts
def test_a_whole_trpo_step(architecture: str, fisher_every: int, how_many: int) -> None:
    """Surrogate, Fisher products and line search: the same step in parts as at once."""
    method: Any = find("trpo")(max_kl=1e-4, cg_iterations=3, fisher_every=fisher_every)
    actor = LanguagePolicy(causal_model(architecture), letter_tokenizer())
    policy = ActorCritic(actor, head_critic(actor))
    rollout = collection(method, policy, architecture)
    rollout = replace(rollout, old_logprobs=policy.evaluate(rollout.inputs).logprobs.detach())
    start = [p.detach().clone() for p in policy.parameters()]
    moves = []
    for parts in ways(rollout)[:how_many]:
        with torch.no_grad():
            for parameter, value in zip(policy.parameters(), start, strict=True):
                parameter.copy_(value)
        metrics = method.whole_step(policy, [rollout.select(rows) for rows in parts])
        assert metrics["step_accepted"] == 1
        assert 1e-6 < metrics["old_kl"] <= 1e-4
        moved = [p.detach() - q for p, q in zip(policy.parameters(), start, strict=True)]
        moves.append(torch.cat([m.flatten() for m in moved]))
    for move in moves[1:]:
        assert float((move - moves[0]).norm() / moves[0].norm()) < 1e-3


def test_a_mean_of_means_would_be_caught() -> None:
    """The mean of each answer's own PPO loss is another number on these answers."""
    method: Any = find("ppo")()
    policy = learner("Llama", True)
    rollout = collection(method, policy, "Llama")
    loss, _ = step(method, policy, rollout, parts_of(rollout, 10**6))
    of_each = [step(method, policy, rollout, [torch.tensor([row])])[0] for row in range(ROWS)]
    assert abs(sum(of_each) / ROWS - loss) > 1e-3
