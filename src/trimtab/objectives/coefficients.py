"""Coefficients that are steered while training goes on. Numbers in, numbers out."""


def ziegler(beta: float, kl: float, target: float, *, gain: float = 0.1) -> float:
    """beta (1 + gain clip((kl - target) / target, +-0.2)) (Ziegler et al. 2019, arXiv:1909.08593, sec. 2.2).

    Args:
        kl: to the reference, as measured; `target`: what it shall be, in the same unit.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + gain * error)


def schulman(kl_penalty: float, kl: float, target: float) -> float:
    """Halved below target / 1.5, doubled above 1.5 target (Schulman et al. 2017, sec. 4).

    Args:
        kl: from the old policy to the new one after the update, in the unit of `target`.
    """
    if kl < target / 1.5:
        return kl_penalty / 2
    return kl_penalty * 2 if kl > target * 1.5 else kl_penalty
