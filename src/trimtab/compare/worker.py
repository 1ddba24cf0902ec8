"""One run of a comparison, in a process of its own: train, answer the held-out prompts, write it down."""

import dataclasses
import json
import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.atomic import atomic_folder
from trimtab.compare.config import CompareConfig, Run
from trimtab.compare.stages import BASE, FEEDBACK, PROMPTS, REWARD_MODEL
from trimtab.compare.statistics import distinct_n, mean_interval, standard_error
from trimtab.compare.summary import START
from trimtab.evaluate import Answer, evaluate
from trimtab.feedback.readers import read
from trimtab.feedback.records import Record
from trimtab.feedback.views import convert
from trimtab.methods import Method
from trimtab.methods.base import OnlineMethod
from trimtab.online import OnlineConfig, train_online
from trimtab.online_jobs import CriticConfig, build_critic
from trimtab.policies.actor_critic import ActorCritic
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.load import ModelConfig, load_language_policy
from trimtab.reference import attach_reference
from trimtab.rollouts.collect import CollectConfig, Collector
from trimtab.rollouts.rewards import Reward, WeightedSum, load_reward
from trimtab.terminal import quiet_libraries
from trimtab.train import OptimiserConfig, RunConfig, make_table, peak_learning_rate, train
from trimtab.writing import json_line

SEQUENCES = {"pair": 2, "ranking": 4}  # responses in one piece of feedback


@dataclass(frozen=True)
class Cell:
    """One run, with all that it needs to know."""

    config: CompareConfig
    run: Run
    out: Path
    threads: int

    @property
    def folder(self) -> Path:
        return self.out / self.run.folder

    def carry_out(self) -> dict[str, Any]:
        quiet_libraries()
        return run_cell(self)

    def identity(self) -> dict[str, Any]:
        """What every line of results.jsonl begins with."""
        strength = self.run.strength
        return {
            "key": self.run.key,
            "method": self.run.method,
            "strength": None if strength is None else dataclasses.asdict(strength),
            "seed": self.run.seed,
            "folder": self.run.folder,
        }


def model_folder(out: Path, folder: str) -> Path:
    """Where a run's trained model stands, as long as it is kept."""
    return out / folder / "model"


def run_cell(cell: Cell) -> dict[str, Any]:
    """Trains and evaluates; returns the line for results.jsonl."""
    if cell.threads:
        torch.set_num_threads(cell.threads)
    _reset_peak_memory()
    folder = cell.folder
    folder.mkdir(parents=True, exist_ok=True)
    is_start = cell.run.method == START
    policy = load_language_policy(
        _model_config(cell.config, cell.out, adapt=not is_start), seed=cell.run.seed
    )
    start = time.perf_counter()
    config = {} if is_start else _train(cell, policy, folder)
    trained = time.perf_counter()
    peak = _peak_memory_mb()  # of training: the evaluation is the same for all
    answers = _evaluate(cell, policy)
    evaluated = time.perf_counter()
    with (folder / "evaluation.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(answer.row(), ensure_ascii=False) + "\n" for answer in answers)
    if not is_start and cell.config.keep != "none":
        with atomic_folder(model_folder(cell.out, cell.run.folder)) as target:
            policy.save(target)
    return {
        **cell.identity(),
        "status": "done",
        "error": None,
        "config": config,
        "seconds": {"train": trained - start, "evaluate": evaluated - trained},
        "peak_memory_mb": peak,
        "metrics": summarise(answers),
    }


def summarise(answers: list[Answer]) -> dict[str, Any]:
    """What the answers say on average: rewards with intervals, KL with its error, lengths, variety."""

    def interval(values: list[float]) -> dict[str, float]:
        estimate = mean_interval(values)
        return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}

    texts = [a.response for a in answers]
    metrics: dict[str, Any] = {
        name: interval([a.rewards[name] for a in answers]) for name in answers[0].rewards
    }
    if answers[0].kl is not None:
        kls = [a.kl for a in answers if a.kl is not None]
        metrics["kl"] = {"mean": float(np.mean(kls)), "se": standard_error(kls)}
    metrics["length"] = interval([float(a.tokens) for a in answers])
    metrics["ended"] = float(np.mean([a.ended for a in answers]))
    return {**metrics, "distinct_1": distinct_n(texts, 1), "distinct_2": distinct_n(texts, 2)}


def _train(cell: Cell, policy: LanguagePolicy, folder: Path) -> dict[str, Any]:
    """Trains in place, writes the learning curve; returns the resolved configuration."""
    method = cell.run.build()
    run: OptimiserConfig
    if isinstance(method, OnlineMethod):
        run, steps = _online(cell, method, policy)
    else:
        run, steps = _offline(cell, method, policy)
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for metrics in steps:
            file.write(json_line(metrics))
    run = dataclasses.replace(run, learning_rate=peak_learning_rate(method, run, policy))
    return {"method": cell.run.method, **dataclasses.asdict(method), "run": dataclasses.asdict(run)}


def _offline(
    cell: Cell, method: Method[Any], policy: LanguagePolicy
) -> tuple[RunConfig, Iterable[dict[str, float]]]:
    """Training on the recorded feedback."""
    run = _run_config(cell, method)
    table = make_table(method, read(str(cell.out / FEEDBACK)), policy.tokenizer, run, cell.config.views)
    if method.needs_reference:
        attach_reference(table, policy, batch_tokens=run.batch_tokens)
    return run, train(method, policy, table, run)


def _online(
    cell: Cell, method: OnlineMethod, policy: LanguagePolicy
) -> tuple[OnlineConfig, Iterable[dict[str, float]]]:
    """Training on new answers to the prompts of the feedback, scored by the reward that is learned from."""
    config, online = cell.config, cell.config.online
    evaluation = config.evaluation
    collect = CollectConfig(
        prompts=max(1, online.responses // method.samples),
        max_new_tokens=evaluation.max_new_tokens,
        temperature=evaluation.temperature or 1.0,
        generate_batch=evaluation.batch_size,
    )
    run = OnlineConfig(
        refreshes=online.refreshes,
        minibatch_size=online.minibatch,
        learning_rate=cell.run.learning_rate,
        critic_learning_rate=online.critic_learning_rate,
        batch_tokens=config.budget.batch_tokens,
        max_length=config.budget.max_length + evaluation.max_new_tokens,
        seed=cell.run.seed,
    )
    name = config.learned_reward
    source = Collector(
        policy,
        convert(read(str(cell.out / FEEDBACK)), "prompt"),
        WeightedSum({name: _rewards(config, cell.out)[name]}, {name: 1.0}),
        collect,
        samples=method.samples,
        max_length=run.max_length,
        seed=run.seed,
    )
    model = _model_config(config, cell.out, adapt=True)
    critic = build_critic(method, policy, model, CriticConfig(), run.seed)
    learner = ActorCritic(policy, critic, collect.temperature)
    reference = partial(_reference(config, cell.out).logprobs, temperature=collect.temperature)
    refreshes = train_online(method, learner, source, run, torch.no_grad()(reference))
    return run, ({"step": r.metrics["refresh"], **r.metrics} for r in refreshes)


def _run_config(cell: Cell, method: Method[Any]) -> RunConfig:
    """The common budget as this method's run."""
    budget = cell.config.budget
    return RunConfig(
        steps=budget.steps,
        batch_size=max(1, budget.responses // SEQUENCES.get(method.data, 1)),
        batch_tokens=budget.batch_tokens,
        max_length=budget.max_length,
        learning_rate=cell.run.learning_rate,
        seed=cell.run.seed,
    )


def _evaluate(cell: Cell, policy: LanguagePolicy) -> list[Answer]:
    """One answer to each held-out prompt; the same prompts for every run, samples by seed."""
    reference = policy if cell.run.method == START else _reference(cell.config, cell.out)
    return evaluate(
        policy,
        _prompts(cell.out),
        cell.config.evaluation.sampling(),
        _rewards(cell.config, cell.out),
        reference=reference,
        seed=cell.run.seed,
    )


def _model_config(config: CompareConfig, out: Path, adapt: bool) -> ModelConfig:
    return ModelConfig(
        model=str(out / BASE),
        lora_rank=config.lora_rank if adapt else 0,
        precision=config.precision,
        device=config.device,
    )


@cache  # a worker process serves many runs of one comparison
def _prompts(out: Path) -> tuple[Record, ...]:
    return tuple(read(str(out / PROMPTS)))


_SHARED: dict[Path, Any] = {}


def _reference(config: CompareConfig, out: Path) -> LanguagePolicy:
    """The frozen starting model, loaded once in a worker."""
    if out not in _SHARED:
        _SHARED[out] = load_language_policy(_model_config(config, out, adapt=False), trainable=False)
    return _SHARED[out]


def _rewards(config: CompareConfig, out: Path) -> dict[str, Reward]:
    """The rewards that a run is measured by, `proxy` being the comparison's own reward model."""
    names = dict(config.rewards)
    if config.reward_model is not None:
        names["proxy"] = str(out / REWARD_MODEL)
    return {name: _reward(spec, config.device) for name, spec in names.items()}


@cache
def _reward(spec: str, device: str) -> Reward:
    return load_reward(spec, device)


def _reset_peak_memory() -> None:
    """Forgets the peak of the run before, where the system can (CUDA, Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def _peak_memory_mb() -> float:
    """Peak memory of the GPU where there is one, else of the whole process, in MB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
