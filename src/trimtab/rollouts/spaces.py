"""Gymnasium's environments and spaces: what a policy reads of an observation, what an action becomes."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import UserError, nearest
from trimtab.policies.heads import CategoricalHead, GaussianHead, Head

log = logging.getLogger("trimtab")

EXTRAS = {"Box2D": "box2d", "mujoco": "mujoco"}  # a package that is missing -> the extra that brings it
SMALL = "gymnasium.envs.classic_control"  # a step in their vectorised form takes as long as
ENOUGH = 8  # steps of so many single ones


@dataclass(frozen=True)
class Spaces:
    """The spaces of one environment.

    Attributes:
        size: length of an observation as a vector.
        one_hot: the observation is a number among `size`, which becomes a vector with a single 1.
        actions_count: of discrete actions; 0 for continuous ones.
        first: the number of the first discrete action.
        low, high: [A] bounds that continuous actions are clipped to.
        shape: of one continuous action.
        first_seen: the number of the first discrete observation.
    """

    size: int
    one_hot: bool
    actions_count: int
    first: int
    low: Any
    high: Any
    shape: tuple[int, ...]
    first_seen: int = 0

    @classmethod
    def of(cls, env: Any, name: str) -> "Spaces":
        """Raises UserError for spaces that the policies here cannot read or act in."""
        from gymnasium.spaces import Box, Discrete

        seen = getattr(env, "single_observation_space", env.observation_space)
        done = getattr(env, "single_action_space", env.action_space)
        if not isinstance(seen, Box | Discrete):
            kind = type(seen).__name__
            raise UserError(
                f"{name}: observations are a {kind} space; a Box or Discrete space is needed "
                "(gymnasium.wrappers.FlattenObservation makes a Box of most)"
            )
        if not isinstance(done, Box | Discrete):
            kind = type(done).__name__
            raise UserError(f"{name}: actions are a {kind} space; a Box or Discrete space is needed")
        if isinstance(seen, Box) and len(seen.shape) == 3:
            log.warning(
                "%s: observations are images; they are read as one vector of %d numbers",
                name,
                np.prod(seen.shape),
            )
        one_hot, first_seen = isinstance(seen, Discrete), int(getattr(seen, "start", 0))
        size = int(seen.n) if isinstance(seen, Discrete) else int(np.prod(seen.shape))
        if isinstance(done, Discrete):
            return cls(size, one_hot, int(done.n), int(done.start), None, None, (), first_seen)
        return cls(size, one_hot, 0, 0, done.low, done.high, done.shape, first_seen)

    def head(self, log_std: float) -> Head:
        """What turns a network's outputs into actions here."""
        if self.actions_count:
            return CategoricalHead(self.actions_count)
        return GaussianHead(int(np.prod(self.shape)), log_std)

    def vectors(self, observations: NDArray[Any]) -> NDArray[Any]:
        """[E, ...] -> [E, size], a copy."""
        if self.one_hot:
            return np.eye(self.size, dtype=np.float32)[observations - self.first_seen]
        return observations.reshape(len(observations), -1).copy()

    def actions(self, actions: NDArray[Any]) -> NDArray[Any]:
        """What the policy drew, [E] or [E, A], as the environment takes it: continuous actions clipped, and
        rounded where it takes whole numbers."""
        if self.actions_count:
            return actions + self.first if self.first else actions
        bounded = np.minimum(np.maximum(actions.reshape(-1, *self.shape), self.low), self.high)
        return (np.rint(bounded) if self.low.dtype.kind in "iu" else bounded).astype(self.low.dtype)


def _quiet_mujoco(name: str) -> None:
    """Sends MuJoCo's warnings of Gymnasium's own models, one for each copy, where nobody must read them."""
    import gymnasium

    spec = gymnasium.registry.get(name)
    if spec is not None and "mujoco" in str(spec.entry_point):
        with suppress(ImportError):  # is said when the environment is made
            import mujoco

            mujoco.set_mju_user_warning(log.debug)


def make_environments(name: str, count: int) -> Any:
    """Copies of an environment side by side, by its own vectorised form if it has one that is worth it.

    Raises UserError if there is no such environment, or what it needs is not installed.
    """
    import gymnasium

    from trimtab.rollouts.copies import Copies  # it derives from one of Gymnasium's, which is slow to import

    _quiet_mujoco(name)
    try:
        form = getattr(gymnasium.registry.get(name), "vector_entry_point", None)
        if form is not None and (count >= ENOUGH or not str(form).startswith(SMALL)):
            native = gymnasium.make_vec(name, num_envs=count)
            if native.metadata.get("autoreset_mode") is gymnasium.vector.AutoresetMode.NEXT_STEP:
                return native
            native.close()
        checked = [lambda: gymnasium.make(name)]  # once is enough, and checks take their time at every step
        return Copies(
            checked + [lambda: gymnasium.make(name, disable_env_checker=True)] * (count - 1), copy=False
        )
    except gymnasium.error.Error as error:
        raise UserError(_said(name, error)) from error
    except ImportError as error:
        raise UserError(_said(name, error)) from error


def make_environment(name: str, render: bool = False) -> Any:
    """One environment, for evaluation. Raises UserError as `make_environments` does."""
    import gymnasium

    _quiet_mujoco(name)
    try:
        return gymnasium.make(name, render_mode="rgb_array") if render else gymnasium.make(name)
    except (gymnasium.error.Error, ImportError, ValueError) as error:
        raise UserError(_said(name, error)) from error


def _said(name: str, error: Exception) -> str:
    """What is wrong, and what to do."""
    import gymnasium

    if name not in gymnasium.registry and ":" not in name:
        return f"--env {name}: Gymnasium knows no such environment; {nearest(name, gymnasium.registry)}"
    for package, extra in EXTRAS.items():
        if package.lower() in str(error).lower():
            return f"--env {name}: {package} is not installed; pip install 'trimtab[{extra}]'"
    return f"--env {name}: {' '.join(str(error).split())}"
