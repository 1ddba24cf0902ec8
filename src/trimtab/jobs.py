"""One training job from its options to the folder it leaves: what `trimtab train` does."""

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trimtab.data import load_records
from trimtab.feedback.batches import Table
from trimtab.feedback.conversions import ViewOptions
from trimtab.fingerprints import of_model
from trimtab.methods import Method
from trimtab.policies.base import Trainable
from trimtab.policies.load import (
    ModelConfig,
    load_language_policy,
    load_reward_model,
    resolve_model,
)
from trimtab.recorder import SaveConfig, recording
from trimtab.reference import attach_reference
from trimtab.resuming import PRECISION, enter
from trimtab.runs import Progress, flat_options
from trimtab.train import RunConfig, make_table, train
from trimtab.writing import LogConfig

log = logging.getLogger("trimtab")


@dataclass(frozen=True)
class DataConfig:
    """Which feedback, and how it is read."""

    data: str
    """A file (JSON, JSONL, CSV, each also .gz, Parquet, Arrow), a folder, a hub name, or reviews."""
    split: str = "train"
    """Which split of a dataset."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What a bad row does: stop before training, or be left out and written to a file."""


@dataclass(frozen=True)
class Job:
    """One method on one model and one set of feedback."""

    method: Method[Any]
    model: ModelConfig
    data: DataConfig
    views: ViewOptions
    run: RunConfig
    out: Path
    log: LogConfig = field(default_factory=LogConfig)
    save: SaveConfig = field(default_factory=SaveConfig)

    def resolved(self) -> dict[str, Any]:
        """Every option under its own name, as the command line takes it."""
        return flat_options(self)


def run_job(job: Job, progress: Progress, *, resume: bool = False, finish: bool = False) -> dict[str, float]:
    """Trains and writes the model, its configuration and its learning curve into `job.out`.

    Args:
        resume: go on from the newest checkpoint in `job.out`.
        finish: train no further, and write the model as the checkpoint has it.
    Returns the last step's metrics. Raises UserError before training if anything is wrong with the
    input, or if `out` already holds something.
    """
    enter(job.out, resume)
    records = load_records(
        job.data.data,
        split=job.data.split,
        bad_rows=job.data.bad_rows,
        rejects=job.out.parent / f"{job.out.name}.rejected.jsonl",
    )
    policy = _load(job)
    table = make_table(job.method, records, policy.tokenizer, job.run, job.views)
    prints = {
        "data": table.fingerprint(),
        "model": of_model(policy.model),
        PRECISION: str(policy.autocast),
    }
    if job.method.needs_reference:
        _attach_reference(job, policy, table, progress)
    training = train(job.method, policy, table, job.run)
    with recording(
        job.out,
        {"method": job.method.name, **job.resolved()},
        job.log.log_to,
        job.save,
        prints,
        resume=resume,
    ) as recorder:
        for metrics in recorder.follow(training, dict, policy, finish=finish):
            progress(f"training {job.method.name}", training.step, training.steps, shown(metrics))
        recorder.finish(training, policy.save, {"step": training.step})
    return recorder.last


def shown(metrics: dict[str, float]) -> str:
    """A step's metrics for a person to read: the loss, and what the method says of itself."""
    hidden = ("step", "seconds", "skipped", "grad_norm", "critic_grad_norm", "learning_rate")
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name not in hidden)


def _load(job: Job) -> Any:
    config = dataclasses.replace(job.model, model=resolve_model(job.model.model))
    if job.method.trains == "policy":
        return load_language_policy(config, seed=job.run.seed)
    return load_reward_model(config, seed=job.run.seed)


def _attach_reference(job: Job, policy: Trainable, table: Table, progress: Progress) -> None:
    """By the model itself before its first step, or by the one that --reference names."""
    reference: Any = policy
    if job.model.reference is not None:
        config = dataclasses.replace(
            job.model, model=resolve_model(job.model.reference), reference=None, lora_rank=0
        )
        reference = load_language_policy(config, trainable=False)
    cached = attach_reference(
        table,
        reference,
        batch_tokens=job.run.batch_tokens,
        progress=lambda done, total: progress("reference log-probs", done, total),
    )
    if cached:
        log.info("reference log-probs come from the cache")
