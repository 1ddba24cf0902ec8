"""Absurd values on the command line and in its configuration files end in one sentence."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from trimtab.cli.options import parse
from trimtab.errors import UserError


@dataclass(frozen=True)
class Options:
    """Some options."""

    data: str = "d"
    steps: int = 1
    rate: float = 0.5
    limit: float | None = None
    names: list[str] = field(default_factory=list)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "9" * 30], f"--steps '{'9' * 30}': too large a number"),
        (["--steps=-9223372036854775809"], "--steps '-9223372036854775809': too large a number"),
        (["--rate", "nan"], "--rate nan: expected a number"),
        (["--limit=-NaN"], "--limit -NaN: expected a number"),
        (["--steps", "\u202e1"], "--steps \\u202e1: expected a whole number; see t --help"),
        (["\x1b[31m"], "Unrecognized options: \\x1b[31m; see t --help"),
        (["--" + "x" * 5000], "unknown option '--xxxx"),
    ],
)
def test_a_value_that_is_absurd_is_named(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse(Options, words, prog="t")
    said = str(error.value)
    assert said.startswith(message) and said.isprintable() and len(said) < 500


def test_a_text_in_a_file_does_not_become_an_option(tmp_path: Path) -> None:
    """`data: --help` showed the help and ended, as if all were well."""
    file = tmp_path / "f.yaml"
    file.write_text("data: --help\nlimit: null\nnames: [a, b]\n")
    found = parse(Options, ["--config", str(file), "--steps", "2"], prog="t")
    assert (found.data, found.steps, found.limit, found.names) == ("--help", 2, None, ["a", "b"])
    file.write_text("names: [a, -h]\n")
    with pytest.raises(UserError) as error:
        parse(Options, ["--config", str(file)], prog="t")
    assert str(error.value) == f"{file}: names: a text in a list must not begin with a dash"
