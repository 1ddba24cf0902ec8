"""Divergences against enumeration: a categorical distribution's expectations can be summed exactly."""

import math

import pytest
import torch
from torch import Tensor

from trimtab.objectives.distributions import categorical_entropy, categorical_kl
from trimtab.objectives.divergences import kl_from_reference, kl_k1, kl_k2, kl_k3

REF = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
START = torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64)
EXACT = sum(p * math.log(p / q) for p, q in zip([0.1, 0.6, 0.3], [0.5, 0.3, 0.2], strict=True))


def policy() -> tuple[Tensor, Tensor]:
    logits = START.clone().requires_grad_()
    return logits, logits.log_softmax(-1)


def gradient_of(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits, retain_graph=True)[0]


def test_literals() -> None:
    pi = torch.tensor([0.1, 0.6, 0.3]).log()
    assert float(categorical_kl(pi, REF.float())) == pytest.approx(EXACT)
    assert float(categorical_entropy(torch.tensor([0.5, 0.25, 0.25]).log())) == pytest.approx(
        1.5 * math.log(2)
    )
    x = torch.tensor(0.5)
    assert float(kl_k1(x)) == 0.5
    assert float(kl_k2(x)) == 0.125
    assert float(kl_k3(x)) == pytest.approx(math.exp(-0.5) - 1 + 0.5)
    assert float(kl_from_reference(x)) == pytest.approx(math.exp(0.5) * 0.5 - math.exp(0.5) + 1)


def test_kl_from_reference_is_unbiased_in_value_and_gradient() -> None:
    logits, logp = policy()
    estimate = (REF.exp() * kl_from_reference(logp - REF)).sum()  # expectation over the reference
    exact = categorical_kl(logp, REF)
    assert float(estimate.detach()) == pytest.approx(float(exact.detach()), abs=1e-12)
    torch.testing.assert_close(gradient_of(estimate, logits), gradient_of(exact, logits))


def test_k1_and_k3_are_unbiased_under_the_policy() -> None:
    _, logp = policy()
    exact = float(categorical_kl(logp, REF).detach())
    for estimator in (kl_k1, kl_k3):
        assert float((logp.exp() * estimator(logp - REF)).sum().detach()) == pytest.approx(exact, abs=1e-12)


def test_gradients_as_losses_are_those_that_the_docstrings_name() -> None:
    """With samples fixed: k1's is zero, k2's that of KL(pi || ref), k3's that of KL(ref || pi)."""

    def expected(estimator: object) -> Tensor:
        logits, logp = policy()
        return gradient_of((logp.exp().detach() * estimator(logp - REF)).sum(), logits)  # type: ignore[operator]

    logits, logp = policy()
    reverse = gradient_of(categorical_kl(logp, REF), logits)
    logits, logp = policy()
    forward = gradient_of(categorical_kl(REF, logp), logits)
    torch.testing.assert_close(expected(kl_k1), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(expected(kl_k2), reverse)
    torch.testing.assert_close(expected(kl_k3), forward)
    assert float((reverse - forward).abs().max()) > 1e-2


def test_non_negative_and_zero_at_equality() -> None:
    x = torch.linspace(-8, 8, 101, dtype=torch.float64)
    for estimator in (kl_k2, kl_k3, kl_from_reference):
        assert float(estimator(x).min()) >= 0
        assert float(estimator(torch.zeros(()))) == 0
