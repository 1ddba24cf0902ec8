"""Preference losses against hand-computed numbers, closed forms and finite differences."""

import math

import pytest
import torch
from torch import Tensor

from trimtab.objectives.preference import dpo, dpo_kl, ipo, kto, log_odds, orpo


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_dpo() -> None:
    losses = dpo(tensor(1.0, 0.0, -2.0), tensor(-1.0, 0.0, 3.0), beta=0.5)
    assert losses.tolist() == pytest.approx(
        [math.log(1 + math.exp(-1)), math.log(2), math.log(1 + math.exp(2.5))]
    )


def test_dpo_with_label_smoothing_is_a_mixture_of_both_labels() -> None:
    chosen, rejected = tensor(1.3), tensor(0.4)
    right, wrong = dpo(chosen, rejected, beta=2.0), dpo(rejected, chosen, beta=2.0)
    smoothed = dpo(chosen, rejected, beta=2.0, label_smoothing=0.1)
    torch.testing.assert_close(smoothed, 0.9 * right + 0.1 * wrong)


def test_dpo_stays_finite_far_out() -> None:
    chosen = tensor(-1e4).requires_grad_()
    loss = dpo(chosen, tensor(1e4), beta=0.1, label_smoothing=0.1)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0.9 * 2000])
    assert chosen.grad is not None and chosen.grad.tolist() == pytest.approx([-0.09])


def test_ipo() -> None:
    # 1 / (2 * 0.25) = 2
    assert ipo(tensor(1.0, 3.0), tensor(-1.0, 0.5), beta=0.25).tolist() == [0.0, 0.25]


def test_kto() -> None:
    log_ratio, desirable = tensor(1.0, 1.0, -1.0), torch.tensor([True, False, False])
    losses = kto(
        log_ratio, desirable, torch.tensor(0.5), beta=2.0, desirable_weight=3.0, undesirable_weight=0.5
    )
    # 1 - sigmoid(2 * 0.5), 1 - sigmoid(-2 * 0.5), 1 - sigmoid(2 * 1.5)
    expected = [3 * (1 - sigmoid(1)), 0.5 * (1 - sigmoid(-1)), 0.5 * (1 - sigmoid(3))]
    assert losses.tolist() == pytest.approx(expected)


def test_kto_pushes_up_what_is_desirable_and_not_the_reference_point() -> None:
    log_ratio, kl = tensor(0.2, 0.2).requires_grad_(), tensor(0.3)[0].requires_grad_()
    kto(log_ratio, torch.tensor([True, False]), kl, beta=1.0).sum().backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad[0] < 0 < log_ratio.grad[1]
    assert kl.grad is None


@pytest.mark.parametrize("p", [1e-30, 0.01, 0.3, 0.4999, 0.5001, 0.9, 1 - 1e-5])
def test_log_odds(p: float) -> None:
    value = log_odds(tensor(math.log(p)))
    assert value.tolist() == pytest.approx([math.log(p) - math.log1p(-p)], rel=1e-9)


@pytest.mark.parametrize("x", [0.0, -1e-9, -1e-7, -1e-6, -1e-3, -0.69, -0.70, -100.0, -1e4])
def test_log_odds_is_finite_with_its_gradient(x: float) -> None:
    mean = torch.tensor([x], requires_grad=True)
    value = log_odds(mean)
    value.sum().backward()
    assert mean.grad is not None
    assert math.isfinite(float(value.detach())) and math.isfinite(float(mean.grad))


def test_log_odds_gradient() -> None:
    """d log(p / (1 - p)) / d log p = 1 / (1 - p)."""
    mean = tensor(-2.0, -0.1, -1e-4).requires_grad_()
    log_odds(mean).sum().backward()
    assert mean.grad is not None
    assert mean.grad.tolist() == pytest.approx([1 / (1 - math.exp(x)) for x in (-2.0, -0.1, -1e-4)])


def test_orpo() -> None:
    chosen, rejected = math.log(0.5), math.log(0.2)
    # odds 1 and 1/4: -log sigmoid(log 4) = log(1 + 1/4)
    [loss] = orpo(tensor(chosen), tensor(rejected), beta=0.3).tolist()
    assert loss == pytest.approx(math.log(2) + 0.3 * math.log(1.25))


def test_dpo_kl_adds_the_weighted_kl() -> None:
    kl = tensor(0.7).requires_grad_()
    loss = dpo_kl(tensor(1.0), tensor(0.0), kl, beta=1.0, kl_weight=0.2)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-1)) + 0.14])
    assert kl.grad is not None and kl.grad.tolist() == pytest.approx([0.2])


@pytest.mark.parametrize(
    "loss",
    [
        lambda c, r: dpo(c, r, beta=0.7, label_smoothing=0.1),
        lambda c, r: ipo(c, r, beta=0.7),
        lambda c, r: orpo(c, r, beta=0.7),
        lambda c, r: kto(c - r, torch.tensor([True, False, True]), torch.tensor(0.1), beta=0.7),
        lambda c, r: dpo_kl(c, r, (c - r).square(), beta=0.7, kl_weight=0.3),
    ],
)
def test_gradients_by_finite_differences(loss: object) -> None:
    chosen, rejected = tensor(-0.5, -1.0, -2.0), tensor(-0.6, -0.9, -0.01)
    assert torch.autograd.gradcheck(loss, (chosen.requires_grad_(), rejected.requires_grad_()))  # type: ignore[arg-type]
