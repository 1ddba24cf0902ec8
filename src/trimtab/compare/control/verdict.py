"""The first sentences of the report on environments: only what the intervals support."""

from collections.abc import Sequence
from itertools import pairwise

from trimtab.compare.control.summary import FEWEST, Contender, ControlComparison
from trimtab.compare.statistics import Estimate
from trimtab.compare.verdict import join, number, span

MOST = 2  # pairs that a sentence names after the first


def verdict(comparison: ControlComparison) -> list[str]:
    """One to four sentences, the most important first, over all environments that can be normalised."""
    envs = overall(comparison)
    return [*standing(comparison, envs), *_elsewhere(comparison, envs), *_failures(comparison)]


def overall(comparison: ControlComparison) -> list[str]:
    """The environments that are judged together."""
    return comparison.envs if len(comparison.envs) == 1 else list(comparison.scales)


def standing(comparison: ControlComparison, envs: Sequence[str]) -> list[str]:
    """Who is ahead of whom in these environments together, in one to three sentences."""
    if not comparison.envs:
        return ["No run has finished yet, so there is nothing to compare."]
    if not envs:
        return ["No method scores above an untrained policy in any environment."]
    ranking, seeds = comparison.ranking(envs), comparison.seeds(envs)
    if not ranking:
        return ["No method has finished a run in every environment, so there is nothing to say over all."]
    best, *others = ranking
    if seeds < FEWEST:
        return [_too_few(comparison, best, envs, seeds)]
    if envs[0] in comparison.start.results and not comparison.ahead(best, comparison.start, envs):
        first = f"No method is clearly better than an untrained policy on {_names(envs)} with {seeds} seeds."
        return [first, f"The highest is {best.label}: its {_scored(comparison, best, envs)}."]
    first = _first(comparison, best, others, envs)
    return [first, f"Its {_scored(comparison, best, envs)}.", *_rest(comparison, others, envs)]


def score(value: float, sign: str = "") -> str:
    """A return with as many decimals as its size deserves: 1,234, 482.1, 0.53."""
    if abs(value) >= 1000:
        return f"{value:{sign},.0f}".replace("-", "−")
    return number(value, sign, digits=1 if abs(value) >= 10 else 2)


def score_span(estimate: Estimate) -> str:
    """`460.2 to 500.0`, or `unknown` for a single seed."""
    return f"{score(estimate.low)} to {score(estimate.high)}" if estimate.n > 1 else "unknown"


def _first(
    comparison: ControlComparison, best: Contender, others: list[Contender], envs: Sequence[str]
) -> str:
    behind = [c.label for c in others if comparison.ahead(best, c, envs)]
    level = [c.label for c in others if c.label not in behind]
    with_seeds = f"with {comparison.seeds(envs)} seeds"
    if not others:
        return f"{best.label} is better than an untrained policy on {_names(envs)}."
    if not level:
        return f"{best.label} is ahead of {join(behind)} on {_names(envs)}."
    if not behind:
        opening = f"No method is ahead on {_names(envs)}"
        return f"{opening}: the highest, {best.label}, cannot be told from {join(level)} {with_seeds}."
    opening = f"{best.label} is ahead of {join(behind)} on {_names(envs)}"
    return f"{opening}; it cannot be told from {join(level)} {with_seeds}."


def _rest(comparison: ControlComparison, others: list[Contender], envs: Sequence[str]) -> list[str]:
    """Which of the others, neighbours in the ranking, cannot be told apart."""
    level = [(b.label, a.label) for a, b in pairwise(others) if not comparison.ahead(a, b, envs)]
    if not level:
        return []
    (second, first), *more = level
    nor = [f", nor {b} from {a}" for b, a in more[:MOST]]
    left = f", nor {len(more) - MOST} other neighbours in the table" if len(more) > MOST else ""
    return [f"Of the others {second} cannot be told from {first}{''.join(nor)}{left}."]


def _too_few(comparison: ControlComparison, best: Contender, envs: Sequence[str], seeds: int) -> str:
    estimate = comparison.estimate(best, envs)
    why = "so there are no intervals" if seeds == 1 else "too few for their intervals to tell methods apart"
    return (
        f"{best.label} has the highest score on {_names(envs)}, {score(estimate.mean)}, but from "
        f"{seeds} seed{'s' if seeds > 1 else ''} only, {why}: nothing here says what other seeds would do."
    )


def _elsewhere(comparison: ControlComparison, envs: Sequence[str]) -> list[str]:
    """Environments in which another method is ahead of the one that is best over all."""
    if len(envs) < 2 or not comparison.ranking(envs):
        return []
    best = comparison.ranking(envs)[0]
    there = [(env, comparison.ranking([env])[0]) for env in envs]
    other = [f"{c.label} on {env}" for env, c in there if c is not best and comparison.ahead(c, best, [env])]
    return [f"Ahead of {best.label} in a single environment: {join(other)}."] if other else []


def _failures(comparison: ControlComparison) -> list[str]:
    failed = len(comparison.failed)
    if not failed:
        return []
    everyone = (*comparison.contenders, comparison.start)
    done = sum(len(results) for contender in everyone for results in contender.results.values())
    return [
        f"{failed} of {failed + done} runs failed and {'is' if failed == 1 else 'are'} listed below with the "
        "reason; the scores are those of the runs that were left."
    ]


def _scored(comparison: ControlComparison, contender: Contender, envs: Sequence[str]) -> str:
    """`score is 346.7 (95 % interval 207.2 to 500.0)`; of several environments the normalised one."""
    estimate = comparison.estimate(contender, envs)
    if len(envs) > 1:
        return f"normalised score is {number(estimate.mean)} (95 % interval {span(estimate)})"
    return f"score is {score(estimate.mean)} (95 % interval {score_span(estimate)})"


def _names(envs: Sequence[str]) -> str:
    if len(envs) > 3:
        return f"all {len(envs)} environments together"
    return join(envs) + (" together" if len(envs) > 1 else "")
