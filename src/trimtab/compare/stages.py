"""What happens once before the runs: fine-tuning, collecting feedback, training the reward model.

OUT/base/              the model that every method starts from
OUT/feedback.jsonl     what the methods train on
OUT/held_out.jsonl     feedback on held-out prompts, to measure the reward model
OUT/prompts.jsonl      the prompts of the evaluation
OUT/reward_model/      the proxy
OUT/stages.json        what each finished stage took and measured; a finished stage is not repeated
"""

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.atomic import atomic_folder, atomic_text
from trimtab.compare.config import CompareConfig
from trimtab.compare.statistics import mean_interval
from trimtab.data import is_built_in, load_records, split_by_prompt
from trimtab.errors import UserError
from trimtab.feedback.readers import read
from trimtab.feedback.records import Prompt, Record, columns_of
from trimtab.feedback.tokenise import encode_prompt
from trimtab.feedback.views import convert
from trimtab.feedback.writers import write
from trimtab.methods import find
from trimtab.policies.base import Trainable
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.load import (
    ModelConfig,
    load_language_policy,
    load_reward_model,
    resolve_model,
)
from trimtab.rollouts.generate import decode, generate
from trimtab.rollouts.rewards import Reward, RewardModelReward, load_reward
from trimtab.runs import Progress
from trimtab.train import RunConfig, make_table, total_steps, train

BASE, FEEDBACK, HELD_OUT, PROMPTS = "base", "feedback.jsonl", "held_out.jsonl", "prompts.jsonl"
REWARD_MODEL = "reward_model"


@dataclass
class Stages:
    """Runs the stages of a comparison in OUT, each once."""

    config: CompareConfig
    out: Path
    progress: Progress

    def run(self) -> list[dict[str, Any]]:
        """All stages; returns what each took and measured. All input is read before anything is trained."""
        if "feedback" not in self._done():
            self._check()
        self._once("fine-tuning", self._base)
        self._once("feedback", self._feedback)
        if self.config.reward_model is not None:
            self._once("reward model", self.reward_model)
        return list(self._done().values())

    def _check(self) -> None:
        """Raises UserError if data or a reward cannot be read, or does not suit what it is for."""
        config = self.config
        if config.sft is not None:
            convert(load_records(config.sft.data), find("sft").data, config.views)
        for reward in (*config.rewards.values(), *([config.collect.reward] if config.collect else [])):
            load_reward(reward, config.device)
        records, held_out = self._split()
        if config.collect is None:
            for name in config.methods:
                convert(records, find(name).data, config.views)
            if config.reward_model is not None:
                convert(records, find(config.reward_model.method).data, config.views)
                convert(held_out, "pair", config.views)

    def _split(self) -> tuple[Sequence[Record], Sequence[Record]]:
        """(train, held out): the records of the data, with no prompt on both sides."""
        records = load_records(self.config.data)
        if is_built_in(self.config.data):
            return records, load_records(self.config.data, split="held_out")
        return split_by_prompt(records, self.config.held_out)

    def _done(self) -> dict[str, dict[str, Any]]:
        file = self.out / "stages.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def _once(self, name: str, stage: Callable[[], dict[str, Any]]) -> None:
        done = self._done()
        if name in done:
            return
        start = time.perf_counter()
        metrics = stage()
        done[name] = {"name": name, "seconds": time.perf_counter() - start, "metrics": metrics}
        atomic_text(self.out / "stages.json", json.dumps(done, indent=1))

    def model_config(self, model: str) -> ModelConfig:
        return ModelConfig(model=model, precision=self.config.precision, device=self.config.device)

    def _base(self) -> dict[str, Any]:
        """The starting model, fine-tuned if the configuration says so."""
        policy = load_language_policy(self.model_config(resolve_model(self.config.model)))
        metrics: dict[str, Any] = {}
        if (sft := self.config.sft) is not None:
            records = load_records(sft.data)
            metrics = self._train("fine-tuning", "sft", policy, records, sft.run)
        with atomic_folder(self.out / BASE) as folder:
            policy.save(folder)
        return metrics

    def _feedback(self) -> dict[str, Any]:
        """Feedback to train on, feedback to measure the reward model with, prompts to evaluate on."""
        config = self.config
        records, held_out = self._split()
        prompts = _some(convert(held_out, "prompt"), config.evaluation.prompts)
        if config.collect is not None:
            records, held_out = self._collect(records, held_out)
        for name, rows in ((FEEDBACK, records), (HELD_OUT, held_out)):
            write(rows, self.out / name, overwrite=True)
        write(prompts, self.out / PROMPTS, overwrite=True)
        kinds = sorted({r.kind for r in records})
        return {"records": len(records), "held_out": len(held_out), "kinds": kinds}

    def _collect(
        self, train_records: Sequence[Record], held_out: Sequence[Record]
    ) -> tuple[list[Record], list[Record]]:
        """The starting model answers, the reward ranks."""
        stage = self.config.collect
        assert stage is not None
        policy = load_language_policy(self.model_config(str(self.out / BASE)), trainable=False)
        reward = load_reward(stage.reward, self.config.device)
        sides = []
        for name, records, count in (
            ("answering", train_records, stage.prompts),
            ("answering held-out prompts", held_out, stage.held_out_prompts),
        ):
            asked = _some(convert(records, "prompt"), count)
            answers = self._answers(name, policy, [r.prompt for r in asked], stage.samples)
            sides.append(rank(asked, answers, reward))
        return sides[0], sides[1]

    def _answers(
        self, name: str, policy: LanguagePolicy, prompts: list[Prompt], samples: int
    ) -> list[list[str]]:
        sampling = self.config.evaluation.sampling()
        texts: list[list[str]] = []
        for start in range(0, len(prompts), sampling.batch_size):
            chunk = prompts[start : start + sampling.batch_size]
            ids = [encode_prompt(policy.tokenizer, prompt) for prompt in chunk]
            responses = generate(policy, ids, sampling, samples=samples, seed=start)
            texts += [[decode(policy, r) for r in of_prompt] for of_prompt in responses]
            self.progress(name, len(texts), len(prompts))
        return texts

    def reward_model(self) -> dict[str, Any]:
        """One reward model for each seed; the first is kept. Measured on held-out pairs."""
        stage, seeds = self.config.reward_model, self.config.seeds
        assert stage is not None
        records, held_out = read(str(self.out / FEEDBACK)), read(str(self.out / HELD_OUT))
        pairs = convert(held_out, "pair", self.config.views)
        right = []
        for seed in seeds:
            model = load_reward_model(self.model_config(str(self.out / BASE)), seed=seed)
            run = replace(stage.run, seed=seed)
            self._train(f"reward model (seed {seed})", stage.method, model, records, run)
            right.append(_ranked_right(model, pairs))
            if seed == seeds[0]:
                with atomic_folder(self.out / REWARD_MODEL) as folder:
                    model.save(folder)
        return {"held_out_pair_accuracy": _accuracy(pairs, right), "seeds": len(seeds)}

    def _train(
        self, name: str, method_name: str, model: Trainable, records: Sequence[Record], run: RunConfig
    ) -> dict[str, Any]:
        method = find(method_name)()
        table = make_table(method, records, model.tokenizer, run, self.config.views)
        steps = total_steps(run, len(table))
        last: dict[str, float] = {}
        for last in train(method, model, table, run):
            self.progress(name, int(last["step"]), steps)
        return {"steps": steps, "loss": last["loss"]}


def rank(asked: Sequence[Record], answers: Sequence[Sequence[str]], reward: Reward) -> list[Record]:
    """Rankings of each prompt's distinct answers by a reward, best first; equal scores tie.

    Prompts with fewer than two distinct answers give none. Raises UserError if none is left.
    """
    distinct = [list(dict.fromkeys(a for a in of_prompt if a.strip())) for of_prompt in answers]
    flat = [(r, a) for r, of_prompt in zip(asked, distinct, strict=True) for a in of_prompt]
    of_each = [r for r, _ in flat]
    scores = iter(reward([r.prompt for r in of_each], [a for _, a in flat], columns_of(of_each)))
    records = []
    for record, of_prompt in zip(asked, distinct, strict=True):
        scored = sorted(((next(scores), a) for a in of_prompt), key=lambda pair: -pair[0])
        if len(scored) < 2:
            continue
        order = sorted({score for score, _ in scored}, reverse=True)
        ranks = tuple(order.index(score) for score, _ in scored)
        responses = tuple(a for _, a in scored)
        records.append(replace(record, kind="ranking", responses=responses, ranks=ranks))
    if not records:
        raise UserError("the model gave fewer than two different answers to every prompt: nothing to rank")
    return records


def _some(prompts: Sequence[Record], count: int) -> list[Record]:
    """At most `count` of them, drawn once and for all."""
    return random.Random(0).sample(prompts, min(count, len(prompts)))


@torch.no_grad()
def _ranked_right(model: Any, pairs: Sequence[Record]) -> list[float]:
    """For each pair 1 if the model puts chosen above rejected, else 0."""
    reward = RewardModelReward(model)
    prompts = [pair.prompt for pair in pairs]
    chosen = reward(prompts, [pair.responses[0] for pair in pairs])
    rejected = reward(prompts, [pair.responses[1] for pair in pairs])
    return [float(c > r) for c, r in zip(chosen, rejected, strict=True)]


def _accuracy(pairs: Sequence[Record], right: list[list[float]]) -> dict[str, float]:
    """Share of held-out pairs ranked right, with an interval over prompts."""
    values = np.array(right).mean(0)
    by_prompt: dict[Prompt, list[float]] = {}
    for pair, value in zip(pairs, values, strict=True):
        by_prompt.setdefault(pair.prompt, []).append(float(value))
    estimate = mean_interval([float(np.mean(v)) for v in by_prompt.values()])
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high, "n": len(pairs)}
