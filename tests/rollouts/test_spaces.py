"""What a policy reads of an observation, what an action becomes, and environments that cannot be had."""

import sys

import numpy as np
import pytest
import torch
from tests.control_environments import Scripted, environment, linear, register, rows_of, told

from trimtab.errors import UserError
from trimtab.policies.heads import CategoricalHead, GaussianHead
from trimtab.rollouts.spaces import Spaces, make_environment, make_environments

register()


def test_continuous_actions_are_kept_as_drawn_and_given_within_the_bounds() -> None:
    Scripted.received.clear()
    policy = linear(3, GaussianHead(2, 0.0))
    source = environment("trimtab-tests/Continuous-v0", policy, steps=20, copies=1)
    rollout = source.collect(0).rollout
    kept, given = rollout.inputs.actions[0].numpy(), np.array(Scripted.received)
    assert kept.shape == (20, 2)
    assert given.shape == (rollout.steps, 2, 1)
    kept = kept[rollout.mask[0].numpy()]
    assert abs(kept).max() > 1.5  # of normal deviates
    expected = np.stack([kept[:, 0].clip(-0.5, 0.25), kept[:, 1].clip(None, 1.0)], 1)
    assert 0 < (expected != kept).mean() < 1
    np.testing.assert_array_equal(given[:, :, 0], expected)
    expected_density = -0.5 * (kept**2).sum(1) - np.log(2 * np.pi)  # of what was drawn, not of what was given
    with torch.no_grad():
        logprobs = policy.evaluate(rollout.inputs).logprobs[rollout.mask]
    np.testing.assert_allclose(logprobs.numpy(), expected_density, rtol=1e-5)
    assert rollout.inputs.observations.shape == (1, 21, 3)
    assert rollout.inputs.observations.dtype == torch.float32
    assert rollout.inputs.observations[0, 1].tolist() == [0.0, 0.0, 1.0]


def test_discrete_observations_are_one_hot_and_actions_count_from_the_first() -> None:
    Scripted.received.clear()
    source = environment("trimtab-tests/Numbered-v0", linear(8, CategoricalHead(3)), steps=20, copies=1)
    rollout = source.collect(0).rollout
    stories = rows_of([told(0)], 20)
    states = [int(m.before[2]) for m in stories[0]] + [int(stories[0][-1].after[2])]
    np.testing.assert_array_equal(rollout.inputs.observations[0].numpy(), np.eye(8)[states])
    kept = rollout.inputs.actions[0][rollout.mask[0]]
    assert sorted(set(kept.tolist())) == [0, 1, 2]
    assert [int(a) for a in Scripted.received] == (kept + 5).tolist()


def test_discrete_observations_may_count_from_another_number_than_0() -> None:
    source = environment("trimtab-tests/NumberedFromTwo-v0", linear(8, CategoricalHead(3)), steps=3, copies=1)
    found = source.collect(0).rollout.inputs.observations[0]
    np.testing.assert_array_equal(found.numpy(), np.eye(8)[[0, 1, 2, 3]])


def test_heads_fit_their_spaces() -> None:
    spaces = [
        Spaces.of(make_environment(f"trimtab-tests/{name}-v0"), name) for name in ("Numbered", "Continuous")
    ]
    discrete, gaussian = (space.head(-0.7) for space in spaces)
    assert isinstance(discrete, CategoricalHead) and (discrete.size, spaces[0].size) == (3, 8)
    assert isinstance(gaussian, GaussianHead) and (gaussian.size, spaces[1].size) == (2, 3)
    assert gaussian.log_std == -0.7


def test_an_environment_need_not_know_how_to_draw_itself() -> None:
    seen, _ = make_environment("trimtab-tests/Bare-v0").reset(seed=0)
    assert seen.tolist() == [0.0, 0.0, 0.0]
    seen, _ = make_environments("trimtab-tests/Bare-v0", 2).reset(seed=0)
    assert seen.tolist() == [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]


def test_an_unknown_environment_is_refused_with_the_nearest() -> None:
    message = r"^--env CartPole-v7: Gymnasium knows no such environment; did you mean 'CartPole-v\d'\?$"
    for make in (lambda name: make_environments(name, 2), make_environment):
        with pytest.raises(UserError, match=message):
            make("CartPole-v7")
        with pytest.raises(UserError, match=r"^--env nowhere:Thing-v0: "):
            make("nowhere:Thing-v0")


@pytest.mark.parametrize(
    ("name", "package", "extra"), [("LunarLander-v3", "Box2D", "box2d"), ("Hopper-v5", "mujoco", "mujoco")]
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module_name in [n for n in sys.modules if n.startswith(f"gymnasium.envs.{extra}")]:
        monkeypatch.delitem(sys.modules, module_name)
    monkeypatch.setitem(sys.modules, package, None)
    expected = rf"^--env {name}: {package} is not installed; pip install 'trimtab\[{extra}\]'$"
    for make in (lambda name: make_environments(name, 2), make_environment):
        with pytest.raises(UserError, match=expected):
            make(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("TwoEyes", "x: observations are a Dict space; a Box or Discrete space is needed"),
        ("TwoHands", "x: actions are a MultiDiscrete space; a Box or Discrete space is needed"),
    ],
)
def test_spaces_that_no_policy_here_can_use_are_refused(name: str, message: str) -> None:
    for env in (
        make_environment(f"trimtab-tests/{name}-v0"),
        make_environments(f"trimtab-tests/{name}-v0", 2),
    ):
        with pytest.raises(UserError, match=message):
            Spaces.of(env, "x")
