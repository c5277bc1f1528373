"""Conditions on metadata: checked, decided in Python and written as SQL, so that every store means the same by them."""

import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from appliance.errors import InvalidInput
from appliance.store.base import Condition, Value, Where

_OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_JSON_TYPES: Final[Mapping[str, str]] = {
    "truth": "('true', 'false')",
    "number": "('integer', 'real')",
    "text": "('text')",
}
_KEY: Final = re.compile(r'[^"\\\x00-\x1f]+')
"""A key that can stand in quotes in a JSON path of SQLite, which knows no escapes there."""


def check_where(where: Where) -> None:
    """Raise InvalidInput for a condition that no store can answer."""
    for condition in where:
        if not _KEY.fullmatch(condition.key):
            raise InvalidInput(
                "a metadata key to search by has no quotes, backslashes or control characters", param="where"
            )
        if condition.op not in (*_OPERATORS, "!=", "in"):
            raise InvalidInput(f'"{condition.op}" is no comparison', param="where")
        if isinstance(condition.value, tuple) != (condition.op == "in"):
            raise InvalidInput("`in` takes several values, every other comparison one", param="where")
        for value in _values(condition):
            _check_value(value)


def holds(where: Where, metadata: Mapping[str, object]) -> bool:
    """Whether a chunk with this metadata passes all the conditions, which were checked."""
    return all(_passes(condition, metadata.get(condition.key)) for condition in where)


def compiled(where: Where, column: str) -> tuple[str, tuple[Value, ...]]:
    """The conditions, which were checked, as an SQL expression over a JSON column, and its parameters in order. However
    many values an `in` has, it takes a few parameters, and SQLite looks each row up in a table of them.
    """
    parts = ["TRUE"]
    values: list[Value] = []
    for condition in where:
        path = f'$."{condition.key}"'
        kinds: dict[str, list[Value]] = {}
        for value in _values(condition):
            kinds.setdefault(_kind(value), []).append(value)
        comparisons = []
        for kind, wanted in kinds.items():
            compare = "= ?" if condition.op == "!=" else f"{condition.op} ?"
            compared: Value = wanted[0]
            if condition.op == "in":
                compare, compared = "IN (SELECT value FROM json_each(?))", json.dumps(wanted)
            comparisons.append(
                f"(json_type({column}, ?) IN {_JSON_TYPES[kind]} AND json_extract({column}, ?) {compare})"
            )
            values += [path, path, compared]
        either = " OR ".join(comparisons) or "FALSE"
        parts.append(f"({either}) IS NOT TRUE" if condition.op == "!=" else f"({either})")
    return " AND ".join(parts), tuple(values)


def _values(condition: Condition) -> tuple[Value, ...]:
    return condition.value if isinstance(condition.value, tuple) else (condition.value,)


def _check_value(value: object) -> None:
    match value:
        case bool() | str():
            pass
        case int() if -(2**63) <= value < 2**63:
            pass
        case float() if math.isfinite(value):
            pass
        case _:
            raise InvalidInput(
                "metadata is compared with text, true, false and numbers (whole ones of 64 bits)", param="where"
            )


def _kind(value: object) -> str:
    match value:
        case bool():
            return "truth"
        case int() | float():
            return "number"
        case str():
            return "text"
        case _:
            return "other"


def _passes(condition: Condition, found: object) -> bool:
    same = [value for value in _values(condition) if _kind(value) == _kind(found)]
    if condition.op == "!=":
        return all(found != value for value in same)
    compare = _OPERATORS["=" if condition.op == "in" else condition.op]
    return any(compare(found, value) for value in same)
