"""Files that nobody can read: damaged, locked, not what they say, or built to harm whoever reads them; and why each is
turned away.
"""

import io
import os
import socket
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

LAUGHS = b"".join(b'<!ENTITY l%d "%s">' % (n, b"&l%d;" % (n - 1) * 10) for n in range(1, 10))


@dataclass(frozen=True, slots=True)
class Bad:
    """A file that cannot be read.

    Attributes:
        id: what its job calls it; a folder ends in a slash.
        state: `refused` when it came, or `failed` when its turn came.
        why: a part of the reason that a person is told.
    """

    id: str
    state: Literal["refused", "failed"]
    why: str


def fill(folder: Path, outside: Path, documents: Any) -> list[Bad]:
    """Put them into a folder, and what some of them lead to into another one.

    Args:
        folder: its name is the first part of every id.
        outside: does not exist yet.
        documents: `tests/documents.py`.
    """
    refused, failed = list(_refused(documents)), list(_failed(documents))
    for name, body, _ in (*refused, *failed):
        (folder / name).write_bytes(body)
    return [
        *(Bad(f"{folder.name}/{name}", "failed", why) for name, _, why in failed),
        *(Bad(f"{folder.name}/{name}", "refused", why) for name, _, why in refused),
        *(Bad(f"{folder.name}/{name}"[:512], "refused", why) for name, why in _traps(folder, outside)),
    ]


def _traps(folder: Path, outside: Path) -> Iterator[tuple[str, str]]:
    """What lies in a folder and is no file, or leads elsewhere, or is hard to name."""
    outside.mkdir()
    (outside / "secret.txt").write_text("what nobody may read")
    (folder / "out.txt").symlink_to(outside / "secret.txt")
    yield "out.txt", "leads out"
    (folder / "passwd.txt").symlink_to("/etc/passwd")
    yield "passwd.txt", "leads out"
    (folder / "gone.txt").symlink_to("nothing")
    yield "gone.txt", "no such file"
    (folder / "round.txt").symlink_to("round.txt")
    yield "round.txt", "symbolic links"
    (folder / "elsewhere").symlink_to(outside)
    yield "elsewhere/", "a link to a folder"
    (folder / "again").symlink_to(".")
    yield "again/", "a link to a folder"
    os.mkfifo(folder / "pipe.txt")
    yield "pipe.txt", "no regular file"
    with socket.socket(socket.AF_UNIX) as door:
        here = os.open(folder, os.O_RDONLY)  # the path of a socket has 107 bytes at most
        door.bind(f"/proc/self/fd/{here}/socket.txt")
        os.close(here)
    yield "socket.txt", "no regular file"
    with (folder / "huge.txt").open("wb") as file:
        file.truncate(64 * 2**20 + 1)
    yield "huge.txt", "larger than 64 MiB"
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")).write_bytes(b"a name in Latin-1")
    yield "caf?.txt", "not UTF-8"
    (folder / "two\nlines.txt").write_text("a name that no address can have")
    yield "two\nlines.txt", "control characters"
    (folder / "similar").write_text("a name that is an address of its own")
    yield "similar", "an address of its own"
    for name in (".hidden.txt", ".git/config.txt", "draft.txt"):  # of these nothing is told
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("what nobody wants to find")
    (folder / ".applianceignore").write_text("draft.*")
    deep = folder.joinpath(*["d" * 200] * 3)
    deep.mkdir(parents=True)
    (deep / "deep.txt").write_text("a path that is too long for an id")
    yield deep.joinpath("deep.txt").relative_to(folder).as_posix(), "1 to 512 characters"


def _refused(documents: Any) -> Iterator[tuple[str, bytes, str]]:
    """What the first look tells."""
    noise = bytes(range(256)) * 20
    pdf, word = documents.pdf([["words"]]), documents.docx(documents.paragraph("words"))
    yield "empty.txt", b"", "empty"
    yield "blank.md", b" \n\t\n  ", "no text"
    yield "noise.txt", noise, "not text"
    yield "noise.py", noise, "not text"
    yield "noise.pdf", noise, "is none: it is damaged"
    yield "noise.docx", noise, "is none: it is damaged"
    yield "noise.odt", noise, "is none: it is damaged"
    yield "zeros.md", bytes(10_000), "not text"
    yield "text.pdf", b"only words", "is none: it is damaged"
    yield "program.txt", b"\x7fELF" + noise, "a program"
    yield "database.txt", b"SQLite format 3\x00" + noise, "a database"
    yield "packed.txt", b"\x1f\x8b\x08" + noise, "gzip data"
    yield "script.ps", b"%!PS-Adobe-3.0\nshowpage\n", "PostScript"
    yield "picture.png", b"\x89PNG\r\n\x1a\n" + noise, "image"
    yield "fake.docx", b"\xff\xd8\xff" + noise, "an image (image/jpeg)"
    yield "files.docx", documents.zipped({"a.txt": "only a file"}), "a ZIP archive"
    yield "none.xlsx", b"PK\x05\x06" + bytes(18), "an empty ZIP archive"
    yield "old.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + noise, "before 2007"
    yield "old.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + noise, "before 2007"
    secret = "EncryptedPackage".encode("utf-16-le")
    yield "locked.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500) + secret, "encrypted"
    yield "archive.zip", documents.zipped({"a.txt": "words"}), "not text"
    yield "sound.mp3", b"ID3" + noise, "audio"
    yield "tail.pdf", pdf[len(pdf) // 2 :], "is none: it is damaged"
    yield "tail.docx", word[len(word) // 2 :], "is none: it is damaged"


def _failed(documents: Any) -> Iterator[tuple[str, bytes, str]]:
    """What is found out when it is read."""
    yield from _damaged(documents)
    yield from _archives(documents)
    yield from _nested(documents)
    yield "locked.pdf", documents.pdf([["words"]], encrypted=True), "encrypted"
    yield "scanned.pdf", documents.pdf([[], []]), "(OCR)"
    kids = b"3 0 R " * 100_000
    pages = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [%b] /Count 100000 >>" % kids]
    pages.append(b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>")
    yield "endless.pdf", documents.assembled(pages), "more than 20000"
    yield "bomb.pdf", _flate_bomb(documents), "no text"
    yield "wide.csv", b"a," * 3_000, "more than 2000 fields"
    yield "field.csv", b'"' + b"a" * 2_000_000, "field larger"
    yield "broken.jsonl", b'{"a": 1}\n{"a": \n', "line 2"
    yield "plain.eml", b"no headers, only words\n", "has no headers"
    yield "plain.mbox", b"no message, only words\n", "no message begins"
    yield "endless.mbox", b"From a\nSubject: x\n\n\n" * 30_000, "more than 20000 messages"
    parts = b"Subject: x\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\nx\n" * 3_000
    yield "parts.eml", parts, "more than 1000 parts"
    yield "noise.rtf", b"{\\rtf1 " + b"\\bin9999999 " * 9, "no text"
    yield "empty.html", b"<html><script>let x = 1</script></html>", "no text"
    yield "empty.docx", documents.docx("<w:p/>"), "no text"


def _damaged(documents: Any) -> Iterator[tuple[str, bytes, str]]:
    """Of sound files, the first part."""
    endings = {"officedocument.wordprocessingml.document": "docx", "presentationml.presentation": "pptx"}
    endings |= {"spreadsheetml.sheet": "xlsx", "opendocument.text": "odt", "epub+zip": "epub"}
    for kind, body in documents.every_format().items():
        for mark, ending in endings.items():
            if kind.endswith(mark):
                yield f"short.{ending}", body[: len(body) * 2 // 3], "damaged or incomplete"
    yield "short.pdf", documents.pdf([["words"]])[:200], "damaged"
    sound = bytearray(documents.docx(documents.paragraph("words of a passage") * 200))
    place = sound.index(b"word/document.xml") + 200
    sound[place : place + 20] = bytes(20)
    yield "flipped.docx", bytes(sound), "damaged or incomplete"


def _document(documents: Any, content: bytes) -> bytes:
    """A Word document whose main part is this."""
    return bytes(documents.zipped({"[Content_Types].xml": "<Types/>", "word/document.xml": content}))


def _archives(documents: Any) -> Iterator[tuple[str, bytes, str]]:
    yield "bomb.docx", _document(documents, b"<w:document><w:body><w:p>" + b" " * 50_000_000), "packed so tightly"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("word/document.xml", "<w:document/>")
        for number in range(10_001):
            archive.writestr(str(number), b"")
    yield "many.docx", out.getvalue(), "more than 10000 files"
    lying = _document(documents, b"<w:document>" + b" " * 1_000_000 + b"</w:document>")
    yield "lies.docx", lying.replace((1_000_025).to_bytes(4, "little"), (10).to_bytes(4, "little")), "damaged"
    secret = {"content.xml": b"\x01\x02", "META-INF/manifest.xml": "<m><encryption-data/></m>"}
    yield "locked.odt", documents.zipped(secret, first="application/vnd.oasis.opendocument.text"), "encrypted"
    for name, declared in (
        ("laughs", b'<!DOCTYPE x [<!ENTITY l0 "lol">' + LAUGHS + b"]>"),
        ("reaches", b'<!DOCTYPE x [<!ENTITY l9 SYSTEM "file:///etc/passwd">]>'),
        ("calls", b'<!DOCTYPE x [<!ENTITY % l9 SYSTEM "http://127.0.0.1:9/x"> %l9;]>'),
    ):
        body = declared + b"<w:document><w:body><w:p><w:r><w:t>&l9;</w:t></w:r></w:p></w:body></w:document>"
        yield f"{name}.docx", _document(documents, body), "DTD"
    book = documents.epub(
        {"a.xhtml": "<p>x</p>"}, more={"META-INF/container.xml": "<!DOCTYPE x [<!ENTITY a 'b'>]><c/>"}
    )
    yield "laughs.epub", book, "DTD"


def _nested(documents: Any) -> Iterator[tuple[str, bytes, str]]:
    yield "deep.docx", _document(documents, b"<w:p>" * 100_000), "inside each other"
    yield "deep.json", b"[" * 1_000_000 + b"]" * 1_000_000, "inside each other"
    yield "deeper.json", b'{"a":' * 500 + b"1" + b"}" * 500, "inside each other"
    yield "deep.rtf", b"{\\rtf1" + b"{" * 100_000, "inside each other"
    yield "deep.html", b"<div>" * 100_000 + b"words", "inside each other"
    deep = b"".join(
        b"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(3_000)
    )
    yield "deep.eml", b"Subject: x\n" + deep, "inside each other"


def _flate_bomb(documents: Any) -> bytes:
    """A PDF whose page is 200 MB, in some kB."""
    packer = zlib.compressobj(9)
    inner = b"".join(packer.compress(bytes(10_000_000)) for _ in range(20)) + packer.flush()
    stream = zlib.compress(inner, 9)
    page = b"<< /Length %d /Filter [/FlateDecode /FlateDecode] >>\nstream\n%b\nendstream" % (len(stream), stream)
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"]
    objects += [b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R >>", page]
    return bytes(documents.assembled(objects))
