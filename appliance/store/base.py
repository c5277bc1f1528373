"""What a store must do, whatever it is built on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float32]
"""Unit length, float32, (dimensions,)."""

Matrix: TypeAlias = npt.NDArray[np.float32]
"""Rows of unit length, float32, (n, dimensions)."""

Value: TypeAlias = str | int | float | bool
"""A metadata value that can be compared."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of a document.

    Attributes:
        ordinal: place in the document, from 0.
        text: the passage itself, `document text[start:end]`.
        start, end: character range in the document's text.
        tokens: tokens of the text, counted by the collection's model.
        title: title of the document; searched as words beside the text.
        metadata: JSON object; what a `Where` looks at.
    """

    ordinal: int
    text: str
    start: int
    end: int
    tokens: int
    title: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A document as it is put: its chunks, and a row of `vectors` for each."""

    document: str
    chunks: Sequence[Chunk]
    vectors: Matrix


@dataclass(frozen=True, slots=True)
class Match:
    """A chunk that was found. Higher scores are better; cosine similarity in -1…1 for vectors, BM25 for words."""

    document: str
    chunk: Chunk
    score: float

    @property
    def key(self) -> tuple[str, int]:
        """Names the chunk within its collection."""
        return self.document, self.chunk.ordinal


Op: TypeAlias = Literal["=", "!=", "<", "<=", ">", ">=", "in", "between", "exists"]


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison with a metadata field. A chunk that lacks the field, or has another type there, fails it
    (and passes `!=`). Types are text, number and truth value; `in` takes a tuple and may mix them, `between` a tuple of
    the least and the greatest, both of one type. `exists` takes whether the field is to be there; null counts as there.
    A list passes `=` and `in` if one of its values does, and `!=` if all do; it has no order, and lists in it are none
    of its values.

    `key` is a field's own name, not a path, and has no quotes, backslashes or control characters.
    """

    key: str
    op: Op
    value: Value | tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every part holds; of none, nothing is asked."""

    parts: "tuple[Expression, ...]"


@dataclass(frozen=True, slots=True)
class AnyOf:
    """A part holds; of none, none does."""

    parts: "tuple[Expression, ...]"


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold: a chunk either passes a condition or passes its opposite."""

    part: "Expression"


Expression: TypeAlias = Condition | AllOf | AnyOf | Not

Where: TypeAlias = Sequence[Expression]
"""All of them hold. Applied before the best `limit` are chosen."""


class VectorStore(Protocol):
    """A document is the unit of change: after `put` or `remove`, no reader ever sees half of one, and both are on disk
    when they return. Scores are cosine similarity; higher is better, whatever the store. Blocking; any thread.

    Every method but `create` and `drop` raises CollectionNotFound for a collection that was not created.
    """

    def create(self, collection: str, dimensions: int) -> None:
        """Make room for a collection; no-op if it is there with the same dimensions, else CollectionExists."""

    def drop(self, collection: str) -> None:
        """Remove a collection and all it holds; no-op if it is not there."""

    def put(self, collection: str, document: str, chunks: Sequence[Chunk], vectors: Matrix) -> None:
        """Replace what the document had by these chunks.

        Raises:
            InvalidInput: wrong shape, a row that is not of unit length (NaN and zeros included), two chunks of one
                ordinal, or metadata that is not JSON.
        """

    def put_many(self, collection: str, entries: Sequence[Entry]) -> None:
        """The same for several documents, all of them or none, for the price of one disk flush. Of two entries for one
        document the later counts.
        """

    def remove(self, collection: str, document: str) -> int:
        """Remove a document; how many chunks it had."""

    def rename(self, collection: str, document: str, new: str) -> None:
        """Give what a document has another document's name, in place of what that one had; no-op if it has nothing."""

    def nearest(
        self, collection: str, vector: Vector, *, limit: int, where: Where = (), exact: bool = False
    ) -> list[Match]:
        """The best chunks by cosine similarity; ties in the order of document and ordinal, also where they are cut.

        A store may miss a few of the best when there are many chunks, unless `exact` is asked for; what it gives has
        its true score and passes the conditions, and is no less than asked for where there is as much.

        Raises:
            InvalidInput: the vector has another length or is not of unit length, or a condition cannot be answered.
        """

    def chunks(self, collection: str, document: str, *, first: int = 0, last: int | None = None) -> list[Chunk]:
        """A document's chunks in order; of these the ones whose ordinals are `first` to `last`, both included."""

    def vectors(self, collection: str, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Vector]:
        """The vectors of chunks by document and ordinal; what is not there is left out."""

    def count(self, collection: str) -> int:
        """How many chunks the collection has."""

    def close(self) -> None:
        """Safe to call twice."""


class WordIndex(Protocol):
    """Search by words over the same chunks."""

    def matching(self, collection: str, words: str, *, limit: int, where: Where = ()) -> list[Match]:
        """The best chunks for a person's words by BM25; ties in the order of document and ordinal, also where they are
        cut: the first of many are those of few.

        Any text is a valid query. Words in double quotes are a phrase, an asterisk behind a word or a quote makes it a
        beginning, and nothing else is an operator (see `words.terms`).
        """


class Store(VectorStore, WordIndex, Protocol):
    """Both over the same chunks, and what it takes to count and to copy them."""

    def total(self) -> int:
        """How many chunks there are in all collections."""

    def collections(self) -> dict[str, int]:
        """The dimensions of every collection, by name."""

    def entries(self, collection: str, *, after: str = "", limit: int = 100) -> list[Entry]:
        """The first documents behind `after`, in the order of their names, with all they have."""

    def improve(self, collection: str) -> None:
        """Build now what makes searches quick, where that is due."""

    def warm(self) -> None:
        """Read what searches keep in memory, which the first of them would wait for."""
