"""Options from the command line and from YAML: typed dataclasses, read by tyro."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from trimtab.config import NAMES, load_yaml, shown, typed
from trimtab.errors import UserError, nearest
from trimtab.feedback.records import printable, shown_name

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Option:
    hint: Any
    required: bool
    positional: bool


def parse(
    cls: type[T],
    arguments: list[str],
    *,
    prog: str,
    description: str = "",
    method: str | None = None,
) -> T:
    """The options of one command. `--config FILE.yaml` gives options by their names; the command line wins.

    Args:
        method: the only one that a configuration file may name.
    Raises:
        UserError: an option is unknown, missing or of the wrong type.
        SystemExit: after --help.
    """
    known = _options(cls)
    files, arguments = _config_files(arguments)
    words = [word for file in files for word in _from_file(file, known, method)] + arguments
    if not {"-h", "--help"} & set(words):
        _check_names(words, known, prog)
    _check_sizes(words)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = tyro.cli(cls, args=words, prog=prog, description=description or cls.__doc__)
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(f"{printable(_sentence(said.getvalue(), known))}; see {prog} --help") from None
    _check_numbers(words, known)
    return options


def _options(cls: type[Any]) -> dict[str, _Option]:
    """Every option by its field's name; those of nested dataclasses without prefix."""
    hints, marked = get_type_hints(cls), get_type_hints(cls, include_extras=True)
    found: dict[str, _Option] = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found |= _options(hint)
            continue
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        markers = get_args(marked[field.name])
        if tyro.conf.Suppress in markers:
            continue
        positional = tyro.conf.Positional in markers
        found[field.name] = _Option(hint, required, positional)
    return found


def _config_files(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """The files that --config names, and the other words."""
    files, others, words = [], [], iter(arguments)
    for word in words:
        name, equals, file = word.partition("=")
        if name != "--config":
            others.append(word)
        elif file := file if equals else next(words, ""):
            files.append(Path(file))
        else:
            raise UserError("--config needs the path of a YAML file")
    return files, others


def value_of(name: str, arguments: list[str]) -> str | None:
    """What the command line or a configuration file gives for an option; None if nothing."""
    files, words = _config_files(arguments)
    found = [load_yaml(file).get(name) for file in files]
    for word, following in zip(words, [*words, None][1:], strict=True):
        option, equals, value = word.partition("=")
        if option == f"--{name}":
            found.append(value if equals else following)
    return next((str(value) for value in reversed(found) if value is not None), None)


def _from_file(file: Path, known: dict[str, _Option], method: str | None) -> Iterator[str]:
    """The options of a configuration file as words of a command line."""
    for key, value in load_yaml(file).items():
        if key == "method" and method is not None:
            if value != method:
                raise UserError(f"{file}: holds the options of {shown(value)}, not of {method!r}")
        elif key not in known or known[key].positional:
            raise UserError(f"{file}: unknown key {shown(key)}; {nearest(str(key)[:80], known)}")
        else:
            checked = typed(known[key].hint, value, f"{file}: {key}")
            items = checked if isinstance(checked, list | tuple) else []
            if len(items) > 1 and any(isinstance(item, str) and item.startswith("-") for item in items):
                raise UserError(f"{file}: {key}: a text in a list must not begin with a dash")
            yield from _words(str(key), checked)


def _words(key: str, value: Any) -> list[str]:
    option = key.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    if not isinstance(value, list | tuple):
        return [f"--{option}={value}"]  # one word: a text such as --help must not become an option of its own
    if len(value) == 1:
        return [f"--{option}={value[0]}"]
    return [f"--{option}", *(str(v) for v in value)]


def _check_names(words: list[str], known: dict[str, _Option], prog: str) -> None:
    """Raises UserError for an option that is not known, or required and not given."""
    options = {f"--{name.replace('_', '-')}": option for name, option in known.items()}
    options |= {f"--no-{name[2:]}": option for name, option in options.items() if option.hint is bool}
    given = {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")}
    names = [name for name, option in options.items() if not option.positional]
    for word in sorted(given - set(names)):
        match = nearest(word, names)
        hint = match.replace("'", "") if match.startswith("did") else f"see {prog} --help"
        raise UserError(f"unknown option {shown_name(word)}; {hint}")
    missing = [name for name in names if options[name].required and name not in given]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{' and '.join(missing)} {verb} missing; see {prog} --help")


def _values(words: list[str]) -> Iterator[tuple[str, str]]:
    """Every option with each of its values; values without an option have an empty one."""
    option = ""
    for word in words:
        option, _, value = word.partition("=") if word.startswith("--") else (option, "", word)
        yield option, value


def _check_sizes(words: list[str]) -> None:
    """Raises UserError for a whole number beyond 64 bits, at which arithmetic and generators fail."""
    for option, value in _values(words):
        digits = value.strip().replace("_", "")
        if re.fullmatch(r"[-+]?[0-9]{19,}", digits) and (
            len(digits) > 40 or not -(2**63) <= int(digits) < 2**63
        ):
            raise UserError(f"{option} {shown(value)}: too large a number")


def _check_numbers(words: list[str], known: dict[str, _Option]) -> None:
    """Raises UserError for a number that is none, where the options themselves have nothing against it."""
    for option, value in _values(words):
        wanted = known.get(option[2:].replace("-", "_"))
        if wanted and "float" in str(wanted.hint) and value.strip().lstrip("+-").lower() == "nan":
            raise UserError(f"{option} {value}: expected a number")


def _sentence(said: str, known: dict[str, _Option]) -> str:
    """What tyro says of a bad value, without its title, its rules and the help that follows."""
    lines = [line.strip(" │") for line in said.splitlines() if line.strip(" -─│╭╮╰╯")]
    ends = ("Argument helptext", "For full helptext", "Got errors", "Perhaps you meant")
    length = next((i for i, line in enumerate(lines) if line.startswith(ends)), len(lines))
    text = " ".join(" ".join(lines[1:length]).split()).removesuffix(".").replace(". Expected", "; expected")
    text = re.sub(r"^Missing from [^:]*: (\S+) .*", r"\1 is missing", text)
    found = re.match(r"Error parsing --(\S+): .*?'(.*)'", text)
    if not found:
        return text
    hint = known[found[1].replace("-", "_")].hint
    types = [get_origin(t) or t for t in (get_args(hint) or (hint,)) if t is not type(None)]
    return f"--{found[1]} {found[2]}: expected {' or '.join(NAMES.get(t, t.__name__) for t in types)}"
