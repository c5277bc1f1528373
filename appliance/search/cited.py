"""Where a passage can be looked up, as far as its metadata says so."""

from collections.abc import Mapping
from typing import Final

_SOURCES: Final = ("source", "url", "path")
"""Metadata that may say where a document comes from, the most telling first."""


def source(metadata: Mapping[str, object], document: str) -> str:
    """The metadata's `source`, `url` or `path`, or else the document's id."""
    named = (metadata.get(key) for key in _SOURCES)
    return next((each for each in named if isinstance(each, str) and each), document)


def page(metadata: Mapping[str, object]) -> int | str | None:
    """The metadata's `page`, if there is one."""
    found = metadata.get("page")
    return found if isinstance(found, int | str) and not isinstance(found, bool) else None


def place(metadata: Mapping[str, object], document: str, *, title: str = "") -> str:
    """Document, source, page and section in a row; without what is said already by the id or the title."""
    parts = [document]
    if (name := source(metadata, document)) not in {document, document.rpartition("/")[2]}:
        parts.append(name)
    if (first := page(metadata)) is not None:
        last = metadata.get("page_end")
        parts.append(f"page {first}" if last is None else f"pages {first} to {last}")
    section = metadata.get("section")
    if isinstance(section, str) and section not in {"", title}:
        parts.append(section)
    return ", ".join(parts)
