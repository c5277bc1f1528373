"""Text of whatever encoding."""

import codecs
import re
import unicodedata
from collections import Counter
from dataclasses import replace
from typing import Final

from appliance.errors import InvalidInput
from appliance.ingest.formats.detect import BINARY, EML, MBOX, Kind, codec, not_text
from appliance.ingest.formats.document import MAX_TEXT

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

_BLOCK: Final = 2**20
_SAMPLE: Final = 2**16
"""Bytes that an encoding is guessed by."""

_BEFORE: Final = 200
"""Bytes of it in front of the first foreign letter, at most."""

_LATIN: Final = ("cp1250", "iso8859-2", "cp1254", "cp1257")
_OTHER: Final = ("cp1251", "koi8-r", "koi8-u", "iso8859-5", "cp1253", "iso8859-7", "cp1255", "cp1256", "cp874")
_MANY_BYTES: Final = ("gb18030", "big5hkscs", "cp932", "euc_jis_2004", "cp949")
_GUESSED: Final = (*_LATIN, *_OTHER, *_MANY_BYTES, "cp1252")
"""Encodings that are guessed, the largest of each kind: those of Latin letters differ from the western one in a few,
those of other letters have none of them, and the last have characters of several bytes.
"""

_SURE: Final = 0.06
_SURE_OF_LATIN: Final = 0.11
"""Confidence from which a guess counts. Below, a text of a few words is more often a western one; from 40 characters
on, a right guess is surer.
"""

_FOREIGN: Final = bytes(range(0x80, 0x100))
_RUN: Final = re.compile(rb"[\x80-\xff]{2,}")
_RUNS: Final = 0.6
"""Share of foreign letters that stand beside others where a script has no ASCII letter; in `déjà vu` none does."""

_PRINTED: Final = bytes(range(0x20, 0x7F))
_LEAST_WIDE: Final = 0.25
"""Share of what is not printed ASCII in one half of the bytes of UTF-16; around a NUL in plain text, it is less."""

_OF_ONE: Final = 0.6
_GAPLESS: Final = 40
_GAP: Final = re.compile("[ \n\u3000-\u3002\uff0c]")
_HAN: Final = re.compile("[\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff00-\uffef]")
"""Characters of Chinese, Japanese and Korean."""

_NO_TEXT: Final = frozenset({"Cc", "Cn", "Co", "Cs"})


def decoded(body: bytes, charset: str = "", *, markup: bool = False) -> str:
    r"""The text that bytes stand for.

    Decoded by its byte order mark, else as it is said to be, else as UTF-8; if that fails, as UTF-8 or as it is said to
    be with U+FFFD where it is only damaged here and there, else as Windows-1252. NUL becomes U+FFFD, and `\r\n` and
    `\r` become `\n`.

    Args:
        body: of any length; none gives none.
        charset: Python's name of the encoding, where one was declared, or `recognised`.
        markup: an HTML `<meta>` may declare the encoding where nothing else does.

    Raises:
        InvalidInput: it is no text, or more than `MAX_TEXT` of it.
    """
    if len(body) > MAX_TEXT:
        raise InvalidInput(f"the document has more than {MAX_TEXT // 2**20} MiB of text: split it")
    text = _decoded(body, charset or (_meta_charset(body) if markup else ""))
    return text.replace("\x00", "\ufffd").replace("\r\n", "\n").replace("\r", "\n")


def recognised(body: bytes, kind: Kind) -> Kind:
    """The kind, with the encoding that its text seems to be in where it is neither UTF-8 nor what it is said to be.

    A text in UTF-8 costs no more than to look at it once; of another one, a part is looked at closely. Not for a
    process that can open no file: what is guessed by is read on first use.
    """
    if kind.media_type in BINARY or kind.media_type in {EML, MBOX} or len(body) > MAX_TEXT:
        return kind
    told = kind.charset or (_meta_charset(body) if kind.media_type == "text/html" else "")
    if any(body.startswith(bom) for bom, _ in _BOMS) or (told and _fits(body, told)):
        return kind
    if _looks_binary(body):
        guess = _wide(body)
    elif _fits(body, "utf-8") or _mended(body, "utf-8", damaged=0.25) is not None:
        return kind
    else:
        guess = _guess(body)
    if guess in {"", "cp1252"}:
        return kind
    return replace(kind, charset=guess, note=f"nothing tells its encoding: it was taken for {guess}")


def _guess(body: bytes) -> str:
    """The encoding by the part of the body where the first foreign letters are; nothing where that tells none."""
    import chardet

    foreign = re.search(rb"[\x80-\xff]", body)
    first = foreign.start() if foreign else 0
    start = max(body.rfind(b"\n", 0, first) + 1, first - _BEFORE)
    sample = body[start : start + _SAMPLE]
    found = chardet.detect(
        sample, include_encodings=_GUESSED, compat_names=False, prefer_superset=False, max_bytes=_SAMPLE
    )
    guess, sure = codec(found["encoding"] or ""), found["confidence"]
    if guess in _OTHER:
        many = sum(len(run) for run in _RUN.findall(sample))
        every = len(sample) - len(sample.translate(None, _FOREIGN))
        sure = sure if many > _RUNS * every else 0
    counts = guess in _GUESSED and sure >= (_SURE_OF_LATIN if guess in _LATIN else _SURE)
    return guess if counts and _mended(body, guess) is not None else ""


def _wide(body: bytes) -> str:
    """Which UTF-16 without a mark a body is in; nothing if it is something else, such as numbers."""
    sample = body[: _SAMPLE - _SAMPLE % 2]
    if all(len(half.translate(None, _PRINTED)) < _LEAST_WIDE * len(half) for half in (sample[::2], sample[1::2])):
        return ""
    texts = {each: sample.decode(each, "ignore") for each in ("utf-16-le", "utf-16-be")}  # the last one may be cut
    found = [each for each, text in texts.items() if _is_written(text) and _fits(body, each)]
    # with its bytes the wrong way round, a text has letters from everywhere and no gaps
    return max(found, key=lambda each: (len(_GAP.findall(texts[each])), -len(_blocks(texts[each]))), default="")


def _is_written(text: str) -> bool:
    """Whether characters are a text: all of them exist, there are gaps, and most are of one alphabet or Han."""
    if len(text) > _GAPLESS and not _GAP.search(text):
        return False
    if any(character not in "\t\n\r\f\v" and unicodedata.category(character) in _NO_TEXT for character in set(text)):
        return False
    blocks = _blocks(_HAN.sub("\u4e00", text))
    return max(blocks.values(), default=0) > _OF_ONE * len(text)


def _blocks(text: str) -> Counter[int]:
    """How many characters there are of each block of 256, which is about an alphabet."""
    return Counter(ord(character) >> 8 for character in text)


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
    if (mended := _mended(body, "utf-8", damaged=0.25)) is not None:
        return mended
    mended = _mended(body, charset) if charset else None
    return body.decode("cp1252", "replace") if mended is None else mended


def _mended(body: bytes, encoding: str, *, damaged: float = 0.05) -> str | None:
    """The text, where no more than this share of its foreign characters is no character of the encoding."""
    text = body.decode(encoding, "replace")
    foreign = len(text) - len(text.encode("ascii", "ignore"))
    return text if text.count("\ufffd") <= damaged * foreign else None


def _strictly(body: bytes, encoding: str) -> str | None:
    try:
        return body.decode(encoding)
    except UnicodeDecodeError:
        return None


def _fits(body: bytes, encoding: str) -> bool:
    """Whether the body is sound in an encoding; it is never decoded as a whole."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for start in range(0, len(body), _BLOCK):
            decoder.decode(body[start : start + _BLOCK])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _looks_binary(body: bytes) -> bool:
    return len(body) - len(body.translate(None, _CONTROL)) > 1 + _MAX_CONTROL * len(body)
