"""Conditions on metadata: checked, decided in Python and written as SQL, so that every store means the same by them."""

import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from appliance.errors import InvalidInput
from appliance.store.base import AllOf, AnyOf, Condition, Expression, Not, Value, Where

_OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_OF_LISTS: Final = frozenset({"=", "!=", "in"})
"""Comparisons that ask of a list what it holds; by the others it is of another type."""

_JSON_TYPES: Final[Mapping[str, str]] = {
    "truth": "('true', 'false')",
    "number": "('integer', 'real')",
    "text": "('text')",
}
_KEY: Final = re.compile(r'[^"\\\x00-\x1f]+')
"""A key that can stand in quotes in a JSON path of SQLite, which knows no escapes there."""


MAX_DEPTH: Final = 40
"""Expressions inside each other, at most: SQLite's parser has a limit of its own."""


def check_where(where: Where) -> None:
    """Raise InvalidInput for an expression that no store can answer."""
    for expression in where:
        _check(expression, MAX_DEPTH)


def holds(where: Where, metadata: Mapping[str, object]) -> bool:
    """Whether a chunk with this metadata passes all the expressions, which were checked."""
    return all(_holds(expression, metadata) for expression in where)


def compiled(where: Where, column: str) -> tuple[str, tuple[Value, ...]]:
    """The expressions, which were checked, as one SQL expression over a JSON column, and its parameters in order.
    However many values an `in` has, it takes a few parameters, and SQLite looks each row up in a table of them.
    """
    values: list[Value] = []
    parts = ["TRUE", *(as_sql(expression, lambda each: _written(each, column, values)) for expression in where)]
    return " AND ".join(parts), tuple(values)


def _check(expression: Expression, depth: int) -> None:
    if not depth:
        raise InvalidInput(f"more than {MAX_DEPTH} expressions of a filter are inside each other", param="where")
    match expression:
        case AllOf() | AnyOf():
            for part in expression.parts:
                _check(part, depth - 1)
        case Not():
            _check(expression.part, depth - 1)
        case Condition():
            _check_condition(expression)


def _check_condition(condition: Condition) -> None:
    if not _KEY.fullmatch(condition.key):
        raise InvalidInput(
            "a metadata key to search by has no quotes, backslashes or control characters", param="where"
        )
    if condition.op not in (*_OPERATORS, "!=", "in", "between", "exists"):
        raise InvalidInput(f'"{condition.op}" is no comparison', param="where")
    if isinstance(condition.value, tuple) != (condition.op in {"in", "between"}):
        raise InvalidInput("`in` and `between` take several values, every other comparison one", param="where")
    for value in _values(condition):
        _check_value(value)
    kinds = [_kind(value) for value in _values(condition)]
    if condition.op == "between" and (len(kinds) != 2 or kinds[0] != kinds[1]):  # noqa: PLR2004 - least and greatest
        raise InvalidInput("`between` takes two values of one type", param="where")
    if condition.op == "exists" and kinds != ["truth"]:
        raise InvalidInput("`exists` is true or false", param="where")


def _holds(expression: Expression, metadata: Mapping[str, object]) -> bool:
    match expression:
        case AllOf():
            return all(_holds(part, metadata) for part in expression.parts)
        case AnyOf():
            return any(_holds(part, metadata) for part in expression.parts)
        case Not():
            return not _holds(expression.part, metadata)
        case Condition(op="exists"):
            return (expression.key in metadata) == expression.value
        case Condition():
            return _passes(expression, metadata.get(expression.key))


def as_sql(expression: Expression, leaf: Callable[[Condition], str]) -> str:
    """As SQL; `leaf` writes each condition, in the order in which they stand, and nothing that is ever NULL."""
    match expression:
        case AllOf():
            return "(" + " AND ".join(["TRUE", *(as_sql(part, leaf) for part in expression.parts)]) + ")"
        case AnyOf():
            return "(" + " OR ".join(["FALSE", *(as_sql(part, leaf) for part in expression.parts)]) + ")"
        case Not():
            return f"(NOT {as_sql(expression.part, leaf)})"
        case Condition():
            return f"({leaf(expression)})"


def _written(condition: Condition, column: str, values: list[Value]) -> str:
    """As SQL that is never NULL where it stands alone; parameters are added to `values`."""
    if condition.op == "exists":
        values.append(_path(condition))
        return f"json_type({column}, ?) IS {'NOT NULL' if condition.value else 'NULL'}"
    return _compared(condition, column, values)


def _path(condition: Condition) -> str:
    return f'$."{condition.key}"'


def _compared(condition: Condition, column: str, values: list[Value]) -> str:
    path = _path(condition)
    kinds: dict[str, list[Value]] = {}
    for value in _values(condition):
        kinds.setdefault(_kind(value), []).append(value)
    alone, inside = [], []
    of_alone: list[Value] = []
    of_inside: list[Value] = []
    for kind, wanted in kinds.items():
        compare, compared = f"{condition.op} ?", list(wanted)
        if condition.op == "!=":
            compare = "= ?"
        elif condition.op == "between":
            compare = "BETWEEN ? AND ?"
        elif condition.op == "in":
            compare, compared = "IN (SELECT value FROM json_each(?))", [json.dumps(wanted)]
        alone.append(f"(json_type({column}, ?) IN {_JSON_TYPES[kind]} AND json_extract({column}, ?) {compare})")
        inside.append(f"(type IN {_JSON_TYPES[kind]} AND value {compare})")
        of_alone += [path, path, *compared]
        of_inside += compared
    either = " OR ".join(alone) or "FALSE"
    if condition.op in _OF_LISTS and inside:
        # only a list is taken apart: json_each is many times as slow as the functions
        members = f"EXISTS (SELECT 1 FROM json_each({column}, ?) WHERE {' OR '.join(inside)})"  # noqa: S608  # bound
        either = f"CASE json_type({column}, ?) WHEN 'array' THEN {members} ELSE {either} END"
        values += [path, path, *of_inside]
    values += of_alone
    return f"({either}) IS {'NOT ' if condition.op == '!=' else ''}TRUE"


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
                "metadata is compared with text, true, false and finite numbers (whole ones of 64 bits)", param="where"
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
    if isinstance(found, list) and condition.op in _OF_LISTS:
        passing = (_passes(condition, None if isinstance(each, list) else each) for each in found)
        return all(passing) if condition.op == "!=" else any(passing)
    same = [value for value in _values(condition) if _kind(value) == _kind(found)]
    if condition.op == "!=":
        return all(found != value for value in same)
    if condition.op == "between":
        return len(same) == 2 and same[0] <= found <= same[1]  # type: ignore[operator]  # noqa: PLR2004  # of one type
    compare = _OPERATORS["=" if condition.op == "in" else condition.op]
    return any(compare(found, value) for value in same)
