"""Text and conditions as PostgreSQL takes them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from appliance.kept import kept
from appliance.store.base import Condition, Value, Where
from appliance.store.where import as_sql

_JSON_TYPES: Final = {bool: "boolean", int: "number", float: "number", str: "string"}

_INDEXED: Final = 16
"""Values of an `in` that are looked up one by one in the index of the fields; more are compared with each chunk."""


def fields(metadata: Mapping[str, object]) -> str:
    """The part of the metadata that conditions look at, as JSON: objects, and lists in lists, are only there or not."""
    plain = {
        kept(key): [_plain(each) for each in value] if isinstance(value, list | tuple) else _plain(value)
        for key, value in metadata.items()
    }
    return json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _plain(value: object) -> Value | None:
    return kept(value) if isinstance(value, str) else value if isinstance(value, bool | int | float) else None


def compiled(where: Where, column: str) -> tuple[str, tuple[Any, ...]]:
    """The expressions, which were checked, as one SQL expression over a jsonb column of `fields`, and its parameters
    in order. It is never NULL.
    """
    values: list[Any] = []
    parts = ["TRUE", *(as_sql(expression, lambda each: _compared(each, column, values)) for expression in where)]
    return " AND ".join(parts), tuple(values)


def _compared(condition: Condition, column: str, values: list[Any]) -> str:
    key = condition.key
    match condition.op, condition.value:
        case "exists", there:
            values.append(kept(key))
            text = f"{column} ? %s" if there else f"NOT {column} ? %s"
        case "between", (least, greatest):
            text = f"{_ordered(key, '>=', least, column, values)} AND {_ordered(key, '<=', greatest, column, values)}"
        case _, tuple(wanted):
            text = _among(key, wanted, column, values)
        case "=", value:
            text = _equal(key, value, column, values)
        case "!=", value:
            text = f"NOT {_equal(key, value, column, values)}"
        case op, value:
            text = _ordered(key, op, value, column, values)
    return text


def _json(value: Value) -> str:
    return json.dumps(kept(value) if isinstance(value, str) else value, ensure_ascii=False)


def _equal(key: str, value: Value, column: str, values: list[Any]) -> str:
    """That it is the value, or a list that holds it; the index answers both."""
    values += [f"{{{_json(key)}:{_json(value)}}}", f"{{{_json(key)}:[{_json(value)}]}}"]
    return f"({column} @> %s::jsonb OR {column} @> %s::jsonb)"


def _among(key: str, wanted: Sequence[Value], column: str, values: list[Any]) -> str:
    if not wanted:
        return "FALSE"
    if len(wanted) <= _INDEXED:
        return "(" + " OR ".join(_equal(key, value, column, values) for value in wanted) + ")"
    name, choice = kept(key), [_json(value) for value in wanted]
    values += [name, name, choice, name, choice]
    members = f"EXISTS (SELECT FROM jsonb_array_elements({column} -> %s) AS each WHERE each = ANY (%s::jsonb[]))"
    alone = f"({column} -> %s) = ANY (%s::jsonb[])"
    return f"((CASE jsonb_typeof({column} -> %s) WHEN 'array' THEN {members} ELSE {alone} END) IS TRUE)"


def _ordered(key: str, op: str, value: Value, column: str, values: list[Any]) -> str:
    name = kept(key)
    if isinstance(value, str):
        values += [name, name, kept(value)]
        compared = f'({column} ->> %s) COLLATE "C" {op} %s'
    else:
        values += [name, name, _json(value)]
        compared = f"({column} -> %s) {op} %s::jsonb"
    return f"((jsonb_typeof({column} -> %s) = '{_JSON_TYPES[type(value)]}' AND {compared}) IS TRUE)"
