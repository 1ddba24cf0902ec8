"""A trained control policy at work: its returns, and films of it."""

from pathlib import Path
from typing import Any

import numpy as np

from trimtab.config import build, load_yaml
from trimtab.errors import UserError
from trimtab.policies.control import ControlPolicy, NetworkConfig
from trimtab.rollouts.environment import LONGEST
from trimtab.rollouts.spaces import Spaces, make_environment


def play(
    policy: ControlPolicy,
    spaces: Spaces,
    env: str,
    episodes: int = 20,
    *,
    seed: int = 0,
    deterministic: bool = True,
    video: Path | None = None,
) -> list[float]:
    """The undiscounted return of each episode; the policy's statistics stay as they are.

    Args:
        seed: says where episodes begin and what is drawn. Deterministic and drawn actions are tried from
            other states, and both from others than any training saw.
        deterministic: take the most likely action rather than draw one.
        video: a folder for films of the episodes, one mp4 each, in a folder within for each kind of actions.
    """
    environment = make_environment(env, render=video is not None)
    if video is not None:
        environment = _filmed(environment, video / ("most-likely" if deterministic else "drawn"))
    seeds = np.random.SeedSequence((seed, 1 + deterministic)).generate_state(episodes + 1)
    rng = None if deterministic else np.random.default_rng(int(seeds[-1]))
    try:
        return [_episode(policy, spaces, environment, int(start), rng) for start in seeds[:-1]]
    finally:
        environment.close()


def _episode(
    policy: ControlPolicy, spaces: Spaces, environment: Any, seed: int, rng: np.random.Generator | None
) -> float:
    observation, _ = environment.reset(seed=seed)
    total = 0.0
    for _ in range(LONGEST):
        vector = policy.normalised(spaces.vectors(np.asarray(observation)[None]))
        action = spaces.actions(policy.act(vector, rng))[0]
        observation, reward, terminated, truncated, _ = environment.step(action)
        total += float(reward)
        if terminated or truncated:
            return total
    raise UserError(f"an episode had no end after {LONGEST:,} steps; take an environment with a time limit")


def load_run(run: Path) -> tuple[ControlPolicy, Spaces, str]:
    """The policy of a folder that `trimtab train METHOD --env ...` wrote, its spaces and its environment.

    Raises UserError if the folder holds no such policy, or the environment is not the one it was trained in.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file, options = run / "policy.safetensors", run / "trimtab.yaml"
    if not file.exists() or not options.exists():
        raise UserError(
            f"{run}: no trained control policy is there; pass the --out folder of trimtab train ... --env ..."
        )
    settings = load_yaml(options)
    names = NetworkConfig.__dataclass_fields__
    network = build(NetworkConfig, {k: v for k, v in settings.items() if k in names}, str(options))
    if "env" not in settings:
        raise UserError(
            f"{options}: the key 'env' is missing; pass the --out folder of trimtab train ... --env ..."
        )
    env = str(settings["env"])
    environment = make_environment(env)
    spaces = Spaces.of(environment, env)
    environment.close()
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file}: damaged ({error}); train again, or take a copy that is whole") from error
    has_critic = any(name.startswith("critic.") for name in tensors)
    policy = ControlPolicy(spaces.size, spaces.head(network.log_std), network, has_critic=has_critic)
    try:
        policy.load(tensors)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{file}: not the weights of a policy for {env} with the networks in {options}"
        ) from error
    return policy, spaces, env


def _filmed(environment: Any, folder: Path) -> Any:
    """The environment, each of whose episodes becomes a film. Raises UserError if it cannot be drawn."""
    from gymnasium.error import DependencyNotInstalled
    from gymnasium.wrappers import RecordVideo

    try:
        environment.reset(seed=0)
        environment.render()
        return RecordVideo(environment, str(folder), episode_trigger=lambda _: True)
    except DependencyNotInstalled as error:
        raise UserError(f"--video: {' '.join(str(error).split())}; pip install 'trimtab[video]'") from error
    except Exception as error:  # drivers fail in ways of their own, and the evaluation works without them
        raise UserError(
            f"--video: this machine cannot draw {environment.spec.id} ({' '.join(str(error).split())}); "
            "leave --video out, or set MUJOCO_GL=egl or osmesa for MuJoCo"
        ) from error
