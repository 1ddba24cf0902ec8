"""One job of reinforcement learning from its options to the folder it leaves: `trimtab train ppo`."""

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trimtab.data import load_records
from trimtab.errors import UserError, check_positive
from trimtab.feedback.records import Record
from trimtab.feedback.views import convert
from trimtab.fingerprints import of_model, of_paths, of_rows
from trimtab.jobs import DataConfig
from trimtab.methods.base import OnlineMethod
from trimtab.online import OnlineConfig, OnlineTraining, Reference, Refresh, train_online
from trimtab.policies.actor_critic import ActorCritic, Critic, head_critic, model_critic
from trimtab.policies.adapters import adapter_critic, shared_reward_model
from trimtab.policies.base import Scorer
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.load import ModelConfig, load_language_policy, load_reward_model, resolve_model
from trimtab.recorder import Recorder, SaveConfig, recording
from trimtab.reference import reference_mode
from trimtab.resuming import PRECISION, REWARD, enter
from trimtab.rollouts.collect import CollectConfig, Collector
from trimtab.rollouts.rewards import WeightedSum, load_rewards
from trimtab.runs import Progress, flat_options
from trimtab.writing import LogTo, Samples, Watch, library


@dataclass(frozen=True)
class RewardConfig:
    """What gives answers their scores."""

    reward: list[str]
    """A reward model's folder, file.py:function, exact:COLUMN, regex:PATTERN, length:N, or reviews; several
    are added, each with a weight if one stands before it: 0.5*length:200."""
    reward_timeout: float | None = None
    """Seconds that a reward may take for one collection."""
    share_reward: bool = False
    """Hold the reward model (a LoRA adapter on the same base) as an adapter on the policy's own trunk."""


@dataclass(frozen=True)
class CriticConfig:
    """What predicts the score, for the methods that have a critic."""

    critic: Literal["head", "adapter", "model"] = "head"
    """A linear head on the policy's hidden states; an adapter with a head on its base; or a model."""
    critic_model: str | None = None
    """With --critic model: where it starts, such as the reward model; the policy's own model if not given."""

    def __post_init__(self) -> None:
        if self.critic_model is not None and self.critic != "model":
            raise UserError("--critic-model is only used with --critic model; add that, or leave it out")


@dataclass(frozen=True)
class ReportConfig:
    """What is written while training goes on."""

    samples_every: int = 10
    """Refreshes from one writing of sample answers into samples.md to the next."""
    log_to: LogTo = "none"
    """Where the metrics go besides metrics.jsonl."""

    def __post_init__(self) -> None:
        check_positive(self, "samples_every")


@dataclass(frozen=True)
class OnlineJob:
    """One method on one model, one set of prompts and one reward."""

    method: OnlineMethod
    model: ModelConfig
    data: DataConfig
    reward: RewardConfig
    collect: CollectConfig
    critic: CriticConfig
    run: OnlineConfig
    report: ReportConfig
    out: Path
    save: SaveConfig = field(default_factory=SaveConfig)


def run_online_job(
    job: OnlineJob, progress: Progress, *, resume: bool = False, finish: bool = False
) -> dict[str, float]:
    """Trains; writes the model, and while it trains the learning curve and sample answers, into `job.out`.

    Args:
        resume: go on from the newest checkpoint in `job.out`.
        finish: train no further, and write the model as the checkpoint has it.
    Returns the last refresh's metrics. Raises UserError before training if anything is wrong with the
    input, or if `out` already holds something; later if a reward fails.
    """
    enter(job.out, resume)
    check(job)
    library(job.report.log_to)
    records = load_prompts(job.data, job.out)
    policy = load_language_policy(resolved(job.model), seed=job.run.seed)
    prints = {
        "data": of_rows(records),
        "model": of_model(policy.model),
        PRECISION: str(policy.autocast),
        REWARD: of_paths(reward_paths(job.reward.reward)),
    }
    training = build(job, policy, records)
    options = {"method": job.method.name, **flat_options(job)}
    with recording(job.out, options, job.report.log_to, job.save, prints, resume=resume) as recorder:
        for refresh in _refreshes(recorder, job, training, finish):
            note = live(refresh.metrics)
            progress(f"training {job.method.name}", training.refresh, job.run.refreshes, note)
        state = {"refresh": training.refresh, "coefficients": training.coefficients}
        recorder.finish(training, training.policy.save, state)
    return recorder.last


def build(job: OnlineJob, policy: LanguagePolicy, records: list[Record]) -> OnlineTraining:
    """The training of a policy with its critic, reward, prompts and reference."""
    critic = build_critic(job.method, policy, job.model, job.critic, job.run.seed)
    learner = ActorCritic(policy, critic, job.collect.temperature)
    source = Collector(
        policy,
        records,
        build_reward(job.reward, policy, job.model),
        job.collect,
        samples=job.method.samples,
        max_length=job.run.max_length,
        seed=job.run.seed,
    )
    return train_online(job.method, learner, source, job.run, build_reference(learner, job.model))


def _refreshes(
    recorder: Recorder, job: OnlineJob, training: OnlineTraining, finish: bool
) -> Iterator[Refresh]:
    """Each refresh as it ends, with sample answers written and warnings given."""
    samples, watch = Samples(job.out / "samples.md", job.report.samples_every), Watch()
    recorder.add("samples", samples)
    recorder.add("watch", watch)
    try:
        for refresh in recorder.follow(training, lambda r: r.metrics, training.policy, finish=finish):
            samples.write(refresh)
            watch.look(refresh.metrics)
            yield refresh
    finally:
        samples.close()


def reward_paths(names: list[str]) -> Iterator[str]:
    """The files and folders that rewards name: a reward model's, or that of a function."""
    for name in names:
        spec = re.sub(r"^[-+.\d e]+\*", "", name)  # without its weight
        if spec and not spec.startswith(("regex:", "exact:", "length:")):
            yield spec
            yield spec.rpartition(":")[0] or spec


def load_prompts(data: DataConfig, out: Path) -> list[Record]:
    """The prompts of a file of any kind of feedback, with their other columns."""
    rejects = out.parent / f"{out.name}.rejected.jsonl"
    records = load_records(data.data, split=data.split, bad_rows=data.bad_rows, rejects=rejects)
    return list(convert(records, "prompt"))


def resolved(config: ModelConfig) -> ModelConfig:
    """The configuration with the built-in model's folder in place of its name."""
    return dataclasses.replace(config, model=resolve_model(config.model))


def check(job: OnlineJob) -> None:
    """Raises UserError for options that do not go together."""
    method = job.method
    if (job.collect.samples or method.samples) < method.fewest_samples:
        raise UserError(
            f"{method.name} compares the answers to a prompt with each other; "
            f"--samples must be {method.fewest_samples} or more"
        )
    if job.collect.cut_off == "bootstrap" and not method.needs_critic:
        raise UserError(
            f"--cut-off bootstrap needs a critic, which {method.name} has not; take score or penalty"
        )
    if method.needs_critic and job.critic.critic == "adapter" and job.model.lora_rank == 0:
        raise UserError("--critic adapter needs --lora-rank: the base must stay as it is below both adapters")
    if job.run.learning_rate is not None and not method.trains_actor:
        raise UserError(
            f"--learning-rate: {method.name} moves the policy without one, by --max-kl; the critic's is "
            "--critic-learning-rate"
        )


def build_reward(config: RewardConfig, policy: LanguagePolicy, model: ModelConfig) -> WeightedSum:
    """The rewards that the options ask for; a reward model in the precision of the policy.

    Raises UserError if `share_reward` is set and there is not one reward model to share, but none or several.
    """
    loaded: list[str] = []

    def load(folder: str) -> Scorer:
        loaded.append(folder)
        if not config.share_reward:
            own = dataclasses.replace(model, model=folder, reference=None, lora_rank=0, without=None)
            return load_reward_model(own, trainable=False)
        if len(loaded) > 1:
            raise UserError(f"--share-reward: {' and '.join(loaded)} are two; one reward model can be shared")
        return shared_reward_model(policy, folder)

    reward = load_rewards(config.reward, model.device, config.reward_timeout, load)
    if config.share_reward and not loaded:
        raise UserError("--share-reward: no --reward is a reward model's folder; leave it out")
    return reward


def build_critic(
    method: OnlineMethod, policy: LanguagePolicy, model: ModelConfig, config: CriticConfig, seed: int
) -> Critic | None:
    """The critic that the options ask for; None for a method without one."""
    if not method.needs_critic:
        return None
    if config.critic == "head":
        return head_critic(policy)
    if config.critic == "adapter":
        return adapter_critic(policy, model, seed)
    start = dataclasses.replace(resolved(model), model=resolve_model(config.critic_model or model.model))
    return model_critic(load_reward_model(start, seed=seed))


def build_reference(learner: ActorCritic, model: ModelConfig) -> Reference:
    """The frozen reference: the policy's own base without adapter, or a model of its own."""
    reference = learner.actor
    if model.reference is not None or not learner.has_adapter:
        config = dataclasses.replace(
            model, model=resolve_model(model.reference or model.model), reference=None, lora_rank=0
        )
        reference = load_language_policy(config, trainable=False)

    def logprobs(inputs: Any) -> Any:
        with reference_mode(reference):
            return reference.logprobs(inputs, learner.temperature)

    return logprobs


def live(metrics: dict[str, float]) -> str:
    """A refresh's metrics in one line for a person to read."""
    shown = (
        ("score", "score {:.3g}"),
        ("kl", "kl {:.3g}"),
        ("entropy", "entropy {:.3g}"),
        ("clip_fraction", "clipped {:.1%}"),
        ("explained_variance", "explained {:.2f}"),
        ("beta", "beta {:.3g}"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
    )
    known = [(metrics[name], text) for name, text in shown if name in metrics]
    return "  ".join(text.format(value) for value, text in known if not math.isnan(value))
