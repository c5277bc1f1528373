"""Text of whatever encoding: plain, Markdown, source code."""

import codecs
import re
from typing import Final

from appliance.errors import InvalidInput
from appliance.ingest.borders import found_borders
from appliance.ingest.formats.detect import Kind, codec, not_text
from appliance.ingest.formats.document import LONGEST_TITLE, MAX_TEXT, Parsed, collapsed
from appliance.ingest.formats.front import read_front
from appliance.ingest.formats.links import markdown_links, told

_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_META: Final = re.compile(rb"""<meta[^>]{0,400}?charset\s*=\s*["']?\s*([\w:.-]{1,40})""", re.IGNORECASE)
_CONTROL: Final = bytes(set(range(32)) - set(b"\t\n\r\f\x0b\x1b")) + b"\x7f"

_MAX_CONTROL: Final = 0.02
"""Share of control characters above which bytes are not taken for text; one is let through in any text."""


def read_text(body: bytes, kind: Kind) -> Parsed:
    """A text as it is, but for the front matter of Markdown.

    Raises:
        InvalidInput: it is no text, or more than `MAX_TEXT` of it.
    """
    text = decoded(body, kind.charset)
    return _markdown(text) if kind.media_type == "text/markdown" else Parsed(text, "", kind.media_type)


def _markdown(text: str) -> Parsed:
    """Its front matter is metadata and no part of the text, unless there is nothing else."""
    front = read_front(text)
    rest = text[front.end :].lstrip("\n") if front.end else text
    text = rest if rest.strip() else text
    borders = found_borders(text, structured=True)
    title = front.title or (borders.headings[0].text if borders.headings else "")
    metadata = {**front.metadata, "note": front.note} if front.note else front.metadata
    links = told(markdown_links(text, borders.fences))
    return Parsed(text, collapsed(title)[:LONGEST_TITLE], "text/markdown", metadata=metadata, links=links)


def decoded(body: bytes, charset: str = "", *, markup: bool = False) -> str:
    r"""The text that bytes stand for.

    Decoded by its byte order mark, else as it is said to be, else as UTF-8; if that fails, as UTF-8 with U+FFFD where
    it is only damaged here and there, else as Windows-1252. NUL becomes U+FFFD, and `\r\n` and `\r` become `\n`.

    Args:
        body: of any length; none gives none.
        charset: Python's name of the encoding, where one was declared.
        markup: an HTML `<meta>` may declare the encoding where nothing else does.

    Raises:
        InvalidInput: it is no text, or more than `MAX_TEXT` of it.
    """
    if len(body) > MAX_TEXT:
        raise InvalidInput(f"the document has more than {MAX_TEXT // 2**20} MiB of text: split it")
    text = _decoded(body, charset or (_meta_charset(body) if markup else ""))
    return text.replace("\x00", "\ufffd").replace("\r\n", "\n").replace("\r", "\n")


def _meta_charset(body: bytes) -> str:
    found = _META.search(body[:1024])
    declared = codec(found[1].decode("ascii", "replace")) if found else ""
    return "utf-8" if declared.startswith("utf-16") else declared  # what could be read as bytes is not UTF-16


def _decoded(body: bytes, charset: str) -> str:
    for bom, encoding in _BOMS:
        if body.startswith(bom):
            text = body[len(bom) :].decode(encoding, "replace")
            if _looks_binary(text.encode()):
                raise not_text(b"")
            return text
    if charset.startswith("utf-16") and (wide := _strictly(body, charset)) is not None:
        return wide
    if _looks_binary(body):
        raise not_text(body)
    for encoding in (charset, "utf-8"):
        if encoding and (sound := _strictly(body, encoding)) is not None:
            return sound
    if b"\x00" in body:
        raise not_text(b"")
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
