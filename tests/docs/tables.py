"""Tables of the documentation that are made from files.

python -m tests.docs.tables    writes them into the pages
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimtab.config import load_yaml
from trimtab.presets import ANY, FOLDER, environments

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {"en": DOCS / "control.md", "zh": DOCS / "zh" / "control.md"}
PRESETS = re.compile(r"<!-- presets -->\n(.*?)<!-- end -->", re.DOTALL)
COLUMNS = ("total_steps", "envs", "steps", "epochs", "minibatch_size", "learning_rate", "gamma", "lam")
HEADINGS = {"en": ("environment", "method", "further"), "zh": ("环境", "方法", "其余")}
OTHERS = {"en": "any other", "zh": "其他环境"}


def presets(language: str) -> str:
    """A line for each environment and method, as the files say; those for any other environment last."""
    first, second, last = HEADINGS[language]
    heads = [first, second, *(f"`{name}`" for name in COLUMNS), last]
    lines = ["| " + " | ".join(cells) + " |" for cells in [heads, *_rows(OTHERS[language])]]
    lines.insert(1, "|---|---" + "|---:" * len(COLUMNS) + "|---|")
    return "\n".join(lines) + "\n"


def _rows(others: str) -> Iterator[list[str]]:
    files = [(name, FOLDER / f"{name}.yaml") for name in environments()]
    for env, file in [*files, (others, ANY)]:
        for method, settings in load_yaml(file).items():
            columns = [_written(settings[name]) if name in settings else "–" for name in COLUMNS]
            further = [
                f"`{name}` {_written(value)}" for name, value in settings.items() if name not in COLUMNS
            ]
            yield [env, method, *columns, ", ".join(further)]


def _written(value: Any) -> str:
    """1,000,000, 0.0003, linear. YAML reads 3e-4 as text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main() -> None:
    """Writes the tables into the pages of both languages."""
    for language, page in PAGES.items():
        text = page.read_text(encoding="utf-8")
        page.write_text(
            PRESETS.sub(lambda _, of=language: f"<!-- presets -->\n{presets(of)}<!-- end -->", text),
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
