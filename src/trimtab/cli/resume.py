"""`trimtab resume RUN`."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trimtab.cli.options import parse
from trimtab.config import load_yaml
from trimtab.errors import UserError
from trimtab.terminal import console


@dataclass(frozen=True)
class Options:
    """Goes on with a run that was stopped or killed, as if it had never been; or with a comparison."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The --out folder of `trimtab train` or `trimtab compare`."""
    finish: bool = False
    """Train no further: write the model as the newest checkpoint has it."""


def run(words: list[str]) -> int:
    """Resumes one run or comparison."""
    options = parse(Options, words, prog="trimtab resume")
    folder = options.run
    if (folder / "config.json").exists() and not (folder / "trimtab.yaml").exists():
        return _comparison(folder, options.finish)
    file = folder / "trimtab.yaml"
    if not file.exists():
        raise UserError(
            f"{folder}: no run is there; pass the --out folder of trimtab train or trimtab compare"
        )
    if not (folder / "checkpoints").is_dir() and (folder / "state.json").exists():
        from trimtab.checkpoint import Checkpoints

        Checkpoints(folder).clear()  # what a kill in the last moment left of them
        console.print(f"{folder} is complete: there is nothing left to train", markup=False, soft_wrap=True)
        return 0
    from trimtab.cli.train import carry_out
    from trimtab.methods import find

    settings = load_yaml(file)
    if "method" not in settings:
        raise UserError(f"{file}: the key 'method' is missing; pass the --out folder of trimtab train")
    words = ["--config", str(file), "--out", str(folder)]
    return carry_out(find(str(settings["method"])), words, resume=True, finish=options.finish)


def _comparison(folder: Path, finish: bool) -> int:
    """Its runs that are not done yet."""
    from trimtab.cli import compare
    from trimtab.compare.results import load_config_text

    if finish:
        raise UserError(f"--finish: {folder} is a comparison, whose runs are trained to their end")
    with tempfile.TemporaryDirectory() as room:
        file = Path(room) / f"{folder.name}.yaml"
        file.write_text(load_config_text(folder), encoding="utf-8")
        return compare.run([str(file), "--out", str(folder)])
