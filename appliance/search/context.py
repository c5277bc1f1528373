"""Passages as a text that a language model can be given, with citations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from appliance.search import cited
from appliance.search.passages import Passage

_LEAST: Final = 32
"""Tokens of a passage that are worth being given without the rest of it."""

_CUT: Final = " …"
"""Behind a passage that was cut."""

Spans = Callable[[str], Sequence[tuple[int, int]]]
"""The character range of each token of a text."""


@dataclass(frozen=True, slots=True)
class Citation:
    """Where a passage of the context comes from.

    Attributes:
        number: as it stands in the context, from 1.
        source: what the metadata says of it (`source`, `url` or `path`), or else the document's id.
        page: what the metadata says of it, if anything.
        start, end: character range in the document's text, of what is in the context.
        cut: whether the passage's end was left out.
    """

    number: int
    collection: str
    document: str
    title: str
    source: str
    page: int | str | None
    start: int
    end: int
    score: float
    cut: bool


@dataclass(frozen=True, slots=True)
class Context:
    """A text of numbered passages, its length in tokens, and what each number stands for."""

    text: str
    tokens: int
    citations: list[Citation]


def context(passages: Sequence[Passage], *, tokens: int, spans: Spans) -> Context:
    """The passages in their order, as many as fit; the end of the last one may be cut off.

    Blocking; any thread.

    Args:
        passages: the best first.
        tokens: the text's length at most.
        spans: the tokens of a text, as the model counts them that the text is measured by.
    """
    blocks: list[str] = []
    citations: list[Citation] = []
    room = tokens
    for passage in passages:
        citation = _citation(passage, len(citations) + 1)
        head = _head(citation)
        body = _fitting(passage.text, room - len(spans(head)), spans, first=not blocks)
        if not body:
            break
        cut = body != passage.text
        blocks.append(f"{head}\n{body}{_CUT if cut else ''}")
        citations.append(replace(citation, end=citation.start + len(body), cut=True) if cut else citation)
        room -= len(spans(blocks[-1]))
        if cut:
            break
    text = "\n\n".join(blocks)
    while blocks and len(spans(text)) > tokens:  # a tokenizer that counts more for the whole than for its parts
        blocks.pop()
        citations.pop()
        text = "\n\n".join(blocks)
    return Context(text, len(spans(text)), citations)


def _fitting(text: str, room: int, spans: Spans, *, first: bool) -> str:
    """What of the text fits; nothing if that is not worth it."""
    found = spans(text)
    if len(found) <= room:
        return text
    room -= len(spans(_CUT))
    if room < (1 if first else _LEAST):
        return ""
    return text[: found[room - 1][1]].rstrip()


def _citation(passage: Passage, number: int) -> Citation:
    found = passage.found
    metadata = found.chunk.metadata
    return Citation(
        number=number,
        collection=found.collection,
        document=found.document,
        title=found.chunk.title,
        source=cited.source(metadata, found.document),
        page=cited.page(metadata),
        start=passage.start,
        end=passage.end,
        score=found.score,
        cut=False,
    )


def _head(citation: Citation) -> str:
    about = ", ".join(
        each
        for each in (
            f"page {citation.page}" if citation.page is not None else "",
            citation.source if citation.source != citation.title else "",
        )
        if each
    )
    line = f"[{citation.number}] {citation.title}" if citation.title else f"[{citation.number}]"
    return " ".join(f"{line} ({about})".split()) if about else " ".join(line.split())
