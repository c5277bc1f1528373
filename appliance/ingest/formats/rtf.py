"""RTF documents."""

import re
from dataclasses import dataclass, field, replace
from typing import Final

from appliance.errors import InvalidInput
from appliance.ingest.formats.detect import RTF
from appliance.ingest.formats.document import Parsed, Writer, about

_TOKEN: Final = re.compile(
    rb"\\(?:([a-zA-Z]{1,32})(-?\d{1,10})? ?|'([0-9a-fA-F]{2})|([^a-zA-Z]))|([{}])|[\r\n]+|([^\\{}\r\n]+)", re.DOTALL
)
_DEEPEST: Final = 500
"""Groups inside each other."""

_DESTINATIONS: Final = frozenset(
    b"fonttbl colortbl stylesheet info pict object header headerl headerr headerf footer footerl footerr footerf "
    b"listtable listoverridetable rsidtbl generator themedata colorschememapping latentstyles datastore xmlnstbl "
    b"filetbl fldinst bkmkstart bkmkend revtbl annotation atnid atnauthor atndate atnref nonshppict shppict private1 "
    b"xe tc txe rxe mmathPr wgrffmtfilter pgdsctbl falt panose operator company doccomm keywords subject category "
    b"manager comment".split()
)
"""Groups that hold nothing to be read here."""

_KEPT: Final = {b"title": "title", b"author": "author", b"creatim": "created"}
_CHARACTERS: Final = {
    b"tab": "\t",
    b"line": "\n",
    b"emdash": "\u2014",
    b"endash": "\u2013",
    b"lquote": "\u2018",
    b"rquote": "\u2019",
    b"ldblquote": "\u201c",
    b"rdblquote": "\u201d",
    b"bullet": "\u2022",
    b"emspace": " ",
    b"enspace": " ",
    b"nestcell": " ",
}
_PARTS: Final = {b"yr": 4, b"mo": 2, b"dy": 2, b"hr": 2, b"min": 2}
_FONT_CODECS: Final = {
    0: "cp1252",
    77: "mac-roman",
    128: "cp932",
    129: "cp949",
    134: "gbk",
    136: "big5",
    161: "cp1253",
    162: "cp1254",
    163: "cp1258",
    177: "cp1255",
    178: "cp1256",
    186: "cp1257",
    204: "cp1251",
    222: "cp874",
    238: "cp1250",
}
"""Encodings by `\\fcharset`."""

_FRONT: Final = 1024
"""Bytes that may stand in front of the document."""

_HEADING: Final = re.compile(r"heading ([1-9])", re.IGNORECASE)
_BODY: Final = 9


@dataclass(frozen=True, slots=True)
class _Group:
    """What holds inside a pair of braces."""

    skipped: bool = False
    into: str = ""
    codec: str = ""
    fallback: int = 1


@dataclass(slots=True)
class _Paragraph:
    text: list[str] = field(default_factory=list)
    level: int = _BODY
    in_table: bool = False
    listed: bool = False


def read_rtf(body: bytes) -> Parsed:
    """The text of an RTF document: headings by outline level and style, lists, tables.

    Raises:
        InvalidInput: it is no RTF, or groups are nested too deep.
    """
    start = body.find(b"{\\rtf")
    if not 0 <= start < _FRONT:
        raise InvalidInput("the document is an RTF document that cannot be read: it is damaged")
    reader = _Reader()
    reader.read(body, start)
    told = {name: "".join(parts) for name, parts in reader.told.items()}
    created = _date(reader.date)
    return reader.writer.finished(
        RTF, title=told.get("title", ""), metadata=about(author=told.get("author", ""), created=created)
    )


def _date(parts: dict[bytes, int]) -> str:
    if not {b"yr", b"mo", b"dy"} <= parts.keys():
        return ""
    year, month, day, hour, minute = (parts.get(name, 0) for name in _PARTS)
    return f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:00"


class _Reader:
    def __init__(self) -> None:
        self.writer = Writer()
        self.told: dict[str, list[str]] = {}
        self.date: dict[bytes, int] = {}
        self._codec = "cp1252"
        self._fonts: dict[int, str] = {}
        self._font = 0
        self._styles: dict[int, int] = {}
        self._style = 0
        self._style_name: list[str] = []
        self._groups = [_Group()]
        self._bytes = bytearray()
        self._paragraph = _Paragraph()
        self._row: list[str] = []
        self._first_row = True
        self._to_skip = 0
        self._starred = False

    def read(self, body: bytes, place: int) -> None:
        while place < len(body):
            found = _TOKEN.match(body, place)
            if found is None:  # a backslash at the very end
                break
            place = found.end()
            word, number, coded, sign, brace, plain = found.groups()
            if brace:
                self._brace(brace)
                if len(self._groups) == 1 and brace == b"}":
                    break
            elif word:
                if word == b"bin" and number:
                    place += max(0, min(int(number), len(body)))
                else:
                    self._word(word, int(number) if number else None)
            elif coded:
                self._coded(bytes([int(coded, 16)]))
            elif sign:
                self._sign(sign)
            elif plain:
                self._coded(plain)
        self._end_paragraph()

    def _brace(self, brace: bytes) -> None:
        self._flush()
        self._starred = False
        self._to_skip = 0
        if brace == b"{":
            if len(self._groups) >= _DEEPEST:
                raise InvalidInput(f"the document has more than {_DEEPEST} groups inside each other")
            self._groups.append(self._groups[-1])
        elif len(self._groups) > 1:
            group = self._groups.pop()
            if group.into == "style":
                self._end_style()

    def _change(self, **changes: str | bool | int) -> None:
        self._flush()
        self._groups[-1] = replace(self._groups[-1], **changes)  # type: ignore[arg-type]  # fields of one type each

    def _word(self, word: bytes, number: int | None) -> None:
        starred, self._starred = self._starred, False
        group = self._groups[-1]
        if word == b"u" and number is not None:
            self._flush()
            self._put(chr(number % 65536))
            self._to_skip = group.fallback
        elif word in {b"fonttbl", b"stylesheet"}:
            self._change(into="font" if word == b"fonttbl" else "style", skipped=False)
        elif word == b"info":
            self._change(into="info")
        elif word in _KEPT and group.into == "info":
            self._change(into=_KEPT[word])
        elif word in _PARTS and group.into == "created" and number is not None:
            self.date[word] = number
        elif (starred and word not in {b"cs", b"s", b"ts"}) or word in _DESTINATIONS:
            self._change(skipped=True)
        elif group.skipped:
            pass
        elif word in _CHARACTERS:
            self._flush()
            self._put(_CHARACTERS[word])
        else:
            self._formatted(word, number)

    def _formatted(self, word: bytes, number: int | None) -> None:  # noqa: C901, PLR0912  # a case for each word
        into = self._groups[-1].into
        match word:
            case b"ansicpg" if number:
                self._codec = _python(number) or self._codec
            case b"uc" if number is not None:
                self._change(fallback=max(0, min(number, 10)))
            case b"f" if number is not None:
                if into == "font":
                    self._font = number
                else:
                    self._change(codec=self._fonts.get(number, ""))
            case b"fcharset" if into == "font":
                self._fonts[self._font] = _FONT_CODECS.get(number or 0, "")
            case b"s" if number is not None:
                if into == "style":
                    self._style = number
                else:
                    self._paragraph.level = min(self._paragraph.level, self._styles.get(number, _BODY))
            case b"outlinelevel" if number is not None:
                if into == "style":
                    self._styles[self._style] = number
                else:
                    self._paragraph.level = number
            case b"pntext" | b"listtext":
                self._change(skipped=True)
                self._paragraph.listed = True
            case b"intbl":
                self._paragraph.in_table = True
            case b"pard":
                self._flush()
                self._paragraph.level, self._paragraph.in_table, self._paragraph.listed = _BODY, False, False
            case b"plain":
                self._change(codec="")
            case b"par" | b"sect" | b"page":
                self._end_paragraph()
            case b"cell":
                self._end_cell()
            case b"row":
                self._end_row()

    def _sign(self, sign: bytes) -> None:
        if sign == b"*":
            self._starred = True
        elif sign in b"\r\n":
            self._end_paragraph()
        elif sign == b"~":
            self._put(" ")
        elif sign == b"_":
            self._put("-")
        elif sign in b"\\{}":
            self._coded(sign)

    def _coded(self, data: bytes) -> None:
        if self._to_skip:
            count = min(self._to_skip, len(data))
            self._to_skip -= count
            data = data[count:]
        if not self._groups[-1].skipped:
            self._bytes += data

    def _flush(self) -> None:
        if self._bytes:
            data = bytes(self._bytes)
            self._bytes.clear()
            self._put(data.decode(self._groups[-1].codec or self._codec, "replace"))

    def _put(self, text: str) -> None:
        group = self._groups[-1]
        if group.skipped:
            return
        match group.into:
            case "":
                self._paragraph.text.append(text)
            case "style":
                self._style_name.append(text)
            case "title" | "author":
                self.told.setdefault(group.into, []).append(text)

    def _end_style(self) -> None:
        name = "".join(self._style_name).strip().rstrip(";")
        self._style_name.clear()
        if found := _HEADING.match(name):
            self._styles.setdefault(self._style, int(found[1]) - 1)
        elif name.lower() == "title":
            self._styles.setdefault(self._style, 0)
        self._style = 0

    def _end_paragraph(self) -> None:
        self._flush()
        paragraph, self._paragraph = self._paragraph, replace(self._paragraph, text=[])
        # surrogates come as two `\u`
        text = "".join(paragraph.text)
        if paragraph.in_table:
            self._paragraph.text = [f"{text} "] if text.strip() else []
            return
        self._first_row = True
        if paragraph.level < _BODY:
            self.writer.heading(text, level=paragraph.level + 1)
        elif paragraph.listed:
            self.writer.item(text)
        else:
            self.writer.paragraph(text)

    def _end_cell(self) -> None:
        self._flush()
        self._row.append("".join(self._paragraph.text))
        self._paragraph.text = []

    def _end_row(self) -> None:
        if any(cell.strip() for cell in self._row):
            self.writer.row(self._row, first=self._first_row)
            self._first_row = False
        self._row = []


def _python(page: int) -> str:
    """Python's name of a Windows code page; empty if it has none."""
    known = {*_FONT_CODECS.values(), "cp437", "cp850", "cp852", "cp866", "cp936", "cp950"}
    if page == 65001:  # noqa: PLR2004  # the number of UTF-8
        return "utf-8"
    return f"cp{page}" if f"cp{page}" in known else ""
