"""Old log-probs and the first update share one pass: the same numbers, and never with other weights."""

from typing import Any
from unittest.mock import Mock

import pytest
import torch

from tests.experience import learner, source, trained, weights
from trimtab.methods import METHODS, find
from trimtab.online import OnlineConfig, OnlineTraining, train_online

ONLINE = sorted(name for name, method in METHODS.items() if method.online)


@pytest.mark.parametrize("options", [{}, {"batch_tokens": 40}, {"minibatch_size": 3, "epochs": 2}])
@pytest.mark.parametrize("name", ONLINE)
def test_a_pass_made_ahead_is_the_one_that_an_update_would_make(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights to the last digit, with fewer passes: one for each part of the first update kept."""
    quick = {"trpo": {"cg_iterations": 2, "halvings": 3}}.get(name, {})
    found = []
    for ahead in (True, False):
        if not ahead:
            monkeypatch.setattr(OnlineTraining, "_ahead", lambda *_: 0)
        policy = learner()
        evaluated = Mock(wraps=policy._evaluated)
        monkeypatch.setattr(policy, "_evaluated", evaluated)
        trained(find(name)(**quick), policy, refreshes=2, **options)
        assert not policy.made_ahead
        found.append((weights(policy), evaluated.call_count))
    (ours, fewer), (plain, passes) = found
    assert torch.equal(ours, plain)
    assert fewer == passes if name == "trpo" else fewer <= passes - 2


def test_no_more_is_made_ahead_than_is_read_at_once() -> None:
    policy = learner()
    training = train_online(find("ppo")(), policy, source(policy), OnlineConfig(batch_tokens=60, refreshes=1))
    assert next(training.events()) is None  # the collection
    assert training.work is not None and len(training.work.plans[0][0]) > 2
    assert 0 < sum(len(inputs.tokens) for inputs, *_ in policy.made_ahead) <= 60


def test_a_pass_made_ahead_is_taken_once() -> None:
    policy = learner(critic=False)
    inputs = source(policy).collect(0).rollout.inputs
    made = policy.evaluate_ahead(inputs)
    with torch.no_grad():  # nobody learns from this one
        assert torch.equal(policy.evaluate(inputs).logprobs, made.logprobs)
    assert policy.evaluate(inputs) is made
    again = policy.evaluate(inputs)
    assert again is not made and torch.equal(again.logprobs, made.logprobs)


def test_a_pass_that_nobody_took_is_forgotten_when_the_weights_have_moved() -> None:
    policy = learner()
    training = train_online(find("ppo")(), policy, source(policy), OnlineConfig(refreshes=1))
    events = training.events()
    assert next(events) is None  # the collection
    assert training.work is not None and training.work.behind == 0
    policy.evaluate_ahead(training.work.rollout.inputs.select(torch.tensor([3])))
    assert next(events) is None  # what a method does before its epochs
    assert len(policy.made_ahead) == 2
    assert next(events) is None  # the first update
    assert training.work.behind == 1 and not policy.made_ahead


@pytest.mark.parametrize(("bonus", "kept"), [(0.0, True), (0.1, False)])
def test_nothing_is_made_ahead_for_a_method_that_wants_entropies(bonus: float, kept: bool) -> None:
    policy = learner()
    training = train_online(
        find("ppo")(entropy_bonus=bonus), policy, source(policy), OnlineConfig(refreshes=1)
    )
    assert next(training.events()) is None  # the collection
    assert bool(policy.made_ahead) is kept
