"""One run of a comparison in environments, in a process of its own: train, play, write it down."""

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.atomic import atomic_text
from trimtab.compare.control.config import START, Run
from trimtab.config import build
from trimtab.control_jobs import control_options, run_control_job
from trimtab.errors import UserError
from trimtab.play import load_run, play
from trimtab.policies.control import ControlPolicy, NetworkConfig
from trimtab.rollouts.spaces import Spaces, make_environment


@dataclass(frozen=True)
class Cell:
    """One run, with all that it needs to know."""

    run: Run
    settings: Mapping[str, Any]
    episodes: int
    out: Path

    @property
    def folder(self) -> Path:
        return self.out / self.run.folder

    def identity(self) -> dict[str, Any]:
        """What its line in results.jsonl begins with."""
        return {
            "key": self.run.key,
            "env": self.run.env,
            "method": self.run.method,
            "parameters": self.run.parameters,
            "seed": self.run.seed,
            "folder": self.run.folder,
        }

    def options(self) -> dict[str, Any]:
        """Every option of the training, presets included; none of an untrained run."""
        if self.run.method == START:
            return {}
        options = control_options(self.run.job(self.settings, self.out))
        return {name: value for name, value in options.items() if name != "out"}

    def carry_out(self) -> dict[str, Any]:
        """Trains and plays; returns the line. What an interrupted run left in the folder is deleted."""
        torch.set_num_threads(1)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.run.method == START:
            return self._untrained()
        begin = time.perf_counter()
        with np.errstate(over="ignore", invalid="ignore"):  # training refuses what is not finite
            last = run_control_job(self.run.job(self.settings, self.out), lambda *_, **__: None)
        trained = time.perf_counter()
        policy, spaces, env = load_run(self.folder)
        returns = {
            "deterministic": play(policy, spaces, env, self.episodes, seed=self.run.seed),
            "drawn": play(policy, spaces, env, self.episodes, seed=self.run.seed, deterministic=False),
        }
        seconds = {"train": trained - begin, "evaluate": time.perf_counter() - trained}
        metrics = {"total_steps": last["total_steps"]}
        if "return" in last:  # of its last episodes; a short training may end before the first does
            metrics["training"] = last["return"]
        return self._line(returns, seconds, metrics)

    def _untrained(self) -> dict[str, Any]:
        """A policy as it is before its first step draws its actions: almost evenly."""
        env = self.run.env
        names = NetworkConfig.__dataclass_fields__
        config = build(NetworkConfig, {k: v for k, v in self.settings.items() if k in names}, "settings")
        environment = make_environment(env)
        spaces = Spaces.of(environment, env)
        environment.close()
        head = spaces.head(config.log_std)
        policy = ControlPolicy(spaces.size, head, config, has_critic=False, seed=self.run.seed)
        begin = time.perf_counter()
        drawn = play(policy, spaces, env, self.episodes, seed=self.run.seed, deterministic=False)
        return self._line({"drawn": drawn}, {"evaluate": time.perf_counter() - begin}, {})

    def _line(
        self, returns: dict[str, list[float]], seconds: dict[str, float], metrics: dict[str, float]
    ) -> dict[str, Any]:
        """The line, with mean returns; those of every episode go into the run's evaluation.json."""
        if not all(math.isfinite(value) for values in returns.values() for value in values):
            raise UserError(f"{self.run.env}: the return of an episode is not a finite number")
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_text(self.folder / "evaluation.json", json.dumps(returns))
        means = {kind: float(np.mean(values)) for kind, values in returns.items()}
        return {
            **self.identity(),
            "status": "done",
            "error": None,
            "config": self.options(),
            "seconds": seconds,
            "metrics": {**means, **metrics},
        }
