"""OpenDocument texts, spreadsheets and presentations (.odt, .ods, .odp)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from appliance.errors import InvalidInput
from appliance.ingest.formats.archive import Archive
from appliance.ingest.formats.detect import NAMES, ODP, ODS, Kind
from appliance.ingest.formats.document import Parsed, Writer

_SKIPPED: Final = frozenset({"tracked-changes", "annotation", "note-citation", "forms", "scripts", "event-listeners"})
_MOST_REPEATED: Final = 100
"""Times that a cell or row with content is repeated; blank ones are left out."""

_WIDEST: Final = 1_000
"""Columns of a table that are read."""

_TITLES: Final = frozenset({"Title", "title"})


def read_opendocument(body: bytes, kind: Kind) -> Parsed:
    """The text of a document: headings by outline level, lists, tables, notes; sheets and slides are pages.

    Raises:
        InvalidInput: it is damaged, encrypted, or too large.
    """
    archive = Archive(body, NAMES[kind.media_type])
    manifest = "META-INF/manifest.xml"
    if manifest in archive and b"encryption-data" in archive.read(manifest):
        raise InvalidInput("the document is encrypted: save it without a password")
    writer = Writer()
    reader = _Reader(writer, sheets=kind.media_type == ODS, slides=kind.media_type == ODP)
    archive.xml("content.xml", reader.start, reader.end, reader.text)
    title, told = archive.properties("meta.xml")
    if kind.media_type == ODS:
        writer.first_heading = ""  # a sheet's name is no title
    return writer.finished(kind.media_type, title=title, metadata=told)


@dataclass(slots=True)
class _Block:
    """A paragraph or a heading that is being read."""

    level: int = 0
    text: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Table:
    rows: list[list[str]] = field(default_factory=list)
    repeated: int = 1
    columns: int = 1
    first: bool = True


class _Reader:
    def __init__(self, writer: Writer, *, sheets: bool, slides: bool) -> None:
        self._writer = writer
        self._sheets = sheets
        self._slides = slides
        self._page = 0
        self._blocks: list[_Block] = []
        self._tables: list[_Table] = []
        self._lists: list[bool] = []
        self._skipping = 0
        self._slide_title: list[str] = []
        self._slide: list[tuple[str, int]] = []
        self._in_title = self._in_notes = False
        self._name = ""

    def start(self, name: str, given: Mapping[str, str]) -> None:  # noqa: C901, PLR0912  # a case for each element
        if self._skipping or name in _SKIPPED:
            self._skipping += 1
            return
        match name:
            case "h" | "p":
                self._start_block(name, given)
            case "s" if self._blocks:
                count = given.get("c", "1")
                self._blocks[-1].text.append(" " * min(int(count[:4]) if count.isdecimal() else 1, 100))
            case "tab" if self._blocks:
                self._blocks[-1].text.append("\t")
            case "line-break" if self._blocks:
                self._blocks[-1].text.append("\n")
            case "list":
                self._lists.append(True)
            case "table":
                if self._sheets and not self._tables:
                    self._page += 1
                    self._writer.page(self._page)
                    self._writer.heading(given.get("name", ""), level=2)
                self._tables.append(_Table())
            case "table-row" if self._tables:
                self._tables[-1].rows.append([])
                self._tables[-1].repeated = _count(given.get("number-rows-repeated"))
            case "table-cell" | "covered-table-cell" if self._tables and self._tables[-1].rows:
                self._tables[-1].columns = _count(given.get("number-columns-repeated"))
                self._tables[-1].rows[-1].append("")
            case "page" if self._slides:
                self._page += 1
                self._writer.page(self._page)
                self._name = given.get("name", "")
            case "frame":
                self._in_title = given.get("class") in _TITLES
            case "notes" if self._slides:
                self._in_notes = True

    def _start_block(self, name: str, given: Mapping[str, str]) -> None:
        level = 0
        if name == "h":
            outline = given.get("outline-level", "1")
            level = int(outline[:2]) if outline.isdecimal() else 1
        elif given.get("style-name") in _TITLES:
            level = 1
        self._blocks.append(_Block(level))

    def text(self, data: str) -> None:
        if self._blocks and not self._skipping:
            self._blocks[-1].text.append(data.replace("\n", " "))

    def end(self, name: str) -> None:
        if self._skipping:
            self._skipping -= 1
            return
        match name:
            case "h" | "p" if self._blocks:
                self._end_block(self._blocks.pop())
            case "list" if self._lists:
                self._lists.pop()
            case "table-cell" | "covered-table-cell" if self._tables and self._tables[-1].rows:
                self._end_cell(self._tables[-1])
            case "table-row" if self._tables and self._tables[-1].rows:
                self._end_row(self._tables[-1])
            case "table" if self._tables:
                self._end_table(self._tables.pop())
            case "frame":
                self._in_title = False
            case "notes":
                self._in_notes = False
            case "page" if self._slides:
                self._end_slide()

    def _end_block(self, block: _Block) -> None:
        text = "".join(block.text)
        if not text.strip():
            return
        if self._blocks:  # a note, or a frame, inside a paragraph: it is told where it stands
            self._blocks[-1].text.append(f" ({text.strip()}) ")
        elif self._tables and self._tables[-1].rows and self._tables[-1].rows[-1]:
            row = self._tables[-1].rows[-1]
            row[-1] = f"{row[-1]} {text}".strip()
        elif self._slides:
            if self._in_title:
                self._slide_title.append(text)
            else:
                depth = len(self._lists) - 1
                self._slide.append((f"Notes: {text}", -1) if self._in_notes else (text, depth))
        elif block.level:
            self._writer.heading(text, level=block.level)
        elif self._lists:
            self._writer.item(text, depth=len(self._lists) - 1)
        else:
            self._writer.paragraph(text)

    def _end_slide(self) -> None:
        self._writer.heading(" ".join(self._slide_title) or self._name or f"Slide {self._page}", level=2)
        for text, depth in self._slide:
            if depth < 0:
                self._writer.paragraph(text)
            else:
                self._writer.item(text, depth=depth)
        self._slide_title, self._slide = [], []

    def _end_cell(self, table: _Table) -> None:
        row = table.rows[-1]
        times = table.columns - 1
        # blank cells are repeated to the end of the sheet
        row.extend([row[-1]] * min(times, _MOST_REPEATED if row[-1] else _WIDEST, max(0, _WIDEST - len(row))))

    def _end_row(self, table: _Table) -> None:
        row = table.rows[-1][:_WIDEST]
        while row and not row[-1]:
            row.pop()
        times = min(table.repeated, _MOST_REPEATED) if row else 0
        if self._sheets and len(self._tables) == 1:  # written as it comes: a sheet is long
            table.rows.clear()
            for _ in range(times):
                self._writer.row(row, first=table.first)
                table.first = False
        else:
            table.rows.pop()
            table.rows.extend([row] * times)

    def _end_table(self, table: _Table) -> None:
        if self._tables and self._tables[-1].rows and self._tables[-1].rows[-1]:
            row = self._tables[-1].rows[-1]
            row[-1] = " ".join([row[-1], *(cell for each in table.rows for cell in each)]).strip()
        elif self._slides:
            self._slide.extend((" | ".join(row), -1) for row in table.rows)
        else:
            self._writer.table(table.rows)


def _count(written: str | None) -> int:
    return int(written[:9]) if written and written.isdecimal() else 1
