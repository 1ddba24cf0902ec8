"""A comparison's files: nothing outside of its folder is read or deleted, and no run is unmeant."""

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.compare.config import load_config
from trimtab.compare.control.config import load_config as load_control_config
from trimtab.compare.results import (
    append_result,
    claim,
    load_about,
    load_config_text,
    load_curve,
    load_evaluation,
    load_results,
)
from trimtab.errors import UserError

ROW = {"key": "a/seed=0", "status": "done", "method": "dpo", "seed": 0, "folder": "runs/x"}


def write_results(out: Path, *lines: str | bytes) -> None:
    content = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
    (out / "results.jsonl").write_bytes(content)


@pytest.mark.parametrize("folder", ["../other", "/etc", "runs/../../other", ".."])
def test_a_run_outside_of_the_folder_is_refused(tmp_path: Path, folder: str) -> None:
    """Its model would be deleted by `keep: best`."""
    write_results(tmp_path, json.dumps(ROW | {"folder": folder}))
    with pytest.raises(UserError) as error:
        load_results(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/results.jsonl line 1: the folder {folder!r} is not within the comparison's; mend it"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": ["a"]}, "key: expected text, found ['a']"),
        ({"seed": "0"}, "seed: expected a whole number, found '0'"),
        ({"strength": 5}, "strength: expected keys and values, found 5"),
        ({"strength": {"name": "beta"}}, "strength: the key 'value' is missing"),
        ({"strength": {"name": "beta", "value": "x"}}, "strength: value: expected a number, found 'x'"),
        ({"metrics": [1]}, "metrics: expected keys and values, found [1]"),
        ({"seconds": {"train": None}}, "seconds: train: expected a number, found None"),
        ({"status": []}, "the run 'a/seed=0' has status [], not done or failed"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_results(tmp_path, json.dumps(ROW), json.dumps(ROW | changes))
    with pytest.raises(UserError) as error:
        load_results(tmp_path)
    assert str(error.value) == f"{tmp_path}/results.jsonl line 2: {message}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"key": "\xff"}', " line 1 is not UTF-8 text"),
        (
            "9" * 5000,
            " line 1 is not JSON (JSON that cannot be read (a number in it has thousands of digits))",
        ),
        (
            "[" * 100_000,
            " line 1 is not JSON (JSON that cannot be read (it is nested more than 200 levels deep))",
        ),
        ('{"key": 1, "key": 2}', " line 1: an object in the row names 'key' twice; keep one of them"),
    ],
)
def test_a_line_that_is_no_json_is_named(tmp_path: Path, line: str | bytes, message: str) -> None:
    write_results(tmp_path, line)
    with pytest.raises(UserError) as error:
        load_results(tmp_path)
    assert str(error.value) == f"{tmp_path}/results.jsonl{message}; delete or mend it"


def test_the_other_files_of_a_comparison_are_named_too(tmp_path: Path) -> None:
    write_results(tmp_path, json.dumps(ROW))
    (result,) = load_results(tmp_path)
    (tmp_path / "runs" / "x").mkdir(parents=True)
    for name, content, load, message in (
        ("comparison.json", b"[1]", lambda: load_about(tmp_path), "comparison.json is not a JSON object"),
        ("comparison.json", b"\xff", lambda: load_about(tmp_path), "comparison.json is not UTF-8 text"),
        ("comparison.json", b'{"rewards": 5, "primary_reward": "a"}', lambda: load_about(tmp_path),
         "comparison.json: rewards: expected a list, found 5"),
        ("comparison.json", b'{"rewards": ["a"], "primary_reward": "b"}', lambda: load_about(tmp_path),
         "comparison.json: primary_reward is not among its rewards"),
        ("config.json", b"{", lambda: load_config_text(tmp_path), "config.json line 1 is not JSON"),
        ("config.json", b"{", lambda: claim(tmp_path, result, ()), "config.json line 1 is not JSON"),
        ("runs/x/evaluation.jsonl", b"{}\n", lambda: load_evaluation(tmp_path, result),
         "line 1 has no 'response'"),
        ("runs/x/evaluation.jsonl", b'{"response": 5}\n', lambda: load_evaluation(tmp_path, result),
         "line 1: response: expected text, found 5"),
        ("runs/x/metrics.jsonl", b"\xff\n", lambda: load_curve(tmp_path, result), "line 1 is not UTF-8 text"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as error:
            load()
        assert message in str(error.value) and str(error.value).startswith(str(tmp_path))


def test_an_error_with_half_of_a_character_is_written_down(tmp_path: Path) -> None:
    append_result(tmp_path, ROW | {"status": "failed", "error": "bad \ud83d"})
    assert load_results(tmp_path)[0].error == "bad ?"


LANGUAGE = "model: m\ndata: d\nrewards: {gold: r}\n"
TEN = "[0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1]"


def test_more_runs_than_anybody_means_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    """Five lists of ten values are a hundred thousand runs, nine a thousand million."""
    path = tmp_path / "c.yaml"
    path.write_text(
        LANGUAGE
        + f"methods: {{ppo: {{beta: {TEN}, clip: {TEN}, lam: {TEN}, gamma: {TEN}, learning_rate: {TEN}}}}}\n"
    )
    with pytest.raises(UserError) as error:
        load_config(path)
    assert str(error.value) == (
        f"{path}: methods: ppo asks for 100,000 runs, more than 10,000; give fewer values"
    )
    path.write_text(
        f"envs: [CartPole-v1]\nmethods: {{ppo: {{clip: {TEN}, lam: {TEN}}}}}\nseeds: {list(range(200))}\n"
    )
    with pytest.raises(UserError) as error:
        load_control_config(path)
    assert (
        str(error.value)
        == f"{path}: the comparison asks for 20,200 runs, more than 10,000; give fewer values"
    )


@pytest.mark.parametrize(
    ("seeds", "message"),
    [("[-1]", "seeds is [-1]; a seed must be 0 or more"),
     ("[4294967296]", "seeds is [4294967296]; a seed must be 2147483648 at most")],
)  # fmt: skip
def test_a_seed_is_one_that_generators_take(tmp_path: Path, seeds: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    for text, load in (
        (LANGUAGE + "methods: {dpo: {}}\n", load_config),
        ("envs: [CartPole-v1]\nmethods: {ppo: {}}\n", load_control_config),
    ):
        path.write_text(f"{text}seeds: {seeds}\n")
        with pytest.raises(UserError) as error:
            load(path)
        assert str(error.value) == f"{path}: {message}"


def test_names_of_methods_and_environments_are_names(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(LANGUAGE + "methods: {no: {}}\n")
    with pytest.raises(UserError, match="methods: YAML reads a key as False; put it in quotes"):
        load_config(path)
    path.write_text(f"envs: [{'x' * 5000}]\nmethods: {{ppo: {{}}}}\n")
    with pytest.raises(UserError, match=r"envs: 'x+\.\.\.x+' is no name of an environment"):
        load_control_config(path)
