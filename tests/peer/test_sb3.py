"""The same steps and the same weights through Stable-Baselines3 2.9 and sb3-contrib 2.9 and through trimtab.

The peer collects, with episodes that end and others that the time limit cuts off; its experience goes through
trimtab's whole loop, and the updates of one collection must lead both to the same parameters. Where the two
differ, and how the tests make them agree or show that they do not:

- PPO's advantages are normalised in every minibatch there, once for each collection here. Where minibatches
  are smaller than the collection, neither normalises.
- Minibatches are drawn by other generators: the tests hand ours over.
- The critic's loss is the squared error there, half of it here: value_weight = 2 vf_coef. TRPO's critic has
  no weight, and twice the gradient matters to Adam's epsilon alone: half of theirs here.
- PPO's `clip_range_vf` takes the error of the clipped value, `value_clip` the larger of both: left out.
- `clip_fraction` counts every ratio outside the bounds there, here those whose gradient is lost: left out.
- A2C takes RMSprop there if nothing else is said, Adam here: Adam in both.
- Of an episode that was cut off, gamma V(last state) is added to the reward there; here GAE counts it.
- TRPO's KL is KL(new || old) there and KL(old || new) here, with the same second derivative. Of Gaussian
  actions with A dimensions theirs is the mean over dimensions: their bound and damping are 1/A of ours.
- The conjugate gradient starts at random numbers of size 1e-4 there, at zero here: 12 iterations forget it.
- The line search multiplies the step by 0.8 there, by 0.5 here. The tests grant it one try: as the damping
  leaves room below the bound, both take the whole step.
"""

from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from torch import Tensor
from torch.distributions import kl_divergence

from trimtab.methods import find
from trimtab.online import OnlineConfig, train_online
from trimtab.policies.base import ABSENT
from trimtab.policies.control import ControlPolicy, NetworkConfig, Steps
from trimtab.rollouts.rollout import Collection, Rollout
from trimtab.rollouts.spaces import Spaces

pytestmark = pytest.mark.peer

Tensors = dict[str, Tensor]
LIMITS = {"CartPole-v1": 20, "Pendulum-v1": 9, "LunarLanderContinuous-v3": 9}
ENVS, STEPS, HIDDEN, LOG_STD = 4, 64, (16, 16), -0.5
EVERYTHING = ENVS * STEPS
GAMMA, LAM, RATE, EPSILON, MAX_NORM = 0.97, 0.9, 3e-3, 1e-5, 0.5
LAYERS = {
    "mlp_extractor.policy_net.0": "actor.body.0",
    "mlp_extractor.policy_net.2": "actor.body.2",
    "action_net": "actor.body.4",
    "mlp_extractor.value_net.0": "critic.0",
    "mlp_extractor.value_net.2": "critic.2",
    "value_net": "critic.4",
}
environments = pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
passes = pytest.mark.parametrize("closed", [True, False], ids=["closed form", "torch"])


class Recorder(BaseCallback):
    """Keeps of each step what the peer's buffer does not."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        now = self.locals
        rewards = now["rewards"].copy()  # what a cut-off episode would still have given is added later
        self.steps.append({name: now[name] for name in ("dones", "infos", "new_obs")} | {"rewards": rewards})
        return True


class Peer:
    """A learner of Stable-Baselines3 that has collected and not learned yet.

    Attributes:
        rollout: what it collected, as trimtab's environments give it: with a masked step between episodes.
        buffer: copies of the buffer's arrays, [T, E, ...].
    """

    def __init__(self, kind: Any, env: str, **options: Any) -> None:
        network = {"ortho_init": False, "log_std_init": LOG_STD, "net_arch": list(HIDDEN)}
        self.learner = kind(
            "MlpPolicy",
            make_vec_env(env, ENVS, seed=0, env_kwargs={"max_episode_steps": LIMITS[env]}),
            **{"n_steps": STEPS, "gamma": GAMMA, "gae_lambda": LAM, "learning_rate": RATE, **options},
            seed=0,
            device="cpu",
            policy_kwargs=network,
        )
        self.learner.train = lambda: None
        recorder = Recorder()
        self.learner.learn(EVERYTHING, callback=recorder)
        self.keep(recorder.steps)

    def keep(self, recorded: list[dict[str, Any]]) -> None:
        """Takes the steps of a collection, and what the learner's buffer holds of them."""
        names = ("observations", "actions", "rewards", "values", "log_probs", "advantages", "returns")
        self.buffer = {name: getattr(self.learner.rollout_buffer, name).copy() for name in names}
        self.recorded = recorded
        self.rollout = Rollout(
            **_tensors([self._row(number) for number in range(ENVS)]),
            old_logprobs=ABSENT,
            score=torch.zeros(ENVS),
            fresh=torch.ones(ENVS, dtype=torch.bool),
        )

    def _row(self, env: int) -> list[dict[str, Any]]:
        """The steps of one copy, with a masked one after each end, and one more for what came last."""
        row = []
        for t, step in enumerate(self.recorded):
            info, done, last = step["infos"][env], bool(step["dones"][env]), t == STEPS - 1
            cut = info.get("TimeLimit.truncated", False)
            action = self.buffer["actions"][t, env]
            row.append(
                {
                    "observations": self.buffer["observations"][t, env],
                    "actions": action[0] if action.dtype == np.int64 else action,
                    "mask": True,
                    "rewards": step["rewards"][env],
                    "terminated": done and not cut,
                    "ended": done or last,
                }
            )
            if done or last:
                after = info["terminal_observation"] if done else step["new_obs"][env]
                row.append({**_masked(row[-1]), "observations": after})
        return row

    def trained(self) -> Tensors:
        """Its parameters, by trimtab's names, after its own `train`."""
        type(self.learner).train(self.learner)
        return self.parameters()

    def parameters(self) -> Tensors:
        found = {}
        for name, tensor in self.learner.policy.state_dict().items():
            layer, _, kind = name.rpartition(".")
            found[f"{LAYERS[layer]}.{kind}" if layer else f"actor.{name}"] = tensor.clone()
        return found

    def logged(self, name: str) -> float:
        return float(self.learner.logger.name_to_value[f"train/{name}"])


def _masked(step: dict[str, Any]) -> dict[str, Any]:
    return {**step, "mask": False, "rewards": 0.0, "terminated": False, "ended": False}


def _tensors(rows: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """The fields of a rollout, [E, T]; shorter rows go on with masked steps."""
    longest = max(map(len, rows))
    rows = [row + [_masked(row[-1])] * (longest - len(row)) for row in rows]

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.array([[step[name] for step in row] for row in rows]))

    fields = {name: stacked(name)[:, :-1] for name in ("mask", "rewards", "terminated", "ended")}
    fields["rewards"] = fields["rewards"].float()
    return {**fields, "inputs": Steps(stacked("observations"), stacked("actions")[:, :-1])}


class Given:
    """A source of one collection."""

    unit, rows = "steps", EVERYTHING

    def __init__(self, rollout: Rollout) -> None:
        self.rollout = rollout

    def collect(self, refresh: int) -> Collection:
        return Collection(self.rollout, [])

    def remember(self, rollout: Rollout) -> None: ...

    def with_rewards(self, rollout: Rollout, beta: float) -> Rollout:
        return rollout

    def describe(self, rollout: Rollout) -> dict[str, float]:
        return {"steps": float(rollout.steps)}


class Watched:
    """A method that keeps the observations of every minibatch."""

    def __init__(self, method: Any) -> None:
        self.method, self.minibatches = method, list[Tensor]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def units(self, batch: Rollout) -> int:
        self.minibatches.append(batch.inputs.observations)
        return self.method.units(batch)


class Own:
    """trimtab's learner with the peer's weights."""

    def __init__(self, peer: Peer, closed: bool = True) -> None:
        self.peer = peer
        env = gymnasium.make(peer.learner.env.get_attr("spec")[0].id)
        spaces = Spaces.of(env, "peer")
        config = NetworkConfig(hidden=HIDDEN, closed_form=closed)
        self.policy = ControlPolicy(spaces.size, spaces.head(0.0), config, seed=1)
        assert (self.policy.closed is not None) == closed
        self.policy.load(self.policy.tensors() | peer.parameters())

    def trained(self, name: str, parameters: dict[str, Any], **options: Any) -> Tensors:
        """The parameters after one collection's updates."""
        settings = {"learning_rate": RATE, "schedule": "constant", "warmup": 0.0, "refreshes": 1}
        settings |= {"max_grad_norm": MAX_NORM, "adam_eps": EPSILON}
        method: Any = find(name)
        self.method = Watched(method(gamma=GAMMA, lam=LAM, **parameters))
        run = OnlineConfig(**{**settings, **options})
        source = Given(self.peer.rollout)
        [refresh] = train_online(self.method, self.policy, source, run)  # type: ignore[arg-type]
        self.metrics = refresh.metrics
        return self.parameters()

    def parameters(self) -> Tensors:
        tensors = self.policy.tensors().items()
        return {name: tensor.clone() for name, tensor in tensors if not name.startswith("observations.")}

    def order(self) -> list[np.ndarray[Any, Any]]:
        """The numbers of the steps of every minibatch, in the peer's flattened buffer."""
        every = torch.from_numpy(self.peer.buffer["observations"].swapaxes(0, 1).reshape(EVERYTHING, -1))
        found = [(m[:, None] == every).all(-1).nonzero() for m in self.method.minibatches]
        assert all(n[:, 0].tolist() == list(range(len(n))) for n in found), "an observation is there twice"
        return [n[:, 1].numpy() for n in found]


def assert_moved_alike(own: Tensors, theirs: Tensors, before: Tensors) -> None:
    assert own.keys() == theirs.keys() == before.keys()
    for name, tensor in own.items():
        assert float((theirs[name] - before[name]).abs().max()) > 1e-5, f"{name} has hardly moved"
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6)


@environments
@passes
def test_log_probs_entropies_and_values_of_the_same_steps(env: str, closed: bool) -> None:
    peer = Peer(PPO, env)
    own, mask = Own(peer, closed), peer.rollout.mask
    with torch.no_grad():
        out = own.policy.evaluate(peer.rollout.inputs, entropy=True)
        observations = peer.learner.policy.obs_to_tensor(peer.buffer["observations"][:, 0])[0]
        *_, entropy = peer.learner.policy.evaluate_actions(
            observations, torch.from_numpy(peer.buffer["actions"][:, 0])
        )
    for found, name in ((out.logprobs, "log_probs"), (out.values, "values")):
        expected = torch.from_numpy(peer.buffer[name].T)
        assert float(expected.std()) > 0.01
        torch.testing.assert_close(found[mask].view(ENVS, STEPS), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.entropy[mask].view(ENVS, STEPS)[0], entropy, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
@environments
def test_advantages_and_returns_through_ends_and_cuts(env: str, lam: float) -> None:
    peer = Peer(PPO, env, gae_lambda=lam)
    rollout, policy = peer.rollout, Own(peer).policy
    cut = rollout.ended & ~rollout.terminated
    assert int(cut.sum()) - ENVS > 4, "cut off by the time limit, not by the collection's end"
    assert (int(rollout.terminated.sum()) > 4) == (env == "CartPole-v1")
    with torch.no_grad():
        out = policy.evaluate(rollout.inputs)
    added = torch.from_numpy(peer.buffer["rewards"].T) - rollout.rewards[rollout.mask].view(ENVS, STEPS)
    limits = [[info.get("TimeLimit.truncated", False) for info in s["infos"]] for s in peer.recorded]
    expected = GAMMA * out.next_values[rollout.mask].view(ENVS, STEPS) * torch.tensor(limits).T
    torch.testing.assert_close(added, expected, rtol=1e-4, atol=2e-6)
    estimated = Rollout(**{**vars(rollout), "values": out.values, "next_values": out.next_values}).with_gae(
        gamma=GAMMA, lam=lam, whitened=False
    )
    for found, name in ((estimated.advantages, "advantages"), (estimated.returns, "returns")):
        expected = torch.from_numpy(peer.buffer[name].T)
        torch.testing.assert_close(found[rollout.mask].view(ENVS, STEPS), expected, rtol=1e-5, atol=1e-5)


PPO_OPTIONS = {"clip": 0.05, "value_weight": 1.4, "entropy_bonus": 0.02}
PEER_OPTIONS = {"clip_range": 0.05, "vf_coef": 0.7, "ent_coef": 0.02, "max_grad_norm": MAX_NORM}


@pytest.mark.parametrize("epochs", [1, 4])
@environments
@passes
def test_ppo_on_everything_at_once(env: str, closed: bool, epochs: int) -> None:
    """The first update has all ratios at 1; in the later ones some are clipped."""
    peer = Peer(PPO, env, n_epochs=epochs, batch_size=EVERYTHING, **PEER_OPTIONS)
    own, before = Own(peer, closed), peer.parameters()
    found = own.trained("ppo", PPO_OPTIONS, epochs=epochs)
    assert_moved_alike(found, peer.trained(), before)
    assert own.metrics["grad_norm"] > MAX_NORM
    assert (own.metrics["clip_fraction"] > 0.02) == (epochs > 1)
    assert own.metrics["old_kl"] == pytest.approx(peer.logged("approx_kl"), rel=1e-3, abs=1e-7)
    assert own.metrics["explained_variance"] == pytest.approx(peer.logged("explained_variance"), abs=1e-5)


@pytest.mark.parametrize(
    "whitened", [{"whiten": False}, {"whiten": True}, {"whiten": True, "whiten_minibatches": True}]
)
@environments
@passes
def test_ppo_in_the_same_minibatches(
    env: str, closed: bool, whitened: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 updates on 256 steps in minibatches of 48; the last of each epoch has 16."""
    options = {**PEER_OPTIONS, "normalize_advantage": whitened["whiten"]}
    with pytest.warns(UserWarning, match="truncated mini-batch of size 16"):
        peer = Peer(PPO, env, n_epochs=4, batch_size=48, **options)
    own, before = Own(peer, closed), peer.parameters()
    found = own.trained("ppo", {**PPO_OPTIONS, **whitened}, epochs=4, minibatch_size=48)
    order = own.order()
    assert [len(rows) for rows in order] == [48, 48, 48, 48, 48, 16] * 4
    epochs = iter([np.concatenate(order[start : start + 6]) for start in range(0, 24, 6)])
    monkeypatch.setattr(np.random, "permutation", lambda _: next(epochs))
    theirs = peer.trained()
    if whitened == {"whiten": True}:  # in every minibatch there, once here
        assert max(float((found[name] - theirs[name]).abs().max()) for name in found) > 1e-3
    else:
        assert_moved_alike(found, theirs, before)


@environments
@passes
def test_a2c(env: str, closed: bool) -> None:
    peer = Peer(A2C, env, use_rms_prop=False, vf_coef=0.7, ent_coef=0.02, max_grad_norm=MAX_NORM)
    own, before = Own(peer, closed), peer.parameters()
    found = own.trained("a2c", {"value_weight": 1.4, "entropy_bonus": 0.02})
    assert_moved_alike(found, peer.trained(), before)
    assert own.metrics["grad_norm"] > MAX_NORM


def actor_of(tensors: Tensors) -> Tensor:
    return torch.cat([t.flatten() for name, t in tensors.items() if name.startswith("actor.")])


def distribution(peer: Peer, policy: Any) -> Any:
    """Of the actions in every step of the collection."""
    observations = peer.buffer["observations"].reshape(EVERYTHING, -1)
    return policy.get_distribution(torch.from_numpy(observations)).distribution


def mean_kl(one: Any, other: Any) -> float:
    kl = kl_divergence(one, other)
    return float((kl.sum(-1) if kl.dim() > 1 else kl).mean())


@pytest.mark.parametrize("env", LIMITS)
def test_the_step_of_trpo(env: str) -> None:
    """The whole step, the first that the line search tries, is taken by both."""
    search = {"target_kl": 0.02, "cg_damping": 0.1, "cg_max_steps": 12, "line_search_max_iter": 1}
    peer = Peer(TRPO, env, batch_size=EVERYTHING, n_critic_updates=5, **search)
    dimensions = peer.learner.action_space.shape[0] if peer.learner.action_space.shape else 1
    own, before, old = Own(peer), peer.parameters(), deepcopy(peer.learner.policy)
    bounds = {"max_kl": 0.02 * dimensions, "damping": 0.1 * dimensions, "cg_iterations": 12, "halvings": 0}
    found = own.trained("trpo", bounds, epochs=5, adam_eps=EPSILON / 2, max_grad_norm=0.0)
    theirs = peer.trained()
    assert own.metrics["step_accepted"] == 1
    assert peer.logged("is_line_search_success") == 1

    step, their_step = (actor_of(tensors) - actor_of(before) for tensors in (found, theirs))
    assert float((step - their_step).norm() / their_step.norm()) < 1e-3
    assert own.metrics["step_norm"] == pytest.approx(float(their_step.norm()), rel=1e-3)
    with torch.no_grad():
        first, last = distribution(peer, old), distribution(peer, peer.learner.policy)
    assert own.metrics["old_kl"] == pytest.approx(mean_kl(first, last), rel=1e-3)
    assert peer.logged("kl_divergence_loss") * dimensions == pytest.approx(mean_kl(last, first), rel=1e-3)
    assert 0.001 < own.metrics["old_kl"] < 0.02 * dimensions

    critics = [{n: t for n, t in of.items() if "critic" in n} for of in (found, theirs, before)]
    assert_moved_alike(critics[0], critics[1], critics[2])
