"""From the files of a comparison to its numbers: runs grouped by method and strength, chosen, and ranked.

A setting is one method with one choice of strength (and of other swept parameters), with all of its seeds.
To choose a method's strength and to report its reward on the same prompts would favour the methods with the
most strengths, so the strength is chosen on every other prompt and all numbers are reported on the prompts in
between.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.compare import statistics
from trimtab.compare.results import Result, Strength, load_about, load_evaluation, load_results
from trimtab.compare.statistics import Estimate, FloatArray
from trimtab.errors import UserError

Answers = list[dict[str, Any]]  # the lines of one evaluation.jsonl
START = "start"  # the method name of the model that every method starts from, fine-tuned or not


@dataclass(frozen=True)
class Setting:
    """One method at one strength; arrays are `[seeds, prompts]`."""

    method: str
    strength: Strength | None
    variant: str  # `learning_rate 0.001`, where more than the strength differs within the method
    results: tuple[Result, ...]
    responses: tuple[tuple[str, ...], ...]  # [seeds][prompts]
    rewards: dict[str, FloatArray]
    kl: FloatArray | None  # nats over a whole response, sampled
    tokens: FloatArray

    @property
    def name(self) -> str:
        """`DPO`, as the report writes it; names of several words stay as the command line takes them."""
        return self.method.upper() if self.method.isalnum() and len(self.method) <= 4 else self.method

    @property
    def choice(self) -> str:
        """`beta 0.1`, with the variant if there is one; empty for the start."""
        strength = f"{self.strength.name} {self.strength.value:g}" if self.strength else ""
        return ", ".join(filter(None, [strength, self.variant]))

    @property
    def label(self) -> str:
        """`DPO (beta 0.1)`."""
        return f"{self.name} ({self.choice})" if self.choice else self.name


@dataclass(frozen=True)
class Row:
    """A setting's numbers on the reported prompts; what was not measured is None."""

    setting: Setting
    chosen: bool
    best: bool
    rewards: dict[str, Estimate]
    middle_reward: float  # interquartile mean of the primary reward
    gain: Estimate | None
    win_rate: Estimate | None
    kl: float | None
    kl_error: float | None
    length: float
    distinct: float  # distinct bigrams / bigrams
    seconds: float | None
    memory_mb: float | None


@dataclass(frozen=True)
class Comparison:
    """All finished settings of a comparison folder, its failed runs, and what comparison.json says."""

    out: Path
    about: dict[str, Any]
    prompts: tuple[Any, ...]
    settings: tuple[Setting, ...]
    failed: tuple[Result, ...]

    @property
    def rewards(self) -> list[str]:
        return list(self.about["rewards"])

    @property
    def primary(self) -> str:
        return str(self.about["primary_reward"])

    @cached_property
    def start(self) -> Setting | None:
        return next((setting for setting in self.settings if setting.method == START), None)

    @cached_property
    def by_method(self) -> dict[str, list[Setting]]:
        """Every trained method's settings, by variant and strength."""
        groups: dict[str, list[Setting]] = {}
        for setting in self.settings:
            if setting.method != START:
                groups.setdefault(setting.method, []).append(setting)
        for settings in groups.values():
            settings.sort(key=lambda s: (s.variant, s.strength.value if s.strength else 0.0))
        return groups

    @property
    def halved(self) -> bool:
        """Whether strengths are chosen on half of the prompts; one strength needs no choice."""
        return len(self.prompts) > 1 and any(len(settings) > 1 for settings in self.by_method.values())

    @property
    def reported(self) -> NDArray[np.int64]:
        """The indices of the prompts that every number of the report is computed on."""
        return np.arange(1 if self.halved else 0, len(self.prompts), 2 if self.halved else 1)

    @cached_property
    def chosen(self) -> dict[str, Setting]:
        """Each method's strength with the highest primary reward on the prompts that choose."""

        def reward(setting: Setting) -> float:
            return float(setting.rewards[self.primary][:, ::2].mean())

        return {method: max(settings, key=reward) for method, settings in self.by_method.items()}

    def reward(self, setting: Setting, name: str | None = None) -> FloatArray:
        """`[seeds, reported prompts]` of one reward, by default the primary."""
        return self.reported_part(setting.rewards[name or self.primary])

    def reported_part(self, values: FloatArray) -> FloatArray:
        """`[seeds, prompts]` -> `[seeds, reported prompts]`."""
        return values[:, self.reported]

    @cached_property
    def ranking(self) -> list[Setting]:
        """The chosen settings, highest primary reward first."""
        return sorted(self.chosen.values(), key=lambda s: -float(self.reward(s).mean()))

    def difference(self, a: Setting, b: Setting) -> Estimate:
        return statistics.paired_difference(self.reward(a), self.reward(b))

    def clearly_better(self, a: Setting, b: Setting) -> bool:
        """Whether a is above b by an interval that excludes zero, and with every training seed.

        The interval covers other prompts; the second condition (every seed of a above b's mean, every seed
        of b below a's) asks the same of other seeds.
        """
        a_seeds, b_seeds = self.reward(a).mean(axis=1), self.reward(b).mean(axis=1)
        every_seed = a_seeds.min() > b_seeds.mean() and b_seeds.max() < a_seeds.mean()
        return self.difference(a, b).low > 0 and bool(every_seed)

    def win_matrix(self) -> list[list[Estimate | None]]:
        """Win-rates of row against column over the ranking, then the start; None on the diagonal."""
        players = self.players
        return [
            [None if a is b else statistics.win_rate(self.reward(a), self.reward(b)) for b in players]
            for a in players
        ]

    @property
    def players(self) -> list[Setting]:
        """The ranking, and the starting model last."""
        return self.ranking + ([self.start] if self.start else [])

    @cached_property
    def rows(self) -> list[Row]:
        """The start, then every setting in the order of the methods' ranking."""
        methods = [setting.method for setting in self.ranking]
        trained = [setting for method in methods for setting in self.by_method[method]]
        return [self._row(setting) for setting in ([self.start] if self.start else []) + trained]

    def _row(self, setting: Setting) -> Row:
        against = self.start if setting is not self.start else None
        own = self.reward(setting)
        kl = None if setting.kl is None else self.reported_part(setting.kl)
        return Row(
            setting=setting,
            chosen=self.chosen.get(setting.method) is setting,
            best=bool(self.ranking) and self.ranking[0] is setting,
            rewards={name: statistics.mean_interval(self.reward(setting, name)) for name in self.rewards},
            middle_reward=statistics.interquartile_mean(statistics.per_prompt(own)),
            gain=self.difference(setting, against) if against else None,
            win_rate=statistics.win_rate(own, self.reward(against)) if against else None,
            kl=None if kl is None else float(kl.mean()),
            kl_error=None if kl is None else statistics.standard_error(kl),
            length=float(self.reported_part(setting.tokens).mean()),
            distinct=self._distinct(setting),
            seconds=_mean([result.seconds.get("train") for result in setting.results]),
            memory_mb=_mean([result.peak_memory_mb for result in setting.results]),
        )

    def _distinct(self, setting: Setting) -> float:
        seeds = [[responses[i] for i in self.reported] for responses in setting.responses]
        return float(np.mean([statistics.distinct_n(responses, 2) for responses in seeds]))


def load_comparison(out: Path) -> Comparison:
    """Reads a comparison folder, finished or not.

    Raises UserError where a file is missing or wrong, or where two runs did not answer the same prompts.
    """
    out = Path(out)
    about, results = load_about(out), load_results(out)
    done = [result for result in results if result.status == "done"]
    evaluations = {result.key: load_evaluation(out, result) for result in done}
    prompts = [row.get("prompt") for row in evaluations[done[0].key]] if done else []
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in done:
        if [row.get("prompt") for row in evaluations[result.key]] != prompts:
            raise UserError(
                f"{out / result.folder / 'evaluation.jsonl'} has other prompts than {done[0].folder}; "
                "a comparison needs the same prompts in every run, so run it again in a new folder"
            )
        groups.setdefault(_parameters(result), []).append(result)
    variants = _variants(groups)
    settings = [
        _setting(group, evaluations, about["rewards"], variants[parameters])
        for parameters, group in groups.items()
    ]
    failed = [result for result in results if result.status == "failed"]
    return Comparison(out, about, tuple(prompts), tuple(settings), tuple(failed))


def _parameters(result: Result) -> tuple[str, ...]:
    """What the seeds of a setting share: the parts of `dpo/beta=0.1/seed=0` but for the seed."""
    return tuple(part for part in result.key.split("/") if not part.startswith("seed="))


def _variants(groups: dict[tuple[str, ...], list[Result]]) -> dict[tuple[str, ...], str]:
    """What tells a setting from its method's others, beside the strength; empty where nothing else does."""
    names = {}
    for parameters, (result, *_) in groups.items():
        siblings = [other for other, (first, *_) in groups.items() if first.method == result.method]
        strength = f"{result.strength.name}=" if result.strength else "/"
        differing = [part for part in parameters if not all(part in sibling for sibling in siblings)]
        names[parameters] = ", ".join(p.replace("=", " ") for p in differing if not p.startswith(strength))
    return names


def _setting(
    results: list[Result], evaluations: dict[str, Answers], rewards: list[str], variant: str
) -> Setting:
    results = sorted(results, key=lambda result: result.seed)
    answers = [evaluations[result.key] for result in results]
    has_kl = all(row.get("kl") is not None for rows in answers for row in rows)
    return Setting(
        method=results[0].method,
        strength=results[0].strength,
        variant=variant,
        results=tuple(results),
        responses=tuple(tuple(str(row["response"]) for row in rows) for rows in answers),
        rewards={name: _finite(results, answers, "rewards", name) for name in rewards},
        kl=_finite(results, answers, "kl") if has_kl else None,
        tokens=_finite(results, answers, "tokens"),
    )


def _finite(results: list[Result], answers: list[Answers], *path: str) -> FloatArray:
    """`[seeds, prompts]` of the numbers at `path` in every line; UserError where one is no finite number."""
    table = np.empty((len(answers), len(answers[0])))
    for seed, rows in enumerate(answers):
        for index, row in enumerate(rows):
            value: Any = row
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if not isinstance(value, int | float) or not np.isfinite(value):
                raise UserError(
                    f"{results[seed].folder}/evaluation.jsonl line {index + 1}: {'.'.join(path)} "
                    f"is {value!r}, not a finite number; delete the run from results.jsonl and run it again"
                )
            table[seed, index] = value
    return table


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
