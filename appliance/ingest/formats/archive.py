"""Documents that are ZIP archives of XML, read from front to back and within limits."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from posixpath import dirname, join, normpath
from typing import Final
from urllib.parse import unquote
from xml.parsers import expat

from appliance.errors import InvalidInput
from appliance.ingest.formats.document import JSON, about, collapsed

MAX_ENTRIES: Final = 10_000
"""Files in one archive."""

MAX_RATIO: Final = 200
"""How many times as large as packed a file in an archive may be; the first `_FREE` bytes are free."""

MAX_UNPACKED: Final = 2**30
"""Bytes that are unpacked from one archive."""

_FREE: Final = 2**20
_STEP: Final = 1 << 16
_DEEPEST: Final = 1_000
"""Elements inside each other."""

Start = Callable[[str, Mapping[str, str]], None]


class Archive:
    """A ZIP archive that nobody vouches for. Names in it are only looked up, never written anywhere.

    Args:
        body: the archive.
        what: what it is said to be, for messages: "a Word document".

    Raises:
        InvalidInput: it is damaged, encrypted, or has too many files; from every method, what is unpacked is damaged or
            becomes too large.
    """

    def __init__(self, body: bytes, what: str) -> None:
        self._what = what
        self._unpacked = 0
        if body.count(b"PK\x01\x02") > MAX_ENTRIES:
            raise InvalidInput(f"the document has more than {MAX_ENTRIES} files in it: no document needs so many")
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(body))
            self._members = {each.filename: each for each in self._zip.infolist()}
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, IndexError, struct.error) as error:
            raise self.damaged() from error

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def names(self) -> list[str]:
        """The files in it."""
        return list(self._members)

    def damaged(self) -> InvalidInput:
        """What to raise where something is missing that makes it a document."""
        return InvalidInput(f"the document is {self._what} that cannot be read: it is damaged or incomplete")

    def stream(self, name: str) -> Iterator[bytes]:
        """The bytes of a file in it, piece by piece."""
        member = self._members.get(name)
        if member is None:
            raise self.damaged()
        if member.flag_bits & 1:
            raise InvalidInput("the document is encrypted: save it without a password")
        if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise self.damaged()
        size = 0
        try:
            with self._zip.open(member) as file:
                while piece := file.read(_STEP):
                    size += len(piece)
                    self._unpacked += len(piece)
                    if size > _FREE + MAX_RATIO * member.compress_size or self._unpacked > MAX_UNPACKED:
                        raise InvalidInput("the document is packed so tightly that unpacking it is refused")
                    yield piece
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError) as error:
            raise self.damaged() from error

    def read(self, name: str, *, limit: int = 64 * 2**20) -> bytes:
        """The bytes of a file in it, of no more than `limit`."""
        parts = []
        for piece in self.stream(name):
            parts.append(piece)
            limit -= len(piece)
            if limit < 0:
                raise InvalidInput("a part of the document is too large to be read")
        return b"".join(parts)

    def xml(
        self,
        name: str,
        start: Start,
        end: Callable[[str], None] = lambda _: None,
        text: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Tell of each element and text in an XML file, in its order; of names without their namespaces.

        A DOCTYPE may only name what it names: declarations in it are refused, and nothing outside is ever read.
        """
        depth = 0

        local = _Local()

        def opened(name: str, attributes: dict[str, str]) -> None:
            nonlocal depth
            depth += 1
            if depth > _DEEPEST:
                raise InvalidInput(f"the document has more than {_DEEPEST} elements inside each other")
            start(local[name], {local[key]: value for key, value in attributes.items()} if attributes else attributes)

        def closed(name: str) -> None:
            nonlocal depth
            depth -= 1
            end(local[name])

        def declared(_name: str, _system: str | None, _public: str | None, inside: object) -> None:
            if inside:
                raise InvalidInput("the document holds a document type definition (DTD), which is never read")

        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = opened
        parser.EndElementHandler = closed
        parser.CharacterDataHandler = text
        parser.StartDoctypeDeclHandler = declared
        try:
            for piece in self.stream(name):
                parser.Parse(piece, False)  # noqa: FBT003  # expat's own signature
            parser.Parse(b"", True)  # noqa: FBT003  # same
        except (expat.ExpatError, LookupError, ValueError) as error:
            raise self.damaged() from error

    def linked(self, part: str) -> dict[str, tuple[str, str]]:
        """What a part of an Office document links to, by id: the last word of the link's type, and the part's name."""
        folder, _, name = part.rpartition("/")
        rels = f"{folder}/_rels/{name}.rels" if folder else f"_rels/{name}.rels"
        found: dict[str, tuple[str, str]] = {}

        def start(element: str, given: Mapping[str, str]) -> None:
            if element == "Relationship" and given.get("TargetMode") != "External":
                kind = given.get("Type", "").rpartition("/")[2]
                found[given.get("Id", "")] = kind, resolved(part, given.get("Target", ""))

        if rels in self:
            self.xml(rels, start)
        return found

    def properties(self, name: str = "docProps/core.xml") -> tuple[str, dict[str, JSON]]:
        """The title and the metadata that a file of Dublin Core elements tells; none if there is no such file."""
        found: dict[str, list[str]] = {}
        inside = ""

        def start(element: str, _: Mapping[str, str]) -> None:
            nonlocal inside
            inside = element
            if element in _TOLD:
                found.setdefault(element, []).append("")

        def text(data: str) -> None:
            if inside in _TOLD:
                found[inside][-1] = (found[inside][-1] + data)[:_LONGEST]

        def end(_: str) -> None:
            nonlocal inside
            inside = ""

        def first(*elements: str) -> str:
            return next((told.strip() for each in elements for told in found.get(each, ()) if told.strip()), "")

        if name in self:
            self.xml(name, start, end, text)
        creators = found.get("creator", []) if not first("initial-creator") else []
        told = about(
            author=first("initial-creator") or ", ".join(filter(None, map(collapsed, creators[:20]))),
            created=first("created", "creation-date", "date" if name.endswith(".opf") else "created"),
            language=first("language"),
        )
        return first("title"), told


_TOLD: Final = frozenset({"title", "creator", "initial-creator", "created", "creation-date", "date", "language"})
_LONGEST: Final = 2_000
"""Characters of one of them that are read."""


def resolved(part: str, target: str) -> str:
    """The name of the part that a link in another one leads to."""
    path = unquote(target.partition("#")[0])
    return path.lstrip("/") if path.startswith("/") else normpath(join(dirname(part), path))


class _Local(dict[str, str]):
    """Names without their prefixes. There are few of them, and they come often."""

    def __missing__(self, name: str) -> str:
        local = name.rpartition(":")[2]
        if len(self) < _MOST_NAMES:
            self[name] = local
        return local


_MOST_NAMES: Final = 10_000
