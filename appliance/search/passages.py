"""Passages with what stands around them, as one text without the overlap between chunks."""

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.search.retriever import Found
from appliance.store.base import Chunk, VectorStore


@dataclass(frozen=True, slots=True)
class Passage:
    """Neighbouring chunks of a document as one text.

    Attributes:
        found: the best match in it.
        first, last: ordinals of its chunks.
        start, end: character range in the document's text.
        text: what the chunks hold.
    """

    found: Found
    first: int
    last: int
    start: int
    end: int
    text: str


def around(store: VectorStore, found: Sequence[Found], *, neighbours: int) -> list[Passage]:
    """Each match with so many chunks before and after it. Blocking; any thread.

    Args:
        store: where the chunks are.
        found: the matches; one whose document went away meanwhile stands alone.
        neighbours: chunks to add on either side.
    """
    return [_read(store, each, each.chunk.ordinal - neighbours, each.chunk.ordinal + neighbours) for each in found]


def merged(store: VectorStore, found: Sequence[Found], *, neighbours: int) -> list[Passage]:
    """The same, with those that touch or overlap made one, which stands where the best of them stood."""
    ranges: dict[tuple[str, str], list[tuple[int, int, int]]] = {}  # first, last, place
    for place, each in enumerate(found):
        mine = each.chunk.ordinal - neighbours, each.chunk.ordinal + neighbours, place
        kept = []
        for other in ranges.get((each.collection, each.document), []):
            if other[0] <= mine[1] + 1 and mine[0] <= other[1] + 1:
                mine = min(mine[0], other[0]), max(mine[1], other[1]), min(mine[2], other[2])
            else:
                kept.append(other)
        ranges[each.collection, each.document] = [*kept, mine]
    ordered = sorted((each for group in ranges.values() for each in group), key=lambda each: each[2])
    return [_read(store, found[place], first, last) for first, last, place in ordered]


def joined(chunks: Sequence[Chunk]) -> str:
    """The text of chunks in order; what two of them share stands there once."""
    text = ""
    end: int | None = None
    for chunk in chunks:
        if end is None:
            text = chunk.text
        elif chunk.start < end and len(chunk.text) == chunk.end - chunk.start:
            text += chunk.text[end - chunk.start :]
        elif chunk.start == end:
            text += chunk.text
        else:  # white space between the two, which belongs to neither
            text += "\n" + chunk.text
        end = max(chunk.end, end or 0)
    return text


def _read(store: VectorStore, found: Found, first: int, last: int) -> Passage:
    chunks: Sequence[Chunk] = [found.chunk]
    if first != last:
        there = store.chunks(found.index, found.document, first=max(first, 0), last=last)
        if found.chunk in there:  # else it was changed since it was found
            chunks = there
    return Passage(
        found, chunks[0].ordinal, chunks[-1].ordinal, chunks[0].start, max(each.end for each in chunks), joined(chunks)
    )
