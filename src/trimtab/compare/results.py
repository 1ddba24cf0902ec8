"""The files of a comparison folder: results.jsonl, comparison.json, and each run's evaluation and curve.

OUT/config.json                 the comparison's configuration
OUT/comparison.json             what was compared: data, base model, budget, rewards, evaluation
OUT/results.jsonl               one line a run; a later line with the same key replaces an earlier one
OUT/<folder>/evaluation.jsonl   one line a held-out prompt, in the same order in every run
OUT/<folder>/metrics.jsonl      the learning curve
"""

import dataclasses
import json
import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trimtab.checkpoint import atomic_text
from trimtab.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Strength:
    """The one knob that a comparison turns for a method, such as DPO's beta."""

    name: str
    value: float


@dataclass(frozen=True)
class Result:
    """One line of results.jsonl: a run of one method, strength (or parameters, and environment) and seed."""

    key: str
    status: Literal["done", "failed"]
    method: str
    seed: int
    folder: str = ""
    strength: Strength | None = None
    env: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)


def claim(out: Path, config: Any, free: Collection[str]) -> None:
    """Writes the configuration (a dataclass) into OUT/config.json, or checks that OUT was made by the same.

    Args:
        free: what may differ: new methods, strengths and seeds do not change what is there.
    Raises:
        UserError: OUT holds another comparison.
    """
    file = Path(out) / "config.json"
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = [key for key in now if key not in free and before.get(key) != now[key]]
        if changed:
            raise UserError(
                f"{out} holds a comparison with another {', '.join(changed)}; "
                "choose another --out, or delete the folder to start anew"
            )
    atomic_text(file, json.dumps(now, indent=1))


def append_result(out: Path, row: dict[str, Any]) -> None:
    """Adds one line to OUT/results.jsonl in a single write, and returns when it is on the disk.

    What an interrupted writer left after the last whole line is cut off first.
    """
    line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
    path = Path(out) / "results.jsonl"
    path.touch()
    with path.open("r+b") as file:
        file.seek(_whole_lines(file.read()))
        file.truncate()
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def load_results(out: Path) -> list[Result]:
    """The latest line of every key, in the order in which the keys first appeared; [] before the first run.

    A last line that an interruption tore is dropped with a warning. Raises UserError for any other bad line.
    """
    path = Path(out) / "results.jsonl"
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = _whole_lines(content)
    if whole < len(content):
        log.warning("%s: the last line was cut off by an interruption and is dropped", path)
    latest: dict[str, Result] = {}
    for row in _parse_lines(path, content[:whole].decode()):
        result = _result(path, row)
        latest[result.key] = result
    return list(latest.values())


def load_about(out: Path, needed: Sequence[str] = ("rewards", "primary_reward")) -> dict[str, Any]:
    """The content of OUT/comparison.json, which must have the keys that are `needed`."""
    path = Path(out) / "comparison.json"
    if not path.is_file():
        raise UserError(f"{path} is missing; give the folder that `trimtab compare` wrote")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}); run the comparison again to write it") from None
    if missing := [name for name in needed if name not in about]:
        raise UserError(f"{path} has no {missing[0]!r}; run the comparison again to write it")
    return dict(about)


def load_config_text(out: Path) -> str:
    """OUT/config.json as the YAML that `trimtab compare` reads; empty where the folder has none."""
    import yaml

    path = Path(out) / "config.json"
    if not path.is_file():
        return ""
    config = json.loads(path.read_text(encoding="utf-8"))
    return str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def load_evaluation(out: Path, result: Result) -> list[dict[str, Any]]:
    """The lines of a run's evaluation.jsonl: prompt, response, rewards, kl, tokens, ended."""
    path = Path(out) / result.folder / "evaluation.jsonl"
    if not path.is_file():
        raise UserError(f"{path} is missing though the run {result.key} is done; run the comparison again")
    rows = _parse_lines(path, path.read_text(encoding="utf-8"))
    if not rows:
        raise UserError(f"{path} is empty though the run {result.key} is done; run the comparison again")
    return rows


def load_curve(out: Path, result: Result) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; [] where the run has none, as a starting model has."""
    path = Path(out) / result.folder / "metrics.jsonl"
    return _parse_lines(path, path.read_text(encoding="utf-8")) if path.is_file() else []


def _whole_lines(content: bytes) -> int:
    """How many bytes of the content are lines that end in a newline."""
    return content.rfind(b"\n") + 1


def _parse_lines(path: Path, text: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: JSON may hold U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} line {number} is not JSON ({error.msg}); delete or mend it") from None
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} is not a JSON object; delete or mend it")
        rows.append(row)
    return rows


def _result(path: Path, row: dict[str, Any]) -> Result:
    known = {name: row[name] for name in Result.__dataclass_fields__ if row.get(name) is not None}
    if missing := [name for name in ("key", "status", "method", "seed") if name not in known]:
        raise UserError(
            f"{path}: the run {row.get('key', '?')!r} has no {missing[0]!r}; delete or mend its line"
        )
    if known["status"] not in ("done", "failed"):
        raise UserError(
            f"{path}: the run {known['key']!r} has status {known['status']!r}, not done or failed"
        )
    if "strength" in known:
        known["strength"] = Strength(known["strength"]["name"], float(known["strength"]["value"]))
    return Result(**known)
