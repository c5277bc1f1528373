"""Where a text may be cut, and which headings each place stands under.

Read from the text itself: Markdown, and what `parse` makes of HTML, carry their structure in their lines.
"""

import re
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field, replace
from typing import Final

STRUCTURED: Final = frozenset({"text/markdown", "text/html"})
"""Media types whose lines are read as Markdown."""

HEADING, BLOCK, ROW, SENTENCE, LINE = range(5)
"""Kinds of border, best first: before a heading, a paragraph or code block, a row of a table, list or code, a
sentence, any other line."""

_LINE: Final = re.compile(
    r"(?P<blank>[^\S\n]*$)"
    r"|[ ]{0,3}(?P<fence>`{3,}|~{3,})"
    r"|[ ]{0,3}(?P<atx>\#{1,6})[ \t]+(?P<name>\S[^\n]*)"
    r"|[ ]{0,3}(?P<over>(?![-*+>|~=`])\S[^\n]*)\n[ ]{0,3}(?P<under>=+|-{2,})[ \t]*$"
    r"|[ \t]*(?P<row>\||[-*+][ \t]|\d{1,9}[.)][ \t])",
    re.MULTILINE,
)
_TABLE: Final = re.compile(
    r"^(?P<head>[ \t]*\|[^\n]*\n[ \t]*\|(?=[ \t:|]*-)[ \t:|-]*+\n)(?:[ \t]*\|[^\n]*(?:\n|\Z))+", re.MULTILINE
)
_SENTENCE: Final = re.compile(
    # Latin, Greek, Cyrillic: white space follows.
    r"(?<![.!?\u2026])[.!?\u2026]++[\"'\u201d\u2019\u00bb)\]]*+\s++"
    # Chinese and Japanese, Devanagari, Arabic, Urdu: none needs to.
    r"|[\u3002\uff01\uff1f\uff61\u0964\u061f\u06d4]++[\"'\u201d\u2019\u300d\u300f\uff09]*+\s*+"
)
_NO_END: Final = re.compile(
    r"(?:^|[\s(\[])(?:\w|\d+|e\.g|i\.e|cf|vs|al|ca|approx|nos?|figs?|eqs?|refs?|vol|pp?|eds?|sec|chap|dr|mrs?|ms|prof|"
    r"st|jr|sr|bzw|z\.\s?b|nr)\Z",
    re.IGNORECASE,
)
"""What stands before a full stop that ends no sentence: an initial, a number of a list, an abbreviation."""


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading: where its line starts, where what follows it starts, and the index of the heading above it or -1."""

    start: int
    follows: int
    level: int
    text: str
    parent: int


@dataclass(frozen=True, slots=True)
class Borders:
    """Places where a passage may start, ascending.

    Attributes:
        kinds: one array of places for each kind of border.
        headings: in the order of the text. No border lies between a heading and what follows it.
        fences: start and end of each fenced code block. Only rows and lines are borders in there.
        tables: start, first row below the head, and end of each table that has a head.
        leads: index of the heading that a place belongs to although it lies before it, as a comment above a function.
    """

    kinds: tuple["array[int]", ...] = field(default_factory=lambda: tuple(array("q") for _ in range(5)))
    headings: list[Heading] = field(default_factory=list)
    fences: list[tuple[int, int]] = field(default_factory=list)
    tables: list[tuple[int, int, int]] = field(default_factory=list)
    leads: dict[int, int] = field(default_factory=dict)

    def heading_at(self, place: int) -> int:
        """Index of the last heading that starts at or before the place, or -1."""
        return bisect_right(self.headings, place, key=lambda heading: heading.start) - 1

    def table_around(self, place: int) -> tuple[int, int, int] | None:
        """The table in whose rows below its head the place lies."""
        index = bisect_right(self.tables, place, key=lambda table: table[1]) - 1
        return self.tables[index] if index >= 0 and place < self.tables[index][2] else None

    def fence_around(self, place: int) -> tuple[int, int] | None:
        """The fenced code block that has the place inside it; its own start and end are outside."""
        index = bisect_left(self.fences, place, key=lambda fence: fence[0]) - 1
        return self.fences[index] if index >= 0 and place < self.fences[index][1] else None


def found_borders(text: str, *, structured: bool) -> Borders:
    r"""Read the borders in one pass over the lines and one over the ends of sentences.

    Args:
        text: with `\n` as its only line end.
        structured: read headings, fences, lists and tables as Markdown has them; else paragraphs and lines only.
    """
    borders = Borders()
    _read_lines(text, borders, structured=structured)
    if structured:
        for match in _TABLE.finditer(text):
            if borders.fence_around(match.start() + 1) is None:
                borders.tables.append((match.start(), match.end("head"), match.end()))
    for match in _SENTENCE.finditer(text):
        place = match.end()
        if place < len(text) and _ends_sentence(text, match) and borders.fence_around(place) is None:
            heading = borders.heading_at(place - 1)
            if heading < 0 or borders.headings[heading].follows < place:
                borders.kinds[SENTENCE].append(place)
    return borders


def sentences_only(borders: Borders) -> Borders:
    """The same with every border that is one between sentences too, all of one kind; code blocks count for nothing."""
    ends = array("q", sorted(place for kind in (HEADING, BLOCK, ROW, SENTENCE) for place in borders.kinds[kind]))
    kinds = tuple(ends if kind == SENTENCE else array("q") for kind in range(5))
    return Borders(kinds, borders.headings, tables=borders.tables)


def no_borders(borders: Borders) -> Borders:
    """The same headings, and nothing to cut at."""
    return Borders(headings=borders.headings, tables=borders.tables)


def first_heading(text: str) -> str:
    """The text of the first Markdown heading, or nothing."""
    headings = found_borders(text, structured=True).headings
    return headings[0].text if headings else ""


def _read_lines(text: str, borders: Borders, *, structured: bool) -> None:
    fence, fence_start = "", 0
    after_blank, after_heading = True, False
    place = 0
    while place < len(text):
        found = _LINE.match(text, place)
        what = found.lastgroup if found else None
        end = _line_end(text, found.end() if found and what == "under" else place)
        if what == "blank":
            after_blank = True
            place = end + 1
            continue
        if fence:
            kind = ROW
            if found and what == "fence" and found["fence"].startswith(fence) and not text[found.end() : end].strip():
                borders.fences.append((fence_start, end))
                fence = ""
        else:
            kind = _kind(what if structured else None, after_blank=after_blank)
            if found and structured and what == "fence":
                fence, fence_start = found["fence"], place
        if after_heading:
            borders.headings[-1] = replace(borders.headings[-1], follows=place)
        elif place:
            borders.kinds[kind].append(place)
        after_heading = kind == HEADING
        if after_heading and found:
            _add_heading(borders.headings, found, place, follows=len(text))
        after_blank = False
        place = end + 1
    if fence:
        borders.fences.append((fence_start, len(text)))


def _kind(what: str | None, *, after_blank: bool) -> int:
    """What kind of border is before a line outside of code; `what` is the group of `_LINE` that it is."""
    if what == "name" or (what == "under" and after_blank):
        return HEADING
    if what == "fence" or after_blank:
        return BLOCK
    return ROW if what == "row" else LINE


def _add_heading(headings: list[Heading], found: re.Match[str], place: int, *, follows: int) -> None:
    if found["atx"]:
        level, name = len(found["atx"]), re.sub(r"(?:^|[ \t])#+\Z", "", found["name"].rstrip())
    else:
        level, name = 1 if found["under"].startswith("=") else 2, found["over"]
    parent = len(headings) - 1
    while parent >= 0 and headings[parent].level >= level:
        parent = headings[parent].parent
    headings.append(Heading(place, follows, level, name.strip(), parent))


def _line_end(text: str, place: int) -> int:
    end = text.find("\n", place)
    return len(text) if end < 0 else end


def _ends_sentence(text: str, found: re.Match[str]) -> bool:
    """Whether what was found is no abbreviation, initial or number in front of more of the same sentence."""
    if text[found.start()] != "." or text[found.start() : found.start() + 2] in ("..", ".\u2026"):
        return True
    before = text[max(0, found.start() - 10) : found.start()].rpartition("\n")[2]
    return not text[found.end()].islower() and _NO_END.search(before) is None
