"""YAML that surprises is refused with its line, before it costs time or memory."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from trimtab.config import build, load_yaml
from trimtab.errors import UserError


@dataclass(frozen=True)
class Options:
    name: str = ""
    rate: float = 0.5
    methods: dict[str, dict[str, Any] | None] = field(default_factory=dict)


def laughs(levels: int, line: str) -> str:
    """Aliases of aliases, each of ten of those before."""
    return "".join(line.format(n=n, ten=", ".join([f"*a{n - 1}"] * 10)) for n in range(1, levels))


BAD: list[tuple[str, str]] = [
    ("a: 1\nb: 2\na: 3\n", ":3: not valid YAML: the key 'a' stands there twice"),
    ("x: {a: 1, a: 1}\n", ":1: not valid YAML: the key 'a' stands there twice"),
    ("a: &a [1, *a]\n", ":1: not valid YAML: an alias stands for what it is part of"),
    ("a0: &a0 1\n" + laughs(12, "a{n}: &a{n} [{ten}]\n"),
     ":6: not valid YAML: with its aliases it stands for more than 100,000 values"),
    ("a0: &a0 {x: 1}\n" + laughs(12, "a{n}: &a{n} {{<<: [{ten}]}}\n"),
     ":6: not valid YAML: with its aliases it stands for more than 100,000 values"),
    ("a: " + "[" * 31 + "]" * 31, ":1: not valid YAML: nested more than 30 levels deep"),
    ("a: " + "[" * 5000, ": nested too deeply for a configuration"),
    ("- " * 5000, ": nested too deeply for a configuration"),
    ("a: " + "x" * 300_000, ": larger than 256 KiB; a configuration is a page of text"),
    ("a: 010\n", ":1: not valid YAML: '010' means 8 in YAML; write that, or quotes for text"),
    ("a: 1:30\n", ":1: not valid YAML: '1:30' means 90 in YAML; write that, or quotes for text"),
    ("a: 1:30.5\n", ":1: not valid YAML: '1:30.5' means 90.5 in YAML; write that, or quotes for text"),
    ("a: 9223372036854775808\n", ":1: not valid YAML: '9223372036854775808' is too large a number"),
    ("a: 0x" + "f" * 5000, f":1: not valid YAML: '0x{'f' * 25}...{'f' * 28}' is too large a number"),
    ("a: " + "9" * 5000, f":1: not valid YAML: '{'9' * 27}...{'9' * 28}' cannot be read as int"),
    ("\na: !!bool maybe\n", ":2: not valid YAML: 'maybe' cannot be read as bool"),
    ("a: !!int ''\n", ":1: not valid YAML: '' cannot be read as int"),
    ("a: 0x_\n", ":1: not valid YAML: '0x_' cannot be read as int"),
    ("a: !!python/object:os.system {}\n",
     ":1: not valid YAML: could not determine a constructor for the tag "
     "'tag:yaml.org,2002:python/object:os.system'"),
    ("a: 1\nb: \x00\n", ":2: not valid YAML: it holds the character U+0000"),
    ("a: 1\nb: [1, 2\nc: 3\n",
     ":3: not valid YAML: while parsing a flow sequence expected ',' or ']', but got ':'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD, ids=[message[:50] for _, message in BAD])
def test_a_trick_is_refused_in_one_short_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_yaml(path)
    assert str(error.value) == f"{path}{message}"


def test_text_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(UserError) as error:
        load_yaml(path)
    assert str(error.value) == f"{path}:2: not valid YAML: not UTF-8 text; save it as UTF-8"


def test_anchors_merges_and_dates_as_people_use_them(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(
        "\ufeffbase: &base {rate: 0.1, steps: 3}\na: {<<: *base, rate: 0.2}\nb: [*base]\nday: 2024-13-45\n"
    )
    base = {"rate": 0.1, "steps": 3}
    assert load_yaml(path) == {
        "base": base, "a": {"rate": 0.2, "steps": 3}, "b": [base], "day": "2024-13-45",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": False}, "f: name: expected text, found False; put it in quotes"),
        ({"name": "a\0"}, "f: name: 'a\\x00' holds a zero byte or half of a character"),
        ({"name": "\ud83d"}, "f: name: '\\ud83d' holds a zero byte or half of a character"),
        ({"rate": float("nan")}, "f: rate: expected a number, found nan"),
        ({"rate": "nan"}, "f: rate: expected a number, found nan"),
        ({"methods": {False: None}},
         "f: methods: YAML reads a key as False; put it in quotes if it is a name"),
        ({"methods": {3: None}}, "f: methods: expected a name of at most 100 printed characters, found 3"),
        ({"methods": {"a\n": None}},
         "f: methods: expected a name of at most 100 printed characters, found 'a\\n'"),
        ({"name": ["x" * 1000] * 9}, f"f: name: expected text, found ['{'x' * 27}...{'x' * 28}'"),
        ({"y" * 1000: 1}, f"f: unknown key '{'y' * 27}...{'y' * 28}'; known: methods, name, rate"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_named(values: dict[Any, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        build(Options, values, "f")
    assert str(error.value).startswith(message) and len(str(error.value)) < 500
