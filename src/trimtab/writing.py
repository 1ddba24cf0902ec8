"""What a run of reinforcement learning writes for people: its curve, sample answers, warnings."""

import json
import logging
import math
import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from trimtab.errors import UserError
from trimtab.online import Refresh
from trimtab.rollouts.rollout import Sample

log = logging.getLogger("trimtab")

SAMPLES = 4  # answers written at a time: the best, the worst, and two between
LIBRARIES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}
LogTo = Literal["none", "tensorboard", "wandb"]


def library(log_to: LogTo) -> Any:
    """The module that writes there; None for none. Raises UserError if it is not installed."""
    if log_to == "none":
        return None
    try:
        return import_module(LIBRARIES[log_to])
    except ImportError as error:
        raise UserError(f"--log-to {log_to}: not installed; pip install {log_to}") from error


def json_line(metrics: dict[str, float]) -> str:
    """One line of JSON. What is no number, as what a critic explains of equal returns, is null there."""
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    return json.dumps(finite) + "\n"


@dataclass(frozen=True)
class LogConfig:
    """What is written while training goes on."""

    log_to: LogTo = "none"
    """Where the metrics go besides metrics.jsonl."""


class Growing:
    """A text file that only grows, and can be cut back to where it was when a checkpoint was written."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("ab")

    def write(self, text: str) -> None:
        """Adds to it; other programs can read it as soon as this returns."""
        self.file.write(text.encode())
        self.file.flush()

    def state(self) -> int:
        """How long the file is; so much of it is on the disk when this returns."""
        os.fsync(self.file.fileno())
        return self.file.tell()

    def load(self, length: int) -> None:
        """Cuts off what was written later. Raises UserError if the file is shorter than that."""
        found = self.file.seek(0, os.SEEK_END)
        if found < length:
            raise UserError(
                f"{self.file.name} has {found:,} bytes, {length:,} when the checkpoint was written; put it "
                "back as it was, or start anew with another --out"
            )
        self.file.truncate(length)
        self.file.seek(length)

    def close(self) -> None:
        self.file.close()


class Curves:
    """metrics.jsonl in the run's folder, one line a step or refresh, and TensorBoard or Weights & Biases.

    Raises UserError if the library that was asked for is not installed.
    """

    def __init__(
        self, out: Path, log_to: LogTo, options: dict[str, Any], before: dict[str, Any] | None = None
    ) -> None:
        """Begins; where another process stopped, if `before` is what its `state` gave."""
        module, self.board, self.run = library(log_to), None, None
        before = before or {"length": 0, "step": 0, "run": None}
        self.step = before["step"]
        self.file = Growing(out / "metrics.jsonl")
        self.file.load(before["length"])
        if log_to == "tensorboard":
            later = {"purge_step": self.step + 1} if self.step else {}
            self.board = module.SummaryWriter(str(out / "tensorboard"), **later)
        if log_to == "wandb":
            same = {"id": before["run"], "resume": "must"} if before["run"] else {}
            self.run = module.init(project="trimtab", name=out.name, dir=str(out), config=options, **same)

    def state(self) -> dict[str, Any]:
        """How far the curve has come."""
        return {
            "length": self.file.state(),
            "step": self.step,
            "run": None if self.run is None else self.run.id,
        }

    def write(self, metrics: dict[str, float]) -> None:
        """One step or refresh. The line is there for other programs as soon as this returns."""
        self.file.write(json_line(metrics))
        places = ("total_steps", "refresh", "step")  # of an environment, of answers, of recorded feedback
        self.step = step = next(int(metrics[name]) for name in places if name in metrics)
        if self.board is not None:
            for name, value in metrics.items():
                self.board.add_scalar(name, value, step)
        if self.run is not None:
            self.run.log(metrics, step=step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()
        if self.run is not None:
            self.run.finish(exit_code=0 if kind is None else 1)


class Samples:
    """samples.md: answers at intervals, for a person to read."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self.file = Growing(path)

    def state(self) -> int:
        return self.file.state()

    def load(self, state: int) -> None:
        """Cuts off what was written after `state` was taken."""
        self.file.load(state)

    def close(self) -> None:
        self.file.close()

    def write(self, refresh: Refresh) -> None:
        """Adds the best answer, the worst and two between, if it is time: at first and every so often."""
        number = int(refresh.metrics["refresh"])
        if number != 1 and number % self.every:
            return
        ranked = sorted(refresh.samples, key=lambda sample: -sample.score)
        last = len(ranked) - 1
        places = sorted({round(i * last / (SAMPLES - 1)) for i in range(SAMPLES)})
        title = f"## Refresh {number}: score {refresh.metrics['score']:.3g}\n"
        self.file.write("\n".join([title, *(_shown(ranked[place]) for place in places), ""]))


def _shown(sample: Sample) -> str:
    parts = ", ".join(f"{name} {score:.3g}" for name, score in sample.parts.items())
    score = f"**{sample.score:.3g}**" + (f" ({parts})" if len(sample.parts) > 1 else "")
    prompt = sample.prompt if isinstance(sample.prompt, str) else sample.prompt[-1].content
    return f"- {score} {_one_line(prompt)} → {_one_line(sample.response) or '(nothing)'}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


class Watch:
    """Warns, once each, of a run that goes wrong in the ways that such runs do."""

    FAR = 50.0  # nats of KL in a response: what is written then has little to do with the reference
    FLAT = 0.1  # share of the first entropy

    def __init__(self) -> None:
        self.first_entropy: float | None = None
        self.said: set[str] = set()

    def state(self) -> dict[str, Any]:
        return {"first_entropy": self.first_entropy, "said": sorted(self.said)}

    def load(self, state: dict[str, Any]) -> None:
        """What was said is not said again."""
        self.first_entropy, self.said = state["first_entropy"], set(state["said"])

    def look(self, metrics: dict[str, float]) -> None:
        """At one refresh."""
        kl, entropy = metrics.get("kl", 0.0), metrics["entropy"]
        if self.first_entropy is None:
            self.first_entropy = entropy
        if kl > self.FAR:
            self._say(
                "kl",
                f"the KL to the reference is {kl:.0f} nats a response: the policy has left the text that the "
                "reward was made for; raise --beta, lower --learning-rate, or set --kl-target",
                metrics,
            )
        if entropy < self.FLAT * self.first_entropy:
            self._say(
                "entropy",
                f"the entropy fell from {self.first_entropy:.2g} to {entropy:.2g} nats a token: the answers "
                "are nearly always the same; raise --beta or lower --learning-rate",
                metrics,
            )

    def _say(self, what: str, warning: str, metrics: dict[str, float]) -> None:
        if what not in self.said:
            self.said.add(what)
            log.warning("refresh %d: %s", metrics["refresh"], warning)
