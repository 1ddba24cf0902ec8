"""Options from the command line and from YAML: typed dataclasses, read by tyro."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro

from trimtab.config import load_yaml
from trimtab.errors import UserError, nearest

T = TypeVar("T")


def parse(cls: type[T], arguments: list[str], *, prog: str, description: str) -> T:
    """The options of one command. `--config FILE.yaml` gives options by their names; the command line wins.

    Ends the program with status 2 and a message if an option is unknown, missing or of the wrong type.
    """
    arguments = [*_from_config(cls, arguments), *_without_config(arguments)]
    return tyro.cli(cls, args=arguments, prog=prog, description=description)


def _config_files(arguments: list[str]) -> Iterator[tuple[int, str]]:
    for place, word in enumerate(arguments[:-1]):
        if word == "--config":
            yield place, arguments[place + 1]


def _without_config(arguments: list[str]) -> list[str]:
    taken = {i for place, _ in _config_files(arguments) for i in (place, place + 1)}
    return [word for i, word in enumerate(arguments) if i not in taken]


def _from_config(cls: type[Any], arguments: list[str]) -> list[str]:
    """The options of the configuration files as words of a command line."""
    known = set(_names(cls))
    words: list[str] = []
    for _, file in _config_files(arguments):
        for key, value in load_yaml(Path(file)).items():
            if key not in known and key != "method":
                raise UserError(f"{file}: unknown key {key!r}; {nearest(str(key), known)}")
            if key != "method" and value is not None:
                words += _words(key, value)
    return words


def _words(key: str, value: Any) -> list[str]:
    option = key.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    values = value if isinstance(value, list) else [value]
    return [f"--{option}", *(str(v) for v in values)]


def _names(cls: type[Any]) -> Iterator[str]:
    """Field names as the command line knows them: those of nested dataclasses, without prefix."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if isinstance(hint := hints[field.name], type) and dataclasses.is_dataclass(hint):
            yield from _names(hint)
        else:
            yield field.name
