"""The report's first sentences, computed from the numbers and honest about ties."""

from collections.abc import Sequence

from trimtab.compare.statistics import Estimate, mean_interval
from trimtab.compare.summary import Comparison, Setting


def verdict(comparison: Comparison) -> list[str]:
    """One to four sentences, the most important first: who wins, who is as good, what to beware of."""
    ranking, start = comparison.ranking, comparison.start
    if not ranking:
        sentences = ["No run has finished yet, so there is nothing to compare."]
    elif start is None:
        reward = mean_interval(comparison.reward(ranking[0]))
        sentences = [
            f"{ranking[0].label} has the highest {comparison.primary} reward, {reward.mean:.2f} "
            f"(95 % interval {span(reward)}); without a finished run of the start nothing says "
            "whether training helped."
        ]
        sentences += _ties(comparison)
    elif comparison.clearly_better(ranking[0], start):
        sentences = [_win(comparison, ranking[0], start), *_ties(comparison)]
    else:
        sentences = [_no_win(comparison, ranking[0], start)]
    return sentences + _over_optimised(comparison) + _failures(comparison)


def span(estimate: Estimate, sign: str = "") -> str:
    """`0.30 to 0.38`, or `unknown` for a single prompt."""
    if estimate.n < 2:
        return "unknown"
    return f"{number(estimate.low, sign)} to {number(estimate.high, sign)}"


def number(value: float, sign: str = "", digits: int = 2) -> str:
    """Two decimals and a true minus sign; `sign="+"` writes the plus too. Never `-0.00`."""
    text = f"{round(value, digits) + 0.0:{sign}.{digits}f}"
    return text.replace("-", "−")


def _win(comparison: Comparison, best: Setting, start: Setting) -> str:
    verb = "wins" if len(comparison.ranking) > 1 else "beats the start"
    gain = comparison.difference(best, start)
    seeds = len(best.results)
    agree = f", and above it with each of {seeds} seeds" if seeds > 1 else ""
    cost = (
        ""
        if best.kl is None
        else f", at a KL of {number(best.kl[:, comparison.reported].mean(), digits=1)} nats"
    )
    return (
        f"{best.label} {verb}: {comparison.primary} reward {_mean(comparison, best)} against the start's "
        f"{_mean(comparison, start)} ({number(gain.mean, '+')}, 95 % interval {span(gain)}{agree}){cost}."
    )


def _no_win(comparison: Comparison, best: Setting, start: Setting) -> str:
    gain = comparison.difference(best, start)
    if all(comparison.clearly_better(start, setting) for setting in comparison.ranking):
        opening = "Training made the model worse with every method"
    else:
        opening = "No method clearly beats the start"
    return (
        f"{opening}: the best, {best.label}, has a {comparison.primary} reward of "
        f"{_mean(comparison, best)} against the start's {_mean(comparison, start)} "
        f"({number(gain.mean, '+')}, 95 % interval {span(gain)})."
    )


def _ties(comparison: Comparison) -> list[str]:
    best, *others = comparison.ranking
    if not others:
        return []
    tied = [other.label for other in others if not comparison.clearly_better(best, other)]
    if not tied:
        return ["It is clearly better than every other method."]
    return [f"{join(tied)} {'is' if len(tied) == 1 else 'are'} not distinguishable from it on these prompts."]


def _over_optimised(comparison: Comparison) -> list[str]:
    """Settings that another reward calls better than the start while the primary reward calls them worse."""
    start, sentences = comparison.start, []
    trained = [setting for settings in comparison.by_method.values() for setting in settings]
    for name in comparison.rewards if start else []:
        fooled = (
            [s.label for s in trained if _fools(comparison, s, name)] if name != comparison.primary else []
        )
        if fooled:
            sentences.append(
                f"Beware of over-optimisation: {join(fooled)} {'gains' if len(fooled) == 1 else 'gain'} "
                f"{name} reward over the start while losing {comparison.primary} reward."
            )
    return sentences


def _fools(comparison: Comparison, setting: Setting, name: str) -> bool:
    start = comparison.start
    assert start is not None
    other = comparison.reward(setting, name).mean() > comparison.reward(start, name).mean()
    return bool(other) and comparison.clearly_better(start, setting)


def _failures(comparison: Comparison) -> list[str]:
    failed = len(comparison.failed)
    if not failed:
        return []
    total = failed + sum(len(setting.results) for setting in comparison.settings)
    return [
        f"{failed} of {total} runs failed and {'is' if failed == 1 else 'are'} listed below with the reason."
    ]


def _mean(comparison: Comparison, setting: Setting) -> str:
    return number(float(comparison.reward(setting).mean()))


def join(names: Sequence[str], most: int = 4) -> str:
    """`a`, `a and b`, `a, b and c`; beyond `most` names `a, b, c and 7 others`."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} others"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
