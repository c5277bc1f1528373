"""Where in a passage the words of a question stand."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import TypeAlias

from appliance.search.stems import stem
from appliance.store.words import Written, folded, terms, tokens, written

Range: TypeAlias = tuple[int, int]
"""The first character, and the one behind the last."""


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
            of scripts without spaces, two letters in a row match, or a single one that stands alone.
    """

    def __init__(self, q: str) -> None:
        found = terms(q)
        asked = {folded(token) for term in found for token in term.tokens}
        self._prefixes = tuple(folded(term.tokens[-1]) for term in found if term.prefix)
        self._stems: set[str] = set()
        self._letters: set[str] = set()
        for run in _runs(q):
            first = run[0]
            if not first.is_letter and not asked.isdisjoint(tokens(first.text)):
                self._stems.add(stem(folded(first.text)))
            elif first.is_letter:
                self._letters |= {a.text + b.text for a, b in pairwise(run)} or {first.text}

    def ranges(self, text: str) -> list[Range]:
        """Character ranges in `text` of the words that match, in order; none overlap."""
        found: list[Range] = []
        for run in _runs(text):
            for start, end in self._matching(run):
                if found and start <= found[-1][1]:
                    found[-1] = found[-1][0], max(end, found[-1][1])
                else:
                    found.append((start, end))
        return found

    def _matching(self, run: Sequence[Written]) -> Iterator[Range]:
        if not run[0].is_letter:
            word = folded(run[0].text)
            if stem(word) in self._stems or (self._prefixes and word.startswith(self._prefixes)):
                yield run[0].start, run[0].end
        elif self._letters:
            for this, following in zip_longest(run, run[1:]):
                if following is not None and this.text + following.text in self._letters:
                    yield this.start, following.end
                elif this.text in self._letters:
                    yield this.start, this.end


def _runs(text: str) -> Iterator[list[Written]]:
    """Words, each alone, and letters with those that follow them without anything between."""
    run: list[Written] = []
    for each in written(text):
        if run and not (each.is_letter and run[-1].is_letter and each.start <= run[-1].end):
            yield run
            run = []
        run.append(each)
    if run:
        yield run


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
