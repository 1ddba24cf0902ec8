"""Whether and where a run goes on: its newest checkpoint, if data, models and options are what they were."""

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from trimtab.checkpoint import STATE, Checkpoints
from trimtab.errors import UserError
from trimtab.fingerprints import of_paths
from trimtab.runs import refuse_existing

log = logging.getLogger("trimtab")

NO_NUMBER = {"out", "non_finite", "log_to", "save_every", "keep", "samples_every", "reward_timeout"}
FREE = frozenset(NO_NUMBER | {"device", "precision"})  # what these two come to is compared by itself
DONE = "state.json"
FOLDERS = {
    "model": "folder of the model (its configuration or tokenizer)",
    "reference": "reference model",
    "critic_model": "critic's first model",
}
OF_MODELS = (".json", ".jinja", ".model", ".txt", ".safetensors")  # what is read of a model's folder
PRECISION = "precision (--precision auto is another on this machine: name the old one)"
REWARD = "reward"  # the fingerprint that may change
PACKAGES = ("trimtab", "torch", "transformers", "peft", "numpy", "gymnasium", "mujoco", "box2d")


def found_again(out: Path, options: dict[str, Any], prints: dict[str, str]) -> dict[str, Any] | None:
    """The newest checkpoint, if this run may go on from it."""
    newest = Checkpoints(out).newest()
    if newest is None:
        if (out / DONE).exists():
            raise UserError(f"{out} is complete: there is nothing left to train")
        (out / "samples.md").unlink(missing_ok=True)
        log.warning("%s has no checkpoint yet: the run starts from its beginning", out)
        return None
    name, state = newest
    before = state["options"]
    for option in before.keys() | options.keys():
        if option not in FREE and before.get(option) != options.get(option):
            raise UserError(
                f"{out / 'trimtab.yaml'}: {option} is {options.get(option)!r}, but the run began with "
                f"{before.get(option)!r}; put that back, or start anew with another --out"
            )
    for what, mark in prints.items():
        if state["prints"].get(what) == mark:
            continue
        if what == REWARD:  # one that failed was mended, most likely
            log.warning(
                "the files of the reward have changed: what follows is scored by them as they are now"
            )
        else:
            raise UserError(
                f"{out}: the {what} is not what the run began with; put it back as it was, or start anew "
                "with another --out"
            )
    for what, now in machine().items():
        was = state["machine"].get(what, now)
        if was != now:
            log.warning(
                "the run goes on, but its last digits may differ: %s was %s, and is %s now", what, was, now
            )
    log.info("%s: goes on from checkpoint %s", out, name)
    return dict(state)


def enter(out: Path, resume: bool) -> None:
    """What comes before anything is read: a new run needs a new folder, a resumed one its number of threads.

    Raises UserError if a new run would write into what is there.
    """
    if resume:
        _restore_threads(out)
    else:
        refuse_existing(out)


def _restore_threads(out: Path) -> None:
    """As many threads as the run had: sums of others have other last digits, those of the reference too."""
    for name in reversed(Checkpoints(out).names()):
        with suppress(OSError, ValueError, KeyError, TypeError):  # damaged; whoever reads it all will say so
            state = json.loads((Checkpoints(out).folder / name / STATE).read_text(encoding="utf-8"))
            torch.set_num_threads(int(state["machine"]["threads"]))
            return


def of_folders(options: dict[str, Any]) -> dict[str, str]:
    """Fingerprints of what stands beside the policy's weights: configurations, tokenizers, other models."""
    found = {}
    for option, what in FOLDERS.items():
        folder = Path(str(options.get(option)))
        if folder.is_dir():
            found[what] = of_paths(str(file) for file in sorted(folder.iterdir()) if file.suffix in OF_MODELS)
    return found


def machine() -> dict[str, Any]:
    """What a number's last digits depend on besides the run."""
    from importlib.metadata import PackageNotFoundError, version

    def of(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        **{name: of(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "CUDA": torch.version.cuda,
    }
