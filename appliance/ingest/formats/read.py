"""The reader of each format, imported when its first document comes."""

from contextlib import suppress
from dataclasses import replace

from appliance.errors import InvalidInput
from appliance.ingest.formats import detect
from appliance.ingest.formats.detect import CHARSETS, NAMES, Kind
from appliance.ingest.formats.document import Parsed


def read(body: bytes, kind: Kind) -> Parsed:
    """Read a document in this process. What its parser costs is bounded only where a process of its own bounds it.

    Args:
        body: the document; one without any text gives none.
        kind: what it is.

    Raises:
        InvalidInput: it cannot be read: damaged, encrypted, too large, or built to exhaust its reader.
    """
    try:
        parsed = _read(body, kind)
    except RecursionError as error:
        name = NAMES.get(kind.media_type, "a document")
        raise InvalidInput(f"the document is {name} whose parts are too many inside each other") from error
    return replace(parsed, metadata={**parsed.metadata, "note": kind.note}) if kind.note else parsed


def preload() -> None:
    """Import whatever any format needs: afterwards, reading opens no file."""
    import codecs

    for name in (*CHARSETS, "cp437"):  # that of names in ZIP archives
        codecs.lookup(name)
    for kind in NAMES:
        with suppress(InvalidInput):  # these are no documents; only what is imported on the way matters
            read(b"From: =?utf-8?q?a?= <a@b>\nContent-Type: text/html; charset=x\n\nx", Kind(kind))


def _read(body: bytes, kind: Kind) -> Parsed:  # noqa: C901, PLR0911, PLR0912  # a case for each format
    match kind.media_type:
        case "text/html":
            from appliance.ingest.formats.web import read_html

            return read_html(body, kind)
        case "text/csv" | "text/tab-separated-values":
            from appliance.ingest.formats.data import read_table

            return read_table(body, kind)
        case detect.JSONS | detect.JSONL:
            from appliance.ingest.formats.data import read_json

            return read_json(body, kind)
        case detect.NOTEBOOK:
            from appliance.ingest.formats.notebook import read_notebook

            return read_notebook(body, kind)
        case detect.PDF:
            from appliance.ingest.formats.pdf import read_pdf

            return read_pdf(body)
        case detect.DOCX:
            from appliance.ingest.formats.word import read_docx

            return read_docx(body)
        case detect.PPTX:
            from appliance.ingest.formats.slides import read_pptx

            return read_pptx(body)
        case detect.XLSX:
            from appliance.ingest.formats.sheets import read_xlsx

            return read_xlsx(body)
        case detect.ODT | detect.ODS | detect.ODP:
            from appliance.ingest.formats.opendocument import read_opendocument

            return read_opendocument(body, kind)
        case detect.EPUB:
            from appliance.ingest.formats.epub import read_epub

            return read_epub(body)
        case detect.RTF:
            from appliance.ingest.formats.rtf import read_rtf

            return read_rtf(body)
        case detect.EML | detect.MBOX:
            from appliance.ingest.formats.mail import read_mail

            return read_mail(body, kind)
        case _:
            from appliance.ingest.formats.text import read_text

            return read_text(body, kind)
