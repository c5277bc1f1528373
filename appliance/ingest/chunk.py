"""Cuts a text into passages that a model can embed, at the borders a reader would choose."""

import re
import unicodedata
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from appliance.ingest.borders import BLOCK, HEADING, LINE, ROW, SENTENCE, STRUCTURED, Borders, found_borders

Spans: TypeAlias = Callable[[str], list[tuple[int, int]]]
"""The character range of each token of a text, in order, without special tokens."""

WINDOW: Final = 100_000
"""Characters that are tokenised at once, so that a long text does not need its memory many times over."""

WIDEST: Final = 16
"""Characters a token may stand for on average in a passage. More of them weigh as much as more tokens: models make
one token of any word that is too long, and of some signs none."""

_FILL: Final = {HEADING: 0.25, BLOCK: 0.5, ROW: 0.5, SENTENCE: 0.25, LINE: 0.5}
"""How full a passage must be before it ends at a border of this kind, while a lesser border would fill it more."""

_HEADER_SHARE: Final = 4
"""The header takes at most one part in so many of a passage's tokens."""

_INDENT: Final = 64
"""Characters of a line's indentation that a passage starts with at most; longer ones are left out."""

_SLACK: Final = 8
"""One part in so many of a passage lets the last two, which share what is left, end at a good border."""

_VISIBLE: Final = re.compile(r"\S")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a text: `text == source[start:end]`.

    Attributes:
        tokens: tokens of `text`, without special tokens and without the header.
        header: the headings that the passage stands under, outermost first, joined by " > ".
    """

    start: int
    end: int
    text: str
    tokens: int
    header: str


def room(max_tokens: int, *, title_tokens: int, specials: int = 2) -> int:
    """Tokens that a passage may have beside its title in an input of `max_tokens`.

    A title may take half of the input; of a longer one the model's input then loses the passage's end.
    """
    return max(max_tokens // 2, max_tokens - specials - title_tokens)


def embedded(title: str, passage: Passage) -> str:
    """What is embedded for a passage: title, header and text on lines of their own.

    The title is left out where the passage's first words are the title already.
    """
    name = title.strip()
    opening = (passage.header or passage.text.lstrip("#* \n\t")).casefold()
    begins = opening.startswith(name.casefold()) and not opening[len(name) : len(name) + 1].isalnum()
    front = [name] if name and not begins else []
    return "\n".join([*front, *filter(None, [passage.header]), passage.text])


def chunked(
    text: str, *, spans: Spans, size: int, overlap: int, media_type: str = "text/plain", title: str = ""
) -> list[Passage]:
    r"""Cut a text into passages of at most `size` tokens, their headers included.

    A text that fits is one passage. A longer one is filled greedily and cut before a heading, a paragraph or code
    block, a row, a sentence or a word, the best of these that leaves the passage reasonably full. A code block that
    fits is kept whole; a heading stays with what follows it; only a word longer than `size` is cut inside, between
    graphemes.

    Every character that is not white space is in a passage, and in no more than two; passages are in order, and each
    begins with at most `overlap` tokens of the one before (whole sentences where one is short enough, nothing across a
    heading). Where tokens are few, each `WIDEST` characters count like one, in every limit here. So passages, their
    headers and the time for them grow with the text and no faster, whatever is in it. A text in which `spans` finds
    nothing at all is one passage if it fits, and none if it does not: there would be nothing to find it by.

    Args:
        text: with `\n` as its only line end.
        spans: see `Spans`; called with windows of the text, cut at white space.
        size: at least as many as one character may have tokens.
        overlap: less than half of `size`, else half of it is meant.
        media_type: whether headings, fences, lists and tables are read.
        title: left out of the headers.
    """
    borders = found_borders(text, structured=media_type in STRUCTURED)
    return list(_Cutter(text, borders, spans=spans, size=size, overlap=min(overlap, size // 2), title=title).passages())


class _Cutter:
    def __init__(self, text: str, borders: Borders, *, spans: Spans, size: int, overlap: int, title: str) -> None:
        self.text = text
        self.borders = borders
        self.size = size
        self.overlap = overlap
        self.title = title.strip().casefold()
        self.starts, self.ends = _tokens(text, spans)

    def passages(self) -> Iterator[Passage]:
        whole = self._trimmed(0, len(self.text))
        if whole is None:
            return
        place, end = whole
        if self._weight(place, end) <= self.size:
            yield self._passage(place, end, header="")
            return
        if not self.starts:
            return
        done = place
        while done < end:
            header, budget = self._header(place)
            cut = self._cut(place, done, end, self._share(place, end, budget))
            if cut is None:
                place = done
                continue
            if trimmed := self._trimmed(place, cut):
                yield self._passage(*trimmed, header=header)
            before, done = done, _content(self.text, cut)
            place = self._repeated(max(before, _visible(self.text, place) + 1), done)

    def _passage(self, start: int, end: int, *, header: str) -> Passage:
        return Passage(start, end, self.text[start:end], self._count(start, end), header)

    def _trimmed(self, start: int, end: int) -> tuple[int, int] | None:
        """The range without white space around it; indentation of its first line stays. None if nothing is left."""
        start = _content(self.text, start)
        while end > start and self.text[end - 1].isspace():
            end -= 1
        return (start, end) if start < end else None

    def _count(self, start: int, end: int) -> int:
        """Tokens that have a part in the range."""
        return max(0, bisect_left(self.starts, end) - bisect_right(self.ends, start))

    def _weight(self, start: int, end: int) -> int:
        """What the range takes of a passage: its tokens, or where they are few, its characters."""
        return max(self._count(start, end), -(-(end - start) // WIDEST))

    def _header(self, place: int) -> tuple[str, int]:
        """The headings above the place, as many of the inner ones as may be, and the tokens left beside them."""
        headings = self.borders.headings
        index = self.borders.heading_at(place)
        if index >= 0 and place < headings[index].follows:
            index = headings[index].parent
        parts: list[str] = []
        tokens = 0
        while index >= 0:
            heading = headings[index]
            tokens += self._weight(heading.start, heading.follows) + 1
            if tokens > self.size // _HEADER_SHARE:
                break
            if heading.text.casefold() != self.title:
                parts.append(heading.text)
            index = heading.parent
        budget = self.size - min(tokens, self.size // _HEADER_SHARE)
        block = self._code_at(_visible(self.text, place) + 1)
        if block and block[0] == place and self._weight(*block) > budget:
            return "", self.size
        return " > ".join(reversed(parts)), budget

    def _share(self, place: int, end: int, budget: int) -> int:
        """Tokens of the passage from `place`: about half of what is left if two passages will do, else all it may."""
        left = self._weight(place, end)
        half = (left + self.overlap) // 2 + self.size // _SLACK
        block = self._code_at(_visible(self.text, place) + 1)
        return min(budget, half) if budget < left < 2 * budget and not (block and block[0] == place) else budget

    def _code_at(self, place: int) -> tuple[int, int] | None:
        """The code block around the place, with the headings right before it, if it fits into a passage."""
        fence = self.borders.fence_around(place)
        if fence is None:
            return None
        start, end = fence
        index = self.borders.heading_at(start)
        while self._weight(start, end) <= self.size:
            if index < 0 or self.borders.headings[index].follows != start:
                return start, end
            start = self.borders.headings[index].start
            index -= 1
        return None

    def _cut(self, place: int, done: int, end: int, budget: int) -> int | None:
        """Where the passage from `place` ends, which is after `done`; None if nothing can be repeated before it."""
        seen = _visible(self.text, done)
        index = bisect_right(self.ends, place) + budget
        limit = min(self.starts[index] if index < len(self.starts) else len(self.text), place + budget * WIDEST)
        if limit >= end:
            return end
        block = self._code_at(limit)
        if block and block[0] > seen:
            limit = block[0]
        elif block and place < done:
            return None
        for kind, share in _FILL.items():
            border = self._border(kind, bisect_right(self.borders.kinds[kind], limit) - 1)
            if seen < border and self._weight(place, border) >= share * budget:
                return border
        cut = limit
        while cut > seen and not _between_words(self.text, cut):
            cut -= 1
        if cut > seen or place < done:
            return cut if cut > seen else None
        cut = limit
        while cut > seen and _inside_grapheme(self.text, cut):
            cut -= 1
        return max(cut if cut > seen else limit, seen + 1)

    def _border(self, kind: int, index: int) -> int:
        places = self.borders.kinds[kind]
        return places[index] if 0 <= index < len(places) else -1

    def _repeated(self, earliest: int, cut: int) -> int:
        """Where the passage after a cut starts: a little before it, but not before `earliest`, if that may be repeated.

        What the passage before the cut has repeated itself is not to be repeated again.
        """
        kinds, headings = self.borders.kinds, self.borders.headings
        if not self.overlap or cut >= len(self.text) or cut == self._border(HEADING, bisect_left(kinds[HEADING], cut)):
            return cut
        before = bisect_left(self.starts, cut)
        if not before:
            return cut
        earliest = max(earliest, self.starts[max(0, before - self.overlap)], cut - self.overlap * WIDEST)
        found = (self._border(kind, bisect_left(kinds[kind], earliest)) for kind in (HEADING, BLOCK, ROW, SENTENCE))
        start = min((border for border in found if earliest <= border < cut), default=-1)
        if start < 0:
            start = min(earliest, cut)
            while start < cut and not _between_words(self.text, start):
                start += 1
        index = self.borders.heading_at(cut - 1)
        if index >= 0 and start < headings[index].follows:
            start = headings[index].start if earliest <= headings[index].start else cut
        if self.borders.fence_around(start) and (
            self._code_at(start) or start != self._border(ROW, bisect_left(kinds[ROW], start))
        ):
            return cut
        return start if self._count(start, cut) else cut


def _tokens(text: str, spans: Spans) -> tuple["array[int]", "array[int]"]:
    """Where each token starts and ends; tokenised window by window."""
    starts, ends = array("q"), array("q")
    place = 0
    while place < len(text):
        end = place + WINDOW
        if end < len(text):
            newline = text.rfind("\n", place, end)
            space = newline if newline > place else text.rfind(" ", place, end)
            end = space if space > place else end
        for start, stop in spans(text[place:end]):
            starts.append(place + start)
            ends.append(place + stop)
        place = end
    return starts, ends


def _visible(text: str, place: int) -> int:
    found = _VISIBLE.search(text, place)
    return found.start() if found else len(text)


def _content(text: str, place: int) -> int:
    """Where the next visible character is, or the indentation of its line if that is short and after the place."""
    start = _visible(text, place)
    line = text.rfind("\n", max(place - 1, 0), start) + 1
    return max(line, place) if (line or not place) and start - max(line, place) <= _INDENT else start


def _between_words(text: str, place: int) -> bool:
    """Whether a word may start at the place. Chinese and Japanese have no spaces: any sign but a closing one may."""
    before, after = text[place - 1], text[place]
    if before.isspace():
        return True
    if not (_is_sign(before) or _is_sign(after)) or _inside_grapheme(text, place):
        return False
    return not unicodedata.category(after).startswith("P")


def _is_sign(character: str) -> bool:
    return (
        character >= "\u2e80"
        and not "\uac00" <= character <= "\ud7a3"  # Korean has spaces
        and unicodedata.east_asian_width(character) in "WF"
    )


def _inside_grapheme(text: str, place: int) -> bool:
    """Whether the character at the place belongs to the one before: marks, joined and coloured emoji, flags."""
    before, after = text[place - 1], text[place]
    return (
        unicodedata.category(after) in {"Mn", "Mc", "Me"}
        or after in "\u200d\ufe0e\ufe0f"
        or before == "\u200d"
        or "\U0001f3fb" <= after <= "\U0001f3ff"
        or ("\U0001f1e6" <= before <= "\U0001f1ff" and "\U0001f1e6" <= after <= "\U0001f1ff")
    )
