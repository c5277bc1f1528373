"""The reference store: everything in plain Python, nothing on disk, every answer exact."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Final

from appliance.errors import CollectionExists, CollectionNotFound
from appliance.store.base import Chunk, Entry, Match, Matrix, Vector, Where
from appliance.store.checks import check_dimensions, checked_query, checked_vectors, cosines, metadata_json
from appliance.store.where import check_where, holds
from appliance.store.words import Term, folded, terms, tokens

_K1: Final = 1.2
_B: Final = 0.75
"""BM25 as FTS5 counts it. https://sqlite.org/fts5.html#the_bm25_function"""


@dataclass(slots=True)
class _Document:
    chunks: list[Chunk]
    vectors: Matrix


@dataclass(slots=True)
class _Collection:
    dimensions: int
    documents: dict[str, _Document] = field(default_factory=dict)

    def passing(self, where: Where) -> Iterator[tuple[str, Chunk]]:
        for name, document in self.documents.items():
            for chunk in document.chunks:
                if holds(where, chunk.metadata):
                    yield name, chunk


class MemoryStore:
    """A VectorStore and WordIndex that lasts as long as its object. Words are compared whole, not by their stems."""

    def __init__(self, *, title_weight: float = 1.0, text_weight: float = 1.0) -> None:
        self._weights = title_weight, text_weight
        self._collections: dict[str, _Collection] = {}
        self._lock = Lock()

    def create(self, collection: str, dimensions: int) -> None:
        """See VectorStore."""
        check_dimensions(dimensions)
        with self._lock:
            if self._collections.setdefault(collection, _Collection(dimensions)).dimensions != dimensions:
                raise CollectionExists(f"the collection {collection!r} has vectors of another length")

    def drop(self, collection: str) -> None:
        """See VectorStore."""
        with self._lock:
            self._collections.pop(collection, None)

    def put(self, collection: str, document: str, chunks: Sequence[Chunk], vectors: Matrix) -> None:
        """See VectorStore."""
        self.put_many(collection, [Entry(document, chunks, vectors)])

    def put_many(self, collection: str, entries: Sequence[Entry]) -> None:
        """See VectorStore."""
        with self._lock:
            kept = self._find(collection)
            new = {entry.document: _own(entry, kept.dimensions) for entry in entries}
            kept.documents.update(new)

    def remove(self, collection: str, document: str) -> int:
        """See VectorStore."""
        with self._lock:
            gone = self._find(collection).documents.pop(document, None)
        return len(gone.chunks) if gone else 0

    def rename(self, collection: str, document: str, new: str) -> None:
        """See VectorStore."""
        with self._lock:
            documents = self._find(collection).documents
            if document in documents and document != new:
                documents[new] = documents.pop(document)

    def nearest(
        self,
        collection: str,
        vector: Vector,
        *,
        limit: int,
        where: Where = (),
        exact: bool = False,  # noqa: ARG002  # it always is
    ) -> list[Match]:
        """See VectorStore."""
        check_where(where)
        with self._lock:
            kept = self._find(collection)
            query = checked_query(vector, dimensions=kept.dimensions)
            matches = [
                Match(name, chunk, float(score))
                for name, document in kept.documents.items()
                for chunk, score in zip(document.chunks, cosines(document.vectors, query), strict=True)
                if holds(where, chunk.metadata)
            ]
        return _best(matches, limit)

    def matching(self, collection: str, words: str, *, limit: int, where: Where = ()) -> list[Match]:
        """See WordIndex."""
        check_where(where)
        with self._lock:
            kept = self._find(collection)
            every = {(name, chunk.ordinal): self._tokens(chunk) for name, chunk in kept.passing(())}
            lengths = {place: sum(len(each) for each, _ in texts) for place, texts in every.items()}
            average = sum(lengths.values()) / max(len(lengths), 1)
            scores: defaultdict[tuple[str, int], float] = defaultdict(float)
            for term in dict.fromkeys(_folded(term) for term in terms(words)):
                counts = {
                    place: sum(weight * _often(term, each) for each, weight in texts) for place, texts in every.items()
                }
                having = {place: times for place, times in counts.items() if times}
                rarity = max(math.log((len(counts) - len(having) + 0.5) / (len(having) + 0.5)), 1e-6)
                for place, times in having.items():
                    length = lengths[place]
                    scores[place] += rarity * times * (_K1 + 1) / (times + _K1 * (1 - _B + _B * length / average))
            found = [
                Match(name, chunk, scores[name, chunk.ordinal])
                for name, chunk in kept.passing(where)
                if (name, chunk.ordinal) in scores
            ]
        return _best(found, limit)

    def chunks(self, collection: str, document: str, *, first: int = 0, last: int | None = None) -> list[Chunk]:
        """See VectorStore."""
        with self._lock:
            found = self._find(collection).documents.get(document)
            wanted = [
                chunk
                for chunk in (found.chunks if found else ())
                if chunk.ordinal >= first and (last is None or chunk.ordinal <= last)
            ]
        return sorted(wanted, key=lambda chunk: chunk.ordinal)

    def vectors(self, collection: str, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Vector]:
        """See VectorStore."""
        wanted = set(keys)
        with self._lock:
            documents = self._find(collection).documents
            return {
                (name, chunk.ordinal): row.copy()
                for name in {name for name, _ in wanted} & documents.keys()
                for chunk, row in zip(documents[name].chunks, documents[name].vectors, strict=True)
                if (name, chunk.ordinal) in wanted
            }

    def count(self, collection: str) -> int:
        """See VectorStore."""
        with self._lock:
            return sum(len(document.chunks) for document in self._find(collection).documents.values())

    def close(self) -> None:
        """See VectorStore."""

    def _find(self, collection: str) -> _Collection:
        try:
            return self._collections[collection]
        except KeyError as error:
            raise CollectionNotFound(f"there is no collection {collection!r}", name=collection) from error

    def _tokens(self, chunk: Chunk) -> list[tuple[list[str], float]]:
        """The tokens of title and text, and what one of them counts there."""
        return [(tokens(text), weight) for text, weight in zip((chunk.title, chunk.text), self._weights, strict=True)]


def _folded(term: Term) -> Term:
    return Term(tuple(key for token in term.tokens if (key := folded(token))), prefix=term.prefix)


def _often(term: Term, text: list[str]) -> int:
    """How often the text has the term."""
    *first, last = term.tokens or ("",)
    wide = len(term.tokens)
    return sum(
        text[start : start + wide - 1] == first and (each.startswith(last) if term.prefix else each == last)
        for start, each in ((end - wide + 1, each) for end, each in enumerate(text))
        if start >= 0 and wide
    )


def _own(entry: Entry, dimensions: int) -> _Document:
    """A checked copy that the caller cannot change."""
    vectors = checked_vectors(entry.vectors, rows=len(entry.chunks), dimensions=dimensions).copy()
    metadata = [json.loads(text) for text in metadata_json(entry.chunks)]
    chunks = [replace(chunk, metadata=own) for chunk, own in zip(entry.chunks, metadata, strict=True)]
    return _Document(chunks, vectors)


def _best(matches: list[Match], limit: int) -> list[Match]:
    return sorted(matches, key=lambda match: (-match.score, match.key))[: max(limit, 0)]
