"""The results file survives interruptions and names what is wrong."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from synthetic import add_run, write_about

from trimtab.compare.results import (
    Strength,
    append_result,
    load_about,
    load_config_text,
    load_evaluation,
    load_results,
)
from trimtab.errors import UserError


def row(key: str, **changes: Any) -> dict[str, Any]:
    return {"key": key, "status": "done", "method": "dpo", "seed": 0, "folder": "runs/x"} | changes


def test_what_is_appended_is_loaded(tmp_path: Path) -> None:
    append_result(tmp_path, row("a", strength={"name": "beta", "value": 0.1}, config={"名": "值"}))
    append_result(tmp_path, row("b", status="failed", error="out of memory"))
    first, second = load_results(tmp_path)
    assert first.strength == Strength("beta", 0.1)
    assert first.config == {"名": "值"}
    assert (second.status, second.error) == ("failed", "out of memory")


def test_nothing_yet(tmp_path: Path) -> None:
    assert load_results(tmp_path) == []


def test_a_later_line_replaces_an_earlier_one_in_its_place(tmp_path: Path) -> None:
    for line in (row("a", status="failed"), row("b"), row("a", seed=7)):
        append_result(tmp_path, line)
    assert [(r.key, r.status, r.seed) for r in load_results(tmp_path)] == [("a", "done", 7), ("b", "done", 0)]


def test_a_torn_last_line_is_dropped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    append_result(tmp_path, row("a"))
    with (tmp_path / "results.jsonl").open("ab") as file:
        file.write('{"key": "b", "名'.encode()[:-1])  # cut inside a character, too
    with caplog.at_level(logging.WARNING):
        assert [r.key for r in load_results(tmp_path)] == ["a"]
    assert "cut off" in caplog.text


def test_appending_after_a_torn_line_repairs_the_file(tmp_path: Path) -> None:
    append_result(tmp_path, row("a"))
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"key": "torn')
    append_result(tmp_path, row("b"))
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops}", "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ('{"key": "x", "status": "done", "seed": 0}', "'x' has no 'method'"),
        (
            '{"key": "x", "status": "paused", "seed": 0, "method": "dpo"}',
            "'x' has status 'paused', not done or failed",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    append_result(tmp_path, row("a"))
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=message):
        load_results(tmp_path)


def test_a_folder_without_comparison_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"comparison\.json is missing"):
        load_about(tmp_path)


def test_a_done_run_without_its_evaluation_is_named(tmp_path: Path) -> None:
    append_result(tmp_path, row("dpo/seed=0"))
    with pytest.raises(UserError, match=r"evaluation\.jsonl is missing though the run dpo/seed=0 is done"):
        load_evaluation(tmp_path, load_results(tmp_path)[0])


def test_a_response_may_hold_a_line_separator(tmp_path: Path) -> None:
    write_about(tmp_path)
    add_run(tmp_path, "start", [0.5], responses=["one\u2028two"])
    path = next((tmp_path / "runs").iterdir()) / "evaluation.jsonl"
    path.write_text(path.read_text().replace("\\u2028", "\u2028"), encoding="utf-8")
    assert load_evaluation(tmp_path, load_results(tmp_path)[0])[0]["response"] == "one\u2028two"


def test_the_configuration_is_given_as_yaml(tmp_path: Path) -> None:
    assert load_config_text(tmp_path) == ""
    (tmp_path / "config.json").write_text('{"model": "reviews", "seeds": [0, 1]}')
    assert load_config_text(tmp_path) == "model: reviews\nseeds:\n- 0\n- 1\n"
