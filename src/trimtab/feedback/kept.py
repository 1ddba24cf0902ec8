"""Extra columns of records as JSON, with the types beyond JSON's that Parquet and Arrow know."""

import json
import secrets
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from importlib import import_module
from typing import Any

from trimtab.errors import UserError

TAG = f"${secrets.token_hex(8)}"  # what it marks is read by this process alone: no column has this name
TYPES: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {  # name -> type, there, back
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "date": (date, date.isoformat, date.fromisoformat),
    "datetime": (datetime, datetime.isoformat, datetime.fromisoformat),
    "decimal": (Decimal, str, Decimal),
    "time": (time, time.isoformat, time.fromisoformat),
    "timedelta": (timedelta, lambda t: [t.days, t.seconds, t.microseconds], lambda t: timedelta(*t)),
}
EXACT = ("Timestamp", "Timedelta")  # of pandas, as which Arrow gives what counts nanoseconds


def to_json(columns: Mapping[str, Any], source: str = "") -> bytes:
    """The columns of a record, which comes from this file and line. Raises UserError for another type."""
    try:
        return json.dumps(dict(columns), default=_tagged).encode()
    except UserError as error:
        raise UserError(f"{source}: {error}" if source else str(error)) from error


def from_json(content: bytes) -> dict[str, Any]:
    """What `to_json` was given; tuples have become lists."""
    columns: dict[str, Any] = json.loads(content, object_hook=_untagged)
    return columns


def _tagged(value: Any) -> dict[str, Any]:
    for name, (kind, there, _) in TYPES.items():
        if type(value) is kind:  # a datetime is a date, too
            return {TAG: [name, there(value)]}
    if type(value).__name__ in EXACT and type(value).__module__.startswith("pandas"):
        return {TAG: [type(value).__name__, value.isoformat()]}
    raise UserError(
        f"a column holds a value of type {type(value).__name__}, which large feedback cannot have; "
        "leave the column out, or write it as text or numbers"
    )


def _untagged(found: dict[str, Any]) -> Any:
    if found.keys() != {TAG}:
        return found
    name, value = found[TAG]
    return getattr(import_module("pandas"), name)(value) if name in EXACT else TYPES[name][2](value)
