"""Where in a passage the words of a question stand."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from appliance.search.stems import stem
from appliance.store.words import folded, terms

Range: TypeAlias = tuple[int, int]
"""The first character, and the one behind the last."""

_WORD: Final = re.compile(r"(?:[^\W_]|[\u0300-\u036f])+")
_HAN: Final = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
"""Scripts that put no spaces between words."""


@dataclass(frozen=True, slots=True)
class Snippet:
    """The part of a passage where most of the words are.

    Attributes:
        start, end: character range in the passage.
        text: that part.
        highlights: ranges in `text`.
    """

    start: int
    end: int
    text: str
    highlights: tuple[Range, ...]


class Marker:
    """Marks the words of one question in many passages.

    Args:
        q: the question. Words match by their stems, as the word index finds them; `word*` matches what begins so;
            of scripts without spaces, two characters in a row match, or a single one that stands alone.
    """

    def __init__(self, q: str) -> None:
        found = terms(q)
        tokens = [token for term in found for token in term.tokens if not _HAN.fullmatch(token)]
        self._stems = {stem(folded(token)) for token in tokens}
        self._prefixes = tuple(folded(term.tokens[-1]) for term in found if term.prefix)
        self._pairs = {run[place : place + 2] for run in _HAN.findall(q) for place in range(max(len(run) - 1, 1))}

    def ranges(self, text: str) -> list[Range]:
        """Character ranges in `text` of the words that match, in order; none overlap."""
        found: list[Range] = []
        for match in _WORD.finditer(text):
            word = folded(match[0])
            if stem(word) in self._stems or (self._prefixes and word.startswith(self._prefixes)):
                found.append(match.span())
            elif self._pairs:
                found += self._in_han(text, *match.span())
        return found

    def _in_han(self, text: str, start: int, end: int) -> list[Range]:
        found: list[Range] = []
        for run in _HAN.finditer(text, start, end):
            for place in range(run.start(), run.end()):
                length = next((n for n in (2, 1) if text[place : min(place + n, run.end())] in self._pairs), 0)
                last = min(place + length, run.end())
                if length and found and found[-1][1] >= place:
                    found[-1] = found[-1][0], last
                elif length:
                    found.append((place, last))
        return found


def snippet(text: str, ranges: Sequence[Range], *, length: int) -> Snippet:
    """The part of `text` of at most `length` characters that has most of the ranges, the earliest of equals.

    It begins and ends between words where there is a space to do so, and begins at the text's own beginning where no
    range stands.
    """
    if len(text) <= length:
        return Snippet(0, len(text), text, tuple(ranges))
    starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
    best = max(
        starts, key=lambda start: (bisect_right(ends, start + length) - bisect_left(starts, start), -start), default=0
    )
    last = ends[max(bisect_right(ends, best + length) - 1, bisect_left(starts, best))] if ranges else 0
    lead = max(length - (last - best), 0) // 2  # what is left goes to both sides
    start = min(max(best - lead, 0), len(text) - length)
    end = start + length
    if start:
        space = text.find(" ", start, best)
        start = space + 1 if space >= 0 else start
    if end < len(text):
        space = text.rfind(" ", max(last, start + 1), end + 1)
        end = space if space > start else end
    inside = tuple((a - start, b - start) for a, b in ranges if start <= a and b <= end)
    return Snippet(start, end, text[start:end], inside)
