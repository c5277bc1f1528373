"""Turns the bytes of a document into the text that is cut, embedded, searched and cited."""

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Final

from appliance.embedding.images import media_type_of
from appliance.errors import InvalidInput
from appliance.ingest.borders import first_heading

SUPPORTED: Final = "plain text, Markdown and HTML"

LONGEST_TITLE: Final = 300
"""Characters of a title that is read from a document."""

_TYPES: Final = {
    "text/html": "text/html",
    "application/xhtml+xml": "text/html",
    "text/markdown": "text/markdown",
    "text/x-markdown": "text/markdown",
}
"""Every other `text/…` is plain text."""

_UNSAID: Final = frozenset({"", "application/octet-stream", "binary/octet-stream"})

_ENDINGS: Final = {
    ".txt": "text/plain",
    ".text": "text/plain",
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".mdown": "text/markdown",
    ".html": "text/html",
    ".htm": "text/html",
    ".xhtml": "text/html",
}

_MAGIC: Final = (
    (b"%PDF-", "a PDF document"),
    (b"{\\rtf", "an RTF document"),
    (b"%!PS", "a PostScript document"),
    (b"PK\x03\x04", "a ZIP archive or an Office document"),
    (b"PK\x05\x06", "a ZIP archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document"),
    (b"\x1f\x8b", "gzip data"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a WebP image, or sound or video"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"OggS", "sound"),
    (b"ID3", "sound"),
    (b"fLaC", "sound"),
    (b"SQLite format 3\x00", "a database"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
)
_TEXTUAL: Final = 3
"""So many of the first entries are made of plain characters: refused by their first bytes alone."""

_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CHARSETS: Final = frozenset(
    codec
    for line in (
        "utf-8 utf-16 utf-16-le utf-16-be ascii mac-roman koi8-r koi8-u cp866 cp874 cp932 cp949",
        "cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258",
        "iso8859-1 iso8859-2 iso8859-3 iso8859-4 iso8859-5 iso8859-6 iso8859-7 iso8859-8 iso8859-9 iso8859-10",
        "iso8859-11 iso8859-13 iso8859-14 iso8859-15 iso8859-16",
        "gbk gb2312 gb18030 big5 big5hkscs shift_jis euc_jp iso2022_jp euc_kr",
    )
    for codec in line.split()
)
"""Python's names of the encodings that a document may declare: those of the web, and no other codec of Python."""

_META: Final = re.compile(rb"""<meta[^>]{0,400}?charset\s*=\s*["']?\s*([\w:.-]{1,40})""", re.IGNORECASE)
_HTML_START: Final = re.compile(
    rb"\s*(?:<!--.{0,2000}?-->\s*)?<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
_CONTROL: Final = bytes(set(range(32)) - set(b"\t\n\r\f\x0b\x1b")) + b"\x7f"

_MAX_CONTROL: Final = 0.02
"""Share of control characters above which bytes are not taken for text; one is let through in any text."""


@dataclass(frozen=True, slots=True)
class Parsed:
    r"""The text of a document; every offset the appliance gives counts its characters.

    Attributes:
        text: with `\n` as its only line end, and neither a byte order mark, nor NUL, nor lone surrogates. For HTML,
            the lines that Markdown would have: headings with `#`, lists, tables, fenced code.
        title: what the document calls itself; empty for plain text.
        media_type: text/plain, text/markdown or text/html.
        pages: for a document that has them, where each begins: (character offset, number from 1), ascending.
        metadata: what the document tells of itself, such as `source` and `created_at`.
    """

    text: str
    title: str
    media_type: str
    pages: tuple[tuple[int, int], ...] = ()
    metadata: Mapping[str, object] = field(default_factory=dict)


def parse(body: bytes, *, media_type: str = "", name: str = "") -> Parsed:
    r"""Read a document.

    The text is decoded by its byte order mark, else as the media type or an HTML `<meta>` declares, else as UTF-8; if
    that fails, as UTF-8 with U+FFFD where it is only damaged here and there, else as Windows-1252. NUL becomes U+FFFD,
    and `\r\n` and `\r` become `\n`. Nothing else in plain text and Markdown is changed.

    Args:
        body: the document; a document without any text is one.
        media_type: as in a Content-Type. If it is missing or application/octet-stream, name and content decide.
        name: file name; only its ending is looked at.

    Raises:
        InvalidInput: not a type we read, whatever it was said to be, or HTML built to exhaust the parser.
    """
    essence, charset = _read_type(media_type)
    kind = _kind(essence, name, body)
    text = _decoded(body, charset or (_meta_charset(body) if kind == "text/html" else ""))
    text = text.replace("\x00", "\ufffd").replace("\r\n", "\n").replace("\r", "\n")
    if kind == "text/html":
        from appliance.ingest.html import text_of_html

        text, title = text_of_html(text)
        return Parsed(text, title[:LONGEST_TITLE], kind)
    return Parsed(text, _markdown_title(text)[:LONGEST_TITLE] if kind == "text/markdown" else "", kind)


def is_image(body: bytes, *, media_type: str = "") -> bool:
    """Whether a document is to be taken for an image: by what it was said to be, else by its first bytes."""
    essence, _ = _read_type(media_type)
    return essence.startswith("image/") or (essence in _UNSAID and media_type_of(body) != "")


def _read_type(media_type: str) -> tuple[str, str]:
    essence, *parameters = media_type.split(";")
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "charset":
            return essence.strip().lower(), _codec(value.strip().strip("\"'"))
    return essence.strip().lower(), ""


def _codec(label: str) -> str:
    """Python's name of a declared encoding; nothing if it is none that we take."""
    try:
        codec = codecs.lookup(label).name
    except (LookupError, ValueError):
        return ""
    if codec in {"iso8859-1", "ascii"}:  # as every browser does: https://encoding.spec.whatwg.org/#names-and-labels
        return "cp1252"
    return codec if codec in _CHARSETS else ""


def _meta_charset(body: bytes) -> str:
    found = _META.search(body[:1024])
    codec = _codec(found[1].decode("ascii", "replace")) if found else ""
    return "utf-8" if codec.startswith("utf-16") else codec  # what could be read as bytes is not UTF-16


def _kind(essence: str, name: str, body: bytes) -> str:
    """The media type we treat the document as."""
    for magic, what in _MAGIC[:_TEXTUAL]:
        if body.startswith(magic):
            raise _unsupported(what)
    if essence not in _UNSAID:
        if not essence.startswith("text/") and essence not in _TYPES:
            raise _unsupported(essence if re.fullmatch(r"[\w.+-]{1,80}/[\w.+-]{1,80}", essence) else "of unknown type")
        return _TYPES.get(essence, "text/plain")
    ending = PurePath(name.lower()).suffix
    return _ENDINGS.get(ending) or ("text/html" if _HTML_START.match(body[:4096]) else "text/plain")


def _unsupported(what: str) -> InvalidInput:
    return InvalidInput(f"the document is {what}; supported are {SUPPORTED}")


def _decoded(body: bytes, charset: str) -> str:
    for bom, encoding in _BOMS:
        if body.startswith(bom):
            text = body[len(bom) :].decode(encoding, "replace")
            if _looks_binary(text.encode()):
                raise _unsupported("not text")
            return text
    if charset.startswith("utf-16") and (wide := _strictly(body, charset)) is not None:
        return wide
    if _looks_binary(body):
        raise _unsupported(next((what for magic, what in _MAGIC if body.startswith(magic)), "not text"))
    for encoding in (charset, "utf-8"):
        if encoding and (sound := _strictly(body, encoding)) is not None:
            return sound
    if b"\x00" in body:
        raise _unsupported("not text")
    mended = body.decode("utf-8", "replace")
    foreign = sum(character > "\x7f" for character in mended)
    damaged = mended.count("\ufffd")
    return mended if damaged * 4 <= foreign else body.decode("cp1252", "replace")


def _strictly(body: bytes, encoding: str) -> str | None:
    try:
        return body.decode(encoding)
    except UnicodeDecodeError:
        return None


def _looks_binary(body: bytes) -> bool:
    return len(body) - len(body.translate(None, _CONTROL)) > 1 + _MAX_CONTROL * len(body)


def _markdown_title(text: str) -> str:
    """`title:` of the front matter, else the first heading."""
    if text.startswith("---\n"):
        front = text[4:10_000].partition("\n---")[0]
        if found := re.search(r"^title:[ \t]*(\S.*)$", front, re.MULTILINE):
            return found[1].strip().strip("\"'").strip()
    return first_heading(text)
