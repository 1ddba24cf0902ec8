"""The small world itself, and the methods in it; `make truth` runs the rest."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from trimtab.feedback.sequences import Sequences
from trimtab.truth import gradients, optima, populations, reinforcement, trust
from trimtab.truth.__main__ import main
from trimtab.truth.actor import Drawn, Enumerated, TabularActor
from trimtab.truth.cases import BOUND, CASES, Case, solve
from trimtab.truth.llama import ONLINE, EndToEnd, learn_online, tiny_llama
from trimtab.truth.measured import figure, table
from trimtab.truth.page import Findings
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


def online_case(method: str, group: int = 1, **parameters: object) -> reinforcement.OnlineCase:
    """The case of the page with these parameters."""
    cases = [*reinforcement.ENUMERATED, *reinforcement.DRAWN]
    wanted = (method, parameters, group)
    return next(case for case in cases if (case.method, case.parameters, case.group) == wanted)


@pytest.mark.parametrize(
    ("case", "refreshes"),
    [
        (online_case("reinforce", baseline="value"), 150),
        (online_case("ppo", whiten=False), 80),
        (online_case("ppo_kl", whiten=False, old_kl_target=None), 80),
        (online_case("rloo", group=2), 120),
        (online_case("grpo", group=2, kl="loss", scale=False, aggregation="grpo"), 100),
    ],
    ids=lambda case: getattr(case, "title", ""),
)
def test_online_methods_end_where_theory_says(case: reinforcement.OnlineCase, refreshes: int) -> None:
    result = reinforcement.solve_enumerated(case, WORLD, refreshes)
    assert not result.missed
    assert result.distance <= BOUND
    if case.optimum is not reinforcement.regularised:
        assert result.from_regularised > 0.1


@pytest.mark.parametrize(
    ("case", "refreshes"),
    [
        (online_case("ppo"), 30),
        (online_case("grpo", group=8, kl="loss", scale=False, aggregation="dapo"), 100),
        (online_case("trpo", whiten=False, max_kl=0.001, damping=0.01), 40),
    ],
    ids=lambda case: getattr(case, "title", ""),
)
def test_online_methods_come_near_from_what_they_draw(case: reinforcement.OnlineCase, refreshes: int) -> None:
    assert reinforcement.solve_drawn(case, WORLD, refreshes).distance <= 0.05


def test_the_page_has_every_online_method() -> None:
    methods = {"reinforce", "a2c", "ppo", "ppo_kl", "trpo", "rloo", "grpo"}
    assert {case.method for case in reinforcement.DRAWN} == methods
    assert {case.method for case in reinforcement.ENUMERATED} == methods - {"trpo"}


def test_enumerated_groups_have_the_policys_probability() -> None:
    rollout = Enumerated(WORLD, TabularActor(WORLD).policy, group=2).collect(0).rollout
    weights = rollout.weights.view(PROMPTS, 40, 40, 2)  # type: ignore[attr-defined]
    assert float(weights.sum()) == pytest.approx(1.0)
    q = WORLD.reference
    assert float(weights[1, 3, 7, 0]) == pytest.approx(q[1, 3] * q[1, 7] / 4)
    scores = rollout.score.view(PROMPTS, 40, 40, 2)
    assert scores[1, 3, 7].tolist() == [WORLD.reward[1, 3], WORLD.reward[1, 7]]


def test_drawn_responses_are_as_frequent_as_they_are_likely() -> None:
    source = Drawn(WORLD, TabularActor(WORLD).policy, rows=40_000)
    rollout = source.collect(0).rollout
    tokens = rollout.inputs.unpack(rollout.inputs.targets)
    alone = (tokens[:, 0] == 0) & (rollout.inputs.tokens[rollout.inputs.starts + 1] == 1)
    assert float(alone.float().mean()) == pytest.approx(WORLD.conditionals[0, 0, 0] / 2, abs=0.01)
    cut = rollout.ended.any(1) & ~rollout.terminated.any(1)
    assert torch.equal(cut, (rollout.mask.sum(-1) == 3) & (tokens[:, -1] != 0))


def test_where_grpo_rests_by_hand() -> None:
    """Equal weights: log(pi / ref) of two last tokens after a prefix differ by f (r - r') / beta; and of two
    first tokens by f / beta times the difference of what pi earns after them."""
    beta, group = 0.5, 4
    pi = optima.grpo(WORLD, beta, group, np.ones(len(RESPONSES)))
    np.testing.assert_allclose(pi.sum(-1), 1)
    h = np.log(pi / WORLD.reference)
    a, b = RESPONSES.index((1, 2, 3)), RESPONSES.index((1, 2, 0))
    expected = 0.75 * (WORLD.reward[0, a] - WORLD.reward[0, b]) / beta
    assert h[0, a] - h[0, b] == pytest.approx(expected)

    def first(token: int) -> tuple[float, float]:
        on = np.array([y[0] == token for y in RESPONSES])
        mass, ref = pi[0, on].sum(), WORLD.reference[0, on].sum()
        return math.log(mass / ref), float((pi[0, on] * WORLD.reward[0, on]).sum() / mass)

    (one, score), (two, other) = first(1), first(2)
    assert one - two == pytest.approx(0.75 * (score - other) / beta)


def test_where_grpo_rests_is_one_point_for_each_weight() -> None:
    ones = np.ones(len(RESPONSES))
    even = optima.grpo(WORLD, 0.5, 4, ones)
    np.testing.assert_allclose(optima.grpo(WORLD, 0.5, 4, 3 * ones), even, atol=1e-9)
    assert total_variation(optima.grpo(WORLD, 0.5, 4, 1 / LENGTHS), even) > 0.005
    assert total_variation(optima.grpo(WORLD, 0.5, 8, ones), even) > BOUND


@pytest.mark.parametrize("case", gradients.GRADIENTS[3:], ids=lambda case: case.title)
def test_drawn_gradients_are_those_of_the_expectation(case: gradients.GradientCase) -> None:
    found = gradients.agreement(case, WORLD, batches=120)
    assert not found.missed
    assert found.error < 0.06


def test_a_wrong_gradient_would_be_caught() -> None:
    case = replace(gradients.GRADIENTS[-2], scale=1.0)  # without what a group's mean leaves
    assert gradients.agreement(case, WORLD, batches=120).missed


def test_exact_values_by_hand() -> None:
    """Under the reference the KL is nothing: the mean reward of what begins so."""
    values = gradients.exact_values(WORLD, WORLD.reference)
    on = np.array([y[:2] == (1, 2) for y in RESPONSES])
    expected = (WORLD.reference * WORLD.reward)[1, on].sum() / WORLD.reference[1, on].sum()
    assert values[1, 1 * 4 + 2] == pytest.approx(expected)
    optimum = optima.dpo(WORLD, reinforcement.BETA)
    start = gradients.exact_values(WORLD, optimum)[:, 0]  # beta log Z
    log_z = np.log((WORLD.reference * np.exp(WORLD.reward / reinforcement.BETA)).sum(-1))
    np.testing.assert_allclose(start, reinforcement.BETA * log_z)


def test_ppo_begins_as_a2c() -> None:
    found = gradients.ppo_begins_as_a2c(WORLD)
    assert not found.missed
    assert found.difference <= 1e-12


@pytest.mark.parametrize("parameters", trust.STEPS, ids=str)
def test_a_trpo_step_obeys_its_bound(parameters: dict[str, float]) -> None:
    step = trust.first_step(parameters, WORLD)
    assert not step.missed
    assert 0 < step.enumerated <= parameters["max_kl"]
    assert step.reported == pytest.approx(step.enumerated, abs=1e-12)
    assert 0 < step.gain < step.best * 1.01


def test_without_damping_a_trpo_step_gains_what_can_be_gained() -> None:
    step = trust.first_step({"max_kl": 1e-4, "damping": 0.0}, WORLD)
    assert step.enumerated == pytest.approx(1e-4, rel=0.03)
    assert step.gain == pytest.approx(step.best, rel=0.03)


def test_the_fisher_matrix_of_a_llama() -> None:
    assert not trust.fisher_on_a_llama().missed


@pytest.mark.parametrize("case", ONLINE, ids=lambda case: case.method)
def test_a_llama_learns_from_its_own_answers(case: object) -> None:
    found = learn_online(replace(case, refreshes=8), WORLD)  # type: ignore[type-var]
    assert found.after < 0.9 * found.before
    assert found.missed == (found.after > 0.05)


def test_tables() -> None:
    rows = [gradients.Equality("one", 0.0, 1e-12), gradients.Equality("two", math.nan, 1e-4)]
    expected = "| | off | bound |\n|---|---|---|\n| `one` | 0 | 1e-12 |\n| `two` | nan | 0.0001 |"
    assert table(["", "off", "bound"], rows).replace("|  |", "| |") == expected
    assert [row.missed for row in rows] == [False, True]


@pytest.mark.parametrize(("off", "status"), [(0.01, 0), (0.03, 1), (math.nan, 1)])
def test_a_miss_is_an_exit_status(
    off: float,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = reinforcement.OnlineResult(online_case("a2c"), off, off, bound=0.02, seconds=1.0)
    llama = EndToEnd(parameters=20_896, pairs=5, before=0.3, after=0.04)
    findings = Findings([], [found], [], [], [], [], llama, [])
    monkeypatch.setattr("trimtab.truth.__main__.measure", lambda world: findings)
    monkeypatch.setattr("sys.argv", ["truth", "--out", str(tmp_path / "truth.md")])
    assert main() == status
    assert ("missed its bound: a2c" in capsys.readouterr().out) == bool(status)
    row = f"| `a2c` | closed form: ref · exp(r / β) | {figure(off)} | {figure(off)} |"
    text = (tmp_path / "truth.md").read_text(encoding="utf-8")
    assert row in text
    assert "20,896" in text
