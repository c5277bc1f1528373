"""What is read from a document, and how its text is put together."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, TypeAlias

from appliance.errors import InvalidInput
from appliance.ingest.formats.links import Links

JSON: TypeAlias = str | int | float | bool | list["JSON"] | dict[str, "JSON"] | None

MAX_TEXT: Final = 64 * 2**20
"""Characters that are read from one document at most."""

MAX_PAGES: Final = 20_000
"""Pages, slides or sheets of one document at most."""

LONGEST_TITLE: Final = 300
"""Characters of a title that is read from a document."""

_LONGEST_ABOUT: Final = 500
"""Characters of what a document says of its author, or of its language."""

_MARKDOWN: Final = frozenset({"text/plain", "application/json", "application/x-ndjson", "text/xml"})
"""Media types whose lines mean nothing to a reader of Markdown; source code, `text/x-…`, is one more."""

_SPECIAL: Final = re.compile(r"^([ ]{0,3})(?=\#{1,6}[ \t]|`{3,}|~{3,}|(?:=+|-{2,})[ \t]*$)", re.MULTILINE)
"""Starts of lines that Markdown would take for a heading, a fence or a rule."""

_BLANK: Final = re.compile(r"[^\S\n]+")
_PDF_DATE: Final = re.compile(r"D?:?(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?(?:(Z)|([+-]\d\d)'?(\d\d)?'?)?")


@dataclass(frozen=True, slots=True)
class Parsed:
    r"""The text of a document; every offset the appliance gives counts its characters.

    Attributes:
        text: with `\n` as its only line end, and neither a byte order mark, nor NUL, nor lone surrogates. Of formats
            with a structure, the lines that Markdown would have: headings with `#`, lists, tables, fenced code.
        title: what the document calls itself; empty for plain text.
        media_type: what the document is, without parameters.
        pages: where pages, slides or sheets begin: (offset in the text, number), both ascending, numbers from 1. A page
            without text begins where the next one does. Empty where the format has none.
        metadata: what the document says of itself, as far as it does: `author`, `created_at` (ISO 8601), `language`, or
            whatever front matter has; and `note`, where its name or declared type is that of another format.
        links: what the text leads to, and where: (offset in the text, address or path), offsets ascending.
    """

    text: str
    title: str
    media_type: str
    pages: tuple[tuple[int, int], ...] = ()
    metadata: Mapping[str, JSON] = field(default_factory=lambda: MappingProxyType({}))
    links: Links = ()

    @property
    def structured(self) -> bool:
        """Whether the lines of the text are to be read as Markdown."""
        return self.media_type not in _MARKDOWN and not self.media_type.startswith("text/x-")


def collapsed(text: str) -> str:
    """The text on one line, with single spaces."""
    return " ".join(text.split())


def sound(text: str) -> str:
    r"""The text without lone surrogates and NUL, which become U+FFFD, and with `\n` as its only line end."""
    if not text.isascii():
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\x00", "\ufffd").replace("\r\n", "\n").replace("\r", "\n")


def about(*, author: str = "", created: str = "", language: str = "") -> dict[str, JSON]:
    """Metadata of what a document says of itself; what it does not say, or says unreadably, is left out."""
    found: dict[str, JSON] = {}
    if name := collapsed(sound(author))[:_LONGEST_ABOUT]:
        found["author"] = name
    if moment := _moment(created.strip()):
        found["created_at"] = moment
    if re.fullmatch(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8}){0,4}", tongue := language.strip()):
        found["language"] = tongue.replace("_", "-")
    return found


def _moment(written: str) -> str:
    """A date of PDF or ISO 8601 as ISO 8601; nothing if it is neither."""
    try:
        return datetime.fromisoformat(written).isoformat()
    except ValueError:
        pass
    found = _PDF_DATE.fullmatch(written)
    if found is None:
        return ""
    year, month, day, hour, minute, second, utc, east, minutes = found.groups()
    try:
        local = datetime(  # noqa: DTZ001  # many documents do not tell their zone
            int(year), int(month or 1), int(day or 1), int(hour or 0), int(minute or 0), int(second or 0)
        )
        if utc:
            return local.replace(tzinfo=UTC).isoformat()
        return datetime.fromisoformat(
            f"{local.isoformat()}{east}:{minutes or '00'}" if east else str(local)
        ).isoformat()
    except ValueError:
        return ""


class Writer:
    """Puts a text together from blocks, as Markdown has them.

    Raises:
        InvalidInput: from every method that adds text: it becomes more than `MAX_TEXT`.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0
        self._sort = ""
        self._pages: list[tuple[int, int]] = []
        self._coming: list[int] = []
        self._columns = 0
        self.first_heading = ""
        """Text of the first heading, without its `#`."""

    def page(self, number: int) -> None:
        """What is added from here on is on this page.

        Raises:
            InvalidInput: more than `MAX_PAGES`.
        """
        if number > MAX_PAGES:
            raise InvalidInput(f"the document has more than {MAX_PAGES} pages: split it")
        self._coming.append(number)

    def heading(self, text: str, *, level: int) -> None:
        """A heading of level 1 to 6; nothing if it is blank."""
        if name := collapsed(sound(text)):
            self.first_heading = self.first_heading or name
            self._add(f"{'#' * max(1, min(level, 6))} {name}", "")

    def paragraph(self, text: str) -> None:
        """Lines of text; spaces around and doubled ones are left out, and so are blank lines."""
        lines = (line for each in sound(text).split("\n") if (line := _BLANK.sub(" ", each).strip()))
        self.lines("\n".join(lines))

    def lines(self, text: str) -> None:
        """Lines of text as they are, but for what Markdown would take for a heading, a fence or a rule."""
        if text.strip():
            self._add(_SPECIAL.sub(r"\1\\", text), "")

    def item(self, text: str, *, depth: int = 0, number: int | None = None) -> None:
        """An item of a list, `depth` lists inside others."""
        if line := collapsed(sound(text)):
            self._add(f"{'  ' * min(depth, 7)}{'-' if number is None else f'{number}.'} {line}", "item")

    def row(self, cells: Sequence[str], *, first: bool) -> None:
        """A row of a table; the first one is its head. One without any text is left out."""
        texts = [collapsed(sound(cell)).replace("|", "\\|") for cell in cells]
        if first:
            self._columns = len(texts)
            self._sort = ""  # a table after another one stands apart
        if any(texts):
            line = f"| {' | '.join(texts)} |"
            self._add(f"{line}\n|{' --- |' * len(texts)}" if first else line, "row")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """A whole table, without its blank rows and last blank columns; of a single cell, a paragraph."""
        full = [row for row in rows if any(cell.strip() for cell in row)]
        width = max((place + 1 for row in full for place, cell in enumerate(row) if cell.strip()), default=0)
        if width == 1:
            for row in full:
                self.paragraph(row[0])
            return
        for number, row in enumerate(full):
            self.row([*row, *[""] * (width - len(row))][:width], first=not number)

    def raw(self, text: str) -> None:
        """Blocks that are written already."""
        if text := text.strip("\n"):
            self._add(text, "")

    def markdown(self, text: str) -> None:
        """Markdown as somebody wrote it."""
        self.raw(sound(text))

    def code(self, text: str, *, language: str = "") -> None:
        """Lines between fences."""
        if (inside := sound(text).strip("\n").rstrip()).strip():
            longest = max((len(run) for run in re.findall(r"`{3,}", inside)), default=2)
            fence = "`" * (longest + 1)
            self._add(f"{fence}{language}\n{inside}\n{fence}", "")

    def finished(self, media_type: str, *, title: str = "", metadata: Mapping[str, JSON] | None = None) -> Parsed:
        """The document. Its title is the first heading, where it does not say another."""
        self._pages.extend((self._size, number) for number in self._coming)
        self._coming.clear()
        name = collapsed(sound(title)) or self.first_heading
        return Parsed("".join(self._parts), name[:LONGEST_TITLE], media_type, tuple(self._pages), metadata or {})

    def _add(self, text: str, sort: str) -> None:
        gap = "" if not self._parts else "\n" if sort and sort == self._sort else "\n\n"
        start = self._size + len(gap)
        self._size = start + len(text)
        if self._size > MAX_TEXT:
            raise InvalidInput(f"the document has more than {MAX_TEXT // 2**20} MiB of text: split it")
        self._parts += [gap, text] if gap else [text]
        self._sort = sort
        self._pages.extend((start, number) for number in self._coming)
        self._coming.clear()
