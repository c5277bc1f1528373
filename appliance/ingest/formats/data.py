"""Data: CSV, JSON, JSON Lines."""

import csv
import json
import re
from collections.abc import Iterator
from typing import Any, Final

from appliance.errors import InvalidInput
from appliance.ingest.formats.charset import decoded
from appliance.ingest.formats.detect import JSONL, Kind
from appliance.ingest.formats.document import Parsed, Writer, collapsed, sound

MAX_COLUMNS: Final = 2_000
"""Columns of a table."""

_DELIMITERS: Final = ",;\t|"
_DEEPEST: Final = 200
"""Objects and lists of JSON inside each other."""

_LINE: Final = re.compile(r"[^\n]*\n|[^\n]+")

csv.field_size_limit(2**20)


def read_table(body: bytes, kind: Kind) -> Parsed:
    """A table of comma- or tab-separated values; its first row is taken for its head.

    Raises:
        InvalidInput: it is no text, too long, or a field or a row of it is.
    """
    text = decoded(body, kind.charset)
    delimiter = "\t" if kind.media_type == "text/tab-separated-values" else _delimiter(text)
    writer = Writer()
    width = 0
    try:
        for row in csv.reader(_each_line(text), delimiter=delimiter):
            if len(row) > MAX_COLUMNS:
                raise InvalidInput(f"a row of the table has more than {MAX_COLUMNS} fields")
            if any(field.strip() for field in row):
                writer.row([*row, *[""] * (width - len(row))], first=not width)
                width = width or len(row)
    except csv.Error as error:
        raise InvalidInput(f"the document is no CSV table that can be read: {error}") from error
    return writer.finished(kind.media_type)


def _each_line(text: str) -> Iterator[str]:
    """The lines of a text with their ends, without a second copy of it."""
    return (found[0] for found in _LINE.finditer(text))


def _delimiter(text: str) -> str:
    """The one that comes most often in the first line, outside of quotes; a comma where none does."""
    head = re.sub(r'"[^"]*"', "", text[:20_000].strip().partition("\n")[0])
    return max(_DELIMITERS, key=head.count)


def read_json(body: bytes, kind: Kind) -> Parsed:
    """JSON as one line for each value: the names and places that lead to it, and what it is.

    What stands at the outermost level, an object's field or a list's element, is a paragraph. A `.json` that is none,
    because there are comments in it, is read as plain text.

    Raises:
        InvalidInput: it is no text, too long, or nested too deep; or a line of JSON Lines is no JSON.
    """
    text = decoded(body, kind.charset)
    writer = Writer()
    if kind.media_type == JSONL:
        for number, line in enumerate(_each_line(text), 1):
            if line.strip():
                try:
                    _write(_value(line), writer)
                except ValueError as error:
                    raise InvalidInput(f"line {number} of the document is no JSON") from error
    else:
        try:
            value = _value(text)
        except ValueError:
            return Parsed(text, "", "text/plain")
        if isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
            for each in value:
                _write(each, writer)
        else:
            _write(value, writer)
    return writer.finished(kind.media_type)


def _value(text: str) -> Any:
    try:
        # numbers as they are written, of whatever length
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except RecursionError as error:
        raise InvalidInput(f"the JSON has more than {_DEEPEST} objects and lists inside each other") from error


def _write(value: Any, writer: Writer) -> None:
    writer.raw(sound("\n".join(_lines(value))))


def _lines(value: Any) -> Iterator[str]:
    todo: list[tuple[str, int, Any]] = [("", 0, value)]
    while todo:
        path, depth, each = todo.pop()
        if depth > _DEEPEST:
            raise InvalidInput(f"the JSON has more than {_DEEPEST} objects and lists inside each other")
        if isinstance(each, dict):
            dot = f"{path}." if path else ""
            todo.extend((f"{dot}{collapsed(str(key))}", depth + 1, inner) for key, inner in reversed(each.items()))
        elif isinstance(each, list):
            plain = not any(isinstance(inner, dict | list) for inner in each)
            if plain and each:
                yield _line(path, ", ".join(map(_word, each)))
            else:
                todo.extend((path, depth + 1, inner) for inner in reversed(each))
        elif each is not None and each != "":
            yield _line(path, _word(each))


def _line(path: str, text: str) -> str:
    return f"{path}: {text}" if path else text


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
