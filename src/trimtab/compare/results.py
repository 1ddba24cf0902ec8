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

from trimtab.atomic import atomic_text
from trimtab.config import build, shown, typed
from trimtab.errors import UserError
from trimtab.feedback.json_rows import BrokenJSONError, Decoder

log = logging.getLogger(__name__)

# What the report relies on in comparison.json, where it is there.
ABOUT: dict[str, Any] = {"rewards": list[str], "primary_reward": str, "envs": list[str], "name": str}


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
        before = _load_object(file, "choose another --out, or delete the folder to start anew")
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
    line = (json.dumps(row, ensure_ascii=False) + "\n").encode(errors="replace")
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
    content = _contents(path)
    whole = _whole_lines(content)
    if whole < len(content):
        log.warning("%s: the last line was cut off by an interruption and is dropped", path)
    latest: dict[str, Result] = {}
    for number, row in _parse_lines(path, content[:whole]):
        result = _result(f"{path} line {number}", row)
        latest[result.key] = result
    return list(latest.values())


def load_about(out: Path, needed: Sequence[str] = ("rewards", "primary_reward")) -> dict[str, Any]:
    """The content of OUT/comparison.json, which must have the keys that are `needed`."""
    path = Path(out) / "comparison.json"
    if not path.is_file():
        raise UserError(f"{path} is missing; give the folder that `trimtab compare` wrote")
    again = "run the comparison again to write it"
    about = _load_object(path, again)
    if missing := [name for name in needed if name not in about]:
        raise UserError(f"{path} has no {missing[0]!r}; {again}")
    for name, kind in ABOUT.items():
        if name in about:
            typed(kind, about[name], f"{path}: {name}")
    if "primary_reward" in about and about["primary_reward"] not in about.get("rewards", []):
        raise UserError(f"{path}: primary_reward is not among its rewards; {again}")
    return about


def load_config_text(out: Path) -> str:
    """OUT/config.json as the YAML that `trimtab compare` reads; empty where the folder has none."""
    import yaml

    path = Path(out) / "config.json"
    if not path.is_file():
        return ""
    config = _load_object(path, "delete it, or run the comparison again in another folder")
    return str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def load_evaluation(out: Path, result: Result) -> list[dict[str, Any]]:
    """The lines of a run's evaluation.jsonl: prompt, response, rewards, kl, tokens, ended."""
    path = Path(out) / result.folder / "evaluation.jsonl"
    if not path.is_file():
        raise UserError(f"{path} is missing though the run {result.key} is done; run the comparison again")
    rows = _parse_lines(path, _contents(path))
    if not rows:
        raise UserError(f"{path} is empty though the run {result.key} is done; run the comparison again")
    for number, row in rows:
        if "response" not in row:
            raise UserError(f"{path} line {number} has no 'response'; delete or mend it")
        typed(str, row["response"], f"{path} line {number}: response")
    return [row for _, row in rows]


def load_curve(out: Path, result: Result) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; [] where the run has none, as a starting model has."""
    path = Path(out) / result.folder / "metrics.jsonl"
    return [row for _, row in _parse_lines(path, _contents(path))] if path.is_file() else []


def _whole_lines(content: bytes) -> int:
    """How many bytes of the content are lines that end in a newline."""
    return content.rfind(b"\n") + 1


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _load_object(path: Path, advice: str) -> dict[str, Any]:
    """The JSON object that a file holds. Raises UserError that ends with the advice."""
    try:
        content = _contents(path).decode()
        return _object(content, f"{path}")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; {advice}") from error
    except BrokenJSONError as error:
        raise UserError(f"{path} line {error.line} is not JSON ({error}); {advice}") from None


def _object(text: str, where: str) -> dict[str, Any]:
    decoder = Decoder()
    row = decoder.line(text)
    if decoder.problem or not isinstance(row, dict):
        problem = f": {decoder.problem}" if decoder.problem else " is not a JSON object"
        raise UserError(f"{where}{problem}; delete or mend it")
    return row


def _parse_lines(path: Path, content: bytes) -> list[tuple[int, dict[str, Any]]]:
    """Each object with the number of its line."""
    rows = []
    for number, line in enumerate(content.split(b"\n"), start=1):  # not splitlines: JSON may hold U+2028
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            rows.append((number, _object(line.decode(), where)))
        except UnicodeDecodeError:
            raise UserError(f"{where} is not UTF-8 text; delete or mend it") from None
        except BrokenJSONError as error:
            raise UserError(f"{where} is not JSON ({error}); delete or mend it") from None
    return rows


def _result(where: str, row: dict[str, Any]) -> Result:
    known = {name: row[name] for name in Result.__dataclass_fields__ if row.get(name) is not None}
    if missing := [name for name in ("key", "status", "method", "seed") if name not in known]:
        raise UserError(f"{where}: the run {shown(row.get('key', '?'))} has no {missing[0]!r}; mend the line")
    if known["status"] not in ("done", "failed"):
        raise UserError(
            f"{where}: the run {shown(known['key'])} has status {shown(known['status'])}, not done or failed"
        )
    result = build(Result, known, where)
    folder = Path(result.folder)
    if folder.is_absolute() or ".." in folder.parts:  # its model may be deleted, and its files are read
        raise UserError(f"{where}: the folder {shown(result.folder)} is not within the comparison's; mend it")
    return result
