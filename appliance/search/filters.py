"""A filter as a person writes it: `year >= 2020 and (lang in (en, de) or not draft = true)`.

    filter     = either
    either     = both { "or" both }
    both       = single { "and" single }
    single     = "not" single | "(" either ")" | comparison
    comparison = key ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) value
               | key [ "not" ] "in" "(" value { "," value } ")"
               | key [ "not" ] "between" value "and" value
               | key [ "not" ] "exists"
    key        = word | quoted
    value      = number | "true" | "false" | word | quoted

Words are letters, digits and _ - . : / @ + %; what else a text holds goes in single or double quotes, where a backslash
stands before a quote or a backslash. Words of the grammar may be written in any case; as a key or a value they need
quotes.
"""

import re
from typing import Final, NamedTuple

from appliance.errors import InvalidInput
from appliance.store.base import AllOf, AnyOf, Condition, Expression, Not, Op, Value

MAX_LENGTH: Final = 100_000
"""Characters of a filter."""

MAX_DEPTH: Final = 12
"""Parentheses and `not`s inside each other."""

_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<sign> != | <= | >= | == | <> | [=<>(),\[\]] )
      | (?P<quoted> "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' )
      | (?P<word> [\w\-.:/@+%]+ )
      | (?P<end> \Z )
    )""",
    re.VERBOSE | re.DOTALL,
)
_KEYWORDS: Final = frozenset({"and", "or", "not", "in", "between", "exists", "true", "false"})
_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_WHOLE: Final = re.compile(r"[+-]?\d{1,19}")
_SIGNS: Final[dict[str, Op]] = {
    "=": "=",
    "==": "=",
    "!=": "!=",
    "<>": "!=",
    "<": "<",
    "<=": "<=",
    ">": ">",
    ">=": ">=",
}


def parse_filter(text: str) -> Expression:
    """What a filter says.

    Raises:
        InvalidInput: it is none; the message says where and what was expected there.
    """
    if len(text) > MAX_LENGTH:
        raise InvalidInput(f"the filter has more than {MAX_LENGTH:,} characters", param="filter")
    return _Parser(text).parsed()


class _Token(NamedTuple):
    kind: str
    text: str
    at: int

    @property
    def keyword(self) -> str:
        """The word of the grammar that this is, or nothing."""
        word = self.text.lower()
        return word if self.kind == "word" and word in _KEYWORDS else ""


class _Parser:
    """Reads one filter from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._token = self._read(0)

    def parsed(self) -> Expression:
        expression = self._either(0)
        if self._token.kind != "end":
            raise self._wrong("and, or, or the end")
        return expression

    def _either(self, depth: int) -> Expression:
        parts = [self._both(depth)]
        while self._took("or"):
            parts.append(self._both(depth))
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _both(self, depth: int) -> Expression:
        parts = [self._single(depth)]
        while self._took("and"):
            parts.append(self._single(depth))
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _single(self, depth: int) -> Expression:
        if depth == MAX_DEPTH:
            raise InvalidInput(
                f"more than {MAX_DEPTH} `not` and ( ) of the filter are inside each other", param="filter"
            )
        if self._took("not"):
            return Not(self._single(depth + 1))
        if self._took("("):
            inner = self._either(depth + 1)
            self._need(")")
            return inner
        return self._comparison()

    def _comparison(self) -> Expression:
        key = self._key()
        if self._token.kind == "sign" and self._token.text in _SIGNS:
            op = _SIGNS[self._next().text]
            return Condition(key, op, self._value())
        opposite = self._took("not")
        if self._took("in"):
            condition = Condition(key, "in", self._values())
        elif self._took("between"):
            least = self._value()
            self._need("and")
            condition = Condition(key, "between", (least, self._value()))
        elif self._took("exists"):
            return Condition(key, "exists", value=not opposite)
        else:
            raise self._wrong("in, between or exists" if opposite else "=, !=, <, <=, >, >=, in, between or exists")
        return Not(condition) if opposite else condition

    def _key(self) -> str:
        if self._token.kind not in {"word", "quoted"} or self._token.keyword:
            raise self._wrong("the name of a metadata field")
        return _said(self._next())

    def _values(self) -> tuple[Value, ...]:
        closing = {"(": ")", "[": "]"}.get(self._token.text)
        if closing is None or self._token.kind != "sign":
            raise self._wrong("( and values")
        self._next()
        values = [self._value()]
        while self._took(","):
            values.append(self._value())
        self._need(closing)
        return tuple(values)

    def _value(self) -> Value:
        if self._token.kind not in {"word", "quoted"} or self._token.keyword not in {"", "true", "false"}:
            raise self._wrong("a value")
        token = self._next()
        if token.keyword:
            return token.keyword == "true"
        if token.kind == "word" and _NUMBER.fullmatch(token.text):
            return int(token.text) if _WHOLE.fullmatch(token.text) else float(token.text)
        return _said(token)

    def _next(self) -> _Token:
        token = self._token
        self._token = self._read(token.at + len(token.text))
        return token

    def _took(self, wanted: str) -> bool:
        here = self._token
        found = here.keyword == wanted if wanted.isalpha() else here.kind == "sign" and here.text == wanted
        if found:
            self._next()
        return found

    def _need(self, wanted: str) -> None:
        if not self._took(wanted):
            raise self._wrong(wanted)

    def _read(self, at: int) -> _Token:
        match = _TOKEN.match(self._text, at)
        if match is None or match.lastgroup is None:
            start = at + len(self._text[at:]) - len(self._text[at:].lstrip())
            raise InvalidInput(
                f"the filter has a character at {start + 1} that needs quotes, or a quote that is not closed",
                param="filter",
            )
        return _Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup))

    def _wrong(self, expected: str) -> InvalidInput:
        found = "it ends" if self._token.kind == "end" else f"there is {self._token.text[:40]!r}"
        return InvalidInput(f"the filter needs {expected} at character {self._token.at + 1}: {found}", param="filter")


def _said(token: _Token) -> str:
    return re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL) if token.kind == "quoted" else token.text
