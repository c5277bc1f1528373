"""E-mail: single messages (.eml) and mailboxes (.mbox)."""

import email
import re
from collections.abc import Iterator
from email import policy
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Final

from appliance.errors import InvalidInput
from appliance.ingest.formats.charset import decoded
from appliance.ingest.formats.detect import EML, Kind, codec
from appliance.ingest.formats.document import MAX_TEXT, Parsed, Writer, about, collapsed, sound
from appliance.ingest.html import page_of_html

MAX_MESSAGES: Final = 20_000
"""Messages of one mailbox."""

_PARTS: Final = 1_000
"""Parts of one message."""

_LONGEST_HEADER: Final = 10_000
"""Bytes of a header that are read."""

_FROM: Final = re.compile(rb"^From [^\r\n]*\r?\n(?=[!-9;-~]+:)", re.MULTILINE)
_QUOTED_FROM: Final = re.compile(r"^>(>*From )", re.MULTILINE)


def read_mail(body: bytes, kind: Kind) -> Parsed:
    """The text of a message, or of each message of a mailbox: who, when, about what, and what it says.

    Of a message that comes as text and as HTML, the text; of attachments, their names.

    Raises:
        InvalidInput: it is no message, or has too many parts; a mailbox has too many messages.
    """
    if len(body) > MAX_TEXT:
        raise InvalidInput(f"the document has more than {MAX_TEXT // 2**20} MiB of text: split it")
    writer = Writer()
    if kind.media_type == EML:
        message = email.message_from_bytes(body, policy=policy.compat32)
        if not message.keys():
            raise InvalidInput("the document is said to be an e-mail, and has no headers")
        _write(message, writer)
        told = about(
            author=_header(message, "From"), created=_date(message), language=_header(message, "Content-Language")
        )
        return writer.finished(kind.media_type, title=_header(message, "Subject"), metadata=told)
    count = 0
    for count, source in enumerate(_messages(body), 1):
        if count > MAX_MESSAGES:
            raise InvalidInput(f"the mailbox has more than {MAX_MESSAGES} messages: split it")
        _write(email.message_from_bytes(source, policy=policy.compat32), writer, unquote=True)
    if not count:
        raise InvalidInput("the document is said to be a mailbox, and no message begins in it")
    writer.first_heading = ""  # the first message's subject is no title of all of them
    return writer.finished(kind.media_type)


def _messages(body: bytes) -> Iterator[bytes]:
    start = -1
    for found in _FROM.finditer(body):
        place = found.start()
        if place and not body[max(place - 4, 0) : place].endswith((b"\n\n", b"\r\n\r\n")):
            continue
        if start >= 0:
            yield body[start:place]
        start = found.end()
    if start >= 0:
        yield body[start:]


def _write(message: Message, writer: Writer, *, unquote: bool = False) -> None:
    writer.heading(_header(message, "Subject") or "(no subject)", level=1)
    writer.lines(
        "\n".join(f"{name}: {text}" for name in ("From", "To", "Cc", "Date") if (text := _header(message, name)))
    )
    texts: list[tuple[str, str]] = []
    attached: list[str] = []
    for number, part in enumerate(message.walk()):
        if number >= _PARTS:
            raise InvalidInput(f"the message has more than {_PARTS} parts")
        if part.is_multipart():
            continue
        kind = part.get_content_type()
        if part.get_content_disposition() == "attachment" or kind not in {"text/plain", "text/html"}:
            if name := _filename(part):
                attached.append(name)
        else:
            texts.append((kind, _text(part)))
    wanted = "text/plain" if any(kind == "text/plain" and text.strip() for kind, text in texts) else "text/html"
    for kind, text in texts:
        if kind == wanted == "text/html":
            writer.raw(page_of_html(text).text)
        elif kind == wanted:
            writer.lines(sound(_QUOTED_FROM.sub(r"\1", text) if unquote else text).strip("\n"))
    if attached:
        writer.paragraph(f"Attached: {', '.join(attached)}")


def _text(part: Message) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    try:
        charset = part.get_content_charset("") or ""
    except (LookupError, ValueError, OSError):
        charset = ""
    try:
        return decoded(payload, codec(charset), markup=part.get_content_type() == "text/html")
    except InvalidInput:  # said to be text, and is none
        return ""


def _filename(part: Message) -> str:
    try:
        return collapsed(sound(_decoded(part.get_filename("") or "")))[:200]
    except (LookupError, ValueError, OSError):
        return ""


def _header(message: Message, name: str) -> str:
    return collapsed(sound(_decoded(str(message.get(name, ""))[:_LONGEST_HEADER])))


def _decoded(raw: str) -> str:
    try:
        parts = decode_header(raw)
    except (HeaderParseError, ValueError):
        return raw
    return "".join(
        part if isinstance(part, str) else part.decode(codec(charset or "") or "utf-8", "replace")
        for part, charset in parts
    )


def _date(message: Message) -> str:
    try:
        return parsedate_to_datetime(str(message.get("Date", ""))).isoformat()
    except (ValueError, TypeError, IndexError, OverflowError):
        return ""
