"""Tokens of a text whose tokenizer another server has: about how many, and about where."""

import re
from collections.abc import Sequence

_TOKEN = re.compile(
    r"[\r\n]\s*"  # line ends, with what is blank after them
    r"|[A-Z]?[a-z]{1,6}(?![a-z])|[A-Z]?[a-z]{1,4}|[A-Z]{1,3}"  # a short word; a long one in pieces
    r"|[0-9]{1,3}"
    r"|[\u0400-\u052f]{1,2}"  # Cyrillic
    r"|\S"  # letters of all other scripts or with accents, punctuation, symbols: one each
)

_BYTES = 3
"""Bytes of UTF-8 that a token has at least, on average: English has 4 to 5, and dense scripts 3 for a character."""


def spans(text: str) -> list[tuple[int, int]]:
    """The character range of each token of `text`, in order: rather too many of them than too few."""
    return [match.span() for match in _TOKEN.finditer(text)]


def estimate(given: str | Sequence[int]) -> int:
    """About how many tokens an input has, and hardly ever fewer; 1 at least. Cheap."""
    if not isinstance(given, str):
        return max(len(given), 1)
    return 1 + (len(given) if given.isascii() else len(given.encode("utf-8", "surrogatepass"))) // _BYTES


def cut(given: str | Sequence[int], limit: int) -> str | Sequence[int]:
    """The input itself if it has at most `limit` tokens by `spans`, else its beginning, of so many."""
    if not isinstance(given, str):
        return given if len(given) <= limit else given[:limit]
    if len(given) <= limit:
        return given
    for count, match in enumerate(_TOKEN.finditer(given)):
        if count == limit:
            return given[: match.start()]
    return given


def shared_out(total: int, weights: Sequence[int]) -> tuple[int, ...]:
    """Whole numbers in proportion to `weights`, whose sum is exactly `total`.

    Args:
        total: 0 or more.
        weights: 1 or more each.
    """
    shares, given, seen, whole = [], 0, 0, sum(weights)
    for weight in weights:
        seen += weight
        upto = total * seen // whole
        shares.append(upto - given)
        given = upto
    return tuple(shares)
