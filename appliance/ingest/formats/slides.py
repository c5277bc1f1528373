"""PowerPoint presentations (.pptx)."""

from collections.abc import Mapping
from typing import Final

from appliance.ingest.formats.archive import Archive
from appliance.ingest.formats.detect import PPTX
from appliance.ingest.formats.document import JSON, Parsed, Writer, collapsed

_TITLES: Final = frozenset({"title", "ctrTitle"})
_LEFT_OUT: Final = frozenset({"dt", "ftr", "sldNum", "hdr", "sldImg"})
"""Kinds of placeholder that say the same on each slide."""

_UNTITLED: Final = frozenset({"powerpoint presentation", "powerpoint-präsentation", "présentation powerpoint"})
"""What PowerPoint calls a presentation that nobody gave a title."""


def read_pptx(body: bytes) -> Parsed:
    """The text of a presentation: each slide is a page under its title, with its lists, tables and notes.

    Raises:
        InvalidInput: it is damaged, encrypted, or too large.
    """
    archive = Archive(body, "a PowerPoint presentation")
    main = "ppt/presentation.xml"
    links = archive.linked(main)
    order: list[str] = []

    def start(name: str, given: Mapping[str, str]) -> None:
        if name == "sldId":  # `id` is a number without a namespace, and `r:id` the link; the link stands last
            order.extend(part for key in given.values() for kind, part in [links.get(key, ("", ""))] if kind == "slide")

    archive.xml(main, start)
    writer = Writer()
    for number, part in enumerate(order, 1):
        writer.page(number)
        if part not in archive:
            continue
        slide = _Shapes()
        archive.xml(part, slide.start, slide.end, slide.text)
        writer.heading(slide.title or f"Slide {number}", level=2)
        slide.write(writer)
        for kind, notes in archive.linked(part).values():
            if kind == "notesSlide" and notes in archive:
                said = _Shapes()
                archive.xml(notes, said.start, said.end, said.text)
                if words := " ".join(text for text in map(collapsed, said.words()) if text):
                    writer.paragraph(f"Notes: {words}")
    title, told = archive.properties()
    if collapsed(title).lower() in _UNTITLED:
        title = ""
    metadata: dict[str, JSON] = dict(told)
    return writer.finished(PPTX, title=title, metadata=metadata)


class _Shapes:
    """What the shapes of a slide say, in their order."""

    def __init__(self) -> None:
        self.title = ""
        self._blocks: list[list[tuple[str, int]] | list[list[str]]] = []
        self._shape: list[tuple[str, int]] = []
        self._kind = ""
        self._listed = False
        self._table: list[list[str]] | None = None
        self._paragraph: list[str] = []
        self._depth = 0
        self._in_text = False

    def start(self, name: str, given: Mapping[str, str]) -> None:
        match name:
            case "sp":
                self._shape, self._kind, self._listed = [], "", False
            case "ph":
                self._kind = given.get("type", "body")
                self._listed = self._kind in {"body", "obj"}
            case "tbl":
                self._table = []
            case "tr" if self._table is not None:
                self._table.append([])
            case "tc" if self._table:
                self._table[-1].append("")
            case "p":
                self._paragraph, self._depth = [], 0
            case "pPr":
                depth = given.get("lvl", "0")
                self._depth = int(depth[:2]) if depth.isdecimal() else 0
            case "t":
                self._in_text = True
            case "br":
                self._paragraph.append("\n")

    def text(self, data: str) -> None:
        if self._in_text:
            self._paragraph.append(data)

    def end(self, name: str) -> None:
        match name:
            case "t":
                self._in_text = False
            case "p":
                self._end_paragraph("".join(self._paragraph))
            case "sp":
                if self._kind in _TITLES and not self.title:
                    self.title = " ".join(text for text, _ in self._shape)
                elif self._kind not in _LEFT_OUT and self._shape:
                    self._blocks.append(self._shape)
                self._shape = []
            case "tbl" if self._table is not None:
                self._blocks.append(self._table)
                self._table = None

    def _end_paragraph(self, text: str) -> None:
        self._paragraph = []
        if not text.strip():
            return
        if self._table is not None:
            if self._table and self._table[-1]:
                self._table[-1][-1] = f"{self._table[-1][-1]} {text}".strip()
        else:
            self._shape.append((text, self._depth if self._listed else -1))

    def words(self) -> list[str]:
        return [str(line[0]) for block in self._blocks for line in block]

    def write(self, writer: Writer) -> None:
        for block in self._blocks:
            table = [line for line in block if isinstance(line, list)]
            writer.table(table)
            for line in block:
                if isinstance(line, tuple):
                    text, depth = line
                    if depth < 0:
                        writer.paragraph(text)
                    else:
                        writer.item(text, depth=depth)
