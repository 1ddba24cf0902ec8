"""Where each method must end in the small world: formulas written anew, in numpy.

Nothing here is autoregressive and nothing is shared with the objectives: a policy is one
distribution [Y] over the enumerated responses of a prompt.
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq, minimize

from trimtab.truth.world import LENGTHS, PROMPTS, RESPONSES, Array, World, code

Loss = Callable[[Array], float]  # of a distribution [Y]


def sft(world: World) -> Array:
    """The maximum of likelihood: the distribution of the demonstrations."""
    return world.demonstrated


def reward_model(world: World) -> Array:
    """The maximum of the Bradley-Terry likelihood: the rewards, up to a constant for each prompt."""
    return world.reward


def reward_ranking(world: World) -> Array:
    """The maximum of the Plackett-Luce likelihood: the rewards, up to a constant for each prompt."""
    return world.reward


def tilted(reference: Array, exponent: Array) -> Array:
    """reference * exp(exponent), normalised over the last axis."""
    weight = reference * np.exp(exponent)
    return np.asarray(weight / weight.sum(-1, keepdims=True))


def dpo(world: World, beta: float) -> Array:
    """The KL-regularised optimum: reference * exp(reward / beta) (Rafailov et al. 2023, eq. 4)."""
    return tilted(world.reference, world.reward / beta)


def ipo(world: World, beta: float, per_token: bool = False) -> Array:
    """reference * exp(E_y'[p(y > y')] / tau), y' from the reference (Azar et al. 2023, eq. 7).

    Setting the derivative of E[(h(y) - h(y') - 1 / (2 tau))^2] to zero gives
    h(y) = E_y'[p(y > y')] / tau + c, so that eq. 17 ends there exactly. With means per token,
    h = log-ratio / length, c is no longer cancelled by normalising: it is a price on length.
    """
    wins = (world.preference * world.reference[:, None, :]).sum(-1)  # [P, Y] against the reference
    length = LENGTHS if per_token else np.ones_like(LENGTHS)

    def at(c: float, prompt: int) -> Array:
        return np.asarray(world.reference[prompt] * np.exp(length * (wins[prompt] / beta + c)))

    return np.array([_normalised(at, prompt, -1 / beta, 0.0) for prompt in range(PROMPTS)])


def score_weighted(world: World, score_weight: float) -> Array:
    """reference * max(0, 1 + score_weight (reward - its expectation)), normalised."""
    centred = world.reward - (world.reference * world.reward).sum(-1, keepdims=True)
    weight = world.reference * np.maximum(0, 1 + score_weight * centred)
    return np.asarray(weight / weight.sum(-1, keepdims=True))


def kto(world: World, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> Array:
    """KTO at beta = 1, where sigmoid(log(pi / q) - z0) = pi / (pi + q exp(z0)).

    The loss is a constant minus sum_y q s pi / (pi + q), with s = w_D P(up) - w_U P(down) and z0 = 0:
    responses with s <= 0 lose all probability, so the mean log-ratio of mismatched pairs falls below
    zero, where it is clamped. Lagrange: pi = q max(0, sqrt(s / m) - 1), m set by sum pi = 1.
    """
    if beta != 1:
        raise ValueError("the optimum of KTO is known here for beta = 1")
    s = np.maximum(0, desirable_weight * world.approval - undesirable_weight * (1 - world.approval))

    def at(m: float, prompt: int) -> Array:
        return np.asarray(world.reference[prompt] * np.maximum(0, np.sqrt(s[prompt] / m) - 1))

    return np.array([_normalised(at, prompt, 1e-9, 1.0) for prompt in range(PROMPTS)])


def dpo_kl(world: World, beta: float, kl_weight: float) -> Array:
    """Minimum of DPO's expected loss + kl_weight * KL(pi || reference), by scipy.

    The KL is summed over tokens along prefixes that the reference writes, as offline data has them.
    """

    def loss(prompt: int) -> Loss:
        q, weight = world.reference[prompt], _pair_weights(world)[prompt]

        def at(pi: Array) -> float:
            h = np.log(pi / q)
            preference = np.logaddexp(0, -beta * (h[:, None] - h[None, :]))
            return float((weight * preference).sum() + kl_weight * prefix_kl(pi, q))

        return at

    return _minimise(world, loss)


def orpo(world: World, beta: float) -> Array:
    """Minimum of ORPO's expected loss (Hong et al. 2024, eq. 6 and 7), by scipy."""

    def loss(prompt: int) -> Loss:
        weight = _pair_weights(world)[prompt]

        def at(pi: Array) -> float:
            p = pi ** (1 / LENGTHS)
            odds = np.log(p / (1 - p))
            ratio = np.logaddexp(0, -(odds[:, None] - odds[None, :]))
            return float((weight * (beta * ratio - np.log(p)[:, None])).sum())

        return at

    return _minimise(world, loss)


def grpo(world: World, beta: float, group: int, weights: Array) -> Array:
    """Where GRPO with its KL as a loss comes to rest; it is the optimum of nothing.

    With an advantage for the score alone, and each token's KL paid for that token alone, the gradient is
    zero where in every state s

        f w(s, a) (score(s, a) - b) - beta w(s, a) log(pi(a | s) / ref(a | s))  is the same for every a,

    w(s, a) being the expected weight of the responses that go on so under pi itself, score(s, a) their
    expected score by that weight, b the expected score of all. A response is part of its group's mean, so
    that its advantage is f = 1 - 1 / group of what it would be against others. Equal weights cancel:
    pi(a | s) = ref(a | s) exp(f score(s, a) / beta), normalised, found from the last token backwards.

    Args:
        weights: [Y] what a token of each response counts: the same for all, or 1 / length.
    """

    price = beta / (1 - 1 / group)

    def at(b: float, prompt: int) -> Array:
        return _at_rest(world, prompt, (), price=price, b=b, weights=weights)

    found = []
    for prompt, r in enumerate(world.reward):

        def excess(b: float, prompt: int = prompt, r: Array = r) -> float:
            return float(at(b, prompt) @ r) - b

        found.append(at(brentq(excess, r.min(), r.max(), xtol=1e-12), prompt))
    return np.array(found)


def _at_rest(
    world: World, prompt: int, start: tuple[int, ...], *, price: float, b: float, weights: Array
) -> Array:
    """[Y] the distribution of `grpo` over the responses that begin with `start`, given b."""
    if start in RESPONSES:
        return np.eye(len(RESPONSES))[RESPONSES.index(start)]
    ref = world.conditionals[prompt, code(start)]
    after = np.array(
        [
            _at_rest(world, prompt, (*start, token), price=price, b=b, weights=weights)
            for token in range(len(ref))
        ]
    )
    weight = after @ weights
    gain = after @ (weights * (world.reward[prompt] - b))

    def at(level: float) -> Array:
        return np.asarray(ref * np.exp((gain - level) / (price * weight)))

    level = brentq(lambda x: at(x).sum() - 1, gain.min(), gain.max(), xtol=1e-14)
    return np.asarray(at(level) @ after)


_STARTS = sorted({y[:t] for y in RESPONSES for t in range(len(y) + 1)})
_BEGINS = np.array([[y[: len(s)] == s for y in RESPONSES] for s in _STARTS], dtype=float)  # [starts, Y]
_PARENT = np.array([_STARTS.index(s[:-1]) for s in _STARTS])


def prefix_kl(pi: Array, q: Array) -> float:
    """sum over prefixes of q(prefix) KL(pi(. | prefix) || q(. | prefix)), in nats."""
    mass, ref_mass = _BEGINS @ pi, _BEGINS @ q
    step, ref_step = mass / mass[_PARENT], ref_mass / ref_mass[_PARENT]
    return float((ref_mass[_PARENT] * step * np.log(step / ref_step)).sum())


def _normalised(at: Callable[[float, int], Array], prompt: int, low: float, high: float) -> Array:
    """at(x) for the x between low and high where it sums to 1."""
    return at(brentq(lambda x: at(x, prompt).sum() - 1, low, high, xtol=1e-15), prompt)


def _pair_weights(world: World) -> Array:
    """[P, Y, Y] probability that a pair is (chosen, rejected)."""
    return 2 * world.reference[:, :, None] * world.reference[:, None, :] * world.preference


def _minimise(world: World, loss: Callable[[int], Loss]) -> Array:
    """[P, Y] the minimum of each prompt's loss over all distributions, starting at the reference."""
    found = []
    for prompt, q in enumerate(world.reference):
        at = loss(prompt)

        def of_logits(z: Array, at: Loss = at) -> float:
            return at(_softmax(z))

        options = {"maxfun": 10**6, "maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9}
        result = minimize(of_logits, np.log(q), method="L-BFGS-B", options=options)
        found.append(_softmax(result.x))
    return np.array(found)


def _softmax(z: Array) -> Array:
    exp = np.exp(z - z.max())
    return np.asarray(exp / exp.sum())
