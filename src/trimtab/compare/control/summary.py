"""From the files of a comparison in environments to its numbers: runs grouped, scored and ranked.

The score of a run is a mean return, that of its deterministic episodes after training unless comparison.json
says another. To bring environments together, scores are normalised: 0 is what an untrained policy earns that
draws its actions, 1 the interquartile mean of the best method in that environment.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.compare import statistics
from trimtab.compare.control.config import START, Score, written
from trimtab.compare.control.curves import Curve, learning_curve
from trimtab.compare.results import Result, load_about, load_results
from trimtab.compare.statistics import Estimate, FloatArray
from trimtab.config import typed

REACHED = 0.9  # the normalised score whose steps are counted
FEWEST = 3  # seeds without which nothing is called ahead
FEW = 5  # seeds below which an interval alone is too easily apart


@dataclass(frozen=True, eq=False)
class Contender:
    """One method with one choice of parameters, in all environments."""

    method: str
    choice: str  # `clip 0.2`: what tells it from the method's others; empty where there are none
    results: dict[str, tuple[Result, ...]]  # environment -> its finished runs, by seed
    score: Score = "deterministic"  # by which returns runs are judged; the same in all contenders

    @property
    def label(self) -> str:
        """`ppo (clip 0.2)`."""
        if self.method == START:
            return "untrained"
        return f"{self.method} ({self.choice})" if self.choice else self.method

    def scores(self, env: str) -> FloatArray:
        """[seeds] mean return of the kind that is the score; of the untrained policy, with drawn actions."""
        return self._means(env, "drawn" if self.method == START else self.score)

    def drawn(self, env: str) -> FloatArray:
        """[seeds] mean return of the episodes whose actions were drawn."""
        return self._means(env, "drawn")

    def _means(self, env: str, kind: str) -> FloatArray:
        return np.array([result.metrics[kind] for result in self.results.get(env, ())], dtype=np.float64)


@dataclass(frozen=True)
class Row:
    """A contender's numbers in one environment; what was not measured is None."""

    contender: Contender
    best: bool
    seeds: int
    score: Estimate
    mean: float
    worst: float
    drawn: float
    steps: float | None  # of training
    steps_to: float | None  # steps until the learning curve is near the best
    seconds: float | None
    speed: float | None  # steps a second


@dataclass(frozen=True)
class ControlComparison:
    """All finished runs of a comparison folder, the failed ones, and what comparison.json says."""

    out: Path
    about: dict[str, Any]
    contenders: tuple[Contender, ...]
    start: Contender
    failed: tuple[Result, ...]

    @property
    def score(self) -> Score:
        """By which returns runs are judged."""
        return self.start.score

    @cached_property
    def envs(self) -> list[str]:
        """Where something was trained: those of the last call first."""
        seen = [env for contender in self.contenders for env in contender.results]
        return [env for env in dict.fromkeys([*self.about["envs"], *seen]) if env in seen]

    @cached_property
    def scales(self) -> dict[str, tuple[float, float]]:
        """Where normalised scores are 0 and 1; an environment without start, or without gain, has none."""
        found = {}
        for env in self.envs:
            middles = [
                statistics.interquartile_mean(c.scores(env)) for c in self.contenders if env in c.results
            ]
            if env in self.start.results:
                floor = statistics.interquartile_mean(self.start.scores(env))
                if floor < max(middles):
                    found[env] = (floor, max(middles))
        return found

    def normalised(self, contender: Contender, env: str) -> FloatArray:
        """[seeds] scores from the untrained policy's, 0, to the best method's, 1."""
        floor, ceiling = self.scales[env]
        return (contender.scores(env) - floor) / (ceiling - floor)

    def threshold(self, env: str) -> float | None:
        """The return nine tenths of the way from the untrained policy to the top of the best learning curve.

        Curves hold drawn actions and lag behind, so that the final scores are no measure for them.
        """
        if env not in self.scales:
            return None
        curves = [curve for c in self.contenders if (curve := self.curve(c, env)) is not None]
        floor, tops = self.scales[env][0], [float(curve.middle.max()) for curve in curves]
        return floor + REACHED * (max(tops) - floor) if tops else None

    def scores(self, contender: Contender, envs: Sequence[str]) -> list[FloatArray]:
        """[seeds] for each environment: normalised where there are several, as they are in a single one."""
        if len(envs) == 1:
            return [contender.scores(envs[0])]
        return [self.normalised(contender, env) for env in envs]

    def estimate(self, contender: Contender, envs: Sequence[str]) -> Estimate:
        return statistics.iqm_interval(self.scores(contender, envs))

    def ranking(self, envs: Sequence[str]) -> list[Contender]:
        """Those that have finished runs in all of these environments, the highest score first."""
        everywhere = [c for c in self.contenders if all(env in c.results for env in envs)]

        def middle(contender: Contender) -> float:
            return statistics.interquartile_mean(np.concatenate(self.scores(contender, envs)))

        return sorted(everywhere, key=middle, reverse=True) if envs else []

    def seeds(self, envs: Sequence[str]) -> int:
        """The smallest number of seeds that a ranked contender has."""
        return min((len(c.results[env]) for c in self.ranking(envs) for env in envs), default=0)

    def improvement(self, a: Contender, b: Contender, envs: Sequence[str]) -> Estimate:
        return statistics.probability_of_improvement(*([c.scores(env) for env in envs] for c in (a, b)))

    def ahead(self, a: Contender, b: Contender, envs: Sequence[str]) -> bool:
        """Whether a is above b by an interval that excludes zero, with enough seeds to say so.

        Of normal scores that do not differ, that interval excludes zero for 34 in 100 pairs with two seeds
        each in one environment, 20 with three, 8 with four and 6 with five or more. So two seeds say nothing,
        and with fewer than five every seed of a must be above every seed of b too: 11 pairs with three, 4
        with four.
        """
        difference = statistics.iqm_difference(*(self.scores(c, envs) for c in (a, b)))
        if difference.n < FEWEST or not difference.low > 0:
            return False
        return difference.n >= FEW or self._by_seed(a, envs).min() > self._by_seed(b, envs).max()

    def _by_seed(self, contender: Contender, envs: Sequence[str]) -> FloatArray:
        """[n] scores averaged over environments, the first of each environment, the second of each, ..."""
        scores = self.scores(contender, envs)
        fewest = min(map(len, scores))
        return np.mean([of_env[:fewest] for of_env in scores], axis=0)

    def curve(self, contender: Contender, env: str) -> Curve | None:
        return learning_curve(self.out, contender.results.get(env, ()))

    @cached_property
    def rows(self) -> dict[str, list[Row]]:
        """For each environment the contenders by score, then the untrained policy."""
        return {env: [self._row(c, env) for c in self._in(env)] for env in self.envs}

    def _in(self, env: str) -> list[Contender]:
        return self.ranking([env]) + ([self.start] if env in self.start.results else [])

    def _row(self, contender: Contender, env: str) -> Row:
        scores, results = contender.scores(env), contender.results[env]
        steps = [result.metrics.get("total_steps") for result in results]
        seconds = [result.seconds.get("train") for result in results]
        total, time = _mean(steps), _mean(seconds)
        curve, level = self.curve(contender, env), self.threshold(env)
        return Row(
            contender=contender,
            best=contender is self.ranking([env])[0],
            seeds=len(results),
            score=statistics.iqm_interval([scores]),
            mean=float(scores.mean()),
            worst=float(scores.min()),
            drawn=float(contender.drawn(env).mean()),
            steps=total,
            steps_to=None if curve is None or level is None else curve.reaches(level),
            seconds=time,
            speed=total / time if total and time else None,
        )


def load_control_comparison(out: Path) -> ControlComparison:
    """Reads a comparison folder, finished or not. Raises UserError where a file is missing or wrong."""
    out = Path(out)
    about = load_about(out, needed=["envs"])
    score = typed(Score, about.get("score", "deterministic"), f"{out / 'comparison.json'}: score")
    results = [_judged(result, score) for result in load_results(out)]
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if result.status == "done":
            parameters = json.dumps(result.parameters, sort_keys=True)
            groups.setdefault((result.method, parameters), []).append(result)
    choices = [_choice(group[0], results) for group in groups.values()]
    contenders = [
        Contender(group[0].method, choice, _by_env(group), score)
        for choice, group in zip(choices, groups.values(), strict=True)
    ]
    trained = tuple(c for c in contenders if c.method != START)
    start = next((c for c in contenders if c.method == START), Contender(START, "", {}, score))
    failed = tuple(result for result in results if result.status == "failed")
    return ControlComparison(out, about, trained, start, failed)


def _judged(result: Result, score: Score) -> Result:
    """The same; as a failed one, if it was trained but has no such score."""
    if result.status == "failed" or result.method == START or score in result.metrics:
        return result
    reason = (
        f"it has no {score} return: no episode ended; take another score, or train longer in another --out"
    )
    return dataclasses.replace(result, status="failed", error=reason)


def _choice(result: Result, results: list[Result]) -> str:
    """What tells a result's method from the same method with other parameters, failed runs included."""
    siblings = [other.parameters for other in results if other.method == result.method]
    swept = [
        f"{name} {written(value)}"
        for name, value in result.parameters.items()
        if any(name not in other or other[name] != value for other in siblings)
    ]
    return ", ".join(swept)


def _by_env(results: list[Result]) -> dict[str, tuple[Result, ...]]:
    envs = dict.fromkeys(result.env for result in results)
    ordered = sorted(results, key=lambda result: result.seed)
    return {env: tuple(result for result in ordered if result.env == env) for env in envs}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
