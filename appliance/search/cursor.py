"""Where a search goes on: what was given already, in a form that a caller can keep.

A cursor holds a fingerprint of each match that was given, not a place in a ranking: scores move when documents come and
go, and with them every place. So no match is given twice, and none that stays is passed over.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from appliance.errors import InvalidInput

Key: TypeAlias = tuple[str | int, ...]

_VERSION: Final = b"\x01"
_QUESTION: Final = 6
_MATCH: Final = 5
"""Bytes of a fingerprint: among a thousand matches two are the same once in two million cursors."""

MAX_SEEN: Final = 1000
"""Matches that a cursor can hold."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """What one question was answered with so far."""

    question: bytes
    seen: frozenset[bytes] = frozenset()

    @classmethod
    def begun(cls, question: Sequence[object]) -> "Cursor":
        """Of a question that was not answered yet; all that decides about its matches belongs to it."""
        return cls(hashlib.blake2b(repr(question).encode("utf-8", "replace"), digest_size=_QUESTION).digest())

    def read(self, text: str) -> "Cursor":
        """What the caller kept of the same question.

        Raises:
            InvalidInput: it is none, or of another question.
        """
        try:
            raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error):
            raw = b""
        matches = raw[1 + _QUESTION :]
        if not raw.startswith(_VERSION) or len(raw) < 1 + _QUESTION or len(matches) % _MATCH:
            raise InvalidInput("after is none of the `next` that a search answered", param="after")
        if len(matches) > MAX_SEEN * _MATCH:
            raise InvalidInput(f"after holds more than {MAX_SEEN} matches", param="after")
        if raw[1 : 1 + _QUESTION] != self.question:
            raise InvalidInput(
                "after is of another search: only k may differ from the one that it came with", param="after"
            )
        seen = (matches[place : place + _MATCH] for place in range(0, len(matches), _MATCH))
        return Cursor(self.question, frozenset(seen))

    def has(self, key: Key) -> bool:
        """Whether the match was given already."""
        return _fingerprint(key) in self.seen

    def followed(self, keys: Iterable[Key]) -> "Cursor":
        """With these as given."""
        return Cursor(self.question, self.seen | {_fingerprint(key) for key in keys})

    def __str__(self) -> str:
        raw = _VERSION + self.question + b"".join(sorted(self.seen))
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _fingerprint(key: Key) -> bytes:
    return hashlib.blake2b(repr(key).encode("utf-8", "replace"), digest_size=_MATCH).digest()
