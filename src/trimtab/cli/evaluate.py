"""`trimtab evaluate MODEL`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from trimtab.cli.generate import records_of, write_rows
from trimtab.cli.options import parse
from trimtab.compare.worker import summarise
from trimtab.errors import UserError, check_positive
from trimtab.evaluate import evaluate
from trimtab.policies.load import ModelConfig, Precision, load_language_policy, resolve_model
from trimtab.rollouts.generate import Sampling
from trimtab.rollouts.rewards import load_reward
from trimtab.terminal import console, quiet_libraries


@dataclass(frozen=True)
class Options:
    """Measures a model: one answer to each prompt, its rewards, its KL to a reference, its length."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A folder, a hub name, or reviews."""
    data: str
    """A file whose prompts are answered, or reviews (its held-out prompts)."""
    reward: Annotated[list[str], tyro.conf.arg(metavar="REWARD [REWARD ...]")] = field(default_factory=list)
    """Rewards: a reward model's folder, file.py:function, exact:COLUMN, regex:PATTERN, length:N, reviews."""
    reference: str | None = None
    """The model that the KL is measured to."""
    out: Path | None = None
    """Write every answer here as JSON lines."""
    most: int = 200
    """At most this many prompts."""
    max_new_tokens: int = 256
    """Longest answer."""
    temperature: float = 1.0
    """0 takes the most likely token."""
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"
    allow_pickle: bool = False
    """Read weights from a pickle where there are no safetensors: a pickle is a program."""
    trust_remote_code: bool = False
    """Run the Python code that a model brings with it."""

    def __post_init__(self) -> None:
        check_positive(self, "most")


def run(words: list[str]) -> int:
    """Prints the averages."""
    options = parse(Options, words, prog="trimtab evaluate")
    if options.out is not None and options.out.exists():
        raise UserError(f"{options.out} exists already; choose another --out, or delete it")
    quiet_libraries()
    rewards = {
        name: load_reward(reward, options.device)
        for name, reward in zip(_short_names(options.reward), options.reward, strict=True)
    }
    answers = evaluate(
        _load(options.model, options),
        records_of(options.data, options.most),
        Sampling(options.max_new_tokens, options.temperature),
        rewards,
        reference=None if options.reference is None else _load(options.reference, options),
        seed=options.seed,
    )
    if options.out is not None:
        write_rows(options.out, [answer.row() for answer in answers])
    console.print(_table(options.model, len(answers), summarise(answers)))
    return 0


def _short_names(rewards: list[str]) -> list[str]:
    """The last part of each path, or the whole where two would be called the same."""
    short = [reward.rstrip("/").rsplit("/", maxsplit=1)[-1] for reward in rewards]
    return short if len(set(short)) == len(short) else rewards


def _load(name: str, options: Options) -> Any:
    config = ModelConfig(
        model=resolve_model(name),
        device=options.device,
        precision=options.precision,
        allow_pickle=options.allow_pickle,
        trust_remote_code=options.trust_remote_code,
    )
    return load_language_policy(config, trainable=False)


def _table(model: str, prompts: int, metrics: dict[str, Any]) -> Table:
    table = Table(title=f"{model}: one answer to each of {prompts} prompts", title_justify="left")
    for heading in ("measure", "mean", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for name, value in metrics.items():
        if not isinstance(value, dict):
            table.add_row(name, f"{value:.3f}", "")
        elif "se" in value:
            low, high = (value["mean"] + sign * 1.96 * value["se"] for sign in (-1, 1))
            table.add_row(f"{name} (nats)", f"{value['mean']:.3f}", f"{low:.3f} to {high:.3f}")
        else:
            table.add_row(name, f"{value['mean']:.3f}", f"{value['low']:.3f} to {value['high']:.3f}")
    return table
