"""Writes what the comparison on the built-in example measured into the docs, in both languages.

    make reviews        runs the comparison over 3 seeds, then this

Blocks between `<!-- measured: NAME -->` and `<!-- end -->` in docs/ are replaced: a method's name gives
that method's settings, `all` the table of all methods, a reward model's name its accuracy, and
`over_optimisation` GRPO's settings in the second folder, where it was given longer. Other names belong to
other benchmarks.
"""

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from trimtab.compare.config import RewardModelStage, load_config
from trimtab.compare.results import load_about
from trimtab.compare.stages import BASE, FEEDBACK, HELD_OUT, Stages
from trimtab.compare.statistics import Estimate
from trimtab.compare.summary import Comparison, Row, load_comparison
from trimtab.examples.reviews import COMPARISON
from trimtab.methods import METHODS

DOCS = Path(__file__).parent.parent / "docs"
HEADINGS = {
    "en": ("setting", "gold reward", "against the start", "win-rate", "proxy reward", "KL (nats)", "tokens"),
    "zh": ("设置", "gold 奖励", "与起点之差", "胜率", "proxy 奖励", "KL（nats）", "词元数"),
}
ACCURACY = {
    "en": "Held-out pairs ranked right: {} (95 % interval {}, {:,} pairs, {} seeds). Chance is 50 %.",
    "zh": "保留集里排对的偏好对：{}（95% 区间 {}，{:,} 对，{} 个种子）。随机猜测为 50%。",
}
CAPTION = {
    "en": "\n{} held-out prompts, {} seeds, 95 % intervals over prompts; the chosen strength is bold. "
    "`make reviews` prints it.",
    "zh": "\n{} 个保留提示，{} 个种子，区间为对提示的 95% 区间；粗体为选中的强度。由 `make reviews` 给出。",
}


def main(out: Path, longer: Path) -> None:
    """Fills the blocks of the docs that the comparisons in `out` and `longer` know."""
    comparison, over = load_comparison(out), load_comparison(longer)
    accuracies = reward_models(out)

    def body(name: str, language: str) -> str | None:
        if (name, language) in accuracies:
            return accuracies[name, language]
        if name == "over_optimisation":
            return table(over, "grpo", language)
        return table(comparison, name, language) if name == "all" or name in METHODS else None

    fill(body)
    print("\n".join(accuracies[name, "en"] for name in ("reward_model", "reward_ranking")))


def fill(body: Callable[[str, str], str | None], docs: Path = DOCS) -> None:
    """Replaces every block whose name `body(name, language)` knows, and leaves the others as they are."""
    for page in sorted(docs.rglob("*.md")):
        language = "zh" if "zh" in page.relative_to(docs).parts else "en"

        def block(found: re.Match[str], language: str = language) -> str:
            text = body(found[1], language)
            return found[0] if text is None else f"<!-- measured: {found[1]} -->\n{text}\n<!-- end -->"

        text = page.read_text(encoding="utf-8")
        filled = re.sub(r"<!-- measured: (\w+) -->(?:.*?<!-- end -->)?", block, text, flags=re.DOTALL)
        page.write_text(filled, encoding="utf-8")


def table(comparison: Comparison, name: str, language: str) -> str:
    """The settings of one method, or the chosen ones of all, as Markdown, the start first."""
    rows = [
        row
        for row in comparison.rows
        if row.setting is comparison.start or (row.chosen if name == "all" else row.setting.method == name)
    ]
    lines = ["| " + " | ".join(HEADINGS[language]) + " |", "|---" + "|---:" * 6 + "|"]
    lines += ["| " + " | ".join(cells(row, several=name != "all")) + " |" for row in rows]
    seeds = len({result.seed for setting in comparison.settings for result in setting.results})
    return "\n".join(lines) + "\n" + CAPTION[language].format(len(comparison.reported), seeds)


def cells(row: Row, several: bool) -> list[str]:
    """One row of a table."""
    label = row.setting.label if not several else row.setting.choice or row.setting.name
    return [
        f"**{label}**" if row.chosen and several else label,
        span(row.rewards["gold"]),
        span(row.gain, sign="+") if row.gain else "",
        span(row.win_rate, percent=True) if row.win_rate else "",
        f"{row.rewards['proxy'].mean:.2f}",
        f"{row.kl:.1f} ± {row.kl_error:.1f}",
        f"{row.length:.1f}",
    ]


def span(estimate: Estimate, sign: str = "", percent: bool = False) -> str:
    """0.71 (0.68 to 0.74)"""
    form = "{:.0%}" if percent else "{:" + sign + ".2f}"
    mean, low, high = (form.format(value) for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} ({low} – {high})"


def reward_models(out: Path) -> dict[tuple[str, str], str]:
    """Sentences on both reward models: the comparison's own, and the other one trained beside it."""
    config = load_config(COMPARISON)
    assert config.reward_model is not None
    stages = {stage["name"]: stage["metrics"] for stage in load_about(out)["stages"]}
    seeds = sorted({result.seed for s in load_comparison(out).settings for result in s.results})
    sentences = {}
    for name in ("reward_model", "reward_ranking"):
        if name == config.reward_model.method:
            metrics = stages["reward model"]
        else:
            stage = RewardModelStage(name, config.reward_model.run)
            other = replace(config, reward_model=stage, seeds=seeds)
            metrics = Stages(other, beside(out), lambda *_: None).reward_model()
        found = metrics["held_out_pair_accuracy"]
        for language, form in ACCURACY.items():
            interval = f"{found['low']:.1%} – {found['high']:.1%}"
            sentences[name, language] = form.format(
                f"{found['mean']:.1%}", interval, found["n"], metrics["seeds"]
            )
    return sentences


def beside(out: Path) -> Path:
    """A folder with the same starting model and feedback, where a second reward model does no harm."""
    folder = out / "other_reward_model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in (FEEDBACK, HELD_OUT):
        shutil.copy(out / name, folder)
    shutil.copytree(out / BASE, folder / BASE)
    return folder


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
