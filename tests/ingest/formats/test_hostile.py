"""Files that are built to exhaust their reader, to reach beyond it, or are simply broken."""

import io
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import InvalidInput
from appliance.ingest.formats import detect
from appliance.ingest.formats.detect import Kind, kind_of
from appliance.ingest.formats.document import Writer
from appliance.ingest.parse import parse
from appliance.ingest.sandbox import Sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox(processes=1)
    yield made
    made.close()


def refused(sandbox: Sandbox, body: bytes, kind: str) -> str:
    """Why a document is refused, which takes no longer than a document may."""
    started = time.monotonic()
    with pytest.raises(InvalidInput) as caught:
        sandbox.read(body, Kind(kind))
    assert time.monotonic() - started < 20
    return caught.value.message


def document_xml(documents: Any, content: bytes) -> bytes:
    """A Word document whose main part is this."""
    return bytes(documents.zipped({"[Content_Types].xml": "<Types/>", "word/document.xml": content}))


def test_a_zip_bomb_is_refused(sandbox: Sandbox, documents: Any) -> None:
    bomb = b"<w:document><w:body><w:p>" + b" " * 50_000_000

    assert "packed so tightly" in refused(sandbox, document_xml(documents, bomb), detect.DOCX)


def test_an_archive_of_very_many_files_is_refused(sandbox: Sandbox) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number in range(10_001):
            archive.writestr(str(number), b"")

    assert "more than 10000 files" in refused(sandbox, out.getvalue(), detect.DOCX)


def test_entries_that_lie_about_their_size_are_refused(sandbox: Sandbox, documents: Any) -> None:
    body = document_xml(documents, b"<w:document>" + b" " * 1_000_000 + b"</w:document>")
    size = (1_000_025).to_bytes(4, "little")
    assert body.count(size) == 2

    assert "damaged" in refused(sandbox, body.replace(size, (10).to_bytes(4, "little")), detect.DOCX)


LAUGHS = b"".join(b'<!ENTITY l%d "%s">' % (n, b"&l%d;" % (n - 1) * 10) for n in range(1, 10))


@pytest.mark.parametrize(
    "declared",
    [
        b'<!DOCTYPE x [<!ENTITY l0 "lol">' + LAUGHS + b"]>",
        b'<!DOCTYPE x [<!ENTITY l SYSTEM "file:///etc/hostname">]>',
        b'<!DOCTYPE x [<!ENTITY % l SYSTEM "http://127.0.0.1:9/x"> %l;]>',
    ],
    ids=["billion laughs", "file", "network"],
)
def test_entities_are_never_declared(sandbox: Sandbox, documents: Any, declared: bytes) -> None:
    body = declared + b"<w:document><w:body><w:p><w:r><w:t>&l9;&l;</w:t></w:r></w:p></w:body></w:document>"

    assert "DTD" in refused(sandbox, document_xml(documents, body), detect.DOCX)
    book = documents.epub({"a.xhtml": "<p>x</p>"}, more={"META-INF/container.xml": declared.decode() + "<container/>"})
    assert "DTD" in refused(sandbox, book, detect.EPUB)


def test_a_doctype_from_elsewhere_is_not_fetched(documents: Any) -> None:
    body = (
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><w:document><w:body><w:p><w:r><w:t>a&l;b</w:t></w:r></w:p></w:body>'
        b"</w:document>"
    )

    assert parse(document_xml(documents, body)).text == "ab"


def test_deep_xml_is_refused(sandbox: Sandbox, documents: Any) -> None:
    assert "inside each other" in refused(sandbox, document_xml(documents, b"<w:p>" * 100_000), detect.DOCX)


def flate(documents: Any, stream: bytes) -> bytes:
    """A PDF of one page, with this compressed stream."""
    return bytes(
        documents.assembled(
            [
                b"<< /Type /Catalog /Pages 2 0 R >>",
                b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
                b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R >>",
                b"<< /Length %d /Filter [/FlateDecode /FlateDecode] >>\nstream\n%b\nendstream" % (len(stream), stream),
            ]
        )
    )


def test_a_flate_bomb_in_a_pdf_takes_no_other_document_with_it(documents: Any) -> None:
    packer = zlib.compressobj(9)
    inner = b"".join(packer.compress(bytes(10_000_000)) for _ in range(20)) + packer.flush()
    bomb = flate(documents, zlib.compress(inner, 9))
    assert len(bomb) < 100_000
    sandbox = Sandbox(processes=1, seconds=2)

    try:
        assert not sandbox.read(bomb, Kind(detect.PDF)).text
    except InvalidInput as error:
        assert error.message  # noqa: PT017  # either will do: PDFium may give the stream up
    assert sandbox.read(documents.pdf([["fine"]]), Kind(detect.PDF)).text == "fine"
    sandbox.close()


def test_a_pdf_of_a_million_pages_is_refused(sandbox: Sandbox, documents: Any) -> None:
    kids = b"3 0 R " * 1_000_000
    body = documents.assembled(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [%b] /Count 1000000 >>" % kids,
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>",
        ]
    )

    assert "1000000 pages, more than 20000" in refused(sandbox, body, detect.PDF)


def test_what_is_encrypted_says_so(sandbox: Sandbox, documents: Any) -> None:
    secret = documents.zipped({"content.xml": b"\x01\x02", "META-INF/manifest.xml": "<m><encryption-data/></m>"})
    zipped = bytearray(documents.docx("<w:p/>"))
    place = -1
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        while (place := zipped.find(mark, place + 1)) >= 0:
            zipped[place + flags] |= 1

    assert "encrypted" in refused(sandbox, documents.pdf([["x"]], encrypted=True), detect.PDF)
    assert "encrypted" in refused(sandbox, secret, detect.ODT)
    assert "encrypted" in refused(sandbox, bytes(zipped), detect.DOCX)


def test_deep_or_endless_data_is_refused(sandbox: Sandbox) -> None:
    assert "inside each other" in refused(sandbox, b"[" * 1_000_000 + b"]" * 1_000_000, detect.JSONS)
    assert "inside each other" in refused(sandbox, b'{"a":' * 500 + b"1" + b"}" * 500, detect.JSONS)
    assert "more than 2000 fields" in refused(sandbox, b"a," * 3_000, "text/csv")
    assert "field larger" in refused(sandbox, b'"' + b"a" * 2_000_000, "text/csv")
    assert "groups inside each other" in refused(sandbox, b"{\\rtf1" + b"{" * 100_000, detect.RTF)


def test_a_mailbox_of_very_many_messages_is_refused(sandbox: Sandbox) -> None:
    assert "more than 20000 messages" in refused(sandbox, b"From a\nSubject: x\n\n\n" * 100_000, detect.MBOX)


def test_a_message_of_very_many_parts_is_refused(sandbox: Sandbox) -> None:
    body = b"Subject: x\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\nx\n" * 5_000
    deep = b"Subject: x\n" + b"".join(
        b"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(3_000)
    )

    assert "more than 1000 parts" in refused(sandbox, body, detect.EML)
    assert "inside each other" in refused(sandbox, deep, detect.EML)


def test_a_cell_that_is_told_of_a_million_times_does_not_grow_without_end(sandbox: Sandbox, documents: Any) -> None:
    cells = ['<c t="s"><v>0</v></c>'] * 100
    rows = [[f"<c><v>{number * 0.7310585786300049 % 1}</v></c>", *cells] for number in range(2_000)]

    assert "MiB of text" in refused(sandbox, documents.xlsx({"S": rows}, strings=["x" * 1_000]), detect.XLSX)


def test_text_is_bounded_before_it_is_read() -> None:
    body = b"a" * (64 * 2**20 + 1)

    for kind in ("text/plain", "text/html", "text/csv", detect.JSONS, detect.EML):
        with pytest.raises(InvalidInput, match="more than 64 MiB of text"):
            parse(body, media_type=kind)


def test_pages_are_bounded() -> None:
    writer = Writer()
    writer.page(20_000)

    with pytest.raises(InvalidInput, match="more than 20000 pages"):
        writer.page(20_001)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.99])
def test_a_file_that_is_cut_short_is_read_or_refused(sandbox: Sandbox, documents: Any, share: float) -> None:
    for kind, body in documents.every_format().items():
        try:
            sandbox.read(body[: int(len(body) * share)], Kind(kind))
        except InvalidInput as error:
            assert "unexpected" not in error.message, (kind, error.message)  # noqa: PT017  # every one of them is told


changes = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=8), st.integers(0, 8)), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=changes)
def test_whatever_is_changed_in_a_file_it_is_read_or_refused(sandbox: Sandbox, documents: Any, changes: Any) -> None:
    for kind, sound in documents.every_format().items():
        body = bytearray(sound)
        for share, put, removed in changes:
            place = int(share * len(body))
            body[place : place + removed] = put
        try:
            found = kind_of(bytes(body), media_type=kind)
            parsed = sandbox.read(bytes(body), found)
        except InvalidInput as error:
            assert "unexpected" not in error.message, (kind, bytes(body), error.message)  # noqa: PT017  # same
        else:
            assert "\r" not in parsed.text
            assert parsed.text.encode().decode() == parsed.text


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=changes)
def test_whatever_is_changed_in_the_xml_of_an_archive_it_is_read_or_refused(
    sandbox: Sandbox, documents: Any, changes: Any
) -> None:
    for kind, sound in documents.every_format().items():
        if not sound.startswith(b"PK"):
            continue
        files: dict[str, bytes | str] = {}
        with zipfile.ZipFile(io.BytesIO(sound)) as archive:
            for name in archive.namelist():
                content = bytearray(archive.read(name))
                for share, put, removed in changes:
                    place = int(share * len(content))
                    content[place : place + removed] = put
                files[name] = bytes(content)
        try:
            sandbox.read(documents.zipped(files), Kind(kind))
        except InvalidInput as error:
            assert "unexpected" not in error.message, (kind, error.message)  # noqa: PT017  # same


def test_two_threads_read_side_by_side(documents: Any) -> None:
    made = Sandbox(processes=2)
    texts: list[str] = []

    def read(number: int) -> None:
        texts.extend(made.read(documents.pdf([[f"n{number}"]]), Kind(detect.PDF)).text for _ in range(20))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert sorted(texts) == ["n0"] * 20 + ["n1"] * 20
    assert len(made.pids()) == 2
    made.close()
