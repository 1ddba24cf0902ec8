"""Rewards: what gives a response a score, by name, alone or as a weighted sum."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import TIMEOUT_MAX, Thread
from typing import Any, Protocol

import torch

from trimtab.errors import UserError, nearest
from trimtab.feedback.batches import by_prompt
from trimtab.feedback.records import Prompt
from trimtab.feedback.sequences import Sequences
from trimtab.feedback.tokenise import encode
from trimtab.policies.base import Scorer
from trimtab.policies.load import ModelConfig, load_reward_model
from trimtab.rollouts.functions import Function, FunctionError, plain
from trimtab.rollouts.verifiers import VERIFIERS, Columns, shown

BUILT_IN = "reviews"
FORMS = f"a reward model's folder, file.py:function, {BUILT_IN}, exact:COLUMN, regex:PATTERN or length:N"

_WEIGHTED = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*\s*(.+)", re.DOTALL)

LoadModel = Callable[[str], Scorer]  # a folder -> the reward model in it


class Reward(Protocol):
    """Scores responses: one finite number for each prompt and response, higher is better.

    `columns` holds the records' other columns, for those rewards that compare with one.
    """

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], columns: Columns | None = None
    ) -> Sequence[float]: ...


@dataclass(frozen=True)
class WeightedSum:
    """Several rewards as one: the sum of weight times score. Both tables have the same names."""

    rewards: Mapping[str, Reward]
    weights: Mapping[str, float]

    def parts(
        self, prompts: Sequence[Prompt], responses: Sequence[str], columns: Columns | None = None
    ) -> dict[str, list[float]]:
        """The scores of each reward by its name, without its weight."""
        return {name: list(reward(prompts, responses, columns)) for name, reward in self.rewards.items()}

    def total(self, parts: Mapping[str, Sequence[float]]) -> list[float]:
        """The weighted sums of what `parts` gave."""
        weighted = ([self.weights[name] * score for score in scores] for name, scores in parts.items())
        return [sum(of_one) for of_one in zip(*weighted, strict=True)]

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], columns: Columns | None = None
    ) -> list[float]:
        return self.total(self.parts(prompts, responses, columns))


def load_rewards(
    names: Sequence[str],
    device: str = "auto",
    timeout: float | None = None,
    load_model: LoadModel | None = None,
) -> WeightedSum:
    """The sum of rewards by name (see `load_reward`), each with a weight before it or 1: "0.5*exact:answer".

    Args:
        load_model: makes a reward model of a folder, where it shall not be one of its own.

    Raises UserError if there is none, one comes twice, or one cannot be loaded.
    """
    if not names:
        raise UserError(f"no reward is given; pass one or several: {FORMS}")
    rewards: dict[str, Reward] = {}
    weights: dict[str, float] = {}
    for given in names:
        weighted = _WEIGHTED.fullmatch(given)
        weight, name = weighted.groups() if weighted else ("1", given)
        if name in rewards:
            raise UserError(f"the reward {name} is given twice; give it once, with the weight it should have")
        if not math.isfinite(float(weight)):
            raise UserError(f"{given}: the weight must be a finite number")
        rewards[name], weights[name] = load_reward(name, device, timeout, load_model), float(weight)
    return WeightedSum(rewards, weights)


def load_reward(
    name: str, device: str = "auto", timeout: float | None = None, load_model: LoadModel | None = None
) -> Reward:
    """A reward by name, checked at every call.

    Args:
        name: a reward model's folder; `file.py:function` (see `functions.Function`); the built-in
            `reviews`; or a verifier (see `verifiers`): `exact`, `exact:COLUMN`, `regex:PATTERN`, `length:N`.
        timeout: seconds that a call may take; see `checked`.
        load_model: see `load_rewards`.

    Raises UserError if it is none of these, or cannot be loaded.
    """
    return checked(_load(name, load_model or _own_model(device)), name, timeout)


def _own_model(device: str) -> LoadModel:
    return lambda folder: load_reward_model(ModelConfig(model=folder, device=device), trainable=False)


def _load(name: str, load_model: LoadModel) -> Reward:
    if name == BUILT_IN:
        from trimtab.examples.reviews.gold import gold

        return _of_texts(gold())
    kind, _, argument = name.partition(":")
    if kind in VERIFIERS:
        return VERIFIERS[kind](argument)
    path, colon, function = name.rpartition(":")
    if colon and path.endswith(".py"):
        return Function(Path(path), function)
    if Path(name).is_dir():
        return RewardModelReward(load_model(name))
    hint = nearest(kind, [*VERIFIERS, BUILT_IN])
    near = f"; {hint}" if hint.startswith("did you mean") else ""
    raise UserError(f"{name}: not a reward; pass {FORMS}{near}")


def _of_texts(scorer: Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]) -> Reward:
    """A scorer that looks at no columns."""

    def call(
        prompts: Sequence[Prompt], responses: Sequence[str], columns: Columns | None = None
    ) -> Sequence[float]:
        return scorer(prompts, responses)

    return call


class RewardModelReward:
    """A reward model as a function of texts."""

    def __init__(self, model: Scorer, max_length: int = 1024, batch_tokens: int = 8192) -> None:
        self.model = model
        self.max_length = max_length
        self.batch_tokens = batch_tokens

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], columns: Columns | None = None
    ) -> list[float]:
        texts = list(zip(prompts, responses, strict=True))
        rows = encode(texts, self.model.tokenizer, max_length=self.max_length)
        scores: dict[int, float] = {}
        trunk = getattr(self.model, "trunk", None)
        for chunk in by_prompt(rows, self.batch_tokens, shared=trunk is None or trunk.shares):
            values = self.model.scores(Sequences.pack([rows[i] for i in chunk], self.model.device))
            scores.update(zip(chunk, values.tolist(), strict=True))
        return [scores[i] for i in range(len(rows))]


def checked(reward: Reward, name: str, timeout: float | None = None) -> Reward:
    """The reward, refusing what is not one finite number for each response.

    Args:
        timeout: seconds that a call may take. With one, each call runs in a thread of its own, where
            `signal.alarm` does not work. Code that holds Python's lock, such as a regular expression, is
            found too slow only once it is done.

    Raises UserError: for a timeout that is not above 0; when called, if it takes longer, if it does not give
    one finite number for each response, and if a user's function raises: then the samples are tried one by
    one, and the first that fails is shown.
    """
    if timeout is not None and not 0 < timeout < math.inf:
        raise UserError(f"--reward-timeout is {timeout:g}; it must be a number of seconds above 0")

    def once(prompts: Sequence[Prompt], responses: Sequence[str], columns: Columns) -> Sequence[float]:
        return _within(timeout, name, lambda: reward(prompts, responses, columns))

    def call(
        prompts: Sequence[Prompt], responses: Sequence[str], columns: Columns | None = None
    ) -> list[float]:
        try:
            given = once(prompts, responses, columns or {})
        except FunctionError as failure:
            culprit = _culprit(once, str(failure), prompts, responses, columns or {})
            raise UserError(f"{failure}; {culprit}") from failure
        return _numbers(given, name, prompts, responses)

    return call


def _within(seconds: float | None, name: str, call: Callable[[], Sequence[float]]) -> Sequence[float]:
    """What the call gives or raises. Raises UserError if it takes longer; the thread is left behind."""
    if seconds is None:
        return call()
    outcome: Future[Sequence[float]] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    # A daemon, so that a function that hangs does not keep the process alive.
    thread = Thread(target=work, name=f"reward {name}", daemon=True)
    thread.start()
    thread.join(min(seconds, TIMEOUT_MAX))
    if thread.is_alive():
        raise UserError(
            f"reward {name}: took longer than {seconds:g} seconds; make it faster, or allow more with "
            "--reward-timeout"
        )
    return outcome.result()


def _culprit(
    once: Callable[[Sequence[Prompt], Sequence[str], Columns], Sequence[float]],
    failure: str,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    columns: Columns,
) -> str:
    """Which sample fails, found by giving the function one at a time."""
    for n, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        try:
            once([prompt], [response], {name: [values[n]] for name, values in columns.items()})
        except (FunctionError, UserError) as alone:
            other = "" if str(alone) == failure else f" ({alone})"
            return (
                f"alone, the first sample that fails is {n + 1} of {len(responses)}: "
                f"the response {shown(response)} to the prompt {shown(plain(prompt))}{other}"
            )
    return f"no sample fails alone, only the batch of {len(responses)} together"


def _numbers(given: Any, name: str, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    try:
        scores = [float(score) for score in given]
    except (TypeError, ValueError) as error:
        raise UserError(f"reward {name}: must give one number for each response ({error})") from error
    if len(scores) != len(responses):
        raise UserError(f"reward {name}: gave {len(scores)} scores for {len(responses)} responses")
    for score, prompt, response in zip(scores, prompts, responses, strict=True):
        if not math.isfinite(score):
            raise UserError(
                f"reward {name}: gave {score} for {shown(response)} to {shown(plain(prompt))}; "
                "a score must be a finite number"
            )
    return scores
