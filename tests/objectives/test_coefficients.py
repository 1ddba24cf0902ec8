"""Ziegler's and Schulman's rules, by literals."""

import pytest

from trimtab.objectives.coefficients import schulman, ziegler


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.5),  # on target
        (6.6, 0.505),  # 10 % above: 0.5 (1 + 0.1 * 0.1)
        (5.7, 0.4975),  # 5 % below
        (7.2, 0.51),  # 20 % above, the most that counts
        (60.0, 0.51),
        (0.0, 0.49),
        (-3.0, 0.49),  # an estimate from samples may be below zero
    ],
)
def test_ziegler(kl: float, expected: float) -> None:
    assert ziegler(0.5, kl, 6.0) == pytest.approx(expected, rel=1e-12)


def test_ziegler_gain() -> None:
    assert ziegler(0.5, 100.0, 6.0, gain=1.0) == pytest.approx(0.6)
    assert ziegler(0.0, 100.0, 6.0) == 0.0


def test_ziegler_holds_a_kl_that_answers_to_beta() -> None:
    """With KL = 1 / beta and a target of 4, beta comes to 1/4 from either side."""
    for start in (0.01, 5.0):
        beta = start
        for _ in range(400):
            beta = ziegler(beta, 1 / beta, 4.0)
        assert beta == pytest.approx(0.25, rel=1e-6)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (0.03, 3.0),
        (0.021, 3.0),  # within [0.02, 0.045], target 0.03
        (0.044, 3.0),
        (0.0199, 1.5),
        (0.0, 1.5),
        (0.0451, 6.0),
        (9.0, 6.0),
    ],
)
def test_schulman(kl: float, expected: float) -> None:
    assert schulman(3.0, kl, 0.03) == expected
