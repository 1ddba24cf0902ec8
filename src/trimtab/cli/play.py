"""`trimtab play RUN`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich import box
from rich.table import Table

from trimtab.cli.options import parse
from trimtab.compare.statistics import mean_interval
from trimtab.errors import UserError, check_bounds, check_positive
from trimtab.play import load_run, play
from trimtab.terminal import console


@dataclass(frozen=True)
class Options:
    """Lets a trained control policy play: its returns with the most likely actions, and with drawn ones."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder that `trimtab train METHOD --env ...` wrote."""
    episodes: int = 20
    """Episodes with either kind of actions."""
    seed: int = 0
    """Of where the episodes begin and what is drawn."""
    video: Path | None = None
    """A new folder for films of three episodes of either kind, as mp4."""

    def __post_init__(self) -> None:
        check_positive(self, "episodes")
        check_bounds(self, seed=(0, 2**63))


FILMED = 3


def run(words: list[str]) -> int:
    """Plays, prints the returns, and films if asked to."""
    options = parse(Options, words, prog="trimtab play")
    if options.video is not None and options.video.exists():
        raise UserError(f"{options.video} exists already; choose another --video, or delete it")
    policy, spaces, env = load_run(options.run)
    table = Table(title=f"{env}, {options.episodes} episodes", title_justify="left", box=box.SIMPLE)
    for heading in ("actions", "mean return", "95 % interval", "lowest", "highest"):
        table.add_column(heading, justify="left" if heading == "actions" else "right")
    for name, deterministic in (("most likely", True), ("drawn", False)):
        if options.video is not None:  # first: where nothing can be drawn, that is said at once
            folder = options.video
            play(policy, spaces, env, FILMED, seed=options.seed, deterministic=deterministic, video=folder)
        returns = play(policy, spaces, env, options.episodes, seed=options.seed, deterministic=deterministic)
        mean = mean_interval(returns)
        interval = f"{mean.low:.1f} to {mean.high:.1f}" if mean.n > 1 else "–"
        table.add_row(name, f"{mean.mean:.1f}", interval, f"{min(returns):.1f}", f"{max(returns):.1f}")
    console.print(table)
    if options.video is not None:
        console.print(f"the films are in {options.video}", markup=False, soft_wrap=True)
    return 0
