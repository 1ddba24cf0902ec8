"""Experience of a language policy: which answers are kept, and where rewards stand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.experience import Spy, learner, letters_e, numbered, rows_of, trained

from trimtab.methods import find
from trimtab.objectives.advantages import gae
from trimtab.rollouts.collect import CollectConfig, with_rewards
from trimtab.rollouts.rollout import Rollout


@pytest.mark.parametrize(("mix", "prompts", "kept"), [(0.99, 32, 31), (0.5, 1, 0), (0.25, 4, 1), (0, 4, 0)])
def test_never_all_answers_are_kept(mix: float, prompts: int, kept: int) -> None:
    assert CollectConfig(mix=mix, prompts=prompts).kept == kept


def test_kept_answers_keep_their_scores_and_cut_ends() -> None:
    policy = learner(critic=False)
    spy: Any = Spy(find("grpo")(), policy)
    trained(spy, policy, {"mix": 0.5, "cut_off": "penalty", "cut_off_score": -7.0}, refreshes=4)
    for rollout in spy.rollouts:
        texts = [
            policy.tokenizer.decode(tokens[length:], skip_special_tokens=True)
            for tokens, length in zip(rows_of(rollout), rollout.inputs.prompt_lengths.tolist(), strict=True)
        ]
        assert rollout.score.tolist() == pytest.approx(letters_e([], texts))
        cut = [tokens[-1] not in policy.actor.end_tokens for tokens in rows_of(rollout)]
        last = rollout.rewards[rollout.ended]  # GRPO pays no KL in the rewards
        expected = [-7.0 if c else s for c, s in zip(cut, rollout.score.tolist(), strict=True)]
        assert last.tolist() == pytest.approx(expected)
        assert any(cut)


CUT = torch.tensor([[False, True, False], [False, False, False]])  # the first of two ends


def rewarded(beta: float = 0.0, **options: Any) -> Rollout:
    """A response of 2 tokens that ended, score 1, and one of 3 that was cut off, score 2."""
    return with_rewards(numbered([2, 3], terminated=CUT), CollectConfig(**options), beta)


@pytest.mark.parametrize(
    ("options", "second"),
    [
        ({}, 2.0),
        ({"cut_off": "penalty", "cut_off_score": -3.0}, -3.0),
        ({"cut_off": "bootstrap"}, 0.0),
        ({"clip_scores": 1.5}, 1.5),
        ({"cut_off": "penalty", "cut_off_score": -3.0, "clip_scores": 1.5}, -1.5),
    ],
)
def test_scores_stand_on_the_last_token(options: dict[str, Any], second: float) -> None:
    assert rewarded(**options).rewards.tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, second]]


def test_the_price_of_kl_is_on_every_token() -> None:
    """log pi - log ref is 1 everywhere, beta 1/4."""
    assert rewarded(0.25).rewards.tolist() == [[-0.25, 0.75, 0.0], [-0.25, -0.25, 1.75]]
    assert rewarded(0.25, cut_off="bootstrap").rewards.tolist() == [
        [-0.25, 0.75, 0.0],
        [-0.25, -0.25, -0.25],
    ]


def test_whitened_scores() -> None:
    """1 and 2 have mean 3/2 and deviation sqrt(1/2)."""
    last = rewarded(whiten_scores=True).rewards[torch.tensor([0, 1]), torch.tensor([1, 2])]
    assert last.tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)], rel=1e-6)


def test_only_a_bootstrapped_answer_goes_on() -> None:
    last = [[False, True, False], [False, False, True]]
    assert rewarded().terminated.tolist() == last
    assert rewarded(cut_off="penalty").terminated.tolist() == last
    bootstrapped = rewarded(cut_off="bootstrap")
    assert bootstrapped.terminated.tolist() == CUT.tolist()
    assert bootstrapped.ended.tolist() == last


@pytest.mark.parametrize("name", ["a2c", "reinforce"])
def test_where_an_answer_was_cut_off_its_value_counts(name: str) -> None:
    """Values 0 before every token and 10 after the last: only the answer that was cut off gets the 10."""
    rollout = rewarded(cut_off="bootstrap")
    values = torch.zeros(2, 3)
    after = torch.tensor([[0.0, 10.0, 0.0], [0.0, 0.0, 10.0]])
    rollout = replace(rollout, values=values, next_values=after)
    parameters = {"baseline": "value"} if name == "reinforce" else {}
    found = find(name)(**parameters).advantages(rollout).advantages
    assert found.tolist() == [[1.0, 1.0, 0.0], [10.0, 10.0, 10.0]]


def test_a_baseline_of_nothing_takes_no_critic() -> None:
    rollout = replace(rewarded(), values=torch.full((2, 3), 5.0), next_values=torch.full((2, 3), 5.0))
    found = find("reinforce")(baseline="none").advantages(rollout).advantages
    assert found.tolist() == [[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]]


def test_gae_ignores_what_stands_beyond_a_row() -> None:
    """Advantages of short rows beside long ones are those of the short rows alone."""
    values = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    both = replace(rewarded(0.1), values=values, next_values=values + 1)
    short = both.select(torch.tensor([0]))
    whole = both.with_gae(gamma=0.9, lam=0.8, whitened=False).advantages
    alone = gae(
        short.rewards, short.values, short.next_values, short.terminated, short.ended, gamma=0.9, lam=0.8
    )
    torch.testing.assert_close(whole[:1, :2], alone)
