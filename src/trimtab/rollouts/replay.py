"""Environments brought back to where they were: what a resumed run needs to go on as if it had not stopped.

Simulators have no common way to save where they are, and some have none at all (Box2D). But they repeat
themselves: an episode that begins with the same random stream and gets the same actions is the same episode.
So what is kept of each copy is its stream as it was when its episode began, and the actions since.
Environments that step all copies at once in arrays of their own (CartPole) are these arrays.
"""

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger("trimtab")

Stream = int | dict[str, Any]  # a seed, or the state of numpy's bit generator


class Replay:
    """Watches environments, and brings others to the same place.

    Args:
        envs: copies side by side.
        seed: of the first copy's first episode; the next copies take the following numbers.
    """

    def __init__(self, envs: Any, seed: int) -> None:
        self.envs = envs
        self.copies: list[Any] | None = getattr(envs, "envs", None)  # None: all in arrays
        self.raw = [copy.unwrapped for copy in self.copies or ()]
        self.streams: list[Stream] = [seed + number for number in range(len(self.raw))]
        self.begun = [0] * len(self.raw)  # which of `actions` is the first of each copy's episode
        self.actions: list[NDArray[Any]] = []

    def before_reset(self) -> None:
        """All copies are about to begin an episode."""
        self.streams = [_stream(env) for env in self.raw]
        self.begun = [0] * len(self.raw)
        self.actions = []

    def before_step(self, actions: NDArray[Any], beginning: NDArray[np.bool_]) -> None:
        """All copies are about to take these actions, but for those that begin an episode instead."""
        if self.copies is None:
            return
        self.actions.append(actions)
        if np.count_nonzero(beginning):  # `any` takes three times as long
            for number in np.flatnonzero(beginning):
                self.streams[number] = _stream(self.raw[number])
                self.begun[number] = len(self.actions)

    def forget(self) -> None:
        """Lets go of the actions of episodes that are over."""
        if self.copies is not None and (first := min(self.begun)):
            del self.actions[:first]
            self.begun = [number - first for number in self.begun]

    def state(self) -> dict[str, Any]:
        """Where the copies are."""
        if self.copies is None:
            return {"arrays": _arrays(self.envs.unwrapped), "stream": _stream(self.envs.unwrapped)}
        actions = np.array(self.actions) if self.actions else np.zeros((0, len(self.raw)))
        return {"streams": list(self.streams), "begun": list(self.begun), "actions": actions}

    def load(self, state: dict[str, Any]) -> list[Any]:
        """Brings the copies to where others were; what each of them shows then, which may be checked.

        Nothing is returned of environments in arrays, which are as they were.
        """
        self.envs.reset(seed=0)  # makes what the first reset makes
        if self.copies is None:
            raw = self.envs.unwrapped
            raw.np_random.bit_generator.state = state["stream"]
            vars(raw).update(state["arrays"])
            if others := _others(raw):
                log.warning(
                    "%s keeps more than arrays and numbers (%s): it may not be where it was, and the run "
                    "goes on, but perhaps not as it would have",
                    type(raw).__name__,
                    ", ".join(others),
                )
            return []
        self.streams, self.begun = list(state["streams"]), list(state["begun"])
        self.actions = list(state["actions"])
        return [self._again(number) for number in range(len(self.copies))]

    def anew(self, number: int) -> Any:
        """Begins another episode in a copy; its first observation."""
        assert self.copies is not None
        self.streams[number], self.begun[number] = _stream(self.raw[number]), len(self.actions)
        return self.copies[number].reset()[0]

    def settle(self, over: NDArray[np.bool_]) -> None:
        """Tells the environments whose episode has ended, so that the next step begins another."""
        if self.copies is not None:
            self.envs._autoreset_envs = over.copy()

    def _again(self, number: int) -> Any:
        """A copy's episode from its beginning; the last observation."""
        assert self.copies is not None
        copy, stream = self.copies[number], self.streams[number]
        if isinstance(stream, int):
            observation, _ = copy.reset(seed=stream)
        else:
            self.raw[number].np_random.bit_generator.state = stream
            observation, _ = copy.reset()
        for actions in self.actions[self.begun[number] :]:
            observation, *_ = copy.step(actions[number])
        return observation


def _stream(env: Any) -> dict[str, Any]:
    """Where an environment's random stream stands."""
    return dict(env.np_random.bit_generator.state)


def _others(env: Any) -> list[str]:
    """Names of what an environment keeps beside them, and beside what never changes."""
    from gymnasium import Space
    from gymnasium.envs.registration import EnvSpec

    fixed = np.ndarray | bool | int | float | str | None | Space | EnvSpec | np.random.Generator
    return sorted(
        name for name, value in vars(env).items() if not isinstance(value, fixed) and name != "metadata"
    )


def _arrays(env: Any) -> dict[str, Any]:
    """The arrays and numbers that an environment consists of."""
    kinds = np.ndarray | bool | int | float
    return {name: value for name, value in vars(env).items() if isinstance(value, kinds)}
