"""Values from YAML in the shape of dataclasses, checked field by field."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal, get_args, get_origin, get_type_hints

from minisearch.errors import InputError, one_of


def checked(kind: Any, value: Any, where: str) -> Any:
    """A value from YAML in the shape of a type annotation; InputError where it differs."""
    origin, inside = get_origin(kind), get_args(kind)
    if type(None) in inside:
        return None if value is None else checked(inside[0], value, where)
    if origin is Literal:
        if value not in inside:
            raise one_of(where, str(value), list(inside))
        return value
    if origin is tuple or (origin is dict and is_dataclass(inside[1])):
        if not isinstance(value, list):
            raise InputError(
                where, type(value).__name__, "a list", "write one item a line, with -."
            )
        if origin is tuple:
            return tuple(checked(inside[0], v, f"{where}[{n}]") for n, v in enumerate(value))
        return _by_id(inside[1], value, where)
    if is_dataclass(kind):
        return _fields(kind, value, where)
    if origin is not None:
        kind = dict
    if kind is float and type(value) is int:
        return float(value)
    if kind is str and isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if kind is str and isinstance(value, date):
        return value.isoformat()
    if type(value) is not kind:
        found, remedy = f"{value!r} ({type(value).__name__})", "correct it; put text in quotes."
        raise InputError(where, found, kind.__name__, remedy)
    return value


def _by_id(kind: Any, rows: list[Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, row in enumerate(rows):
        place = f"{where}[{number}]"
        name = row.get("id") if isinstance(row, dict) else None
        if not isinstance(name, str) or name in found:
            raise InputError(f"{place}.id", repr(name), "a name of its own", "give each an id.")
        rest = {key: value for key, value in row.items() if key != "id"}
        found[name] = checked(kind, rest, place)
    return found


def _fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(where, type(value).__name__, "named fields", "write name: value lines.")
    hints = get_type_hints(kind)
    for name in value:
        if name not in hints:
            raise one_of(f"{where}, field", str(name), list(hints))
    for spec in fields(kind):
        if spec.default is MISSING and spec.name not in value:
            raise InputError(f"{where}.{spec.name}", "nothing", "a value", f"add {spec.name}.")
    return kind(**{name: checked(hints[name], v, f"{where}.{name}") for name, v in value.items()})
