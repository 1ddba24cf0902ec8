"""A whole training of Stable-Baselines3's PPO, collection by collection through trimtab's learner.

`test_sb3.py` compares the updates of a first collection. Here rate and clip fall, and Adam has a past: before
every collection trimtab is given the peer's parameters and moments, and what the peer has collected; after it
the parameters must be the peer's.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from tests.peer.test_sb3 import (
    ENVS,
    EPSILON,
    EVERYTHING,
    GAMMA,
    HIDDEN,
    LAM,
    LAYERS,
    LIMITS,
    MAX_NORM,
    RATE,
    STEPS,
    Given,
    Peer,
    Recorder,
    Tensors,
)
from torch import Tensor

from trimtab.methods import find
from trimtab.online import OnlineConfig, train_online
from trimtab.policies.control import ControlPolicy, NetworkConfig
from trimtab.rollouts.rollout import Rollout
from trimtab.rollouts.spaces import Spaces, make_environment

pytestmark = pytest.mark.peer

COLLECTIONS, EPOCHS, CLIP = 20, 5, 0.2


@dataclass(frozen=True)
class Update:
    """What the peer had before its updates on a collection.

    Attributes:
        moments: Adam's mean and mean square of every parameter; none before the first update.
        made: updates behind.
    """

    rollout: Rollout
    before: Tensors
    moments: dict[str, tuple[Tensor, Tensor]]
    made: int
    rate: float
    clip: float


class Whole(Peer):
    """A learner of Stable-Baselines3 in whose training every collection is kept.

    Attributes:
        updates: one for each collection.
    """

    def __init__(self, env: str) -> None:
        self.updates = list[Update]()
        recorder = Recorder()
        self.learner = PPO(
            "MlpPolicy",
            make_vec_env(env, ENVS, seed=0, env_kwargs={"max_episode_steps": LIMITS[env]}),
            n_steps=STEPS,
            batch_size=EVERYTHING,
            n_epochs=EPOCHS,
            gamma=GAMMA,
            gae_lambda=LAM,
            learning_rate=lambda left: RATE * left,
            clip_range=lambda left: CLIP * left,
            vf_coef=0.5,
            ent_coef=0.01,
            max_grad_norm=MAX_NORM,
            seed=0,
            device="cpu",
            policy_kwargs={"net_arch": list(HIDDEN)},
        )

        def train() -> None:
            self.keep(recorder.steps[-STEPS:])
            self.updates.append(self._update())
            PPO.train(self.learner)

        self.learner.train = train
        self.learner.learn(EVERYTHING * COLLECTIONS, callback=recorder)

    def _update(self) -> Update:
        left = self.learner._current_progress_remaining
        kept = self.learner.policy.optimizer.state
        named = {_name(name): kept[p] for name, p in self.learner.policy.named_parameters() if p in kept}
        moments = {n: (s["exp_avg"].clone(), s["exp_avg_sq"].clone()) for n, s in named.items()}
        made = len(self.updates) * EPOCHS
        return Update(self.rollout, self.parameters(), moments, made, RATE * left, CLIP * left)


def _name(theirs: str) -> str:
    layer, _, kind = theirs.rpartition(".")
    return f"{LAYERS[layer]}.{kind}" if layer else f"actor.{theirs}"


def own_after(update: Update, env: str) -> Tensors:
    """The parameters to which trimtab comes from where the peer was."""
    environment = make_environment(env)
    spaces = Spaces.of(environment, env)
    environment.close()
    policy = ControlPolicy(spaces.size, spaces.head(0.0), NetworkConfig(hidden=HIDDEN), seed=1)
    policy.load(policy.tensors() | update.before)
    options = {"clip": update.clip, "value_weight": 1.0, "entropy_bonus": 0.01}
    method: Any = find("ppo")(gamma=GAMMA, lam=LAM, **options)
    run = OnlineConfig(
        refreshes=1,
        epochs=EPOCHS,
        learning_rate=update.rate,
        schedule="constant",
        warmup=0.0,
        max_grad_norm=MAX_NORM,
        adam_eps=EPSILON,
    )
    training = train_online(method, policy, Given(update.rollout), run)
    [states] = training.learner.optimiser.states
    for name, network, state in zip(
        ("actor.", "critic."), (policy.actor, policy.critic), states, strict=True
    ):
        state.steps.fill_(update.made)
        for place, room in enumerate((state.mean, state.square)):
            for piece_name, piece in network.pieces(room).items():  # type: ignore[union-attr]
                piece.copy_(update.moments[name + piece_name][place] if update.moments else 0 * piece)
    list(training)
    return {n: t for n, t in policy.tensors().items() if not n.startswith("observations.")}


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_every_collection_of_a_whole_training_leads_both_to_the_same_parameters(env: str) -> None:
    peer = Whole(env)
    after = [update.before for update in peer.updates[1:]]
    assert len(after) == COLLECTIONS - 1
    assert peer.updates[-2].rate == pytest.approx(RATE / COLLECTIONS)
    for update, theirs in zip(peer.updates[:-1], after, strict=True):  # in the last one the rate is zero
        moved = max(float((theirs[name] - update.before[name]).abs().max()) for name in theirs)
        assert moved > update.rate, "the peer has hardly moved"
        own = own_after(update, env)
        assert own.keys() == theirs.keys()
        for name, tensor in own.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6)
