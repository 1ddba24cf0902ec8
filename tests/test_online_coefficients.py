"""Coefficients that change from refresh to refresh: the price of either KL, and what is done with it."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.experience import Spy, learner, numbered, trained
from trimtab.methods import find
from trimtab.policies.base import Evaluation


@pytest.mark.parametrize(
    ("learning_rate", "penalties"), [(1e-6, [2.0, 1.0, 0.5, 0.25]), (1e-2, [2.0, 4.0, 8.0, 16.0])]
)
def test_the_price_of_the_old_kl_is_halved_or_doubled(learning_rate: float, penalties: list[float]) -> None:
    policy = learner()
    method = find("ppo_kl")(kl_penalty=2.0, old_kl_target=1e-4, whiten=False)
    spy: Any = Spy(method, policy)
    refreshes = trained(spy, policy, refreshes=4, learning_rate=learning_rate, epochs=1)
    assert [r.metrics["kl_penalty"] for r in refreshes] == penalties
    assert [b.coefficients["kl_penalty"] for b, _ in spy.batches] == penalties
    assert refreshes[-1].coefficients["kl_penalty"] == penalties[-1] ** 2 / penalties[-2]


def test_the_old_kl_is_measured_after_the_update() -> None:
    policy = learner()
    spy: Any = Spy(find("ppo_kl")(), policy)
    [refresh] = trained(spy, policy, epochs=2, batch_tokens=40)
    [rollout] = spy.rollouts
    now = policy.evaluate(rollout.inputs).logprobs.detach()
    each = [math.exp(d) - 1 - d for d in (now - rollout.old_logprobs)[rollout.mask].tolist()]
    assert refresh.metrics["old_kl"] == pytest.approx(sum(each) / len(each), rel=1e-3)
    assert refresh.metrics["old_kl"] > 1e-6


@pytest.mark.parametrize("kl_penalty", [0.0, 3.0])
def test_the_price_of_the_old_kl_is_that_of_the_collection(kl_penalty: float) -> None:
    """Every token has become e^(1/2) times as likely: a KL of e^(1/2) - 1 - 1/2. Nothing else has a loss."""
    rollout = numbered([2, 1])
    zeros = torch.zeros(2, 2)
    batch = replace(
        rollout, advantages=zeros, returns=zeros, values=zeros, coefficients={"kl_penalty": kl_penalty}
    )

    class Moved:
        def evaluate(self, inputs: Any, entropy: bool) -> Evaluation:
            return Evaluation(rollout.old_logprobs + 0.5 * rollout.mask, values=zeros)

    losses, _ = find("ppo_kl")(kl_penalty=1.0).loss(Moved(), batch)
    assert losses.tolist() == pytest.approx([kl_penalty * (math.sqrt(math.e) - 1.5)] * 3)


@pytest.mark.parametrize(("target", "betas"), [(1e-3, [0.1, 0.102, 0.10404]), (1e3, [0.1, 0.098, 0.09604])])
def test_beta_is_steered_to_a_kl(target: float, betas: list[float]) -> None:
    """The reference is another model, many nats away: 2 % a refresh, upwards or downwards."""
    policy = learner(critic=False)
    spy: Any = Spy(find("reinforce")(beta=0.1, kl_target=target), policy)
    refreshes = trained(spy, policy, refreshes=3)
    assert [r.metrics["beta"] for r in refreshes] == pytest.approx(betas)
    for beta, rollout, refresh in zip(betas, spy.rollouts, refreshes, strict=True):
        log_ratio = (rollout.old_logprobs - rollout.ref_logprobs) * rollout.mask
        assert refresh.metrics["kl"] == pytest.approx(float(log_ratio.sum(-1).mean()), rel=1e-5)
        inside = rollout.mask & ~rollout.ended
        torch.testing.assert_close(rollout.rewards[inside], -beta * log_ratio[inside])
        torch.testing.assert_close(
            rollout.rewards[rollout.ended], rollout.score - beta * log_ratio[rollout.ended]
        )


def test_without_a_target_beta_stays() -> None:
    refreshes = trained(find("rloo")(beta=0.1), learner(critic=False), refreshes=2)
    assert [r.metrics["beta"] for r in refreshes] == [0.1, 0.1]
