"""Filters as people write them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import InvalidInput
from appliance.search.filters import parse_filter
from appliance.store.base import AllOf, AnyOf, Condition, Expression, Not, Value
from appliance.store.where import check_where, holds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lang = en", Condition("lang", "=", "en")),
        ('lang="en"', Condition("lang", "=", "en")),
        ("'the lang'=='it\\'s'", Condition("the lang", "=", "it's")),
        ("year >= 2020", Condition("year", ">=", 2020)),
        ("price<-1.5e3", Condition("price", "<", -1500.0)),
        ("year <> 1", Condition("year", "!=", 1)),
        ("draft = TRUE", Condition("draft", "=", value=True)),
        ("draft != 'true'", Condition("draft", "!=", "true")),
        ("when > 2026-01-31", Condition("when", ">", "2026-01-31")),
        ("path = docs/a.md", Condition("path", "=", "docs/a.md")),
        ("tag in (a, 'b c', 3)", Condition("tag", "in", ("a", "b c", 3))),
        ("tag IN [a]", Condition("tag", "in", ("a",))),
        ("tag not in (a)", Not(Condition("tag", "in", ("a",)))),
        ("year between 1990 and 2000", Condition("year", "between", (1990, 2000))),
        ("year not between 1 and 2", Not(Condition("year", "between", (1, 2)))),
        ("author exists", Condition("author", "exists", value=True)),
        ("author not exists", Condition("author", "exists", value=False)),
        ('"and" = "or"', Condition("and", "=", "or")),
        ("ключ = да", Condition("ключ", "=", "да")),
        (
            "a=1 or b=2 and c=3",
            AnyOf((Condition("a", "=", 1), AllOf((Condition("b", "=", 2), Condition("c", "=", 3))))),
        ),
        (
            "(a=1 or b=2) and not c=3",
            AllOf((AnyOf((Condition("a", "=", 1), Condition("b", "=", 2))), Not(Condition("c", "=", 3)))),
        ),
        ("year between 1 and 2 and a=1", AllOf((Condition("year", "between", (1, 2)), Condition("a", "=", 1)))),
        ("((a=1))", Condition("a", "=", 1)),
    ],
)
def test_a_filter_says_what_it_seems_to_say(text: str, expected: Expression) -> None:
    assert parse_filter(text) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "needs the name of a metadata field at character 1: it ends"),
        ("   ", "it ends"),
        ("year", "needs =, !=, <, <=, >, >=, in, between or exists at character 5: it ends"),
        ("year >=", "needs a value at character 8: it ends"),
        ("year 2020", "at character 6: there is '2020'"),
        ("a=1 b=2", "needs and, or, or the end at character 5: there is 'b'"),
        ("(a=1", "needs ) at character 5"),
        ("a=1)", "the end at character 4: there is ')'"),
        ("a in ()", "needs a value"),
        ("a in 1", "needs ( and values"),
        ("a in (1]", "needs )"),
        ("a between 1 or 2", "needs and at character 13"),
        ("a not = 1", "needs in, between or exists"),
        ("and = 1", "name of a metadata field"),
        ("a = and", "needs a value"),
        ("a = 'open", "a quote that is not closed"),
        ("a = x;y", "character at 6 that needs quotes"),
        ("a = $", "character at 5 that needs quotes"),
        ("not " * 13 + "a=1", "more than 12 `not` and ( ) of the filter are inside each other"),
        ("(" * 10_000, "more than 12 `not` and ( )"),
        ("a=" + "x" * 200_000, "more than 100,000 characters"),
    ],
)
def test_what_is_wrong_with_a_filter_is_told_with_its_place(text: str, told: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_filter(text)

    assert told in refused.value.message
    assert refused.value.param == "filter"
    assert len(refused.value.message) < 200


@given(st.text(max_size=200))
def test_any_text_is_a_filter_or_a_clear_error(text: str) -> None:
    try:
        parse_filter(text)
    except InvalidInput as error:
        assert error.message  # noqa: PT017 - either way is right


_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
_values = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), _texts
)
_keys = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), min_size=1, max_size=6)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _write(value: Value) -> str:
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _comparison(draw: Any) -> tuple[str, Expression]:
    key, value, other = draw(_keys), draw(_values), draw(_values)
    match draw(st.sampled_from(["=", "!=", "<", "<=", ">", ">=", "in", "exists"])):
        case "in":
            return f"{_quoted(key)} in ({_write(value)},{_write(other)})", Condition(key, "in", (value, other))
        case "exists":
            return f"{_quoted(key)} exists", Condition(key, "exists", value=True)
        case op:
            return f"{_quoted(key)}{op}{_write(value)}", Condition(key, op, value)


@st.composite
def _filters(draw: Any, depth: int = 3) -> tuple[str, Expression]:
    kind = draw(st.sampled_from(["one", "not", "and", "or"])) if depth else "one"
    if kind == "one":
        return _comparison(draw)
    parts = [draw(_filters(depth - 1)) for _ in range(1 if kind == "not" else 2)]
    texts, expressions = [f"({text})" for text, _ in parts], tuple(expression for _, expression in parts)
    if kind == "not":
        return f"not {texts[0]}", Not(expressions[0])
    return f" {kind} ".join(texts), AllOf(expressions) if kind == "and" else AnyOf(expressions)


@given(_filters(), st.dictionaries(_keys, _values, max_size=4))
def test_whatever_can_be_said_can_be_written_and_means_the_same(
    written: tuple[str, Expression], metadata: dict[str, Value]
) -> None:
    text, expression = written

    parsed = parse_filter(text)

    check_where([parsed])
    assert parsed == expression
    assert holds([parsed], metadata) == holds([expression], metadata)
