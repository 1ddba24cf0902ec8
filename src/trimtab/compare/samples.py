"""Responses to the same prompt, side by side: by a fixed rule, so that nobody picks the flattering ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.compare.summary import Comparison, Setting
from trimtab.compare.verdict import number

SHOWN, LIMIT = 12, 100


@dataclass(frozen=True)
class Answer:
    """One method's response; `best` where no other scores higher on this prompt."""

    name: str
    colour: str
    response: str
    scores: tuple[tuple[str, str], ...]  # (reward, score)
    best: bool


@dataclass(frozen=True)
class Sample:
    number: int  # the prompt's line in evaluation.jsonl, from 1
    prompt: tuple[tuple[str, str], ...]  # (role, text); the role is empty for plain text
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Samples:
    """`shown` are spread evenly over the reported prompts; `more` are the other ones, up to a limit."""

    shown: list[Sample]
    more: list[Sample]
    left_out: int


def choose_samples(comparison: Comparison, colour: Callable[[Setting], str]) -> Samples:
    """The first seed's responses of the start and of every method at its chosen strength."""
    reported = [int(index) for index in comparison.reported]
    places = np.linspace(0, len(reported) - 1, min(SHOWN, len(reported))).round().astype(int)
    shown = [reported[place] for place in places]
    others = [index for index in reported if index not in set(shown)]
    return Samples(
        shown=[_sample(comparison, index, colour) for index in shown],
        more=[_sample(comparison, index, colour) for index in others[: LIMIT - len(shown)]],
        left_out=len(others[LIMIT - len(shown) :]),
    )


def _sample(comparison: Comparison, index: int, colour: Callable[[Setting], str]) -> Sample:
    players = ([comparison.start] if comparison.start else []) + comparison.ranking
    scores = [float(player.rewards[comparison.primary][0, index]) for player in players]
    answers = [
        Answer(
            name=player.name,
            colour=colour(player),
            response=player.responses[0][index],
            scores=tuple((name, number(player.rewards[name][0, index])) for name in comparison.rewards),
            best=score == max(scores) and len(players) > 1,
        )
        for player, score in zip(players, scores, strict=True)
    ]
    return Sample(index + 1, _turns(comparison.prompts[index]), tuple(answers))


def _turns(prompt: Any) -> tuple[tuple[str, str], ...]:
    """A prompt as (role, text): one turn for plain text, one per message of a conversation."""
    if isinstance(prompt, list):
        return tuple((str(message.get("role", "")), str(message.get("content", ""))) for message in prompt)
    return (("", str(prompt)),)
