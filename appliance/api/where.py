"""What metadata must hold, as the parameters and fields `where` and `filter` say it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Literal, TypeGuard, get_args

from pydantic import JsonValue

from appliance.api.deps import parsed
from appliance.errors import InvalidInput
from appliance.search.filters import parse_filter
from appliance.store.base import AllOf, AnyOf, Condition, Expression, Not, Value, Where
from appliance.store.where import check_where

MAX_CONDITIONS: Final = 100
MAX_VALUES: Final = 10_000
"""Of one search at most: each condition is looked at for each passage; the values are those of `in`, together."""

FILTER: Final = "what metadata must hold: `year >= 2020 and (lang in (en, de) or not draft = true)`"
"""Describes the parameter."""

Op = Literal["=", "!=", "<", "<=", ">", ">=", "in"]
_OPS: dict[str, Op] = {op: op for op in get_args(Op)}
_CONDITION = re.compile(r"(?P<key>[^=!<>]+)(?P<op>[=!<>]+)\s*(?P<value>.*)", re.DOTALL)


def read(text: str) -> Condition:
    """`key op value`, as a query parameter says it; a value that is JSON (a number, true, "quoted") is taken as such,
    anything else as text.

    Raises:
        InvalidInput: it is none.
    """
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise InvalidInput(f"where is no condition: {text}; write key=value, or one of != < <= > >=", param="where")
    if match["op"] not in _OPS:
        raise InvalidInput(
            f"where: {match['op']} is none of = != < <= > >=; put a value that begins with such a sign in quotes",
            param="where",
        )
    value: Any = match["value"]
    with suppress(InvalidInput):
        value = parsed(match["value"].encode())
    return next(_conditions(match["key"].rstrip(), {match["op"]: value if _is_value(value) else match["value"]}))


def conditions(where: Sequence[str] | None, filter_: str | None) -> Where:
    """What the query parameters `where` and `filter` say, together.

    Raises:
        InvalidInput: one of them is wrong, or they are too large.
    """
    return held([read(each) for each in where or ()], filter_)


def held(where: Sequence[Condition], filter_: str | None) -> Where:
    """Conditions, and what a filter says, together.

    Raises:
        InvalidInput: one of them is wrong, or they are too large; of the filter, it says so.
    """
    check_where(where)
    _check_size(where, "where")
    if filter_ is None:
        return tuple(where)
    expression = parse_filter(filter_)
    try:
        check_where([expression])
    except InvalidInput as error:
        raise InvalidInput(error.message, param="filter") from error
    both = *where, expression
    _check_size(both, "filter")
    return both


def written(where: Mapping[str, JsonValue]) -> list[Condition]:
    """What the field `where` of a body says.

    Raises:
        InvalidInput: a comparison is none.
    """
    return [each for key, said in where.items() for each in _conditions(key, said)]


def _check_size(where: Sequence[Expression], param: str) -> None:
    leaves = [each for expression in where for each in _leaves(expression)]
    if len(leaves) > MAX_CONDITIONS:
        raise InvalidInput(f"{param} has {len(leaves)} conditions; {MAX_CONDITIONS} are the most", param=param)
    values = sum(len(each.value) for each in leaves if isinstance(each.value, tuple))
    if values > MAX_VALUES:
        raise InvalidInput(f"{param} has {values} values to choose from; {MAX_VALUES} are the most", param=param)


def _leaves(expression: Expression) -> Iterator[Condition]:
    match expression:
        case AllOf() | AnyOf():
            for part in expression.parts:
                yield from _leaves(part)
        case Not():
            yield from _leaves(expression.part)
        case Condition():
            yield expression


def _conditions(key: str, wanted: JsonValue) -> Iterator[Condition]:
    comparisons = wanted if isinstance(wanted, dict) else {"=": wanted}
    if not comparisons:
        raise InvalidInput(f"where.{key} has no comparison", param="where")
    for name, value in comparisons.items():
        op = _OPS.get(name)
        if op is None:
            raise InvalidInput(f"where.{key}: {name} is none of {', '.join(_OPS)}", param="where")
        if op == "in":
            values = [each for each in value if _is_value(each)] if isinstance(value, list) else []
            if not values or values != value:
                raise InvalidInput(f"where.{key}: in needs a list of texts, numbers or booleans", param="where")
            yield Condition(key, op, tuple(values))
        elif _is_value(value):
            yield Condition(key, op, value)
        else:
            raise InvalidInput(f"where.{key}: a text, a number or a boolean is needed", param="where")


def _is_value(value: object) -> TypeGuard[Value]:
    return isinstance(value, str | int | float | bool)
