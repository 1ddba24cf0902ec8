"""Configuration: typed dataclasses from YAML. An unknown key is refused with the nearest known one."""

import dataclasses
import math
import re
import reprlib
import types
from collections.abc import Mapping
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from trimtab.errors import UserError, nearest

# What no configuration reaches; a small file of nested aliases may stand for billions of values.
MOST_BYTES = 256 * 1024
MOST_VALUES = 100_000
MOST_DEPTH = 30
MOST_OPEN = 200  # brackets at a time, those in texts and comments included
MOST_NAME = 100  # characters

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 60

UNSAYABLE = frozenset({0, *range(0xD800, 0xE000)})  # no path holds the one, UTF-8 not the others

T = TypeVar("T")
NAMES = {str: "text", Path: "a path", bool: "true or false", int: "a whole number", float: "a number"}


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping. Raises UserError if it cannot be read or holds something else."""
    text = _text(path)
    open_brackets = accumulate((c in "[{") - (c in "]}") for c in text)
    if max(open_brackets, default=0) > MOST_OPEN:  # which the parser would take minutes over
        raise UserError(f"{path}: nested too deeply for a configuration")
    try:
        content = _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        place = f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else f"{path}"
        said = " ".join(" ".join(filter(None, (error.context, error.problem))).split())
        raise UserError(f"{place}: not valid YAML: {said:.200}") from error
    except yaml.reader.ReaderError as error:
        place = f"{path}:{text.count(chr(10), 0, error.position) + 1}"
        raise UserError(f"{place}: not valid YAML: it holds the character U+{error.character:04X}") from error
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply for a configuration") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values at the top, found {shown(content)}")
    return content


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError for a name that holds a zero byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); pass the path of a YAML file") from error
    if len(data) > MOST_BYTES:
        raise UserError(f"{path}: larger than {MOST_BYTES // 1024} KiB; a configuration is a page of text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not valid YAML: not UTF-8 text; save it as UTF-8") from error


class _Loader(yaml.SafeLoader):
    """Safe YAML without its surprises, each of which is refused with its line.

    A key twice in one place, of which the last would win. Aliases that stand for more than anybody wrote, or
    for what they are part of. Whole numbers that look like others: 010 for 8, 1:30 for 90. Dates are text.
    """

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _check_tree(node, {})
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (
            ValueError,
            LookupError,
            OverflowError,
        ) as error:  # !!int x, !!bool maybe, thousands of digits
            kind = node.tag.rpartition(":")[2]
            raise _refused(node, f"{shown(node.value)} cannot be read as {kind}") from error

    def whole_number(self, node: Any) -> int:
        written = str(self.construct_scalar(node)).replace("_", "")
        value = self.construct_yaml_int(node)
        if ":" in written or re.fullmatch(r"[-+]?0[0-9]+", written):
            raise _refused(node, f"{shown(node.value)} means {value} in YAML; write that, or quotes for text")
        if not -(2**63) <= value < 2**63:
            raise _refused(node, f"{shown(node.value)} is too large a number")
        return value

    def date(self, node: Any) -> str:
        return str(self.construct_scalar(node))

    def number(self, node: Any) -> float:
        value = float(self.construct_yaml_float(node))
        if ":" in node.value:
            raise _refused(
                node, f"{shown(node.value)} means {value:g} in YAML; write that, or quotes for text"
            )
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.date)


def _check_tree(node: yaml.Node, sizes: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values a node stands for, aliases written out, and how deep they are nested.

    Args:
        sizes: of the nodes seen so far, by id; (0, 0) where one is not yet finished.
    Raises:
        ConstructorError: it is part of itself, too large, too deep, or has a key twice.
    """
    if id(node) in sizes:
        if sizes[id(node)] == (0, 0):
            raise _refused(node, "an alias stands for what it is part of")
        return sizes[id(node)]
    sizes[id(node)] = (0, 0)
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        inner = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    found = [_check_tree(part, sizes) for part in inner]
    size, depth = 1 + sum(size for size, _ in found), 1 + max((depth for _, depth in found), default=0)
    if size > MOST_VALUES:
        raise _refused(node, f"with its aliases it stands for more than {MOST_VALUES:,} values")
    if depth > MOST_DEPTH:
        raise _refused(node, f"nested more than {MOST_DEPTH} levels deep")
    sizes[id(node)] = size, depth
    return size, depth


def _check_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        name = (key.tag, key.value if isinstance(key, yaml.ScalarNode) else id(key))
        if name in seen:
            raise _refused(key, f"the key {shown(key.value)} stands there twice")
        seen.add(name)


def _refused(node: yaml.Node, why: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, why, node.start_mark)


def shown(value: Any) -> str:
    """A value in a message: cut where it is long or deep."""
    return SHORT.repr(value)


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
            raise UserError(f"{where}: unknown key {shown(key)}; {nearest(str(key), fields)}")
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
            known = nearest(str(value)[:MOST_NAME], map(str, arguments))
            raise UserError(f"{where}: {shown(value)} is not known; {known}")
        return value
    if origin in (list, tuple):
        _expect(isinstance(value, list), "a list", value, where)
        return origin(typed(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is not dict and not dataclasses.is_dataclass(hint):
        return value if hint is Any else _scalar(hint, value, where)
    _expect(isinstance(value, Mapping), "keys and values", value, where)
    if origin is dict:
        for key in value:
            _check_name(key, where)
        return {key: typed(arguments[1], item, f"{where}: {key}") for key, item in value.items()}
    return build(hint, value, where)


def _scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        with suppress(ValueError):  # what is not a number either way, the checks below refuse
            value = float(value)
    if hint is float and type(value) is int:
        value = float(value)
    if isinstance(value, str) and not UNSAYABLE.isdisjoint(map(ord, value)):
        raise UserError(f"{where}: {shown(value)} holds a zero byte or half of a character")
    if hint is Path and isinstance(value, str):
        return Path(value)
    _expect(type(value) is hint, NAMES.get(hint, f"a {hint.__name__}"), value, where)
    _expect(not (hint is float and math.isnan(value)), "a number", value, where)
    return value


def _check_name(key: Any, where: str) -> None:
    """Raises UserError unless a key is a name that a table and a message can show."""
    if isinstance(key, bool):
        raise UserError(f"{where}: YAML reads a key as {key}; put it in quotes if it is a name")
    what = f"a name of at most {MOST_NAME} printed characters"
    _expect(isinstance(key, str) and key.isprintable() and 0 < len(key) <= MOST_NAME, what, key, where)


def _expect(holds: bool, what: str, value: Any, where: str) -> None:
    if not holds:
        quotes = "; put it in quotes" if what == "text" and isinstance(value, bool) else ""
        raise UserError(f"{where}: expected {what}, found {shown(value)}{quotes}")
