"""Copies of a Gymnasium environment that take their steps one after the other."""

from typing import Any

import numpy as np
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray


class Copies(SyncVectorEnv):
    """Gymnasium's own with a leaner `step`, where its own costs as much again as a small environment's.

    The same episodes come of it, to the last bit. `infos` are empty, since nobody here reads them.
    """

    def step(self, actions: NDArray[Any]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Observations [E, ...], rewards [E], terminated and truncated [E], all new; and no infos.

        A copy whose episode has ended begins another instead, for a reward of 0.
        """
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool)
        over = self._autoreset_envs
        for number, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            if over[number]:
                self._env_obs[number], _ = env.reset()
            else:
                result = env.step(action)
                self._env_obs[number], rewards[number], terminated[number], truncated[number], _ = result
        self._autoreset_envs = terminated | truncated
        observations = np.array(self._env_obs, dtype=self.single_observation_space.dtype)
        return observations, rewards, terminated, truncated, {}
