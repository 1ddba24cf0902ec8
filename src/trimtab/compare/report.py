"""The comparison as one HTML file that needs nothing else: no network, no script, plots inside as SVG.

This module turns a Comparison into words and strings; report.html and report.css say how they look.
"""

from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trimtab.compare import plots
from trimtab.compare.results import load_config_text
from trimtab.compare.samples import choose_samples
from trimtab.compare.statistics import Estimate
from trimtab.compare.summary import Comparison, Row, Setting, load_comparison
from trimtab.compare.verdict import number, span, verdict

CAPTIONS = {  # plot -> title, how to read it
    "frontier": (
        "What {primary} reward costs",
        "A curve per method, through its strengths. Up is better; right is further from where training "
        "began: of two curves the upper one buys more reward for the same KL. Filled marker: the chosen "
        "strength; hollow: the others; small dots: single seeds; bars: 95 % intervals.",
    ),
    "reward_against": (
        "Reward: {primary} against {other}",
        "Where a curve turns down, {other} reward still rises while {primary} reward falls: the model has "
        "learnt to please its scorer instead.",
    ),
    "reward_against_length": (
        "Reward against length",
        "If reward only rises with length, a method may have learnt to write more, not better.",
    ),
    "strength_sweep": (
        "Turning each method’s knob",
        "Reward at each strength; the dashed line is the start. A flat top means that the choice hardly "
        "matters, a steep one that it must be searched for again on other data.",
    ),
    "win_matrix": (
        "Who beats whom",
        "How often the row’s {primary} reward is above the column’s on the same prompt (ties count half), at "
        "each method’s chosen strength, with 95 % intervals. Blue wins, orange loses.",
    ),
    "loss": (
        "Training loss",
        "At each method’s chosen strength, by optimiser step; thin lines are single seeds. The methods’ "
        "losses share no scale: read the shape, not the height.",
    ),
    "margin": (
        "Training margin",
        "How far each method has moved chosen responses above rejected ones, by optimiser step.",
    ),
}

HERE = Path(__file__).parent
Scale = Callable[[float], float]  # a gain -> its place in the gain column, in per cent


def write_report(out: Path) -> Path:
    """Writes OUT/report.html from the runs that have finished so far, and returns its path.

    Raises UserError where the folder's files are missing or wrong.
    """
    return write_page(out, HERE / "report.html", page_content(load_comparison(out)))


def write_page(out: Path, template: Path, content: Mapping[str, Any]) -> Path:
    """Writes OUT/report.html: the template with its content and report.css."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    css = (HERE / "report.css").read_text(encoding="utf-8")
    page = environment.from_string(template.read_text(encoding="utf-8")).render(css=css, **content)
    path = Path(out) / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def page_content(comparison: Comparison) -> dict[str, Any]:
    """Everything that report.html shows, under the names that it uses."""
    about = comparison.about
    headline, *sentences = verdict(comparison)
    main = [row for row in comparison.rows if row.chosen or row.setting is comparison.start]
    main.sort(key=lambda row: -row.rewards[comparison.primary].mean)
    return {
        "name": str(about.get("name", "comparison")),
        "created": str(about.get("created", ""))[:10],
        "headline": headline,
        "sentences": sentences,
        "facts": list(_facts(comparison)),
        "primary": comparison.primary,
        "rewards": comparison.rewards,
        "tables": [_table(comparison, main), _table(comparison, comparison.rows)],
        "choice": _choice(comparison),
        "figures": list(_figures(comparison)),
        "samples": choose_samples(comparison, lambda setting: _colour(comparison, setting)),
        "failed": comparison.failed,
        "stages": [_stage(stage) for stage in about.get("stages", [])],
        "groups": [
            (name, flatten(about[name]))
            for name in ("data", "budget", "online", "evaluation")
            if name in about
        ],
        "versions": flatten(about.get("versions", {})) + flatten(about.get("machine", {})),
        "runs": list(_run_configurations(comparison)),
        "config": load_config_text(comparison.out),
    }


def flatten(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, text) pairs; an interval becomes `0.71 (0.67 to 0.75)`."""
    if isinstance(value, Mapping) and {"mean", "low", "high"} <= value.keys():
        interval = Estimate(value["mean"], value["low"], value["high"], int(value.get("n", 2)))
        count = f", n = {value['n']:,}" if "n" in value else ""
        return [(name, f"{number(interval.mean)} ({span(interval)}{count})")]
    if isinstance(value, Mapping):
        return [
            pair
            for key, item in value.items()
            for pair in flatten(item, f"{name}.{key}" if name else str(key))
        ]
    return [(name, _plain(value))]


def _plain(value: Any) -> str:
    if isinstance(value, bool | None):
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _facts(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """The (value, name) pairs under the headline."""
    results = [result for setting in comparison.settings for result in setting.results]
    seconds = sum(sum(result.seconds.values()) for result in results)
    yield str(comparison.about.get("base", "–")), "base model"
    yield f"{len(comparison.by_method)}", "methods"
    yield f"{len(results)}", "finished runs"
    yield f"{max((len(setting.results) for setting in comparison.settings), default=0)}", "seeds each"
    yield f"{len(comparison.prompts):,}", "held-out prompts"
    yield f"{seconds / 60:,.0f} min" if seconds > 90 else f"{seconds:.0f} s", "training and evaluation"


def _choice(comparison: Comparison) -> str:
    """How strengths were chosen and what the intervals cover, in two sentences."""
    reported = len(comparison.reported)
    if comparison.halved:
        choice = (
            f"To be fair to methods with fewer strengths, each method's strength is chosen by its "
            f"{comparison.primary} reward on one half of the held-out prompts "
            f"({len(comparison.prompts) - reported:,}), and every number here comes from the other half "
            f"({reported:,})."
        )
    else:
        choice = f"Each method has one strength; every number comes from all {reported:,} held-out prompts."
    return (
        f"{choice} Intervals are 95 % bootstrap intervals over prompts, with seeds averaged within each "
        "prompt; they are not adjusted for the number of methods. “Not distinguishable” means that the "
        "interval of the difference includes zero, or that not every seed agrees."
    )


def _table(comparison: Comparison, rows: Sequence[Row]) -> dict[str, Any]:
    scale = _gain_scale(rows)
    return {"zero": scale(0.0), "rows": [_table_row(comparison, row, scale) for row in rows]}


def _gain_scale(rows: Sequence[Row]) -> Scale:
    ends = [0.0] + [
        end for row in rows if row.gain and row.gain.n > 1 for end in (row.gain.low, row.gain.high)
    ]
    low, high = min(ends), max(ends)
    width = (high - low) or 1.0
    return lambda gain: round(4 + 92 * (gain - low) / width, 2)


def _table_row(comparison: Comparison, row: Row, scale: Scale) -> dict[str, Any]:
    gain, setting = row.gain, row.setting
    bar = None
    if gain and gain.n > 1:
        left, right = scale(gain.low), scale(gain.high)
        bar = {"left": left, "width": round(right - left, 2), "mean": scale(gain.mean)}
    return {
        "name": setting.name,
        "strength": setting.choice,
        "colour": _colour(comparison, setting),
        "best": row.best,
        "chosen": row.chosen,
        "start": setting is comparison.start,
        "seeds": len(setting.results),
        "rewards": [(number(row.rewards[name].mean), span(row.rewards[name])) for name in comparison.rewards],
        "middle": number(row.middle_reward),
        "gain": gain and (number(gain.mean, "+"), span(gain, "+")),
        "clear": bool(gain and gain.excludes_zero),
        "bar": bar,
        "wins": row.win_rate and (f"{100 * row.win_rate.mean:.0f} %", _percent_span(row.win_rate)),
        "kl": None if row.kl is None else (number(row.kl, digits=1), f"± {row.kl_error:.1f}"),
        "length": f"{row.length:.1f}",
        "distinct": number(row.distinct),
        "seconds": "–" if row.seconds is None else f"{row.seconds:,.0f}",
        "memory": "–" if row.memory_mb is None else f"{row.memory_mb:,.0f}",
    }


def _percent_span(rate: Estimate) -> str:
    return f"{100 * rate.low:.0f} to {100 * rate.high:.0f}" if rate.n > 1 else "unknown"


def _colour(comparison: Comparison, setting: Setting) -> str:
    return plots.INK if setting is comparison.start else plots.method_style(comparison, setting.method)[0]


@dataclass(frozen=True)
class Figure:
    title: str
    caption: str
    svg: str
    wide: bool

    @property
    def source(self) -> str:
        """The plot as a data: URL."""
        return "data:image/svg+xml;base64," + b64encode(self.svg.encode()).decode()


def _figures(comparison: Comparison) -> Iterator[Figure]:
    """The plots that this comparison's data allow, in reading order, each with how to read it."""
    others = [name for name in comparison.rewards if name != comparison.primary]
    drawn = [("frontier", plots.frontier(comparison), "")]
    drawn += [("reward_against", plots.reward_against(comparison, other), other) for other in others]
    drawn += [
        ("reward_against_length", plots.reward_against_length(comparison), ""),
        ("strength_sweep", plots.strength_sweep(comparison), ""),
        ("win_matrix", plots.win_matrix(comparison), ""),
        ("loss", plots.curves(comparison, "loss"), ""),
        ("margin", plots.curves(comparison, "margin"), ""),
    ]
    for name, svg, other in drawn:
        if svg:
            title, caption = (text.format(primary=comparison.primary, other=other) for text in CAPTIONS[name])
            yield Figure(title, caption, svg, wide=not name.startswith("reward_against"))


def _stage(stage: Mapping[str, Any]) -> tuple[str, str, list[tuple[str, str]]]:
    seconds = stage.get("seconds")
    return (
        str(stage["name"]),
        "–" if seconds is None else f"{seconds:,.0f} s",
        flatten(stage.get("metrics", {})),
    )


def _run_configurations(comparison: Comparison) -> Iterator[tuple[str, str, str]]:
    """(label, seconds, configuration as YAML) of every finished run."""
    for row in comparison.rows:
        for result in (result for result in row.setting.results if result.config):
            text = yaml.safe_dump(result.config, sort_keys=False, allow_unicode=True)
            seconds = f"{sum(result.seconds.values()):,.0f} s"
            yield f"{row.setting.label}, seed {result.seed}", seconds, text
