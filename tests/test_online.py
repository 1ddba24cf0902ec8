"""The online loop on a tiny Llama: first ratios, kept answers, epochs, coefficients, rewards, refusals."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.experience import Spy, learner, numbered, reference, rows_of, source, trained, weights
from trimtab.errors import UserError
from trimtab.learner import Learner, plan_of
from trimtab.methods import METHODS, find
from trimtab.online import OnlineConfig, train_online
from trimtab.rollouts.rewards import checked
from trimtab.train import schedule_factor

ONLINE = sorted(name for name, method in METHODS.items() if method.online)


@pytest.mark.parametrize("batch_tokens", [40, 10**6])
@pytest.mark.parametrize(
    ("name", "parameters"),
    [*((name, {}) for name in ONLINE if name != "trpo"), ("ppo", {"entropy_bonus": 0.1})],
)
def test_the_first_ratio_is_exactly_one(name: str, parameters: dict[str, Any], batch_tokens: int) -> None:
    policy = learner()
    spy: Any = Spy(find(name)(**parameters), policy)
    [refresh] = trained(spy, policy, epochs=1, batch_tokens=batch_tokens)
    assert (len(spy.batches) > 2) == (batch_tokens == 40)
    for batch, logprobs in spy.batches:
        assert torch.equal(batch.old_logprobs, logprobs)
        assert float(batch.old_logprobs[batch.mask].max()) < 0
    assert refresh.metrics.get("clip_fraction", 0.0) == 0
    assert refresh.metrics["sampling_gap"] < 1e-4


def test_a_gap_between_sampling_and_training_is_reported() -> None:
    """Answers drawn at half the temperature have other log-probs than those that are trained."""
    policy = learner(critic=False)
    [refresh] = trained(find("rloo")(), policy, {"temperature": 0.5})
    assert refresh.metrics["sampling_gap"] > 0.1


def test_later_ratios_are_not_one() -> None:
    policy = learner()
    spy: Any = Spy(find("ppo")(), policy)
    [refresh] = trained(spy, policy, epochs=3)
    first, *later = [float((logprobs - batch.old_logprobs).abs().max()) for batch, logprobs in spy.batches]
    assert first == 0 < min(later)
    assert refresh.metrics["old_kl"] > 0


def test_kept_answers_keep_the_log_probs_of_the_policy_that_wrote_them() -> None:
    policy = learner()
    spy: Any = Spy(find("ppo")(), policy)
    trained(spy, policy, {"mix": 0.5}, refreshes=3, epochs=2)
    assert [int(r.fresh.sum()) for r in spy.rollouts] == [8, 4, 4]
    written: dict[tuple[int, ...], torch.Tensor] = {}
    moved = 0.0
    for rollout, now in zip(spy.rollouts, spy.now, strict=True):
        assert rollout.size == 8
        for row, tokens in enumerate(rows_of(rollout)):
            logprobs = rollout.old_logprobs[row][rollout.mask[row]]
            if rollout.fresh[row]:
                assert tokens not in written  # or the test could not tell them apart
                written[tokens] = logprobs
            assert torch.equal(logprobs, written[tokens])
        off = ((now - rollout.old_logprobs) * rollout.mask).abs().amax(-1)
        assert float(off[rollout.fresh].max()) < 1e-5
        moved = max([moved, *off[~rollout.fresh].tolist()])
    assert moved > 1e-3


def test_whole_groups_are_kept() -> None:
    policy = learner(critic=False)
    spy: Any = Spy(find("rloo")(), policy)
    trained(spy, policy, {"mix": 0.5, "samples": 3}, refreshes=3)
    for before, rollout in zip(spy.rollouts, spy.rollouts[1:], strict=False):
        groups = [rows_of(rollout)[start : start + 3] for start in range(0, 12, 3)]
        old = [rows_of(before)[start : start + 3] for start in range(0, 12, 3)]
        assert [group in old for group in groups] == [True, True, False, False]
        assert rollout.group_size == 3
        lengths = rollout.inputs.prompt_lengths.view(4, 3)
        assert bool((lengths == lengths[:, :1]).all())


def test_ppo_stops_its_epochs_and_leaves_out_the_step_that_goes_too_far() -> None:
    stopped, once = learner(), learner()
    spy: Any = Spy(find("ppo")(old_kl_stop=1e-6), stopped)
    [refresh] = trained(spy, stopped, epochs=4)
    trained(find("ppo")(), once, epochs=1)
    assert len(spy.batches) == 2  # the second epoch finds the policy 1e-6 nats away
    assert refresh.metrics["stopped_early"] == 1
    assert refresh.metrics["old_kl"] > 1e-6
    assert torch.equal(weights(stopped), weights(once))


def test_a_bound_that_is_not_reached_changes_nothing() -> None:
    bounded, free = learner(), learner()
    [refresh] = trained(find("ppo")(old_kl_stop=10.0), bounded, epochs=3)
    trained(find("ppo")(), free, epochs=3)
    assert "stopped_early" not in refresh.metrics
    assert torch.equal(weights(bounded), weights(free))


def test_the_learning_rate_falls_as_planned_when_epochs_stop() -> None:
    """5 refreshes of 4 steps fall from step 0 to 20; the refreshes begin at steps 0, 4, 8, 12 and 16."""
    policy = learner()
    refreshes = trained(
        find("ppo")(old_kl_stop=1e-9), policy, refreshes=5, epochs=4, schedule="linear", learning_rate=1e-2
    )
    # warm-up is one step, so that step k has 1 - (k - 1) / 19; a refresh reports one epoch of one step, the
    # one that went too far: the second
    assert [r.metrics["stopped_early"] for r in refreshes] == [1.0] * 5
    expected = [1e-2 * (1 - (step - 1) / 19) for step in (1, 5, 9, 13, 17)]
    assert [r.metrics["learning_rate"] for r in refreshes] == pytest.approx(expected)


@pytest.mark.parametrize("name", ONLINE)
def test_a_seed_says_everything(name: str) -> None:
    quick = {"trpo": {"cg_iterations": 2, "halvings": 3}}.get(name, {})
    runs = []
    for seed in (0, 0, 1):
        policy = learner()
        options = {"refreshes": 2, "minibatch_size": 3, "epochs": 2, "seed": seed}
        refreshes = trained(find(name)(**quick), policy, {"mix": 0.25}, **options)
        for refresh in refreshes:
            refresh.metrics.pop("seconds")
            refresh.metrics.pop("tokens_per_second")
        runs.append((weights(policy), [(r.metrics, r.samples, r.coefficients) for r in refreshes]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not torch.equal(runs[0][0], runs[2][0])
    assert runs[0][1][0][1] != runs[2][1][0][1]


def test_an_epoch_has_every_row_once() -> None:
    rollout = numbered([3, 1, 9, 2, 5, 5, 7, 1])
    run, generator = OnlineConfig(batch_tokens=12, minibatch_size=3), torch.Generator().manual_seed(0)
    plans = [plan_of(rollout, run, generator, run.batch_tokens) for _ in range(2)]
    lengths = rollout.inputs.lengths
    for plan in plans:
        minibatches = [torch.cat(parts).tolist() for parts in plan]
        assert [len(rows) for rows in minibatches] == [3, 3, 2]
        assert sorted(row for rows in minibatches for row in rows) == list(range(8))
        parts = [part for parts in plan for part in parts]
        assert all(len(part) == 1 or int(lengths[part].sum()) <= 12 for part in parts)
        assert len(parts) > 3
    assert [set(torch.cat(p).tolist()) for p in plans[0]] != [set(torch.cat(p).tolist()) for p in plans[1]]


def minibatches_of(spy: Any) -> list[frozenset[int]]:
    """Which rows of the collection each minibatch of a run had, all in one part each."""
    everything = rows_of(spy.rollouts[0])
    return [frozenset(everything.index(row) for row in rows_of(batch)) for batch, _ in spy.batches]


def test_every_epoch_cuts_the_collection_anew_as_its_seed_says() -> None:
    """The same answers, cut by a run of another seed, or by the same."""
    found = []
    for seed in (0, 0, 1):
        policy = learner(critic=False)
        spy: Any = Spy(find("rloo")(), policy)
        run = OnlineConfig(refreshes=1, epochs=2, minibatch_size=4, seed=seed)
        list(train_online(spy, policy, source(policy, seed=7), run))
        found.append(minibatches_of(spy))
        assert found[-1][0] | found[-1][1] == found[-1][2] | found[-1][3] == set(range(8))
        assert set(found[-1][:2]) != set(found[-1][2:])
    assert found[0] == found[1] != found[2]


def test_minibatches_larger_than_the_collection_are_the_collection() -> None:
    policy = learner(critic=False)
    spy: Any = Spy(find("rloo")(), policy)
    trained(spy, policy, minibatch_size=1000, epochs=2)
    assert [batch.size for batch, _ in spy.batches] == [8, 8]


def test_the_learning_rate_falls_to_zero() -> None:
    """6 steps in 3 refreshes: the first warms up, then 1, 4/5, ... 1/5; reported is the last epoch's."""
    options = {"refreshes": 3, "epochs": 2, "schedule": "linear", "learning_rate": 1e-3}
    refreshes = trained(find("rloo")(), learner(critic=False), **options)
    assert [r.metrics["learning_rate"] for r in refreshes] == pytest.approx([1e-3, 6e-4, 2e-4])
    assert schedule_factor(OnlineConfig(**options, warmup=0.0), 6, 6) == 0


def test_actor_and_critic_have_rates_of_their_own() -> None:
    policy = learner()
    run = OnlineConfig(learning_rate=1e-4, weight_decay=0.1, schedule="constant", warmup=0.0)
    actor, critic = Learner(find("ppo")(), policy, run, 1).optimiser.param_groups
    assert (actor["lr"], critic["lr"]) == (1e-4, 1e-3)  # a linear head's own
    assert {id(p) for p in critic["params"]} == {id(p) for p in policy.critic_parameters()}
    assert {id(p) for p in actor["params"]} == {id(p) for p in policy.named_parameters().values()}
    assert not {id(p) for p in actor["params"]} & {id(p) for p in critic["params"]}
    _, critic = Learner(
        find("ppo")(), policy, replace(run, critic_learning_rate=0.5), 1
    ).optimiser.param_groups
    assert critic["lr"] == 0.5
    [only] = Learner(find("rloo")(), learner(critic=False), run, 1).optimiser.param_groups
    assert only["lr"] == 1e-4


def test_trpo_leaves_the_actor_out_of_the_optimiser() -> None:
    policy = learner()
    [only] = Learner(find("trpo")(), policy, OnlineConfig(), 1).optimiser.param_groups
    assert {id(p) for p in only["params"]} == {id(p) for p in policy.critic_parameters()}


def test_trpo_moves_the_actor_once_and_the_critic_in_every_epoch() -> None:
    found = []
    for epochs in (1, 3):
        policy = learner()
        [refresh] = trained(find("trpo")(max_kl=1e-3), policy, epochs=epochs)
        assert refresh.metrics["step_accepted"] == 1
        assert 0 < refresh.metrics["old_kl"] <= 1e-3
        assert all(p.requires_grad for p in policy.parameters())
        actor = torch.cat([p.detach().flatten() for p in policy.named_parameters().values()])
        critic = torch.cat([p.detach().flatten() for p in policy.critic_parameters()])
        found.append((actor, critic))
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][1], found[1][1])
    before = torch.cat([p.detach().flatten() for p in learner().named_parameters().values()])
    assert not torch.equal(found[0][0], before)


def nan_at_last(prompts: Sequence[Any], responses: Sequence[str], columns: Any = None) -> list[float]:
    return [0.0] * (len(responses) - 1) + [math.nan]


@pytest.mark.parametrize("name", ONLINE)
def test_a_score_that_is_no_number_stops_the_run(name: str) -> None:
    policy = learner()
    before = weights(policy)
    run = OnlineConfig(refreshes=1)
    with pytest.raises(UserError, match="not a finite number"):
        list(train_online(find(name)(), policy, source(policy, nan_at_last), run, reference()))
    assert torch.equal(weights(policy), before)


@pytest.mark.parametrize("of_critic", [False, True])
def test_a_gradient_that_is_no_number_stops_the_run_whoever_has_it(of_critic: bool) -> None:
    policy = learner()
    before = weights(policy)
    parameters = policy.critic_parameters() if of_critic else list(policy.named_parameters().values())
    parameters[0].register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(UserError, match="not a finite number"):
        trained(find("ppo")(), policy)
    assert torch.equal(weights(policy), before)


def test_a_checked_reward_says_which_answer_had_no_number() -> None:
    policy = learner(critic=False)
    collector = source(policy, checked(nan_at_last, "mine"))
    with pytest.raises(UserError, match="reward mine: gave nan"):
        list(train_online(find("rloo")(), policy, collector, OnlineConfig(refreshes=1)))


def test_without_a_reference_there_is_no_price() -> None:
    policy = learner(critic=False)
    spy: Any = Spy(find("reinforce")(beta=0.5), policy)
    [refresh] = train_online(spy, policy, source(policy), OnlineConfig(refreshes=1))
    [rollout] = spy.rollouts
    assert rollout.rewards[rollout.ended].tolist() == rollout.score.tolist()
    assert float(rollout.rewards[~rollout.ended].abs().max()) == 0
    assert "kl" not in refresh.metrics


def test_what_is_reported_of_new_answers() -> None:
    policy = learner(critic=False)
    spy: Any = Spy(find("grpo")(), policy)
    refreshes = trained(spy, policy, {"mix": 0.25}, refreshes=2)
    rollout, refresh = spy.rollouts[1], refreshes[1]
    new = [row for row in range(8) if rollout.fresh[row]]
    lengths = [int(rollout.mask[row].sum()) for row in new]
    assert len(new) == 6
    assert refresh.metrics["tokens"] == sum(lengths)
    assert refresh.metrics["length"] == pytest.approx(sum(lengths) / 6)
    scores = [float(rollout.score[row]) for row in new]
    assert refresh.metrics["score"] == pytest.approx(sum(scores) / 6, abs=1e-6)
    assert [sample.score for sample in refresh.samples] == pytest.approx(scores)
    surprise = -sum(float(rollout.old_logprobs[row].sum()) for row in new) / sum(lengths)
    assert refresh.metrics["entropy"] == pytest.approx(surprise, rel=1e-5)
