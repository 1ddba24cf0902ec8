"""What a run of reinforcement learning writes for people: its curve, sample answers, warnings."""

import json
import logging
import math
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


class Curves:
    """metrics.jsonl in the run's folder, one line a refresh, and TensorBoard or Weights & Biases.

    Raises UserError if the library that was asked for is not installed.
    """

    def __init__(self, out: Path, log_to: LogTo, options: dict[str, Any]) -> None:
        module, self.board, self.run = library(log_to), None, None
        if log_to == "tensorboard":
            self.board = module.SummaryWriter(str(out / "tensorboard"))
        if log_to == "wandb":
            self.run = module.init(project="trimtab", name=out.name, dir=str(out), config=options)
        self.file = (out / "metrics.jsonl").open("w", encoding="utf-8")

    def write(self, metrics: dict[str, float]) -> None:
        """One refresh. The line is there for other programs as soon as this returns."""
        self.file.write(json_line(metrics))
        self.file.flush()
        step = int(metrics.get("total_steps", metrics["refresh"]))  # of an environment, if there is one
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
        self.path = path
        self.every = every

    def write(self, refresh: Refresh) -> None:
        """Adds the best answer, the worst and two between, if it is time: at first and every so often."""
        number = int(refresh.metrics["refresh"])
        if number != 1 and number % self.every:
            return
        ranked = sorted(refresh.samples, key=lambda sample: -sample.score)
        last = len(ranked) - 1
        places = sorted({round(i * last / (SAMPLES - 1)) for i in range(SAMPLES)})
        title = f"## Refresh {number}: score {refresh.metrics['score']:.3g}\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n".join([title, *(_shown(ranked[place]) for place in places), ""]))


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
