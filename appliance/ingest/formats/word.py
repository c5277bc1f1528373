"""Word documents (.docx)."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from appliance.ingest.formats.archive import Archive
from appliance.ingest.formats.detect import DOCX
from appliance.ingest.formats.document import Parsed, Writer, about

_HEADING: Final = re.compile(r"(?:heading|überschrift|titre|título|titolo|kop) ?([1-9])", re.IGNORECASE)
_SKIPPED: Final = frozenset({"del", "moveFrom", "Fallback", "instrText", "delText", "rPrChange", "pPrChange"})
"""What was deleted, what is there twice, and what computes a field."""

_BODY: Final = 9
"""Outline level of text that is no heading."""

_RUNAWAY: Final = 50
"""Styles that are based on each other, at most."""


def read_docx(body: bytes) -> Parsed:
    """The text of a Word document: headings by style and outline level, lists, tables, notes at the end.

    Raises:
        InvalidInput: it is damaged, encrypted, or too large.
    """
    archive = Archive(body, "a Word document")
    main = "word/document.xml"
    links = dict(archive.linked(main).values())
    styles = _Styles()
    if (part := links.get("styles", "word/styles.xml")) in archive:
        archive.xml(part, styles.start, styles.end)
    lists = _Lists()
    if (part := links.get("numbering", "word/numbering.xml")) in archive:
        archive.xml(part, lists.start, lists.end)
    writer = Writer()
    for part in (main, links.get("footnotes", ""), links.get("endnotes", "")):
        if part == main or part in archive:
            reader = _Reader(writer, styles, lists)
            archive.xml(part, reader.start, reader.end, reader.text)
    title, told = archive.properties()
    return writer.finished(DOCX, title=title, metadata={**about(language=styles.language), **told})


class _Styles:
    """Outline levels of paragraph styles, by id."""

    def __init__(self) -> None:
        self.levels: dict[str, int] = {}
        self.language = ""
        self._based: dict[str, str] = {}
        self._id = ""

    def start(self, name: str, given: Mapping[str, str]) -> None:
        value = given.get("val", "")
        match name:
            case "style":
                self._id = given.get("styleId", "")
            case "name" if self._id:
                if found := _HEADING.fullmatch(value.strip()):
                    self.levels.setdefault(self._id, int(found[1]) - 1)
                elif value.strip().lower() == "title":
                    self.levels.setdefault(self._id, 0)
            case "basedOn":
                self._based[self._id] = value
            case "outlineLvl" if value.isdecimal():
                self.levels[self._id] = int(value[:2])
            case "lang":
                self.language = self.language or value

    def end(self, name: str) -> None:
        if name == "style":
            self._id = ""

    def level(self, style: str) -> int:
        for _ in range(_RUNAWAY):
            if style in self.levels:
                return self.levels[style]
            style = self._based.get(style, "")
        return _BODY


class _Lists:
    """Which lists are numbered: by list and level."""

    def __init__(self) -> None:
        self._formats: dict[str, dict[str, str]] = {}
        self._abstract: dict[str, str] = {}
        self._at = self._level = self._num = ""

    def start(self, name: str, given: Mapping[str, str]) -> None:
        match name:
            case "abstractNum":
                self._at = given.get("abstractNumId", "")
            case "lvl":
                self._level = given.get("ilvl", "")
            case "numFmt" if not self._num:
                self._formats.setdefault(self._at, {})[self._level] = given.get("val", "")
            case "num":
                self._num = given.get("numId", "")
            case "abstractNumId":
                self._abstract[self._num] = given.get("val", "")

    def end(self, name: str) -> None:
        if name == "num":
            self._num = ""

    def numbered(self, num: str, level: int) -> bool:
        form = self._formats.get(self._abstract.get(num, ""), {}).get(str(level), "bullet")
        return form not in {"bullet", "none"}


@dataclass(slots=True)
class _Paragraph:
    text: list[str] = field(default_factory=list)
    level: int = _BODY
    num: str = ""
    depth: int = 0


class _Reader:
    def __init__(self, writer: Writer, styles: _Styles, lists: _Lists) -> None:
        self._writer = writer
        self._styles = styles
        self._lists = lists
        self._paragraphs: list[_Paragraph] = []
        self._tables: list[list[list[list[str]]]] = []  # rows of cells of paragraphs, of the tables we are inside
        self._skipping = 0
        self._in_text = False
        self._counts: Counter[tuple[str, int]] = Counter()

    def start(self, name: str, given: Mapping[str, str]) -> None:
        if self._skipping or name in _SKIPPED:
            self._skipping += 1
            return
        match name:
            case "p":
                self._paragraphs.append(_Paragraph())
            case "tbl":
                self._tables.append([])
            case "tr" if self._tables:
                self._tables[-1].append([])
            case "tc" if self._tables and self._tables[-1]:
                self._tables[-1][-1].append([])
            case _ if self._paragraphs:
                self._inside(name, given)

    def _inside(self, name: str, given: Mapping[str, str]) -> None:
        paragraph = self._paragraphs[-1]
        value = given.get("val", "")
        match name:
            case "t":
                self._in_text = True
            case "tab" if not given:  # those with attributes are stops, not tabs
                paragraph.text.append("\t")
            case "br" | "cr":
                paragraph.text.append("\n")
            case "noBreakHyphen":
                paragraph.text.append("-")
            case "pStyle":
                paragraph.level = min(paragraph.level, self._styles.level(value))
            case "outlineLvl" if value.isdecimal():
                paragraph.level = int(value[:2])
            case "ilvl" if value.isdecimal():
                paragraph.depth = min(int(value[:2]), _BODY)
            case "numId":
                paragraph.num = "" if value == "0" else value

    def text(self, data: str) -> None:
        if self._in_text and not self._skipping:
            self._paragraphs[-1].text.append(data)

    def end(self, name: str) -> None:
        if self._skipping:
            self._skipping -= 1
            return
        match name:
            case "t":
                self._in_text = False
            case "p" if self._paragraphs:
                self._end_paragraph(self._paragraphs.pop())
            case "tbl" if self._tables:
                self._end_table(self._tables.pop())

    def _cell(self) -> list[str] | None:
        """The cell that we are in, if any."""
        return self._tables[-1][-1][-1] if self._tables and self._tables[-1] and self._tables[-1][-1] else None

    def _end_paragraph(self, paragraph: _Paragraph) -> None:
        text = "".join(paragraph.text)
        if not text.strip():
            return
        cell = self._cell()
        if cell is not None:
            cell.append(text)
        elif paragraph.level < _BODY:
            self._writer.heading(text, level=paragraph.level + 1)
        elif paragraph.num:
            place = (paragraph.num, paragraph.depth)
            number = None
            if self._lists.numbered(*place):
                self._counts[place] += 1
                number = self._counts[place]
            for deeper in [each for each in self._counts if each[0] == paragraph.num and each[1] > paragraph.depth]:
                del self._counts[deeper]
            self._writer.item(text, depth=paragraph.depth, number=number)
        else:
            self._writer.paragraph(text)

    def _end_table(self, rows: list[list[list[str]]]) -> None:
        outer = self._cell()
        if outer is not None:  # a table in a cell is read as the cell's text
            outer.extend(text for row in rows for cell in row for text in cell)
        elif max((len(row) for row in rows), default=0) == 1:  # a frame around text
            for text in (text for row in rows for cell in row for text in cell):
                self._writer.paragraph(text)
        else:
            self._writer.table([[" ".join(cell) for cell in row] for row in rows])
