"""Configurations and command lines that are spoilt, and what a comparison's folder holds afterwards."""

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.fuzz.promises import Case, check_numbers, one_of
from tests.fuzz.values import ODD_TEXT, damaged, edited
from trimtab.cli import compare, data, evaluate, generate, play, report
from trimtab.cli.options import parse
from trimtab.cli.train import options_of
from trimtab.compare.config import load_config
from trimtab.compare.control.config import load_config as load_control_config
from trimtab.compare.results import load_about, load_config_text, load_curve, load_evaluation, load_results
from trimtab.config import load_yaml
from trimtab.control_jobs import ControlJob
from trimtab.examples.reviews import COMPARISON
from trimtab.jobs import Job
from trimtab.methods import find
from trimtab.online_jobs import OnlineJob


class Raw(str):
    """YAML that is written as it stands."""


def _lines(levels: int, line: str) -> str:
    """Aliases of aliases: &a0 stands for one value, &a1 for ten, ..."""
    return "a0: &a0 1\n" + "".join(line.format(n=n, before=n - 1) for n in range(1, levels))


SNIPPETS: list[Any] = [
    *map(Raw, ["no", "yes", "on", "~", "null", "010", "0o10", "0x1F", "1:30", "1:30.5", ".nan", ".inf"]),
    *map(Raw, ["-.inf", "1e400", "1e-3", "1_000", "2024-01-01", "2024-13-45", "!!int x", "!!float x"]),
    *map(Raw, ["!!bool maybe", "!!timestamp x", "!!binary x", "!!python/object:os.system {}", "&a [*a]"]),
    *map(Raw, ["!!python/name:os.system ''", "!!set {a, b}", "!!omap [a: 1]", "!!str [1]", "!custom x"]),
    *map(Raw, ["*missing", '"\\0"', '"\\ud800"', '"\\u202e"', "{a: b, a: c}", "{no: 1}", "{1: 2}", "{~: 1}"]),
    *map(Raw, ["9" * 30, "9" * 5000, "0x" + "f" * 5000, "[" * 40 + "]" * 40, "@", "- a", "'", "{a: b"]),
    *(["--help"], "--help", "-1", -1, 0, 1, 1.5, 1e-3, True, None, [], {}, [1, [2]], [1, 1]),
    *(list(range(300)), "dpo", "ppo", "linear", "../../x", "/etc/x", "a/b", "x" * 2000, "gold", "proxy"),
    *("CartPole-v1", "a:b", Raw("{2024-01-01: 1}")),
]  # fmt: skip
TRICKS = [
    _lines(12, "a{n}: &a{n} [" + ", ".join(["*a{before}"] * 10) + "]\n"),
    "a0: &a0 {x: 1}\n" + _lines(9, "a{n}: &a{n} {{<<: [" + ", ".join(["*a{before}"] * 10) + "]}}\n")[9:],
    "? [a]\n: b\n", "%YAML 9.9\n---\n", "---\na: 1\n---\n", "\ta: 1\n", "a: b: c\n", "[" * 3000, "- a\n", "{",
    "x: |\n  a\n y\n", "\ufeff", "\ufeff\ufeff", "\x00", "\x85", "#" * 300_000, "x: " + "y" * 300_000,
    "<<: {name: x}\n", "name: a\nname: b\n", "methods: {dpo: {}}\n", "? \n",
    "!!python/object/apply:os.system [x]\n", "seeds: [1, 1]\n",
]  # fmt: skip
VALUES = st.one_of(st.sampled_from(SNIPPETS), st.sampled_from(ODD_TEXT))


def _flow(value: Any) -> str:
    """YAML on one line."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return json.dumps(value)


@st.composite
def yaml_files(draw: st.DrawFn, wholes: list[dict[str, Any]]) -> Case:
    """A good configuration with wrong values, with tricks of YAML, or with damage to its bytes."""
    whole = draw(edited(draw(st.sampled_from(wholes)), VALUES))
    if isinstance(whole, dict):
        text = "".join(f"{_flow(key)}: {_flow(value)}\n" for key, value in whole.items())
    else:
        text = _flow(whole)
    if draw(st.integers(0, 3)) == 0:
        trick = draw(st.sampled_from(TRICKS))
        text = trick + text if draw(st.booleans()) else text + trick
    content = text.encode("utf-8", "surrogatepass")
    return Case({"c.yaml": draw(damaged(content)) if draw(st.integers(0, 3)) == 0 else content})


LANGUAGE: list[dict[str, Any]] = [
    yaml.safe_load(COMPARISON.read_text(encoding="utf-8")),
    {"model": "m", "data": "d.jsonl", "rewards": {"gold": "r.py:f"}, "methods": {"dpo": {"beta": [0.1,
    0.3]}}},
    {"model": "m", "data": "d", "rewards": {"a": "x", "b": "y"}, "methods": {"ppo": None, "kto": {}},
    "seeds": [0, 1]},
]  # fmt: skip
CONTROL: list[dict[str, Any]] = [
    {"envs": ["CartPole-v1"], "methods": {"ppo": {"clip": [0.1, 0.2], "hidden": [[8, 8], [4]]}, "a2c": None}},
    {"envs": ["CartPole-v1", "Acrobot-v1"], "methods": {"trpo": {}}, "settings": {"total_steps": 9,
    "gamma": 0.9}},
    {"envs": ["Pendulum-v1"], "methods": {"reinforce": {"learning_rate": 3e-4}}, "seeds": [0, 1], "jobs": 2},
]  # fmt: skip


def check_comparison(case: Case, folder: Path) -> bool:
    """A comparison is refused, or its runs have folders of their own within the comparison's."""
    path = case.write(folder)
    keys, _ = one_of(lambda: load_yaml(path), str(path))
    load: Any = load_control_config if "envs" in (keys or {}) else load_config
    config, _ = one_of(lambda: load(path))
    if config is None:
        return False
    check_numbers(config)
    from trimtab.compare import config as language
    from trimtab.compare.control import config as control

    grid: Any = control.grid if "envs" in (keys or {}) else language.grid
    folders = [(folder / run.folder).resolve() for run in grid(config)]
    assert all(place.parent == (folder / "runs").resolve() for place in folders)
    assert len(set(folders)) == len(folders), "two runs write into one folder"
    assert all(len(place.name.encode()) <= 255 for place in folders), "a run's folder has too long a name"
    json.dumps([run.key for run in grid(config)], ensure_ascii=False).encode()
    return True


COMMANDS: dict[str, tuple[type[Any], tuple[str, ...]]] = {
    "compare": (compare.Options, ("c.yaml",)), "evaluate": (evaluate.Options, ("m", "--data", "d")),
    "generate": (generate.Options, ("m",)), "play": (play.Options, ("r",)), "report": (report.Options,
    ("r",)),
    "show": (data.ShowOptions, ("f",)), "convert": (data.ConvertOptions, ("f", "o.jsonl")),
    **{name: (options_of(Job, find(name)), ("--model=m", "--data=d", "--out=o")) for name in ("dpo", "kto",
    "sft")},
    "ppo": (options_of(OnlineJob, find("ppo")), ("--model=m", "--data=d", "--out=o", "--reward=r")),
    "trpo": (options_of(ControlJob, find("trpo"), {"env": "CartPole-v1"}), ("--out=o", "--env=CartPole-v1")),
}  # fmt: skip
ABSURD = [
    "", " ", "-1", "0", "1", "2", "0.5", "nan", "NaN", "-inf", "inf", "1e400", "1e-400", "9" * 30,
    "-" + "9" * 400,
    "9" * 5000, "0x10", "1_0", "1__0", "true", "False", "None", "none", "--", "-", "---", "=", "é", "\u202e",
    "\x1b[31m",
    "a/../../b", "1,2", "[]", "[1]", "x" * 5000, "01", "１", "auto", "all", "last", "adjacent", "cosine",
    "@file", "%s",
    "-x", "--x", "--=", "--steps=", "--no-", "--config", "--config=", "--tyro-print-completion",
]  # fmt: skip


@st.composite
def command_lines(draw: st.DrawFn) -> Case:
    """Options of a command with absurd values, misspelt, repeated, without value, or out of place."""
    command = draw(st.sampled_from(sorted(COMMANDS)))
    cls, required = COMMANDS[command]
    names = [f"--{name.replace('_', '-')}" for name in option_names(cls)]
    words = list(required) if draw(st.integers(0, 9)) else []
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(names))
        if draw(st.integers(0, 9)) == 0:
            name = draw(st.sampled_from((name[:-1], name.upper(), name.replace("-", "_"), "--no" + name[1:])))
        value = draw(st.sampled_from(ABSURD))
        form = draw(st.sampled_from(("two words", "two words", "one word", "no value", "no name")))
        words += {
            "two words": [name, value], "one word": [f"{name}={value}"], "no value": [name],
            "no name": [value],
        }[form]  # fmt: skip
    return Case(words=tuple(word.replace("\x00", "") for word in words), command=command)


def option_names(cls: type[Any]) -> list[str]:
    from trimtab.cli.options import _options

    return sorted(_options(cls))


def check_command_line(case: Case, folder: Path) -> bool:
    """Words are refused, or every option has a value that can be worked with."""
    cls = COMMANDS[case.command][0]
    options, _ = one_of(lambda: parse(cls, list(case.words), prog=f"trimtab {case.command}"))
    check_numbers(options)
    return options is not None


def _own_options(command: str) -> dict[str, Any]:
    """A trimtab.yaml as training writes it."""
    from trimtab.runs import flat_options

    cls, words = COMMANDS[command]
    options = flat_options(parse(cls, list(words), prog=command))
    return {name: list(v) if isinstance(v, tuple) else v for name, v in options.items()}


OWN: list[dict[str, Any]] = [{"method": name, **_own_options(name)} for name in ("dpo", "ppo", "trpo")]


def check_own_configuration(case: Case, folder: Path) -> bool:
    """A trimtab.yaml as --config is refused, or taken with values that can be worked with."""
    path = case.write(folder)
    taken = []
    for command in ("dpo", "ppo", "trpo"):
        words = ["--config", str(path), *COMMANDS[command][1]]
        cls = COMMANDS[command][0]
        options, _ = one_of(lambda cls=cls, words=words: parse(cls, words, prog="t", method=command))  # type: ignore[misc]  # noqa: B023
        check_numbers(options)
        taken.append(options is not None)
    return any(taken)


RUN = {
    "key": "dpo/beta=0.1/seed=0", "status": "done", "error": None, "method": "dpo", "seed": 0,
    "folder": "runs/x",
    "strength": {"name": "beta", "value": 0.1}, "env": "", "parameters": {"beta": 0.1}, "config": {"a": [1]},
    "seconds": {"train": 1.5}, "peak_memory_mb": 5.0, "metrics": {"gold": {"mean": 0.5}},
}  # fmt: skip
ABOUT = {"name": "x", "rewards": ["gold"], "primary_reward": "gold", "evaluation": {"prompts": 2}}
ANSWER = {"prompt": "p", "response": "r", "rewards": {"gold": 0.5}, "kl": None, "tokens": 3, "ended": True}


@st.composite
def result_folders(draw: st.DrawFn) -> Case:
    """What a comparison wrote, edited by hand or damaged."""
    good = {
        "results.jsonl": [RUN, RUN], "comparison.json": [ABOUT], "config.json": [{"model": "m",
        "seeds": [0]}],
        "runs/x/evaluation.jsonl": [ANSWER, ANSWER], "runs/x/metrics.jsonl": [{"step": 1, "loss": 0.5}],
    }  # fmt: skip
    spoilt = draw(st.sampled_from(sorted(good)))
    files = {}
    for name, rows in good.items():
        found = [draw(edited(row)) if name == spoilt else row for row in rows]
        text = "\n".join(json.dumps(row, ensure_ascii=draw(st.booleans())) for row in found) + "\n"
        content = text.encode("utf-8", "surrogatepass")
        files[name] = draw(damaged(content)) if name == spoilt and draw(st.booleans()) else content
    return Case(files)


def check_results(case: Case, folder: Path) -> bool:
    """Every file is refused by its name,
    or gives what the report relies on; no run is outside of the folder."""
    case.write(folder)
    about, _ = one_of(lambda: load_about(folder), "comparison.json")
    _, said = one_of(lambda: load_config_text(folder), "config.json")
    results, _ = one_of(lambda: load_results(folder), "results.jsonl")
    taken = about is not None and not said and results is not None
    for result in results or []:
        check_numbers(result)
        inside = (folder / result.folder).resolve()
        assert inside.is_relative_to(folder.resolve()), f"a run's folder is {result.folder!r}"
        rows, _ = one_of(lambda result=result: load_evaluation(folder, result), "evaluation.jsonl")  # type: ignore[misc]
        curve, _ = one_of(lambda result=result: load_curve(folder, result), "metrics.jsonl")  # type: ignore[misc]
        taken = taken and rows is not None and curve is not None
    return taken
