"""What the documentation says must be so: links, commands, files, rows, parameters, tables."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import tyro
import yaml
from tests.docs.pages import DOCS, ROOT, anchors, blocks, each_language, every_page, read, rows, without_code

from trimtab.cli.main import main
from trimtab.cli.methods import markdown
from trimtab.compare.config import (
    Budget,
    CollectStage,
    CompareConfig,
    Evaluation,
    Online,
    RewardModelStage,
    SFTStage,
)
from trimtab.compare.control.config import ControlCompareConfig
from trimtab.config import build
from trimtab.feedback.conversions import ViewOptions
from trimtab.feedback.records import KINDS, Record
from trimtab.feedback.shapes import SHAPES, recognise
from trimtab.feedback.views import VIEWS, convert
from trimtab.methods import METHODS

OURS = {name: cls for name, cls in METHODS.items() if cls.__module__.startswith("trimtab.methods.")}
IN_ENVIRONMENTS = "envs"  # the key that makes a comparison one in environments
each_method = pytest.mark.parametrize("name", OURS)


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(read(page)))
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading; there are {anchors(target)}"


class ParsedError(BaseException):
    """The options of a command were read; the command itself must not run."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` stops where a command's options are known to be right."""
    cli = tyro.cli

    def parse(*args: Any, **kwargs: Any) -> None:
        cli(*args, **kwargs)
        raise ParsedError

    monkeypatch.setattr(tyro, "cli", parse)
    monkeypatch.setattr("trimtab.terminal.set_up_logging", lambda: None)  # other tests listen to the log


def commands(page: Path) -> list[str]:
    lines = "\n".join(blocks(page, "sh", "bash", "")).replace("\\\n", " ").splitlines()
    return [line.strip().removeprefix("$ ") for line in lines]


def status(command: str) -> int:
    """The exit status of a command whose options are read and which is then not run."""
    try:
        return main(shlex.split(command, comments=True)[1:])
    except ParsedError:
        return 0
    except SystemExit as error:  # --help ends like this
        return int(error.code or 0)


@every_page
@pytest.mark.usefixtures("hinge", "parse_only")
def test_commands_parse(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands(page):
        if command.startswith("trimtab "):
            assert status(command) == 0, f"{command}: {capsys.readouterr()}"


@pytest.mark.usefixtures("parse_only")
def test_a_wrong_command_is_found() -> None:
    options = "--model m --data d --out o"
    assert status(f"trimtab train dpo {options} --beta 1") == 0
    assert status(f"trimtab train dpo {options} --betta 1") == 2
    assert status(f"trimtab train dbo {options}") == 2
    assert status(f"trimtab tran dpo {options}") == 2


@every_page
def test_make_targets_exist(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", read(ROOT / "Makefile"), re.M)
    for command in commands(page):
        if command.startswith("make "):
            assert command.split()[1] in targets


@every_page
@pytest.mark.usefixtures("hinge")
def test_comparisons_build(page: Path) -> None:
    for text in blocks(page, "yaml"):
        keys = yaml.safe_load(text)
        config = build(ControlCompareConfig if IN_ENVIRONMENTS in keys else CompareConfig, keys, page.name)
        assert config.methods


def keys(docs: Path) -> dict[str, str]:
    """The keys that docs/compare.md explains, with their defaults."""
    listed = [cells for cells in rows(docs / "compare.md") if len(cells) == 3 and cells[0].startswith("`")]
    return {cells[0].strip("`"): cells[1] for cells in listed}


@each_language
def test_every_key_of_a_comparison_is_explained(docs: Path) -> None:
    nested = {"sft": SFTStage, "collect": CollectStage, "reward_model": RewardModelStage}
    nested |= {"budget": Budget, "online": Online, "evaluation": Evaluation}
    expected = {field.name for field in dataclasses.fields(CompareConfig)} - set(nested)
    expected |= {f"{name}.{field.name}" for name, cls in nested.items() for field in dataclasses.fields(cls)}
    assert set(keys(docs)) == expected


@each_language
def test_defaults_of_a_comparison(docs: Path) -> None:
    minimal = {"model": "m", "data": "d", "methods": {"dpo": {}}, "sft": {"data": "d"}}
    minimal |= {"collect": {"reward": "reviews"}, "reward_model": {}}
    config = dataclasses.asdict(build(CompareConfig, minimal, "test"))
    for key, default in keys(docs).items():
        value: Any = config
        for part in key.split("."):
            value = value[part]
        if default not in ("required", "必填", "{}"):
            assert value == yaml.safe_load(default), key


@each_language
def test_every_shape_has_its_sample_row(docs: Path) -> None:
    found = {}
    for name, kind, sample in (cells for cells in rows(docs / "data.md") if len(cells) == 3):
        if not sample.startswith("`{"):
            continue
        row = json.loads(sample.strip("`"))
        shape = recognise(row)
        assert shape.name == name.strip("`")
        assert {record.kind for record in shape.records(row)} == {kind}
        found[shape.name] = kind
    assert list(found.items()) == [(shape.name, shape.kind) for shape in SHAPES]  # in the order of choice


@each_language
def test_every_conversion_is_listed(docs: Path) -> None:
    listed = {(c[0], c[1]): c[2] for c in rows(docs / "data.md") if c[0] in KINDS and c[1] in KINDS}
    sound = {key: view.assumes for key, view in VIEWS.items() if key[0] != key[1] and key[1] != "prompt"}
    assert set(listed) == set(sound)
    if docs == DOCS:
        assert listed == sound


@each_language
def test_options_of_views(docs: Path) -> None:
    options = [cells for cells in rows(docs / "data.md") if cells[0].startswith("`--")]
    listed = {cells[0].strip("`-").replace("-", "_"): cells[1] for cells in options}
    defaults = {field.name: field.default for field in dataclasses.fields(ViewOptions)}
    assert set(listed) == set(defaults)
    for name, default in defaults.items():
        assert default == (None if listed[name] in ("none", "无") else yaml.safe_load(listed[name])), name


@each_language
@each_method
def test_a_method_page_names_its_code(docs: Path, name: str) -> None:
    text = read(docs / "methods" / f"{name}.md")
    assert text.startswith(f"# {name}")
    source = f"src/{OURS[name].__module__.replace('.', '/')}.py"
    assert source in text and (ROOT / source).exists()
    objectives = re.findall(r"\[(src/trimtab/objectives/\w+\.py)\]", text)
    assert objectives
    for path in objectives:
        functions = re.findall(r"^def (\w+)", read(ROOT / path), re.M)
        assert any(f"`{function}`" in text for function in functions), path


@each_language
@each_method
def test_a_method_page_lists_parameters_with_defaults(docs: Path, name: str) -> None:
    method = OURS[name]
    listed = {c[0].strip("`"): c[1] for c in rows(docs / "methods" / f"{name}.md") if c[0].startswith("`")}
    assert float(listed.pop("learning_rate")) == method.learning_rate
    assert listed == {field.name: str(field.default) for field in dataclasses.fields(method)}


@each_language
@each_method
def test_a_method_takes_the_rows_of_its_page(docs: Path, name: str) -> None:
    for text in blocks(docs / "methods" / f"{name}.md", "json"):
        records: list[Record] = []
        for line in text.splitlines():
            row = json.loads(line)
            records += recognise(row).records(row)
        assert {record.kind for record in convert(records, OURS[name].data)} == {OURS[name].data}
        assert {record.kind for record in records} == {OURS[name].data}


@each_language
def test_no_page_is_left_over(docs: Path) -> None:
    assert {page.stem for page in (docs / "methods").glob("*.md")} == set(OURS)


def test_the_readme_has_the_table_of_methods() -> None:
    assert markdown() in read(ROOT / "README.md")


def test_the_chinese_readme_has_every_method() -> None:
    names = [cells[0].split("]")[0].strip("[") for cells in rows(ROOT / "README.zh.md") if cells[0][0] == "["]
    assert names == [line.split(" | ")[0].strip("| ") for line in markdown().splitlines()[2:]]


def test_both_languages_have_the_same_pages() -> None:
    english = {p.relative_to(DOCS) for p in DOCS.rglob("*.md") if not p.is_relative_to(DOCS / "zh")}
    chinese = {p.relative_to(DOCS / "zh") for p in (DOCS / "zh").rglob("*.md")}
    assert {path.as_posix() for path in english - chinese} <= {"design.md", "truth.md"}
    assert chinese <= english


@each_language
@pytest.mark.parametrize("name", ["adding-a-method.md", "control.md"])
def test_both_languages_show_the_same_code(docs: Path, name: str) -> None:
    assert blocks(docs / name, "python") == blocks(DOCS / name, "python") != []
