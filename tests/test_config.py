"""YAML to typed dataclasses: what is taken, and the one sentence about what is not."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from trimtab.config import build, load_yaml
from trimtab.errors import UserError, check_bounds, check_positive


@dataclass(frozen=True)
class Inner:
    steps: int = 10
    rate: float = 0.5

    def __post_init__(self) -> None:
        check_positive(self, "steps")
        check_bounds(self, rate=(0, 1))


@dataclass(frozen=True)
class Rate:
    rate: float


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"] = "a"
    limit: int | None = None
    loud: bool = False
    seeds: list[int] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)
    methods: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    folder: Path = Path()


def test_every_type_is_taken() -> None:
    values = {
        "name": "x",
        "kind": "b",
        "limit": None,
        "loud": True,
        "seeds": [0, 2],
        "inner": {"steps": 3, "rate": 1},
        "methods": {"dpo": {"beta": [0.1, 1]}, "orpo": None},
        "folder": "runs/x",
    }
    assert build(Outer, values, "f.yaml") == Outer(
        "x", "b", None, True, [0, 2], Inner(3, 1.0), {"dpo": {"beta": [0.1, 1]}, "orpo": None}, Path("runs/x")
    )


def test_a_number_that_yaml_reads_as_text(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("rate: 1e-2\n")  # YAML 1.1 wants a dot
    assert build(Inner, load_yaml(file), "f.yaml").rate == 0.01


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "sedes": [1]}, "f.yaml: unknown key 'sedes'; did you mean 'seeds'?"),
        ({"kind": "a"}, "f.yaml: the key 'name' is missing"),
        ({"name": 3}, "f.yaml: name: expected text, found 3"),
        ({"name": "x", "limit": 1.5}, "f.yaml: limit: expected a whole number, found 1.5"),
        ({"name": "x", "limit": True}, "f.yaml: limit: expected a whole number, found True"),
        ({"name": "x", "loud": "yes"}, "f.yaml: loud: expected true or false, found 'yes'"),
        ({"name": "x", "kind": "aa"}, "f.yaml: kind: 'aa' is not known; did you mean 'a'?"),
        ({"name": "x", "seeds": 0}, "f.yaml: seeds: expected a list, found 0"),
        ({"name": "x", "seeds": [0, "b"]}, "f.yaml: seeds[1]: expected a whole number, found 'b'"),
        ({"name": "x", "inner": [1]}, "f.yaml: inner: expected keys and values, found [1]"),
        ({"name": "x", "inner": {"step": 1}}, "f.yaml: inner: unknown key 'step'; did you mean 'steps'?"),
        ({"name": "x", "inner": {"rate": "much"}}, "f.yaml: inner: rate: expected a number, found 'much'"),
        ({"name": "x", "inner": {"steps": 0}}, "f.yaml: inner: steps is 0; it must be a number above 0"),
        ({"name": "x", "inner": {"rate": 2}}, "f.yaml: inner: rate is 2; it must be from 0 to 1"),
        ({"name": "x", "methods": {"dpo": 1}}, "f.yaml: methods: dpo: expected keys and values, found 1"),
        ({"name": "x", "folder": 5}, "f.yaml: folder: expected a path, found 5"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(Outer, values, "f.yaml")
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.0])
def test_positive_means_finite_and_above_zero(value: float) -> None:
    with pytest.raises(UserError, match="it must be a number above 0"):
        check_positive(Rate(value), "rate")


def test_bounds_include_their_ends() -> None:
    check_bounds(Rate(0.0), rate=(0, 1))
    check_bounds(Rate(1.0), rate=(0, 1))
    with pytest.raises(UserError, match="it must be 2 or more"):
        check_bounds(Rate(1.0), rate=(2, float("inf")))
    with pytest.raises(UserError):
        check_bounds(Rate(float("nan")), rate=(0, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2\n", "not valid YAML"),
        ("- a\n", "expected keys and values at the top, found \\['a'\\]"),
        ("", "expected keys and values at the top, found None"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_yaml(file)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.yaml: cannot be read \(No such file or directory\)"):
        load_yaml(tmp_path / "no.yaml")
