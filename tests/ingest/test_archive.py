"""Archives, well made and ill."""

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.catalog.records import unfit_id
from appliance.errors import InvalidInput
from appliance.ingest import archive
from appliance.ingest.archive import Member, is_archive, members, stem


def read(body: bytes, name: str = "x.zip") -> dict[str, Any]:
    found = members(io.BytesIO(body), name=name, prefix="x", size=len(body))
    return {each.id: each.body if isinstance(each, Member) else each.reason for each in found}


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as packed:
        for name, body in entries:
            packed.writestr(name, body)
    return made.getvalue()


def tarred(*fill: Callable[[tarfile.TarFile], None]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as packed:
        for each in fill:
            each(packed)
    return made.getvalue()


def entry(name: str, body: bytes = b"", **more: Any) -> Callable[[tarfile.TarFile], None]:
    info = tarfile.TarInfo(name)
    info.size = len(body)
    for key, value in more.items():
        setattr(info, key, value)
    return lambda packed: packed.addfile(info, io.BytesIO(body))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.zip", "a"),
        ("folder/b.tar.gz", "b"),
        ("c:\\d.TGZ", "d"),
        ("../..zip", "archive"),
        ("...tar", "archive"),
        (".zip", "archive"),
        ("e\x00f.tar", "ef"),
    ],
)
def test_an_archive_is_known_by_its_ending_and_gives_its_name(name: str, expected: str) -> None:
    assert is_archive(name)
    assert stem(name) == expected


@pytest.mark.parametrize("name", ["a.docx", "a.gz", "zip", "a.zip.txt", "a.7z"])
def test_others_are_none(name: str) -> None:
    assert not is_archive(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.txt", "x/a/b.txt"),
        ("/etc/a.txt", "x/etc/a.txt"),
        ("../../a.txt", "x/a.txt"),
        ("C:\\Users\\a.txt", "x/Users/a.txt"),
        ("a//./b.txt", "x/a/b.txt"),
        ("a\nb\x1b.txt", "x/ab.txt"),
        ("cafe\u0301.txt", "x/caf\u00e9.txt"),
        ("deep/chunks", "x/deep/chunks_"),
        ("deep/similar", "x/deep/similar_"),
        (" a .txt", "x/a .txt"),
    ],
)
def test_a_name_that_may_say_anything_becomes_an_id(name: str, expected: str) -> None:
    assert read(zipped((name, b"words"))) == {expected: b"words"}


def test_a_very_long_name_is_cut_and_keeps_its_ending() -> None:
    (name,) = read(zipped(("a" * 2000 + ".md", b"words")))

    assert (len(name), name[-4:]) == (511, "a.md")


@pytest.mark.parametrize("last", ["b", "similar", "chunks/c", "."])
@pytest.mark.parametrize("length", range(496, 514))
def test_a_name_that_is_cut_anywhere_is_an_id(length: int, last: str) -> None:
    (name,) = read(zipped((f"{'a' * length}/{last}/{'c' * 99}", b"words")))

    assert unfit_id(name) == ""


def test_links_devices_and_what_is_encrypted_or_packed_oddly_is_left_out() -> None:
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = 0o120777 << 16
    crypt = bytearray(zipped(("a.txt", b"words")))
    for at, offset in ((crypt.index(b"PK\3\4"), 6), (crypt.index(b"PK\1\2"), 8)):
        crypt[at + offset] |= 1

    assert read(zipped((link, b"/etc/passwd"))) == {"x/link.txt": "a link, or no regular file"}
    assert read(bytes(crypt)) == {"x/a.txt": "encrypted"}
    assert read(zipped(("a.txt", b"words"), method=zipfile.ZIP_LZMA)) == {
        "x/a.txt": "compressed in a way that is not read"
    }
    odd = [entry("l", type=tarfile.SYMTYPE, linkname="/etc"), entry("h", type=tarfile.LNKTYPE, linkname="a")]
    odd += [entry("d", type=tarfile.CHRTYPE), entry("p", type=tarfile.FIFOTYPE)]
    body = tarred(*odd)
    assert set(read(body, "x.tar").values()) == {"a link, or no regular file"}


def test_what_unpacks_to_too_much_is_refused_while_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = b"a" * (40 * 2**20)
    for body, name in (
        (zipped(("a.txt", bomb)), "x.zip"),
        (gzip.compress(tarred(entry("a.txt", bomb))), "x.tgz"),
        (gzip.compress(tarred(entry("a.jpg", bomb))), "x.tgz"),
        (gzip.compress(bomb), "x.tgz"),
    ):
        with pytest.raises(InvalidInput, match="archive"):
            read(body, name)
    monkeypatch.setattr(archive, "MAX_TOTAL", 2**20)
    with pytest.raises(InvalidInput, match="unpacks"):
        read(zipped(*((f"{n}.txt", b"word " * 2**16) for n in range(4)), method=zipfile.ZIP_STORED))


def test_many_files_are_refused_before_they_are_listed() -> None:
    body = zipped(*((f"{n}", b"") for n in range(archive.MAX_ENTRIES + 1)))
    lying = bytearray(body)
    at = lying.rindex(b"PK\5\6")
    struct.pack_into("<HH", lying, at + 8, 1, 1)
    struct.pack_into("<L", lying, at + 12, 2**31)

    for each in (body, bytes(lying)):
        with pytest.raises(InvalidInput, match="more than 10000 files"):
            read(each)
    with pytest.raises(InvalidInput, match="more than 10000 files"):
        read(tarred(*(entry(f"{n}") for n in range(archive.MAX_ENTRIES + 1))), "x.tar")


def test_a_header_that_asks_for_all_memory_is_refused() -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 2**33

    with pytest.raises(InvalidInput, match="archive"):
        read(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(10_000)), "x.tar.gz")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_archive_is_refused_or_read_and_never_anything_else(data: st.DataObject) -> None:
    whole = {
        "x.zip": zipped(("a.txt", b"words " * 50), ("b/c.txt", b"more")),
        "x.tar": tarred(entry("a.txt", b"words " * 50)),
        "x.tgz": gzip.compress(tarred(entry("a.txt", b"words " * 50))),
    }
    name = data.draw(st.sampled_from(sorted(whole)))
    body = bytearray(whole[name])
    for _ in range(data.draw(st.integers(0, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))

    try:
        found = list(members(io.BytesIO(body[:cut]), name=name, prefix="x", size=cut))
    except InvalidInput:
        return
    assert all(each.id.startswith("x/") for each in found)
