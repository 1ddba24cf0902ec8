"""A comparison in environments as one HTML file that needs nothing else: no network, no script.

This module turns a ControlComparison into words and strings; report.html and ../report.css say how they look.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from trimtab.compare.control import plots
from trimtab.compare.control.config import OWN, Score
from trimtab.compare.control.summary import (
    FEW,
    FEWEST,
    Contender,
    ControlComparison,
    Row,
    load_control_comparison,
)
from trimtab.compare.control.table import reached
from trimtab.compare.control.verdict import overall, score, score_span, standing, verdict
from trimtab.compare.report import Figure, flatten, write_page
from trimtab.compare.results import load_config_text
from trimtab.compare.statistics import Estimate
from trimtab.compare.verdict import number, span
from trimtab.rollouts.environment import LAST

SCORES: dict[Score, str] = {
    "deterministic": "mean return after training, with the most likely action in every state",
    "drawn": "mean return after training, with drawn actions",
    "training": f"mean return of the last {LAST} episodes of training (of all where fewer ended), "
    "whose actions were drawn",
}
CURVES = (
    f"The interquartile mean over seeds of the mean return of the last {LAST} training episodes, whose "
    "actions were drawn; bands are 95 % bootstrap intervals. A curve begins where every seed has ended an "
    "episode."
)
MATRIX = (
    "How likely a run of the row’s method scores above one of the column’s{where} (ties count half), with "
    "95 % intervals. Blue wins, orange loses."
)
INTERVALS = (
    "Scores are interquartile means over seeds (of fewer than four seeds that is the mean), with 95 % "
    "stratified bootstrap intervals, as Agarwal et al. 2021 recommend. “Ahead” means that the interval of "
    "the difference lies above zero. Intervals cover other seeds, not other environments, and are not "
    "adjusted for the number of methods."
)
ONE_SEED = (
    "With one seed there are no intervals, and no difference here says what another seed would do; take "
    f"{FEWEST} seeds at least, and {FEW} or more for small differences."
)
TWO_SEEDS = "Intervals from two seeds are far too narrow, so nothing is called ahead here."
FEW_SEEDS = (
    "From {seeds} seeds such intervals are too narrow, so “ahead” asks for more: that every seed of the one "
    "is above every seed of the other. Even so two equal methods look different in one environment "
    "up to {by_chance} times in 100."
)

Scale = Callable[[float], float]  # a score -> its place in the bar's column, in per cent


def write_control_report(out: Path) -> Path:
    """Writes OUT/report.html from the runs that have finished so far, and returns its path.

    Raises UserError where the folder's files are missing or wrong.
    """
    return write_page(out, Path(__file__).parent / "report.html", page_content(load_control_comparison(out)))


def page_content(comparison: ControlComparison) -> dict[str, Any]:
    """Everything that report.html shows, under the names that it uses."""
    about, envs = comparison.about, overall(comparison)
    headline, *sentences = (_unbroken(comparison, sentence) for sentence in verdict(comparison))
    return {
        "name": str(about.get("name", "comparison")),
        "created": str(about.get("created", ""))[:10],
        "headline": headline,
        "sentences": sentences,
        "facts": list(_facts(comparison)),
        "score": SCORES[comparison.score],
        "intervals": _intervals(comparison),
        "overall": _overall(comparison, envs) if len(envs) > 1 else None,
        "sections": [_section(comparison, env) for env in comparison.envs],
        "failed": comparison.failed,
        "groups": [(name, flatten(about[name])) for name in ("settings", "evaluation") if about.get(name)],
        "versions": flatten(about.get("versions", {})) + flatten(about.get("machine", {})),
        "runs": list(_run_configurations(comparison)),
        "config": load_config_text(comparison.out),
    }


def _unbroken(comparison: ControlComparison, sentence: str) -> str:
    """No line ends within the short name of a method."""
    for label in (contender.label for contender in comparison.contenders):
        if len(label) <= 24:
            sentence = sentence.replace(label, label.replace(" ", "\u00a0"))
    return sentence


def _facts(comparison: ControlComparison) -> Iterator[tuple[str, str]]:
    """The (value, name) pairs under the headline."""
    everyone = (*comparison.contenders, comparison.start)
    results = [r for contender in everyone for results in contender.results.values() for r in results]
    seconds = sum(sum(result.seconds.values()) for result in results)
    steps = sum(result.metrics.get("total_steps", 0) for result in results)
    seeds = [len(results) for contender in comparison.contenders for results in contender.results.values()]
    yield f"{len(comparison.envs)}", _plural("environment", len(comparison.envs))
    yield f"{len(comparison.contenders)}", _plural("method", len(comparison.contenders)) + " and settings"
    yield f"{max(seeds, default=0)}", _plural("seed", max(seeds, default=0)) + " each"
    yield f"{sum(seeds)}", _plural("trained run", sum(seeds))
    yield f"{steps:,.0f}", "steps of training"
    yield f"{seconds / 60:,.0f} min" if seconds > 90 else f"{seconds:.0f} s", "training and evaluation"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else noun + "s"


def _intervals(comparison: ControlComparison) -> str:
    """What the intervals are, and how far they are to be trusted with so many seeds."""
    seeds = max((len(r) for c in comparison.contenders for r in c.results.values()), default=0)
    if seeds < 2:
        return ONE_SEED
    if seeds < FEWEST:
        return f"{INTERVALS} {TWO_SEEDS}"
    if seeds < FEW:
        by_chance = 10 if seeds == FEWEST else 3  # 2 in C(6, 3), 2 in C(8, 4)
        return f"{INTERVALS} {FEW_SEEDS.format(seeds=seeds, by_chance=by_chance)}"
    return INTERVALS


def _overall(comparison: ControlComparison, envs: Sequence[str]) -> dict[str, Any]:
    """The scores over all environments together."""
    ranking = comparison.ranking(envs)
    estimates = [comparison.estimate(contender, envs) for contender in ranking]
    scale = _scale(estimates, 0.0)
    rows = [
        {
            **_named(comparison, contender, contender is ranking[0], estimate.n),
            "score": (number(estimate.mean), span(estimate) if estimate.n > 1 else ""),
            "bar": _bar(estimate, scale),
            "each": [number(_normalised(comparison, contender, env)) for env in envs],
        }
        for contender, estimate in zip(ranking, estimates, strict=True)
    ]
    return {
        "zero": scale(0.0),
        "envs": envs,
        "rows": rows,
        "left_out": [env for env in comparison.envs if env not in envs],
        "figures": _matrix(comparison, envs),
    }


def _normalised(comparison: ControlComparison, contender: Contender, env: str) -> float:
    floor, ceiling = comparison.scales[env]
    return (comparison.estimate(contender, [env]).mean - floor) / (ceiling - floor)


def _section(comparison: ControlComparison, env: str) -> dict[str, Any]:
    """One environment: what can be said of it, its curves, its table."""
    rows, single = comparison.rows[env], len(comparison.envs) == 1
    start = next((row.score.mean for row in rows if row.contender is comparison.start), None)
    scale = _scale([row.score for row in rows], start)
    figures = []
    if svg := plots.learning_curves(comparison, env):
        figures.append(Figure("Learning curves", CURVES, svg, wide=True))
    winner = rows[0].contender
    best = winner.results[env][int(winner.scores(env).argmax())]
    return {
        "env": env,
        "sentences": [] if single else [_unbroken(comparison, s) for s in standing(comparison, [env])[:2]],
        "zero": None if start is None else scale(start),
        "rows": [_table_row(comparison, row, scale) for row in rows],
        "note": _budgets(rows, env),
        "play": f"trimtab play FOLDER/{best.folder}",
        "figures": figures + (_matrix(comparison, [env]) if single else []),
    }


def _matrix(comparison: ControlComparison, envs: Sequence[str]) -> list[Figure]:
    svg = plots.improvement(comparison, envs)
    where = " in an environment drawn at random" if len(envs) > 1 else ""
    return [Figure("Probability of improvement", MATRIX.format(where=where), svg, wide=True)] if svg else []


def _table_row(comparison: ControlComparison, row: Row, scale: Scale) -> dict[str, Any]:
    return {
        **_named(comparison, row.contender, row.best, row.seeds),
        "score": (score(row.score.mean), score_span(row.score) if row.seeds > 1 else ""),
        "bar": _bar(row.score, scale),
        "mean": score(row.mean),
        "worst": score(row.worst),
        "drawn": score(row.drawn),
        "reached": reached(row),
        "seconds": "–" if row.seconds is None else f"{row.seconds:,.1f}",
        "speed": "–" if row.speed is None else f"{row.speed:,.0f}",
    }


def _named(comparison: ControlComparison, contender: Contender, best: bool, seeds: int) -> dict[str, Any]:
    is_start = contender is comparison.start
    return {
        "name": contender.label if is_start else contender.method,
        "choice": contender.choice,
        "colour": plots.style(comparison, contender)[0],
        "best": best,
        "start": is_start,
        "seeds": f"{seeds} {_plural('seed', seeds)}",
    }


def _scale(estimates: Sequence[Estimate], zero: float | None) -> Scale:
    """Scores to places between 4 and 96 per cent."""
    ends = [e.mean for e in estimates] + [end for e in estimates if e.n > 1 for end in (e.low, e.high)]
    ends += [] if zero is None else [zero]
    low, high = min(ends), max(ends)
    width = (high - low) or 1.0
    return lambda value: round(4 + 92 * (value - low) / width, 2)


def _bar(estimate: Estimate, scale: Scale) -> dict[str, float]:
    low, high = (estimate.low, estimate.high) if estimate.n > 1 else (estimate.mean, estimate.mean)
    left, right = scale(low), scale(high)
    return {"left": left, "width": round(right - left, 2), "mean": scale(estimate.mean)}


def _budgets(rows: Sequence[Row], env: str) -> str:
    """A warning where methods were trained for different numbers of steps."""
    budgets: dict[int, list[str]] = {}
    for row in rows:
        config = row.contender.results[env][0].config
        if "total_steps" in config:
            budgets.setdefault(config["total_steps"], []).append(row.contender.label)
    if len(budgets) < 2:
        return ""
    each = "; ".join(f"{steps:,} ({', '.join(names)})" for steps, names in sorted(budgets.items()))
    return (
        f"The methods were trained for different numbers of steps: {each}. Give total_steps under settings."
    )


def _run_configurations(comparison: ControlComparison) -> Iterator[tuple[str, str]]:
    """(label, options as YAML) of every contender in every environment, without what differs by seed."""
    for contender in comparison.contenders:
        for env, results in contender.results.items():
            config = {k: v for k, v in results[0].config.items() if k not in OWN}
            yield f"{contender.label}, {env}", yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
