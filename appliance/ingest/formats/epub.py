"""EPUB books."""

import re
from collections.abc import Mapping
from typing import Final

from appliance.errors import InvalidInput
from appliance.ingest.formats.archive import Archive, resolved
from appliance.ingest.formats.charset import decoded
from appliance.ingest.formats.detect import EPUB
from appliance.ingest.formats.document import Parsed, Writer, collapsed
from appliance.ingest.html import page_of_html

_PAGES: Final = frozenset({"application/xhtml+xml", "text/html", "application/xml"})
_LINK: Final = re.compile(
    r"""<a\b[^>]{0,500}?\bhref\s*=\s*["']([^"']{1,500})["'][^>]{0,500}>(.{0,1000}?)</a\s*>""", re.DOTALL | re.IGNORECASE
)
_TAG: Final = re.compile(r"<[^>]*>")


def read_epub(body: bytes) -> Parsed:
    """The text of a book: its chapters in their order, each under its heading or its name in the table of contents.

    Raises:
        InvalidInput: it is damaged, protected, or too large; or a chapter is built to exhaust the parser.
    """
    archive = Archive(body, "an EPUB book")
    package = ""

    def rooted(name: str, given: Mapping[str, str]) -> None:
        nonlocal package
        if name == "rootfile" and not package:
            package = given.get("full-path", "")

    archive.xml("META-INF/container.xml", rooted)
    book = _Book(package)
    archive.xml(package, book.start)
    chapters = [book.parts[each] for each in book.spine if each in book.parts]
    names = _contents(archive, book)
    _refuse_protected(archive, {part for part, kind in chapters if kind in _PAGES})
    writer = Writer()
    for part, kind in chapters:
        if kind not in _PAGES or part not in archive or part == book.contents:
            continue
        page = page_of_html(decoded(archive.read(part), markup=True))
        if not page.text.strip():
            continue
        if part in names and not page.text.startswith("#"):
            writer.heading(names[part], level=1)
        writer.raw(page.text)
    title, told = archive.properties(package)
    return writer.finished(EPUB, title=title, metadata=told)


class _Book:
    """What the package's file tells: parts by id, the order of reading, and where the table of contents is."""

    def __init__(self, package: str) -> None:
        self.parts: dict[str, tuple[str, str]] = {}
        self.spine: list[str] = []
        self.contents = ""
        self.ncx = ""
        self._package = package

    def start(self, name: str, given: Mapping[str, str]) -> None:
        if name == "item":
            part, kind = resolved(self._package, given.get("href", "")), given.get("media-type", "")
            self.parts[given.get("id", "")] = part, kind
            if "nav" in given.get("properties", "").split():
                self.contents = part
            elif kind == "application/x-dtbncx+xml":
                self.ncx = part
        elif name == "itemref":
            self.spine.append(given.get("idref", ""))


def _contents(archive: Archive, book: _Book) -> dict[str, str]:
    """The name of each part in the table of contents; the first one counts."""
    found: dict[str, str] = {}
    if book.contents in archive:
        page = decoded(archive.read(book.contents, limit=4 * 2**20), markup=True)
        for href, label in _LINK.findall(page):
            found.setdefault(resolved(book.contents, href), collapsed(_TAG.sub("", label)))
    elif book.ncx in archive:
        words: list[str] = []
        reading = False

        def start(name: str, given: Mapping[str, str]) -> None:
            nonlocal reading
            if name == "navLabel":
                words.clear()
            reading = name == "text"
            if name == "content":
                found.setdefault(resolved(book.ncx, given.get("src", "")), collapsed("".join(words)))

        def text(data: str) -> None:
            if reading and len(words) < _LONGEST:
                words.append(data)

        archive.xml(book.ncx, start, text=text)
    return found


_LONGEST: Final = 100
"""Pieces of a name."""


def _refuse_protected(archive: Archive, chapters: set[str]) -> None:
    """Fonts may be obscured without harm; chapters that are encrypted cannot be read."""
    listed = "META-INF/encryption.xml"

    def start(name: str, given: Mapping[str, str]) -> None:
        if name == "CipherReference" and resolved("", given.get("URI", "")) in chapters:
            raise InvalidInput("the book is protected against copying (DRM), and cannot be read")

    if listed in archive:
        archive.xml(listed, start)
