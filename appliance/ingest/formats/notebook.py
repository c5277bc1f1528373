"""Jupyter notebooks."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from appliance.ingest.borders import first_heading
from appliance.ingest.formats.charset import decoded
from appliance.ingest.formats.data import read_json
from appliance.ingest.formats.detect import JSONS, NOTEBOOK, Kind
from appliance.ingest.formats.document import Parsed, Writer, about

MAX_OUTPUT: Final = 10_000
"""Characters of what one cell has printed."""

_DATA: Final = re.compile(r"data:[\w/+.-]{1,100};base64,[A-Za-z0-9+/=\s]+")
"""A picture within a text."""

_COLOUR: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_OBJECT: Final = re.compile(r"<[^\n]*>")
"""What Python prints of something that it cannot print, such as a picture."""

_NAME: Final = re.compile(r"[\w+#.-]{1,30}")


def read_notebook(body: bytes, kind: Kind) -> Parsed:
    """A notebook: its text as Markdown, its code and what that printed as fenced blocks; no pictures.

    What is no notebook is read as JSON.

    Raises:
        InvalidInput: it is no text, or too long.
    """
    text = decoded(body, kind.charset)
    try:
        notebook = json.loads(text)
    except ValueError:
        notebook = None
    cells = _cells(notebook)
    if cells is None:
        del text, notebook
        return read_json(body, Kind(JSONS, kind.charset))
    about_it = _mapping(notebook.get("metadata"))
    language = _language(about_it)
    writer = Writer()
    title = _text(about_it.get("title"))
    for cell in cells:
        source = _text(cell.get("source", cell.get("input")))  # `input` before version 4 of the format
        match cell.get("cell_type"):
            case "code":
                writer.code(source, language=language)
                writer.code(_printed(cell.get("outputs")))
            case "heading":  # same
                level = cell.get("level")
                writer.heading(source, level=level if isinstance(level, int) else 1)
            case "markdown":
                source = _DATA.sub("", source)
                title = title or first_heading(source)
                writer.markdown(source)
            case _:
                writer.lines(source)
    people = (_text(_mapping(each).get("name")) for each in _list(about_it.get("authors")))
    told = about(author=", ".join(filter(None, people)))
    return writer.finished(NOTEBOOK, title=title, metadata=told)


def _cells(notebook: object) -> list[Mapping[str, Any]] | None:
    """The cells; None where it is no notebook."""
    if not isinstance(notebook, dict):
        return None
    sheets = [notebook, *map(_mapping, _list(notebook.get("worksheets")))]  # in those before version 4
    found = [cells for sheet in sheets if isinstance(cells := sheet.get("cells"), list)]
    return [_mapping(cell) for cells in found for cell in cells] if found else None


def _language(metadata: Mapping[str, Any]) -> str:
    info, kernel = _mapping(metadata.get("language_info")), _mapping(metadata.get("kernelspec"))
    name = _text(info.get("name")) or _text(kernel.get("language"))
    return name if _NAME.fullmatch(name) else ""


def _printed(outputs: object) -> str:
    """What a cell has printed, as text."""
    parts: list[str] = []
    left = MAX_OUTPUT
    for part in _outputs(outputs):
        plain = _seen(_COLOUR.sub("", part[: 4 * MAX_OUTPUT])).strip("\n")
        if plain.strip() and left > 0:
            parts.append(plain[:left])
            left -= len(plain)
    return "\n".join(parts)


def _seen(text: str) -> str:
    """What a terminal shows in the end of lines that were written over, as a progress bar does."""
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def _outputs(outputs: object) -> Iterator[str]:
    for output in map(_mapping, _list(outputs)):
        match output.get("output_type"):
            case "stream":
                yield _text(output.get("text"))
            case "error" | "pyerr":
                yield f"{_text(output.get('ename'))}: {_text(output.get('evalue'))}"
            case _:
                data = _mapping(output.get("data", output))
                plain = _text(data.get("text/plain", data.get("text")))
                yield _text(data.get("text/markdown")) or ("" if _OBJECT.fullmatch(plain.strip()) else plain)


def _text(value: object) -> str:
    """A text, or the lines of one."""
    lines = value if isinstance(value, list) else [value]
    return "".join(line for line in lines if isinstance(line, str))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
