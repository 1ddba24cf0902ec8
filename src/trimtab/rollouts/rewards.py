"""Rewards: what gives a response a score, by name."""

import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb

import torch

from trimtab.errors import UserError, nearest
from trimtab.feedback.batches import by_tokens
from trimtab.feedback.records import Prompt
from trimtab.feedback.sequences import Sequences
from trimtab.feedback.tokenise import encode
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
        texts = list(zip(prompts, responses, strict=True))
        rows = encode(texts, self.model.tokenizer, max_length=self.max_length)
        scores: dict[int, float] = {}
        for chunk in by_tokens(rows, self.batch_tokens):
            values = self.model.scores(Sequences.pack([rows[i] for i in chunk], self.model.device))
            scores.update(zip(chunk, values.tolist(), strict=True))
        return [scores[i] for i in range(len(rows))]


def checked(reward: Reward, name: str) -> Reward:
    """The reward, refusing what is not one finite number for each response."""

    def call(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        given = reward(prompts, responses)
        try:
            scores = [float(score) for score in given]
        except (TypeError, ValueError) as error:
            raise UserError(f"reward {name}: must give one number for each response ({error})") from error
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
        raise UserError(f"{path}: there is no such file; pass a reward function as file.py:name")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _blamed_on(path):
        spec.loader.exec_module(module)
    functions = {key: value for key, value in vars(module).items() if callable(value) and key[0] != "_"}
    if name not in functions:
        raise UserError(f"{path}: has no function {name!r}; {nearest(name, functions)}")

    def call(prompts: Sequence[Prompt], responses: Sequence[str]) -> Sequence[float]:
        with _blamed_on(path):
            return functions[name](prompts, responses)

    return call


@contextmanager
def _blamed_on(path: Path) -> Iterator[None]:
    """Turns whatever the user's file raises into a sentence that names the file and its last line."""
    try:
        yield
    except Exception as error:  # it is the user's code, and may raise anything
        frames = extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename) == path.resolve()]
        place = f"{path}:{lines[-1]}" if lines else str(path)
        raise UserError(f"{place}: the reward failed with {type(error).__name__}: {error}") from error
