"""Rewards: what gives a response a score, by name."""

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from trimtab.errors import UserError
from trimtab.feedback.batches import by_tokens
from trimtab.feedback.records import Prompt, Record
from trimtab.feedback.tokenise import tokenise
from trimtab.policies.load import ModelConfig, load_reward_model
from trimtab.policies.reward_model import RewardModel

Reward = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]

BUILT_IN = "reviews"


def load_reward(name: str, device: str = "auto") -> Reward:
    """A reward by name: a reward model's folder, `file.py:function`, or the built-in `reviews`.

    A function receives the prompts and the responses and returns one number for each.

    Raises UserError if it is none of these.
    """
    if name == BUILT_IN:
        from trimtab.examples.reviews.gold import gold

        return checked(gold(), name)
    path, colon, function = name.rpartition(":")
    if colon and path.endswith(".py"):
        return checked(_function(Path(path), function), name)
    if Path(name).is_dir():
        model = load_reward_model(ModelConfig(model=name, device=device), trainable=False)
        return checked(RewardModelReward(model), name)
    raise UserError(
        f"{name}: not a reward; pass a reward model's folder, a function as file.py:name, or {BUILT_IN}"
    )


class RewardModelReward:
    """A reward model as a function of texts."""

    def __init__(self, model: RewardModel, max_length: int = 1024, batch_tokens: int = 8192) -> None:
        self.model = model
        self.max_length = max_length
        self.batch_tokens = batch_tokens

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        records = [
            Record(kind="demonstration", prompt=p, responses=(r,))
            for p, r in zip(prompts, responses, strict=True)
        ]
        table = tokenise(records, self.model.tokenizer, max_length=self.max_length)
        scores: dict[int, float] = {}
        for rows in by_tokens(table.rows, self.batch_tokens):
            values = self.model.scores(table.sequences(rows, self.model.device))
            scores.update(zip(rows, values.tolist(), strict=True))
        return [scores[example.rows[0]] for example in table.examples]


def checked(reward: Reward, name: str) -> Reward:
    """The reward, refusing what is not one finite number for each response."""

    def call(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        scores = [float(score) for score in reward(prompts, responses)]
        if len(scores) != len(responses):
            raise UserError(f"reward {name}: gave {len(scores)} scores for {len(responses)} responses")
        for score, prompt, response in zip(scores, prompts, responses, strict=True):
            if not math.isfinite(score):
                raise UserError(
                    f"reward {name}: gave {score} for {response!r} to {prompt!r}; "
                    "a score must be a finite number"
                )
        return scores

    return call


def _function(path: Path, name: str) -> Reward:
    if not path.exists():
        raise UserError(f"{path}: no such file; pass a reward function as file.py:name")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(function := getattr(module, name, None)):
        raise UserError(f"{path}: has no function {name!r}")
    return function
