"""Policy-gradient losses against literals, closed forms and sums over all the actions of a distribution."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trimtab.objectives.divergences import kl_k3
from trimtab.objectives.policy_gradient import (
    clip_fraction,
    old_kl,
    ppo_clip,
    ppo_kl,
    reference_kl,
    reinforce,
    surrogate,
    value_loss,
)

PI = [0.1, 0.3, 0.05, 0.35, 0.2]
OLD = [0.25, 0.1, 0.15, 0.2, 0.3]
REF = [0.3, 0.2, 0.25, 0.15, 0.1]
ADVANTAGES = [1.0, -2.0, 0.5, 3.0, -0.7]


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    leaf = at.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf).sum(), leaf)[0]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def expected_under(probabilities: list[float], loss: Callable[[Tensor], Tensor]) -> tuple[float, list[float]]:
    """Mean of the loss over actions drawn from `probabilities`; its gradient in the logits of PI."""
    logits = tensor(*PI).log().requires_grad_()
    mean = (tensor(*probabilities) * loss(logits.log_softmax(-1))).sum()
    return float(mean.detach()), torch.autograd.grad(mean, logits)[0].tolist()


def close(values: list[float]) -> object:
    return pytest.approx(values, abs=1e-12)


LOSSES = {
    "reinforce": reinforce,
    "surrogate": surrogate,
    "ppo_clip": lambda new, old, a: ppo_clip(new, old, a, clip=0.2),
    "ppo_kl": lambda new, old, a: ppo_kl(new, old, a, kl_penalty=0.5),
}


@pytest.mark.parametrize("name", LOSSES)
def test_before_the_first_update_all_have_the_gradient_of_reinforce(name: str) -> None:
    """-A for each log-prob, in [B, T] as in [B]."""
    old, advantages = tensor(-0.5, -2.0, -3.0, -0.1), tensor(1.0, -2.0, 0.0, 0.3)
    flat = gradient(lambda new: LOSSES[name](new, old, advantages), old)
    assert flat.tolist() == pytest.approx([-1.0, 2.0, 0.0, -0.3])
    old, advantages = old.view(2, 2), advantages.view(2, 2)
    assert torch.equal(gradient(lambda new: LOSSES[name](new, old, advantages), old), flat.view(2, 2))


def test_reinforce_has_the_slope_of_minus_ratio_times_advantage() -> None:
    """Central differences in plain numbers; the loss itself holds its weight fixed."""

    def slope(new: float, old: float, advantage: float) -> float:
        step = 1e-6
        up, down = (-math.exp(new + sign * step - old) * advantage for sign in (1, -1))
        return (up - down) / (2 * step)

    new, old, advantages = [-0.5, -1.0, -2.0], [-0.5, -1.7, -0.4], [1.0, -2.0, 0.6]
    result = gradient(lambda x: reinforce(x, tensor(*old), tensor(*advantages)), tensor(*new))
    assert result.tolist() == pytest.approx(
        [slope(*x) for x in zip(new, old, advantages, strict=True)], rel=1e-8
    )


@pytest.mark.parametrize("name", ["surrogate", "ppo_clip", "ppo_kl"])
def test_gradients_by_finite_differences(name: str) -> None:
    old, advantages = tensor(-1.0, -1.0, -1.0, -1.0, -1.0), tensor(1.0, 1.0, -1.0, -1.0, 1.0)
    new = (old + tensor(0.5, -0.5, 0.5, -0.5, 0.1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, old, advantages), (new,))


def test_surrogate_and_ppo_kl_literals() -> None:
    new, old, advantages = tensor(0.5, 0.25).log(), tensor(0.25, 0.5).log(), tensor(3.0, -4.0)
    assert surrogate(new, old, advantages).tolist() == pytest.approx([-6.0, 2.0])
    # ratio - 1 - log ratio: 1 - log 2, -1/2 + log 2
    expected = [-6.0 + 0.5 * (1 - math.log(2)), 2.0 + 0.5 * (math.log(2) - 0.5)]
    assert ppo_kl(new, old, advantages, kl_penalty=0.5).tolist() == pytest.approx(expected)
    # ratio 2 with ref half of pi: 2 (1/2 - 1 + log 2); ratio 1/2 with ref twice pi: (2 - 1 - log 2) / 2
    kls = reference_kl(new, old, old)
    assert kls.tolist() == pytest.approx([2 * math.log(2) - 1, (1 - math.log(2)) / 2])


FOUR_CASES = tensor(1.5, 0.5, 1.5, 0.5).log(), tensor(0.0, 0.0, 0.0, 0.0), tensor(2.0, 2.0, -2.0, -2.0)


def test_ppo_clip_literals() -> None:
    # -min(3, 2.4), -min(1, 1.6), -min(-3, -2.4), -min(-1, -1.6)
    assert ppo_clip(*FOUR_CASES, clip=0.2).tolist() == pytest.approx([-2.4, -1.0, 3.0, 1.6])
    assert ppo_clip(*FOUR_CASES, clip=0.2, clip_high=0.4).tolist() == pytest.approx([-2.8, -1.0, 3.0, 1.6])
    inside = ppo_clip(tensor(1.3).log(), tensor(0.0), tensor(2.0), clip=0.2, clip_high=0.4)
    assert inside.tolist() == pytest.approx([-2.6])


def test_clip_fraction_literals() -> None:
    assert clip_fraction(*FOUR_CASES, clip=0.2).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert clip_fraction(*FOUR_CASES, clip=0.2, clip_high=0.6).tolist() == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("clip_high", [None, 0.1, 0.5])
def test_clip_fraction_is_where_the_gradient_is_gone(clip_high: float | None) -> None:
    ratios = torch.linspace(0.3, 2.0, 86, dtype=torch.float64)
    advantages = tensor(-2.0, -0.1, 0.1, 2.0)[:, None].expand(-1, len(ratios))
    new = ratios.log().expand_as(advantages)
    old = torch.zeros_like(new)
    gone = gradient(lambda x: ppo_clip(x, old, advantages, clip=0.3, clip_high=clip_high), new) == 0
    assert 0 < int(gone.sum()) < gone.numel()
    assert torch.equal(gone, clip_fraction(new, old, advantages, clip=0.3, clip_high=clip_high).bool())


@pytest.mark.parametrize("loss", [reinforce, surrogate])
def test_the_policy_gradient_is_exact_on_actions_of_an_older_policy(loss: Callable[..., Tensor]) -> None:
    """d E_pi[A] / d logit_i = pi_i (A_i - E_pi[A])."""
    mean = sum(p * a for p, a in zip(PI, ADVANTAGES, strict=True))
    exact = [-p * (a - mean) for p, a in zip(PI, ADVANTAGES, strict=True)]
    old, advantages = tensor(*OLD).log(), tensor(*ADVANTAGES)
    assert expected_under(OLD, lambda new: loss(new, old, advantages))[1] == close(exact)
    stale = expected_under(OLD, lambda new: loss(new, new.detach(), advantages))[1]  # as if pi had chosen
    assert max(abs(a - b) for a, b in zip(stale, exact, strict=True)) > 0.1


def test_old_kl_is_exact_on_actions_of_the_old_policy() -> None:
    """d KL(old || pi) / d logit_i = pi_i - old_i."""
    value, slope = expected_under(OLD, lambda new: old_kl(new, tensor(*OLD).log()))
    assert value == pytest.approx(kl(OLD, PI), abs=1e-12)
    assert slope == close([p - q for p, q in zip(PI, OLD, strict=True)])


def test_ppo_kl_adds_exactly_the_gradient_of_the_kl() -> None:
    old, advantages = tensor(*OLD).log(), tensor(*ADVANTAGES)
    mean = sum(p * a for p, a in zip(PI, ADVANTAGES, strict=True))
    value, slope = expected_under(OLD, lambda new: ppo_kl(new, old, advantages, kl_penalty=0.7))
    assert value == pytest.approx(-mean + 0.7 * kl(OLD, PI), abs=1e-12)
    terms = zip(PI, OLD, ADVANTAGES, strict=True)
    assert slope == close([-p * (a - mean) + 0.7 * (p - q) for p, q, a in terms])


def test_reference_kl_is_exact_on_actions_of_an_older_policy() -> None:
    """d KL(pi || ref) / d logit_i = pi_i (log(pi_i / ref_i) - KL)."""
    old, ref = tensor(*OLD).log(), tensor(*REF).log()
    value, slope = expected_under(OLD, lambda new: reference_kl(new, old, ref))
    exact = [p * (math.log(p / q) - kl(PI, REF)) for p, q in zip(PI, REF, strict=True)]
    assert value == pytest.approx(kl(PI, REF), abs=1e-12)
    assert slope == close(exact)


def test_k3_without_the_ratio_pulls_along_another_divergence() -> None:
    """Even on fresh actions: pi_i - ref_i, the gradient of KL(ref || pi)."""
    value, slope = expected_under(PI, lambda new: kl_k3(new - tensor(*REF).log()))
    assert value == pytest.approx(kl(PI, REF), abs=1e-12)
    assert slope == close([p - q for p, q in zip(PI, REF, strict=True)])
    fresh = expected_under(PI, lambda new: reference_kl(new, new.detach(), tensor(*REF).log()))[1]
    assert max(abs(a - b) for a, b in zip(slope, fresh, strict=True)) > 0.01


def test_kls_are_never_negative_and_zero_at_equality() -> None:
    new = torch.linspace(-8, 8, 101, dtype=torch.float64)
    old = torch.zeros_like(new)
    for values in (old_kl(new, old), reference_kl(new, old, old)):
        assert float(values.min()) >= 0
        assert values[50] == 0


def test_value_loss() -> None:
    """V moved too far from a good old value; too far and past the return; and a little."""
    values, old, returns = tensor(2.0, 4.0, 1.2), tensor(1.0, 1.0, 1.0), tensor(5.0, 1.0, 2.2)
    assert value_loss(values, old, returns).tolist() == pytest.approx([4.5, 4.5, 0.5])
    # within 1 +- 1/2: the first is 1.5, wrong by 3.5; the second 1.5, less wrong than 4 is; the third is free
    assert value_loss(values, old, returns, clip=0.5).tolist() == pytest.approx([6.125, 4.5, 0.5])
    free = gradient(lambda x: value_loss(x, old, returns), values)
    clipped = gradient(lambda x: value_loss(x, old, returns, clip=0.5), values)
    assert free.tolist() == pytest.approx([-3.0, 3.0, -1.0])
    assert clipped.tolist() == pytest.approx([0.0, 3.0, -1.0])
