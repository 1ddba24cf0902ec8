"""Comparison folders with made-up numbers, in the shape that `trimtab compare` writes for environments."""

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

Curve = Sequence[tuple[float, float | None]]  # (total steps, return)


def write_about(out: Path, envs: Sequence[str] = ("Hill",), **changes: Any) -> None:
    """Writes comparison.json."""
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "name": "made up",
        "envs": list(envs),
        "settings": {"total_steps": 1000},
        "evaluation": {"episodes": 5},
        "versions": {"trimtab": "0.1.0", "gymnasium": "1.4.0"},
        "machine": {"cores": 2, "runs_at_a_time": 1},
        "created": "2025-01-01T12:00:00+00:00",
    }
    (out / "comparison.json").write_text(json.dumps(about | changes))


def add_run(
    out: Path,
    method: str,
    score: float,
    *,
    env: str = "Hill",
    seed: int = 0,
    drawn: float | None = None,
    training: float | None = None,
    curve: Curve = (),
    total_steps: int = 1000,
    **parameters: Any,
) -> None:
    """Appends one finished run; of `start` the score is that of the drawn actions."""
    row = _identity(method, env, seed, parameters)
    folder = out / row["folder"]
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"total_steps": steps} | ({} if y is None else {"return": y}) for steps, y in curve]
    if method == "start":
        row |= {"config": {}, "seconds": {"evaluate": 0.5}, "metrics": {"drawn": score}}
    else:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        row["config"] = {"method": method, "total_steps": total_steps, "seed": seed, **parameters}
        row["seconds"] = {"train": 4.0, "evaluate": 0.5}
        row["metrics"] = {
            "deterministic": score,
            "drawn": score - 1 if drawn is None else drawn,
            "total_steps": float(total_steps),
        } | ({} if training is None else {"training": training})
    _append(out, {**row, "status": "done", "error": None})


def add_runs(out: Path, method: str, scores: Sequence[float], **options: Any) -> None:
    """One finished run for each score, with seeds 0, 1, ..."""
    for seed, score in enumerate(scores):
        add_run(out, method, score, seed=seed, **options)


def add_failure(out: Path, method: str, error: str, *, env: str = "Hill", **parameters: Any) -> None:
    _append(out, {**_identity(method, env, 0, parameters), "status": "failed", "error": error})


def _identity(method: str, env: str, seed: int, parameters: dict[str, Any]) -> dict[str, Any]:
    key = "/".join([env, method, *(f"{k}={v}" for k, v in parameters.items()), f"seed={seed}"])
    folder = "runs/" + key.replace("/", "-")
    return {
        "key": key, "env": env, "method": method, "parameters": parameters, "seed": seed, "folder": folder,
    }  # fmt: skip


def _append(out: Path, row: dict[str, Any]) -> None:
    with (out / "results.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


class Page(HTMLParser):
    """The tags, text and table rows of a page, every element of which must be closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "col", "br", "link", "input"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text = " ".join([self.text, *data.split()])
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] = " ".join([*self.rows[-1][-1].split(), *data.split()])

    def row(self, start: str) -> list[str]:
        """The cells of the first table row whose first cell starts so."""
        return next(row for row in self.rows if row and row[0].startswith(start))

    def images(self) -> list[str]:
        return [attrs["src"] or "" for tag, attrs in self.tags if tag == "img"]
