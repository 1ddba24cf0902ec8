"""What the pages on environments say must be so: functions, options, presets, metrics, files, the example."""

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.docs.pages import DOCS, ROOT, blocks, each_language, read, rows
from tests.docs.tables import PRESETS, presets

from trimtab.cli import compare as compare_command
from trimtab.cli import play as play_command
from trimtab.cli import resume as resume_command
from trimtab.compare.control.config import ControlCompareConfig
from trimtab.config import build
from trimtab.control_jobs import (
    LANGUAGE_ONLY,
    ControlConfig,
    ControlJob,
    run_control_job,
)
from trimtab.control_jobs import build as build_control
from trimtab.methods import METHODS, find
from trimtab.online import train_online
from trimtab.policies.control import NetworkConfig
from trimtab.recorder import SaveConfig
from trimtab.rollouts.environment import EnvironmentConfig
from trimtab.writing import LogConfig

REQUIRED = ("required", "必填")
PARTS: tuple[type[Any], ...] = (EnvironmentConfig, NetworkConfig, ControlConfig, LogConfig, SaveConfig)
SERVED = ("reinforce", "a2c", "ppo", "ppo_kl", "trpo")
NAMED = re.compile(r"\[[^\]]+\]\((?:\.\./)+(src/[^)]+\.py)\)((?:[,，]?\s+`\w+(?:\.\w+)*`)+)")


def named_code(text: str) -> list[tuple[str, str]]:
    """(file, name) of everything that is named right after a link to its file."""
    return [(file, name) for file, names in NAMED.findall(text) for name in re.findall(r"`([\w.]+)`", names)]


def defined(file: str) -> set[str]:
    """The classes and functions of a file, methods as Class.method."""
    tree = ast.parse(read(ROOT / file))
    nodes = (ast.ClassDef, ast.FunctionDef)
    names = {node.name for node in tree.body if isinstance(node, nodes)}
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return names | {f"{c.name}.{f.name}" for c in classes for f in c.body if isinstance(f, ast.FunctionDef)}


@each_language
def test_every_detail_names_code_that_exists(docs: Path) -> None:
    page = docs / "control-details.md"
    for file, name in named_code(read(page)):
        assert name in defined(file), f"{file} defines no {name}"
    details = [cells for cells in rows(page) if len(cells) == 4 and "](../" in cells[2]]
    assert len(details) >= 30
    for cells in details:
        links = re.findall(r"\]\((?:\.\./)+(src/[^)]+)\)", cells[2])
        assert list(dict.fromkeys(file for file, _ in named_code(cells[2]))) == links, cells[0]


def test_both_languages_name_the_same_code() -> None:
    english, chinese = (named_code(read(docs / "control-details.md")) for docs in (DOCS, DOCS / "zh"))
    assert english == chinese


def test_code_that_does_not_exist_is_found() -> None:
    text = "[a.py](../src/trimtab/play.py) `play`, `Environment.play`"
    assert [name for file, name in named_code(text) if name not in defined(file)] == ["Environment.play"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_table_of_presets_is_that_of_the_files(language: str) -> None:
    page = (DOCS if language == "en" else DOCS / "zh") / "control.md"
    [table] = PRESETS.findall(read(page))
    assert table == presets(language), "write it with: python -m tests.docs.tables"


def shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


@each_language
def test_every_option_is_listed_with_its_default(docs: Path) -> None:
    options = [cells for cells in rows(docs / "control.md") if cells[0].startswith("`--")]
    listed = {cells[0].strip("`-").replace("-", "_"): cells[1] for cells in options}
    fields = {field.name: field.default for part in PARTS for field in dataclasses.fields(part)}
    assert listed.pop("env") in REQUIRED and fields.pop("env") is dataclasses.MISSING
    assert listed == {name: shown(default) for name, default in fields.items()}


@each_language
@pytest.mark.parametrize(("page", "refused"), [("control", LANGUAGE_ONLY[:2]), ("control-details", ())])
def test_options_that_are_named_exist(docs: Path, page: str, refused: tuple[str, ...]) -> None:
    """`refused`: those that the page says there are not."""
    named = set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", read(docs / f"{page}.md")))
    methods = [find(name) for name in SERVED]
    classes = (*PARTS, *methods, play_command.Options, compare_command.Options, resume_command.Options)
    fields = {field.name for cls in classes for field in dataclasses.fields(cls)} - set(LANGUAGE_ONLY)
    known = {name.replace("_", "-") for name in {*fields, "out", "config", "help"}}
    known |= {f"no-{name}" for name in known}
    assert named - known == {name.replace("_", "-") for name in refused}


@each_language
def test_every_key_of_a_comparison_in_environments_is_explained(docs: Path) -> None:
    minimal = {"envs": ["CartPole-v1"], "methods": {"ppo": {}}}
    config = dataclasses.asdict(build(ControlCompareConfig, minimal, "test"))
    config["evaluation.episodes"] = config.pop("evaluation")["episodes"]
    tables = [cells for cells in rows(docs / "control.md") if len(cells) == 3]
    start = next(place for place, cells in enumerate(tables) if cells[0] == "`envs`")
    listed = {cells[0].strip("`"): cells[1] for cells in tables[start:] if cells[0].startswith("`")}
    assert set(listed) == set(config)
    for key, default in listed.items():
        assert default in REQUIRED or yaml.safe_load(default) == config[key], key


def job(method: str, out: Path, **parameters: Any) -> ControlJob:
    """A short run."""
    made: Any = find(method)
    return ControlJob(
        method=made(beta=0.0, **parameters),
        environment=EnvironmentConfig("CartPole-v1", envs=2, steps=16),
        network=NetworkConfig(hidden=(4,)),
        run=ControlConfig(total_steps=200, minibatch_size=16, epochs=2),
        out=out,
    )


def metrics_of(short: ControlJob) -> set[str]:
    policy, source = build_control(short)
    refreshes = list(train_online(short.method, policy, source, short.run.run(short.environment)))
    source.close()
    return {name for refresh in refreshes for name in refresh.metrics}


def test_every_key_of_the_curve_is_explained() -> None:
    jobs = [job(name, Path("unused")) for name in SERVED]
    jobs.append(job("ppo", Path("unused"), old_kl_stop=1e-9))
    written = set().union(*map(metrics_of, jobs))
    for docs in (DOCS, DOCS / "zh"):
        two = [cells[0] for cells in rows(docs / "control.md") if len(cells) == 2 and "`" in cells[0]]
        keys = {name for cell in two[two.index("`refresh`") :] for name in re.findall(r"`(\w+)`", cell)}
        assert keys == written


def test_a_run_leaves_the_files_of_the_page(tmp_path: Path) -> None:
    run_control_job(job("ppo", tmp_path / "run"), lambda *_, **__: None)
    written = {file.name for file in (tmp_path / "run").iterdir()}
    for docs in (DOCS, DOCS / "zh"):
        two = [cells[0].strip("`") for cells in rows(docs / "control.md") if len(cells) == 2]
        assert written == set(two[: two.index("refresh")]) & {name for name in two if "." in name}


@each_language
def test_methods_are_those_that_environments_serve(docs: Path) -> None:
    served = [name for name, method in METHODS.items() if getattr(method, "fewest_samples", 2) < 2]
    listed = [match[1] for cells in rows(docs / "control.md") if (match := re.match(r"\[(\w+)\]", cells[0]))]
    assert sorted(listed) == sorted(served) == sorted(SERVED)
    for name in SERVED:
        assert "](../control.md" in read(docs / "methods" / f"{name}.md"), name


@pytest.mark.filterwarnings("ignore::UserWarning")  # Gymnasium's, where another test registered it before
def test_the_example_finds_the_shortest_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    [example] = blocks(DOCS / "control.md", "python")
    exec(example, names)
    assert names["returns"] == [-9.0, -9.0, -9.0]
    assert "print(returns)  # [-9.0, -9.0, -9.0]" in example


@each_language
def test_what_is_measured_in_environments_has_its_place(docs: Path) -> None:
    for name in ("scores", "control_speed", "table1"):
        assert f"<!-- measured: {name} -->" in read(docs / "benchmarks.md")


@pytest.mark.parametrize(
    ("page", "second"), [("README.md", "\n## Your own"), ("README.zh.md", "\n## 换成自己")]
)
def test_control_is_on_the_first_screen_of_the_readme(page: str, second: str) -> None:
    first, _, rest = read(ROOT / page).partition(second)
    assert rest and "\ntrimtab train ppo --env CartPole-v1 --out runs/cartpole\n" in first
