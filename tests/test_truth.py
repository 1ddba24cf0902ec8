"""The small world itself, and the methods in it; `make truth` runs the rest."""

import math

import numpy as np
import pytest
import torch

from trimtab.feedback.sequences import Sequences
from trimtab.truth import optima, populations
from trimtab.truth.cases import BOUND, CASES, Case, solve
from trimtab.truth.llama import tiny_llama
from trimtab.truth.page import figure
from trimtab.truth.world import (
    LENGTHS,
    PROMPTS,
    RESPONSES,
    ROWS,
    TabularPolicy,
    World,
    distribution,
    total_variation,
)

WORLD = World.draw(seed=3)  # another one than that of the page
SLOWER = ("orpo", "dpo_kl", "reward_ranking")
QUICK = {case.method: case for case in CASES if case.method not in SLOWER}.values()  # one a method


def test_every_response_is_there_once() -> None:
    assert len(RESPONSES) == len(set(RESPONSES)) == 1 + 3 + 9 + 27
    assert all(0 not in y[:-1] and (y[-1] == 0 or len(y) == 3) for y in RESPONSES)


def test_the_reference_is_a_distribution_and_the_table_starts_there() -> None:
    np.testing.assert_allclose(WORLD.reference.sum(-1), 1)
    np.testing.assert_allclose(WORLD.reference[0, RESPONSES.index((0,))], WORLD.conditionals[0, 0, 0])
    np.testing.assert_allclose(distribution(TabularPolicy(WORLD)), WORLD.reference)
    weights = WORLD.reference * 512
    np.testing.assert_allclose(weights, weights.round())


def test_a_transformer_over_the_world_is_a_distribution_too() -> None:
    found = distribution(tiny_llama(seed=1))
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    assert total_variation(found, np.full_like(found, 1 / found.shape[1])) > 0.1


def test_total_variation() -> None:
    a, b = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.5, 0.5], [0.25, 0.75]])
    assert total_variation(a, b) == 0.75


@pytest.mark.parametrize(
    "make", [populations.pairs, populations.thumbs, populations.scored, populations.rankings]
)
def test_populations_are_whole(make: object) -> None:
    assert float(make(WORLD).weights.sum()) == pytest.approx(1.0)  # type: ignore[operator]


def test_demonstrations_weigh_each_token_by_its_response() -> None:
    population = populations.demonstrations(WORLD)
    expected = (WORLD.demonstrated * LENGTHS).sum(-1).mean()
    assert float(population.weights.sum()) == pytest.approx(expected)


def test_mismatched_thumbs_are_the_other_prompts_responses_as_often_as_they_occur() -> None:
    batch = populations.thumbs(WORLD).batch
    mismatched = batch.mismatched  # type: ignore[attr-defined]
    assert isinstance(mismatched, Sequences)
    logprobs = TabularPolicy(WORLD).logprobs(mismatched).sum(-1).detach()
    # E over prompts x and y ~ reference(. | x') of log reference(y | x), by hand
    log_ref = np.log(WORLD.reference)
    expected = ((WORLD.reference[1] * log_ref[0]).sum() + (WORLD.reference[0] * log_ref[1]).sum()) / 2
    assert float(logprobs.mean()) == pytest.approx(expected)


def test_the_prefix_kl_is_the_sum_over_prefixes_that_the_reference_writes() -> None:
    pi, q = WORLD.demonstrated[0], WORLD.reference[0]
    assert optima.prefix_kl(q, q) == pytest.approx(0.0)
    starts = {y[:t] for y in RESPONSES for t in range(len(y))}

    def mass(p: np.ndarray, s: tuple[int, ...]) -> float:
        return float(sum(p[i] for i, y in enumerate(RESPONSES) if y[: len(s)] == s))

    by_hand = 0.0
    for s in starts:
        for token in range(4):
            step, ref_step = (mass(p, (*s, token)) / mass(p, s) for p in (pi, q))
            by_hand += mass(q, s) * step * math.log(step / ref_step)
    assert optima.prefix_kl(pi, q) == pytest.approx(by_hand)


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.title)
def test_methods_end_where_theory_says(case: Case) -> None:
    result = solve(case, WORLD)
    assert result.distance <= BOUND
    if result.from_regularised is not None and case.method != "dpo":
        assert result.from_regularised > 0.05, "this optimum is another one than DPO's"


def test_a_wrong_beta_would_be_caught() -> None:
    right, wrong = optima.dpo(WORLD, 0.5), optima.dpo(WORLD, 0.55)
    assert total_variation(right, wrong) > BOUND


def test_the_optimum_of_kto_is_stationary() -> None:
    """Moving probability between any two responses that keep some changes the expected loss by nothing."""
    pi, q = optima.kto(WORLD, 1.0)[0], WORLD.reference[0]
    s = 2 * WORLD.approval[0] - 1
    slope = q * s * q / (pi + q) ** 2  # d/d pi of sum q s pi / (pi + q)
    kept = pi > 1e-12
    assert pi.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(slope[kept], slope[kept][0], rtol=1e-6)
    assert slope[~kept].max() <= slope[kept][0]


def test_rows_are_prompts_in_order() -> None:
    sequences = Sequences.pack(ROWS)
    assert sequences.tokens[sequences.starts].tolist() == [0] * len(ROWS)
    assert sequences.tokens[sequences.starts + 1].reshape(PROMPTS, -1).unique(dim=1).tolist() == [[1], [2]]
    assert torch.equal(sequences.response_lengths, torch.tensor([len(y) for y in RESPONSES] * PROMPTS))


def test_figures_are_the_same_everywhere() -> None:
    assert [figure(x) for x in (3e-9, 0.00012, 0.28746)] == ["< 0.0001", "0.0001", "0.2875"]
