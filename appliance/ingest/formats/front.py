"""Front matter: what a Markdown file says of itself, as YAML between two lines of `---` at its head."""

import math
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple

from appliance.ingest.formats.document import JSON, about, sound

MAX_FIELDS: Final = 64
MAX_VALUES: Final = 100
"""Fields, and values of one that is a list."""

MAX_SIZE: Final = 4096
"""Characters of all names and values: each passage of the document is kept with them."""

LONGEST: Final = 500
"""Characters of a value."""

_FRONT: Final = re.compile(
    r"---[ \t]*\n(?P<yaml>(?:(?!(?:---|\.\.\.)[ \t]*$)[^\n]*\n){0,1000})(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.MULTILINE
)
_LARGEST: Final = 16_384
"""Characters of front matter."""

_MOST_EVENTS: Final = 3000
"""What YAML's parser tells of it: a start, an end, a scalar."""

_DEEPEST: Final = 20
"""Lists and mappings inside each other: the parser's time grows with the square of their number."""

_FIELD: Final = re.compile(r"\s*(?:#[^\n]*\n\s*)*[\"']?\w[^\n:]{0,100}:(?:\s|$)")
_TITLE: Final = re.compile(r"^title:[ \t]*(\S.*)$", re.MULTILINE)
_NAME: Final = re.compile(r'[^"\\\x00-\x1f\x7f-\x9f]{1,64}')
_WHOLE: Final = re.compile(r"[-+]?(?:0|[1-9]\d{0,17})")
_REAL: Final = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d{1,3})?")
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d\S*(?: ?[-+]\d\d(?::?\d\d)?)?")
_WORDS: Final[dict[str, JSON]] = {"": None, "~": None, "null": None, "true": True, "false": False}


class Front(NamedTuple):
    """What stands at the head of a text.

    Attributes:
        end: where the text behind it begins.
        title: empty if it says none.
        metadata: values and lists of values, by name.
        note: why it could not be read; then it is part of the text, which begins at 0.
    """

    end: int
    title: str
    metadata: dict[str, JSON]
    note: str = ""


_NO_FRONT: Final = Front(0, "", {})


def read_front(text: str) -> Front:
    """Read a text's front matter. Whatever stands there, it is data: no objects are made, and aliases are not followed.

    Numbers, `true` and `false` are read as YAML 1.2 has them, so that `no` and `12:30` are texts; dates with a time
    become ISO 8601. Only values and lists of values are told, and no more of them than the bounds allow.
    """
    if not text.startswith("---"):
        return _NO_FRONT
    found = _FRONT.match(text[: _LARGEST + 8])
    if found is None:
        return _NO_FRONT
    from yaml import YAMLError

    try:
        fields = _fields(found["yaml"])
    except (YAMLError, ValueError, OverflowError):  # the latter two of escapes that stand for no character
        if not _FIELD.match(found["yaml"]):
            return _NO_FRONT
        line = _TITLE.search(found["yaml"])
        note = "its front matter is no YAML that can be read, and is part of its text"
        return Front(0, line[1].strip().strip("\"'").strip() if line else "", {}, note)
    if fields is None:
        return _NO_FRONT
    title = fields.pop("title", "")
    moments = (fields.get(name) for name in ("created_at", "created", "date"))
    created = next((told for each in moments if each is not None and (told := about(created=str(each)))), {})
    language = about(language=str(fields.get("language", fields.get("lang", ""))))
    return Front(found.end(), "" if isinstance(title, list) else str(title), {**language, **fields, **created})


def _fields(source: str) -> dict[str, JSON] | None:
    """The fields of a mapping; None where there is something else. Raises YAMLError; ValueError for too much of it."""
    import yaml

    events = _bounded(yaml.parse(source, Loader=yaml.SafeLoader))
    told: dict[str, JSON] = {}
    room = MAX_SIZE
    next(events)  # of the stream
    if isinstance(next(events), yaml.StreamEndEvent):
        return told  # comments, or nothing
    if not isinstance(next(events), yaml.MappingStartEvent):
        return None
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        name = sound(event.value).strip() if isinstance(event, yaml.ScalarEvent) else ""
        _skip(event, events)
        value = _value(next(events), events)
        size = len(name) + len(str(value))
        if value is None or value == [] or not _NAME.fullmatch(name) or size > room:
            continue
        if len(told) < MAX_FIELDS or name in told:
            told[name] = value
            room -= size
    if any(isinstance(event, yaml.DocumentStartEvent) for event in events):
        raise ValueError
    return told


def _bounded(events: Iterator[Any]) -> Iterator[Any]:
    depth = 0
    for number, event in enumerate(events):
        depth += _step(event)
        if number == _MOST_EVENTS or depth > _DEEPEST:
            raise ValueError
        yield event


def _step(event: Any) -> int:
    """How much deeper it is behind this."""
    import yaml

    return isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)


def _skip(event: Any, events: Iterator[Any]) -> None:
    """Pass over the rest of what begins with this."""
    depth = _step(event)
    while depth:
        depth += _step(next(events))


def _value(event: Any, events: Iterator[Any]) -> JSON:
    """A value or a list of values; None for anything else."""
    import yaml

    if not isinstance(event, yaml.SequenceStartEvent):
        _skip(event, events)
        return _scalar(event)
    values: list[JSON] = []
    while not isinstance(event := next(events), yaml.SequenceEndEvent):
        _skip(event, events)
        value = _scalar(event)
        if value is not None and len(values) < MAX_VALUES:
            values.append(value)
    return values


def _scalar(event: Any) -> JSON:
    import yaml

    if not isinstance(event, yaml.ScalarEvent):
        return None
    text = str(event.value)
    if event.style is None and event.tag is None:
        if text.lower() in _WORDS:
            return _WORDS[text.lower()]
        if _WHOLE.fullmatch(text):
            return int(text)
        if _REAL.fullmatch(text) and math.isfinite(number := float(text)):
            return number
        if _MOMENT.fullmatch(text):
            return _iso(text)
    return sound(text).strip()[:LONGEST].rstrip() or None


def _iso(written: str) -> str:
    day, _, hour = written.partition(written[10])
    try:
        return datetime.fromisoformat(f"{day}T{hour.replace(' ', '')}").isoformat()
    except ValueError:
        return written
