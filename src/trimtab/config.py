"""Configuration: typed dataclasses from YAML. An unknown key is refused with the nearest known one."""

import dataclasses
import types
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from trimtab.errors import UserError, nearest

T = TypeVar("T")
NAMES = {str: "text", Path: "a path", bool: "true or false", int: "a whole number", float: "a number"}


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping. Raises UserError if it cannot be read or holds something else."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); pass the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values at the top, found {content!r:.40}")
    return content


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass from a mapping, checked against its annotations.

    Args:
        where: names the place in messages, such as "compare.yaml".
    Raises:
        UserError: a key is unknown or missing, or a value has the wrong type or is out of bounds.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise UserError(f"{where}: unknown key {key!r}; {nearest(str(key), fields)}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise UserError(f"{where}: the key {name!r} is missing")
    checked = {key: typed(hints[key], value, f"{where}: {key}") for key, value in values.items()}
    try:
        return cls(**checked)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def typed(hint: Any, value: Any, where: str) -> Any:
    """A value from YAML as what an annotation asks for. Raises UserError if it is something else."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (hint,) = (a for a in arguments if a is not type(None))
        return None if value is None else typed(hint, value, where)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{where}: {value!r} is not known; {nearest(str(value), map(str, arguments))}")
        return value
    if origin in (list, tuple):
        _expect(isinstance(value, list), "a list", value, where)
        return origin(typed(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is not dict and not dataclasses.is_dataclass(hint):
        return value if hint is Any else _scalar(hint, value, where)
    _expect(isinstance(value, Mapping), "keys and values", value, where)
    if origin is dict:
        return {key: typed(arguments[1], item, f"{where}: {key}") for key, item in value.items()}
    return build(hint, value, where)


def _scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        with suppress(ValueError):  # what is not a number either way, the check below refuses
            return float(value)
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    _expect(
        type(value) is hint,
        NAMES.get(hint, f"a {hint.__name__}"),
        value,
        where,
    )
    return value


def _expect(holds: bool, what: str, value: Any, where: str) -> None:
    if not holds:
        raise UserError(f"{where}: expected {what}, found {value!r}")
