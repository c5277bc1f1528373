"""What a document is: by its first bytes, else by what it was said to be, else by its name."""

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from appliance.errors import InvalidInput

SUPPORTED: Final = (
    "plain text, Markdown, HTML, PDF, Word, PowerPoint and Excel files of 2007 and later, OpenDocument, EPUB, RTF, "
    "CSV, JSON, Jupyter notebooks, e-mail and source code"
)

PDF: Final = "application/pdf"
DOCX: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
PPTX: Final = "application/vnd.openxmlformats-officedocument.presentationml.presentation"
XLSX: Final = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
ODT: Final = "application/vnd.oasis.opendocument.text"
ODS: Final = "application/vnd.oasis.opendocument.spreadsheet"
ODP: Final = "application/vnd.oasis.opendocument.presentation"
EPUB: Final = "application/epub+zip"
RTF: Final = "application/rtf"
EML: Final = "message/rfc822"
MBOX: Final = "application/mbox"
JSONS: Final = "application/json"
JSONL: Final = "application/x-ndjson"
NOTEBOOK: Final = "application/x-ipynb+json"

NAMES: Final[Mapping[str, str]] = {
    "text/html": "an HTML page",
    "text/csv": "a CSV table",
    "text/tab-separated-values": "a table of tab-separated values",
    PDF: "a PDF document",
    DOCX: "a Word document",
    PPTX: "a PowerPoint presentation",
    XLSX: "an Excel workbook",
    ODT: "an OpenDocument text",
    ODS: "an OpenDocument spreadsheet",
    ODP: "an OpenDocument presentation",
    EPUB: "an EPUB book",
    RTF: "an RTF document",
    EML: "an e-mail",
    MBOX: "a mailbox",
    JSONS: "a JSON document",
    JSONL: "a JSON Lines document",
    NOTEBOOK: "a Jupyter notebook",
}
"""The formats that are read in a process of their own, as a person calls them."""

BINARY: Final = frozenset({PDF, DOCX, PPTX, XLSX, ODT, ODS, ODP, EPUB, RTF})
"""Formats that are known by their first bytes."""

_DECLARED: Final = {
    **{known: known for known in NAMES},
    "application/xhtml+xml": "text/html",
    "text/markdown": "text/markdown",
    "text/x-markdown": "text/markdown",
    "text/rtf": RTF,
    "application/x-rtf": RTF,
    "application/x-pdf": PDF,
    "application/csv": "text/csv",
    "text/json": JSONS,
    "application/ndjson": JSONL,
    "application/jsonl": JSONL,
    "application/x-jsonlines": JSONL,
    "application/xml": "text/xml",
    "application/yaml": "text/x-yaml",
    "application/x-yaml": "text/x-yaml",
    "text/yaml": "text/x-yaml",
    "application/toml": "text/x-toml",
    "application/javascript": "text/x-javascript",
    "application/x-javascript": "text/x-javascript",
    "text/javascript": "text/x-javascript",
    "application/typescript": "text/x-typescript",
    "application/sql": "text/x-sql",
    "application/x-sh": "text/x-shell",
    "application/x-shellscript": "text/x-shell",
    "application/x-python": "text/x-python",
    "application/x-httpd-php": "text/x-php",
    "text/css": "text/x-css",
}
"""Every other `text/…` is plain text, or what the file's name makes of it."""

_UNSAID: Final = frozenset({"", "application/octet-stream", "binary/octet-stream"})

_LANGUAGES: Final = {
    "ada": "adb ads",
    "assembly": "asm s",
    "c": "c h",
    "c++": "cc cpp cxx hh hpp hxx",
    "csharp": "cs",
    "clojure": "clj cljs",
    "cmake": "cmake",
    "css": "css scss sass less",
    "dart": "dart",
    "elixir": "ex exs",
    "erlang": "erl",
    "fortran": "f f90 f95",
    "fsharp": "fs",
    "go": "go",
    "graphql": "graphql",
    "groovy": "groovy gradle",
    "haskell": "hs",
    "ini": "cfg conf ini properties",
    "java": "java",
    "javascript": "cjs js jsx mjs",
    "julia": "jl",
    "kotlin": "kt kts",
    "lisp": "el lisp scm",
    "lua": "lua",
    "nix": "nix",
    "objective-c": "m mm",
    "ocaml": "ml mli",
    "pascal": "pas",
    "perl": "pl pm",
    "php": "php",
    "powershell": "ps1",
    "protobuf": "proto",
    "python": "py pyi",
    "r": "r",
    "ruby": "rb",
    "rust": "rs",
    "scala": "scala",
    "shell": "bash sh zsh",
    "sql": "sql",
    "svelte": "svelte",
    "swift": "swift",
    "tcl": "tcl",
    "terraform": "tf",
    "tex": "tex",
    "toml": "toml",
    "typescript": "ts tsx",
    "verilog": "sv v",
    "vhdl": "vhd vhdl",
    "vue": "vue",
    "yaml": "yaml yml",
    "zig": "zig",
}
ENDINGS: Final[Mapping[str, str]] = {
    **{f".{each}": f"text/x-{name}" for name, endings in _LANGUAGES.items() for each in endings.split()},
    ".txt": "text/plain",
    ".text": "text/plain",
    ".log": "text/plain",
    ".rst": "text/plain",
    ".srt": "text/plain",
    ".vtt": "text/plain",
    ".xml": "text/xml",
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".mdown": "text/markdown",
    ".mdx": "text/markdown",
    ".html": "text/html",
    ".htm": "text/html",
    ".xhtml": "text/html",
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".tab": "text/tab-separated-values",
    ".pdf": PDF,
    ".docx": DOCX,
    ".docm": DOCX,
    ".dotx": DOCX,
    ".pptx": PPTX,
    ".pptm": PPTX,
    ".ppsx": PPTX,
    ".xlsx": XLSX,
    ".xlsm": XLSX,
    ".odt": ODT,
    ".ott": ODT,
    ".ods": ODS,
    ".odp": ODP,
    ".epub": EPUB,
    ".rtf": RTF,
    ".eml": EML,
    ".mbox": MBOX,
    ".mbx": MBOX,
    ".json": JSONS,
    ".geojson": JSONS,
    ".ipynb": NOTEBOOK,
    ".jsonl": JSONL,
    ".ndjson": JSONL,
}
"""What a file is by the ending of its name, in small letters."""

_MAGIC: Final = (
    (b"%!PS", "a PostScript document"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document of before 2007: save it in a format of today"),
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
_TEXTUAL: Final = 1
"""So many of the first entries are made of plain characters: refused by their first bytes alone."""

_OLE: Final = _MAGIC[1][0]
_ENCRYPTED_PACKAGE: Final = "EncryptedPackage".encode("utf-16-le")

_PARTS: Final = (
    (b"word/document.xml", DOCX),
    (b"ppt/presentation.xml", PPTX),
    (b"xl/workbook.xml", XLSX),
    (b"META-INF/container.xml", EPUB),
)
"""Names of files that a ZIP archive has where it is such a document."""

_TYPED: Final = {kind.encode(): kind for kind in (ODT, ODS, ODP, EPUB)} | {
    kind.encode() + b"-template": kind for kind in (ODT, ODS, ODP)
}
"""What the first file of an OpenDocument or an EPUB holds, which is called `mimetype` and not packed."""

_PDF_START: Final = b"%PDF-"
_PDF_HEAD: Final = 1024 + len(_PDF_START)
"""Bytes in which a PDF document begins: in front of it may stand what a server or a mailer put there."""

_HTML_START: Final = re.compile(
    rb"\s*(?:<!--.{0,2000}?-->\s*)?<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
_MAIL_START: Final = re.compile(
    rb"(?:(?:received|return-path|delivered-to|message-id|mime-version|dkim-signature|x-[\w-]+|from|to|date|subject): "
    rb"[^\r\n]*\r?\n(?:[ \t][^\r\n]*\r?\n)*){3}",
    re.IGNORECASE,
)
_MBOX_START: Final = re.compile(rb"From \S+ +\w{3} \w{3} +\d{1,2} \d\d:\d\d[^\r\n]*\r?\n[\w-]+: ")


@dataclass(frozen=True, slots=True)
class Kind:
    """What a document is.

    Attributes:
        media_type: one of those in `NAMES`, or a kind of text.
        charset: Python's name of the encoding it was said to have; empty if none.
        note: what its name or its declared type would have had it be instead; empty if nothing else.
    """

    media_type: str
    charset: str = ""
    note: str = ""

    @property
    def apart(self) -> bool:
        """Whether it is read in a process of its own."""
        return self.media_type in NAMES


def kind_of(body: bytes, *, media_type: str = "", name: str = "", stored: bool = False) -> Kind:
    """Tell what a document is, by looking at no more than some of its bytes.

    Args:
        body: the document.
        media_type: as in a Content-Type. If it is missing, application/octet-stream or one that no format has, name and
            content decide.
        name: file name; only its ending is looked at.
        stored: the media type is what was told of the document before; nothing else is looked at.

    Raises:
        InvalidInput: not a type we read, whatever it was said to be.
    """
    essence, charset = read_type(media_type)
    if stored:
        return Kind(essence, charset)
    ending = ENDINGS.get(PurePath(name.lower()).suffix, "")
    declared = _DECLARED.get(essence, "")
    told = _known(body)
    if told:
        said = declared if declared in NAMES else ending
        note = f"it was taken for what it is, {NAMES[told]}, and not for what its name or type says"
        return Kind(told, note=note if said not in {"", told} else "")
    kind = _said(essence, declared, ending, body)
    if kind in BINARY and not (kind == PDF and _PDF_START in body[:_PDF_HEAD]):
        _refuse_other(body)
        raise InvalidInput(f"the document is said to be {NAMES[kind]}, and is none: it is damaged, or another format")
    return Kind(kind, charset)


def read_type(media_type: str) -> tuple[str, str]:
    """The media type without parameters, in small letters, and Python's name of its charset; empty where it is none."""
    essence, *parameters = media_type.split(";")
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "charset":
            return essence.strip().lower(), codec(value.strip().strip("\"'"))
    return essence.strip().lower(), ""


def unsaid(essence: str) -> bool:
    """Whether a media type says nothing."""
    return essence in _UNSAID


def unsupported(what: str) -> InvalidInput:
    """What to raise for a document that is something else."""
    return InvalidInput(f"the document is {what}; supported are {SUPPORTED}")


def not_text(body: bytes) -> InvalidInput:
    """What to raise for a document that was taken for text."""
    return unsupported(next((what for magic, what in _MAGIC if body.startswith(magic)), "not text"))


def _known(body: bytes) -> str:
    """The format that the first bytes tell; empty if none. Raises InvalidInput for one that is not read."""
    start = body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n\x00")
    if start.startswith(_PDF_START):
        return PDF
    if start.startswith(b"{\\rtf"):
        return RTF
    if body.startswith(b"PK\x03\x04"):
        return _zipped(body)
    if body.startswith(b"PK\x05\x06"):
        raise unsupported("an empty ZIP archive")
    if body.startswith(_OLE) and _ENCRYPTED_PACKAGE in body:
        raise InvalidInput("the document is encrypted: save it without a password")
    for magic, what in _MAGIC[: _TEXTUAL + 1]:
        if body.startswith(magic):
            raise unsupported(what)
    return ""


def _zipped(body: bytes) -> str:
    if body[30:38] == b"mimetype" and (kind := _TYPED.get(_stored(body))):
        return kind
    for part, kind in _PARTS:
        if part in body:
            return kind
    raise unsupported("a ZIP archive: send the files in it")


def _stored(body: bytes) -> bytes:
    """The content of the first file of a ZIP archive, which is not packed and whose name is `mimetype`."""
    extra, size = int.from_bytes(body[28:30], "little"), int.from_bytes(body[22:26], "little")
    content = body[38 + extra : 38 + extra + min(size, 100)]
    return content.strip()


def _refuse_other(body: bytes) -> None:
    for magic, what in _MAGIC:
        if body.startswith(magic):
            raise unsupported(what)


def _said(essence: str, declared: str, ending: str, body: bytes) -> str:
    if declared:
        return NOTEBOOK if (declared, ending) == (JSONS, NOTEBOOK) else declared
    if essence.startswith("text/"):
        # as plain text it would be read all the same; its name may only say what it is written in
        return ending if ending.startswith("text/x-") else essence if essence.startswith("text/x-") else "text/plain"
    if ending:
        return ending
    if not unsaid(essence):
        raise unsupported(essence if re.fullmatch(r"[\w.+-]{1,80}/[\w.+-]{1,80}", essence) else "of unknown type")
    return _looks_like(body)


def _looks_like(body: bytes) -> str:
    """The format of a document of which nothing was said."""
    if _PDF_START in body[:_PDF_HEAD] and b"startxref" in body[-1024:]:
        return PDF
    if _HTML_START.match(body[:4096]):
        return "text/html"
    if _MBOX_START.match(body[:4096]):
        return MBOX
    return EML if _MAIL_START.match(body[:16384]) else "text/plain"


CHARSETS: Final = frozenset(
    codec
    for line in (
        "utf-8 utf-16 utf-16-le utf-16-be ascii mac-roman koi8-r koi8-u cp866 cp874 cp932 cp949",
        "cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258",
        "iso8859-1 iso8859-2 iso8859-3 iso8859-4 iso8859-5 iso8859-6 iso8859-7 iso8859-8 iso8859-9 iso8859-10",
        "iso8859-11 iso8859-13 iso8859-14 iso8859-15 iso8859-16",
        "gbk gb2312 gb18030 big5 big5hkscs shift_jis euc_jp euc_jis_2004 iso2022_jp euc_kr",
    )
    for codec in line.split()
)
"""Python's names of the encodings that a document may declare: those of the web, and no other codec of Python."""


def codec(label: str) -> str:
    """Python's name of a declared encoding; nothing if it is none that we take."""
    try:
        found = codecs.lookup(label).name
    except (LookupError, ValueError, OSError):  # where no file can be opened, rare ones cannot be looked up
        return ""
    if found in {"iso8859-1", "ascii"}:  # as every browser does: https://encoding.spec.whatwg.org/#names-and-labels
        return "cp1252"
    return found if found in CHARSETS else ""
