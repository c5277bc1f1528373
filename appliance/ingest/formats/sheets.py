"""Excel workbooks (.xlsx)."""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from appliance.errors import InvalidInput
from appliance.ingest.formats.archive import Archive
from appliance.ingest.formats.detect import XLSX
from appliance.ingest.formats.document import MAX_TEXT, Parsed, Writer

_WIDEST: Final = 1_000
"""Columns of a sheet that are read."""

_DATES: Final = frozenset({*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)})
"""Numbers of Excel's own formats that show a number as a date or a time."""

_QUOTED: Final = re.compile(r'"[^"]*"|\\.|\[[^\]]*\]')
_COLUMN: Final = re.compile(r"([A-Za-z]{1,3})\d*")
_LAST_DAY: Final = 2_958_466
"""Days of Excel's calendar, which ends with the year 9999."""


def read_xlsx(body: bytes) -> Parsed:
    """The text of a workbook: each sheet is a page and a table under the sheet's name.

    Cells are what they showed when the workbook was saved, numbers without their format, dates as ISO 8601.

    Raises:
        InvalidInput: it is damaged, encrypted, or too large.
    """
    archive = Archive(body, "an Excel workbook")
    main = "xl/workbook.xml"
    links = archive.linked(main)
    parts = dict(links.values())
    book = _Book()
    archive.xml(main, book.start)
    strings = _Strings()
    if (part := parts.get("sharedStrings", "xl/sharedStrings.xml")) in archive:
        archive.xml(part, strings.start, strings.end, strings.text)
    styles = _Styles()
    if (part := parts.get("styles", "xl/styles.xml")) in archive:
        archive.xml(part, styles.start, styles.end)
    writer = Writer()
    number = 0
    for name, ids in book.sheets:
        part = next((links[each][1] for each in ids if links.get(each, ("",))[0] == "worksheet"), "")
        if part in archive:
            number += 1
            writer.page(number)
            writer.heading(name, level=2)
            sheet = _Sheet(writer, strings.found, styles.dates, day_one=book.day_one)
            archive.xml(part, sheet.start, sheet.end, sheet.text)
    title, told = archive.properties()
    writer.first_heading = ""  # a sheet's name is no title
    return writer.finished(XLSX, title=title, metadata=told)


class _Book:
    def __init__(self) -> None:
        self.sheets: list[tuple[str, list[str]]] = []
        self.day_one = datetime(1899, 12, 30)  # noqa: DTZ001  # Excel's days have no zone

    def start(self, name: str, given: Mapping[str, str]) -> None:
        if name == "sheet":
            self.sheets.append((given.get("name", ""), list(given.values())))
        elif name == "workbookPr" and given.get("date1904") in {"1", "true"}:
            self.day_one = datetime(1904, 1, 1)  # noqa: DTZ001  # same


class _Strings:
    """The texts that cells point to."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._parts: list[str] = []
        self._in_text = False
        self._phonetic = False
        self._size = 0

    def start(self, name: str, _: Mapping[str, str]) -> None:
        if name == "t":
            self._in_text = not self._phonetic
        elif name == "rPh":
            self._phonetic = True

    def text(self, data: str) -> None:
        if self._in_text:
            self._parts.append(data)
            self._size += len(data)
            if self._size > MAX_TEXT:
                raise InvalidInput(f"the document has more than {MAX_TEXT // 2**20} MiB of text: split it")

    def end(self, name: str) -> None:
        if name == "t":
            self._in_text = False
        elif name == "rPh":
            self._phonetic = False
        elif name == "si":
            self.found.append("".join(self._parts))
            self._parts = []


class _Styles:
    """Which styles of cells show dates: by number."""

    def __init__(self) -> None:
        self.dates: list[bool] = []
        self._own: dict[str, bool] = {}
        self._inside = False

    def start(self, name: str, given: Mapping[str, str]) -> None:
        if name == "numFmt":
            shown = _QUOTED.sub("", given.get("formatCode", "").lower())
            self._own[given.get("numFmtId", "")] = any(sign in shown for sign in "ymdhs")
        elif name == "cellXfs":
            self._inside = True
        elif name == "xf" and self._inside:
            form = given.get("numFmtId", "0")
            self.dates.append(self._own.get(form, form.isdecimal() and int(form[:9]) in _DATES))

    def end(self, name: str) -> None:
        if name == "cellXfs":
            self._inside = False


class _Sheet:
    def __init__(self, writer: Writer, strings: list[str], dates: list[bool], *, day_one: datetime) -> None:
        self._writer = writer
        self._strings = strings
        self._dates = dates
        self._day_one = day_one
        self._first = True
        self._row: list[str] = []
        self._column = 0
        self._kind = ""
        self._style = 0
        self._value: list[str] = []
        self._taken = False

    def start(self, name: str, given: Mapping[str, str]) -> None:
        match name:
            case "row":
                self._row, self._column = [], 0
            case "c":
                place = _COLUMN.fullmatch(given.get("r", ""))
                self._column = _number(place[1]) if place else self._column + 1
                self._kind = given.get("t", "n")
                style = given.get("s", "0")
                self._style = int(style[:9]) if style.isdecimal() else 0
                self._value = []
            case "v" | "t":
                self._taken = True

    def text(self, data: str) -> None:
        if self._taken:
            self._value.append(data)

    def end(self, name: str) -> None:
        match name:
            case "v" | "t":
                self._taken = False
            case "c":
                if self._column <= _WIDEST and (text := self._shown("".join(self._value))):
                    self._row.extend([""] * (self._column - 1 - len(self._row)))
                    self._row.append(text)
            case "row":
                if self._row:
                    self._writer.row(self._row, first=self._first)
                    self._first = False

    def _shown(self, value: str) -> str:
        match self._kind:
            case "s":
                place = int(value[:9]) if value.isdecimal() else -1
                return self._strings[place] if 0 <= place < len(self._strings) else ""
            case "b":
                return "TRUE" if value == "1" else "FALSE"
            case "n":
                return self._as_number(value)
            case _:
                return value

    def _as_number(self, value: str) -> str:
        try:
            number = float(value)
        except ValueError:
            return value
        if self._style < len(self._dates) and self._dates[self._style] and 0 <= number < _LAST_DAY:
            moment = self._day_one + timedelta(seconds=round(number * 86400))
            if number < 1:
                return moment.time().isoformat()
            return moment.date().isoformat() if number == int(number) else moment.isoformat(" ")
        return f"{number:.15g}"


def _number(letters: str) -> int:
    number = 0
    for letter in letters.upper():
        number = number * 26 + ord(letter) - ord("A") + 1
    return number
