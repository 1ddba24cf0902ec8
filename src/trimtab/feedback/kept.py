"""Extra columns of records as JSON, with the types beyond JSON's that Parquet and Arrow know."""

import json
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from trimtab.errors import UserError

TAG = "$trimtab"
TYPES: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {  # name -> type, there, back
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "date": (date, date.isoformat, date.fromisoformat),
    "datetime": (datetime, datetime.isoformat, datetime.fromisoformat),
    "decimal": (Decimal, str, Decimal),
    "time": (time, time.isoformat, time.fromisoformat),
    "timedelta": (timedelta, lambda t: [t.days, t.seconds, t.microseconds], lambda t: timedelta(*t)),
}


def to_json(columns: Mapping[str, Any]) -> bytes:
    """The columns of a record. Raises UserError for a value of another type."""
    return json.dumps(dict(columns), default=_tagged).encode()


def from_json(content: bytes) -> dict[str, Any]:
    """What `to_json` was given; tuples have become lists."""
    columns: dict[str, Any] = json.loads(content, object_hook=_untagged)
    return columns


def _tagged(value: Any) -> dict[str, Any]:
    for name, (kind, there, _) in TYPES.items():
        if type(value) is kind:  # a datetime is a date, too
            return {TAG: [name, there(value)]}
    raise UserError(
        f"a column holds a value of type {type(value).__name__}, which large feedback cannot have; "
        "leave the column out, or write it as text or numbers"
    )


def _untagged(found: dict[str, Any]) -> Any:
    if found.keys() != {TAG}:
        return found
    name, value = found[TAG]
    return TYPES[name][2](value)
