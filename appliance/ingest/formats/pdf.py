"""PDF documents, read by PDFium."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import pypdfium2 as pdfium
from pypdfium2 import raw

from appliance.errors import InvalidInput
from appliance.ingest.formats.detect import PDF
from appliance.ingest.formats.document import MAX_PAGES, Parsed, Writer, about, collapsed, sound

_LARGER: Final = 1.18
"""How many times as large as the body's a heading's letters are."""

_LONGEST_HEADING: Final = 150
_MOST_HEADINGS: Final = 0.2
"""Share of lines above which large letters are no sign of a heading."""

_LEVELS: Final = 3
"""Levels of headings that are told by the size of their letters."""

_GAP: Final = 1.6
"""Lines this many times as far apart as usual are of two paragraphs."""

_MOST_BOOKMARKS: Final = 20_000
_LETTER: Final = re.compile(r"[^\W\d_]")
_HYPHEN: Final = "\ufffe"
"""What PDFium writes for a hyphen that parts a word at the end of a line."""


class _Line(NamedTuple):
    """A line: its text, the height of its letters and the distance to the line before, in points; 0 if not known."""

    text: str
    size: float
    gap: float


def read_pdf(body: bytes) -> Parsed:
    """The text of a PDF document, page by page, in the order of its content.

    Headings are the entries of its outline, where it has one, else lines in larger letters.

    Raises:
        InvalidInput: it is damaged, needs a password, or has too many pages.
    """
    document = _opened(body)
    count = len(document)
    if count > MAX_PAGES:
        raise InvalidInput(f"the document has {count} pages, more than {MAX_PAGES}: split it")
    told = document.get_metadata_dict()
    outline = _outline(document)
    pages = [_lines(document, number) for number in range(count)]
    sizes = {} if outline else _headings(pages)
    writer = Writer()
    for number, lines in enumerate(pages):
        writer.page(number + 1)
        _write(writer, lines, outline.get(number, []), sizes)
    if not outline and not sizes:
        writer.first_heading = ""
    metadata = about(author=told.get("Author", ""), created=told.get("CreationDate", ""), language=_language(body))
    return writer.finished(PDF, title=told.get("Title", ""), metadata=metadata)


def _opened(body: bytes) -> Any:
    try:
        return pdfium.PdfDocument(body)
    except pdfium.PdfiumError as error:
        if getattr(error, "err_code", None) == raw.FPDF_ERR_PASSWORD or "assword" in str(error):
            raise InvalidInput("the document is encrypted: save it without a password") from error
        raise InvalidInput("the document is a PDF document that cannot be read: it is damaged or incomplete") from error


def _outline(document: Any) -> dict[int, list[tuple[str, int]]]:
    """Bookmarks by page, counted from 0: title and level."""
    found: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for count, bookmark in enumerate(document.get_toc(max_depth=6)):
        if count == _MOST_BOOKMARKS:
            break
        target = bookmark.get_dest()
        page = target.get_index() if target else None
        if page is not None and (title := collapsed(sound(bookmark.get_title()))):
            found[page].append((title[:_LONGEST_HEADING], min(bookmark.level + 1, 6)))
    return dict(found)


def _lines(document: Any, number: int) -> list[_Line]:
    try:
        page = document[number]
        text = page.get_textpage()
    except pdfium.PdfiumError:  # a page that is damaged does not take the others with it
        return []
    try:
        return list(_measured(text))
    finally:
        text.close()
        page.close()


def _measured(text: Any) -> Iterator[_Line]:
    place = 0
    before = 0.0
    for line in text.get_text_range().split("\r\n"):
        lead = len(line) - len(line.lstrip())
        size = gap = 0.0
        if words := line.strip():
            try:
                _, bottom, _, top = text.get_charbox(place + lead, loose=True)
            except pdfium.PdfiumError:
                bottom = top = 0.0
            size = round(abs(top - bottom), 1)
            gap = abs(before - bottom) if before and bottom else 0.0
            before = bottom
            yield _Line(words, size, gap)
        place += len(line) + 2


def _headings(pages: list[list[_Line]]) -> dict[float, int]:
    """Levels by the size of letters: those larger than the body's, the largest first."""
    weights: Counter[float] = Counter()
    for line in (line for page in pages for line in page if line.size):
        weights[line.size] += len(line.text)
    if not weights:
        return {}
    body = max(weights, key=lambda size: weights[size])
    lines = [line for page in pages for line in page]
    large = [line for line in lines if line.size >= _LARGER * body and _may_head(line.text)]
    if len(large) > _MOST_HEADINGS * len(lines):
        return {}
    ranked = sorted({line.size for line in large}, reverse=True)
    return {size: min(rank + 1, _LEVELS) for rank, size in enumerate(ranked)}


def _may_head(text: str) -> bool:
    return len(text) <= _LONGEST_HEADING and _LETTER.search(text) is not None


def _write(writer: Writer, lines: list[_Line], outline: list[tuple[str, int]], sizes: dict[float, int]) -> None:  # noqa: C901
    """One pass over the lines of a page: headings, and paragraphs between them."""
    places = _places(lines, outline)
    for level, title in places.pop(-1, ()):  # its words are not on the page
        writer.heading(title, level=level)
    usual = _usual(lines)
    block: list[str] = []

    def flush() -> None:
        if block:
            writer.lines(_joined(block))
            block.clear()

    heading, height = "", 0.0
    for number, line in enumerate(lines):
        level = sizes.get(line.size, 0) if _may_head(line.text) else 0
        if heading and (not level or line.size != height or line.gap > 2 * height):
            writer.heading(heading, level=sizes[height])
            heading = ""
        if level:
            flush()
            heading, height = f"{heading} {line.text}".strip(), line.size  # a heading may take two lines
            continue
        if number in places:
            flush()
            for depth, title in places[number]:
                writer.heading(title, level=depth)
            continue
        if usual and line.gap > _GAP * usual:
            flush()
        block.append(line.text)
    if heading:
        writer.heading(heading, level=sizes[height])
    flush()


def _places(lines: list[_Line], outline: list[tuple[str, int]]) -> dict[int, list[tuple[int, str]]]:
    """Which line each title stands on: (level, title) by line; -1 for those that are nowhere."""
    found: dict[int, list[tuple[int, str]]] = defaultdict(list)
    if not outline:
        return found
    where: dict[str, int] = {}
    for number, line in reversed(list(enumerate(lines))):
        where[_key(line.text)] = number
    for title, level in outline:
        found[where.get(_key(title), -1)].append((level, title))
    return found


def _key(text: str) -> str:
    """What a title and the line it stands on have in common: its letters, without the number in front."""
    return "".join(re.findall(r"\w", text.casefold())).lstrip("0123456789")


def _usual(lines: list[_Line]) -> float:
    """The distance of most lines; of raised and lowered ones it is less than half of their height."""
    gaps = sorted(line.gap for line in lines if line.gap > line.size / 2)
    return gaps[len(gaps) // 4] if gaps else 0.0


def _joined(lines: list[str]) -> str:
    """Lines as they stand, but a word that is parted at the end of one is made whole."""
    text = sound("\n".join(lines))
    text = re.sub(_HYPHEN + r"\n?", "", text)
    return re.sub(r"[^\S\n]+", " ", text)


def _language(body: bytes) -> str:
    """The language in the catalog, where it is not packed."""
    found = re.search(rb"/Lang\s*\(([A-Za-z-]{2,20})\)", body)
    return found[1].decode("ascii") if found else ""
