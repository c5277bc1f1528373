"""Cuts a text into passages that a model can embed, at the borders a reader would choose."""

import re
import unicodedata
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from appliance.catalog.records import Strategy
from appliance.ingest.borders import (
    BLOCK,
    HEADING,
    LINE,
    ROW,
    SENTENCE,
    STRUCTURED,
    Borders,
    found_borders,
    no_borders,
    sentences_only,
)
from appliance.ingest.definitions import definition_borders

Spans: TypeAlias = Callable[[str], list[tuple[int, int]]]
"""The character range of each token of a text, in order, without special tokens."""

USUAL_TOKENS: Final = 256
"""Tokens of a passage at most where nobody says how many."""

WINDOW: Final = 100_000
"""Characters that are tokenised at once, so that a long text does not need its memory many times over."""

WIDEST: Final = 16
"""Characters a token may stand for on average in a passage. More of them weigh as much as more tokens: models make
one token of any word that is too long, and of some signs none."""

_FILL: Final = {HEADING: 0.25, BLOCK: 0.5, ROW: 0.5, SENTENCE: 0.25, LINE: 0.5}
"""How full a passage must be before it ends at a border of this kind, while a lesser border would fill it more."""

_HEADER_SHARE: Final = 4
"""The header takes at most one part in so many of a passage's tokens."""

_SECTION: Final = 200
"""Characters of each heading that is kept of a section's path."""

_LEVELS: Final = 8
"""Headings of a section's path."""

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
        columns: the head of the table in whose middle the passage begins.
        section: the headings that its beginning stands under, its own included, outermost first, joined by " > ".
    """

    start: int
    end: int
    text: str
    tokens: int
    header: str
    columns: str = ""
    section: str = ""


def room(max_tokens: int, *, title_tokens: int, specials: int = 2) -> int:
    """Tokens that a passage may have beside its title in an input of `max_tokens`.

    A title may take half of the input; of a longer one the model's input then loses the passage's end.
    """
    return max(max_tokens // 2, max_tokens - specials - title_tokens)


def embedded(title: str, passage: Passage) -> str:
    """What is embedded for a passage: title, header, columns and text on lines of their own.

    The title is left out where the passage's first words are the title already.
    """
    name = title.strip()
    opening = (passage.header or passage.text.lstrip("#* \n\t")).casefold()
    begins = opening.startswith(name.casefold()) and not opening[len(name) : len(name) + 1].isalnum()
    front = [name] if name and not begins else []
    return "\n".join([*front, *filter(None, [passage.header, passage.columns]), passage.text])


def chunked(
    text: str,
    *,
    spans: Spans,
    size: int,
    overlap: int,
    media_type: str = "text/plain",
    title: str = "",
    strategy: Strategy = "structure",
    header: Literal["with", "without"] = "with",
) -> list[Passage]:
    r"""Cut a text into passages of at most `size` tokens, their headers included.

    A text that fits is one passage. A longer one is filled greedily and cut before a heading, a paragraph or code
    block, a row, a sentence or a word, the best of these that leaves the passage reasonably full. A code block that
    fits is kept whole; a heading stays with what follows it; only a word longer than `size` is cut inside, between
    graphemes. That is `structure`. The other strategies: `sentences` fills with whole sentences, whatever paragraph or
    section they belong to; `fixed` cuts after so many tokens, wherever that is, and repeats exactly `overlap` of them;
    `code` cuts before definitions, then between statements and lines, and has the definitions around a passage for its
    headings, but cuts by structure what is Markdown or HTML.

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
        strategy: see above.
        header: without, passages have neither header nor columns, and their room is theirs.
    """
    structured = media_type in STRUCTURED
    if strategy == "code" and not structured:
        borders = definition_borders(text)
    else:
        borders = found_borders(text, structured=structured)
    if strategy == "sentences":
        borders = sentences_only(borders)
    elif strategy == "fixed":
        borders = no_borders(borders)
    cutter = _Cutter(
        text,
        borders,
        spans=spans,
        size=size,
        overlap=min(overlap, size // 2),
        title=title,
        anywhere=strategy == "fixed",
        headed=header == "with",
    )
    return list(cutter.passages())


@dataclass(frozen=True, slots=True)
class _Front:
    header: str = ""
    columns: str = ""


class _Cutter:
    def __init__(
        self,
        text: str,
        borders: Borders,
        *,
        spans: Spans,
        size: int,
        overlap: int,
        title: str,
        anywhere: bool,
        headed: bool,
    ) -> None:
        self.text = text
        self.borders = borders
        self.size = size
        self.overlap = overlap
        self.title = title.strip().casefold()
        self.anywhere = anywhere
        self.headed = headed
        self.starts, self.ends = _tokens(text, spans)

    def passages(self) -> Iterator[Passage]:
        whole = self._trimmed(0, len(self.text))
        if whole is None:
            return
        place, end = whole
        if self._weight(place, end) <= self.size:
            yield self._passage(place, end, front=_Front())
            return
        if not self.starts:
            return
        done = place
        while done < end:
            front, budget = self._front(place) if self.headed else (_Front(), self.size)
            cut = self._cut(place, done, end, self._share(place, end, budget))
            if cut is None:
                place = done
                continue
            if trimmed := self._trimmed(place, cut):
                yield self._passage(*trimmed, front=front)
            before, done = done, _content(self.text, cut)
            place = self._repeated(max(before, _visible(self.text, place) + 1), done)

    def _passage(self, start: int, end: int, *, front: _Front) -> Passage:
        tokens = self._count(start, end)
        return Passage(start, end, self.text[start:end], tokens, front.header, front.columns, self._section(start))

    def _section(self, place: int) -> str:
        headings = self.borders.headings
        index = self.borders.leads.get(place, self.borders.heading_at(_visible(self.text, place)))
        parts: list[str] = []
        while index >= 0 and len(parts) < _LEVELS:
            name = headings[index].text[:_SECTION].strip()
            if name and name.casefold() != self.title:
                parts.append(name)
            index = headings[index].parent
        return " > ".join(reversed(parts))

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

    def _front(self, place: int) -> tuple[_Front, int]:
        """The headings above the place, as many of the inner ones as may be, the head of its table if there is room,
        and the tokens left beside them.
        """
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
            if heading.text and heading.text.casefold() != self.title:
                parts.append(heading.text)
            index = heading.parent
        tokens = min(tokens, self.size // _HEADER_SHARE)
        columns = ""
        if table := self.borders.table_around(_visible(self.text, place)):
            row = self._trimmed(table[0], self.text.index("\n", table[0]))
            if row and tokens + (width := self._weight(*row) + 1) <= self.size // _HEADER_SHARE:
                columns = self.text[slice(*row)].strip()
                tokens += width
        budget = self.size - tokens
        block = self._code_at(_visible(self.text, place) + 1)
        if block and block[0] == place and self._weight(*block) > budget:
            return _Front(), self.size
        return _Front(" > ".join(reversed(parts)), columns), budget

    def _share(self, place: int, end: int, budget: int) -> int:
        """Tokens of the passage from `place`: about half of what is left if two passages will do, else all it may."""
        if self.anywhere:
            return budget
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
        while not self.anywhere and cut > seen and not _between_words(self.text, cut):
            cut -= 1
        if not self.anywhere and (cut > seen or place < done):
            return cut if cut > seen else None
        cut = limit
        while cut > seen and _inside_grapheme(self.text, cut):
            cut -= 1
        if cut <= seen and place < done:
            return None
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
        if self.anywhere:
            while earliest < cut and _inside_grapheme(self.text, earliest):
                earliest += 1
            return earliest if self._count(min(earliest, cut), cut) else cut
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
