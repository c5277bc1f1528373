"""The index in SQLite: text, words and vectors of a document under one transaction.

    chunk              text, range, metadata
    embedding          unit float32 vectors: the truth
    vec_bits_<n>       their signs in sqlite-vec, to find candidates among many; derived, once there are many
    chunk_segmented    title and text of those that are written without spaces, with spaces; derived
    chunk_fts_<n>      words of title and text in FTS5, which keeps no copy of them; derived
    chunk_words_<n>    a view of what chunk_fts_<n> indexes, so that FTS5 can check itself and be rebuilt

Collections have tables of their own for what is derived, so that a search walks over nothing else. FTS5 finds text
behind a NUL character like any other; only SQL's own `length()` stops there, and nothing here uses it.
"""

# ruff: noqa: S608  # table names hold numbers of ours; whatever a caller gave is bound

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from threading import Event
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from appliance.database import Database
from appliance.errors import CollectionExists, CollectionNotFound
from appliance.store import bits
from appliance.store.base import Chunk, Entry, Match, Matrix, Vector, Where
from appliance.store.bits import Signs
from appliance.store.checks import check_dimensions, checked_query, checked_vectors, cosines, metadata_json
from appliance.store.mirror import Ids, Mirror, Stored
from appliance.store.passing import Passing
from appliance.store.ranking import SCORED, Frequencies, Index, expression
from appliance.store.signing import turned
from appliance.store.signs import SignMirror, likeliest
from appliance.store.steps import joined, steps
from appliance.store.where import check_where, compiled
from appliance.store.words import segmented, terms

_LAST: Final = 2**63 - 1
"""An ordinal that no chunk is behind."""

_SLACK: Final = 1e-5
"""How far a float32 product may be from the exact score."""

_BLOCK: Final = 4096
"""Vectors that are read at a time when all are."""

_LOOKED_UP: Final = 1024
"""Chunks of one score that are looked up one by one to be put in order, at most."""

_SIGNED: Final = 16_384
"""Chunks whose signs are made in one transaction: half a second's work for a core."""


Scores = npt.NDArray[np.float64]


class SqliteStore:
    """A VectorStore and WordIndex in a migrated database.

    Args:
        database: stays open when the store is closed.
        exact_below: collections with fewer chunks are searched exactly; others by the signs of their vectors first,
            unless the search asks to be exact.
        memory: bytes for what searches keep of vectors and of signs, half of it for each, and an eighth more for which
            chunks pass which condition. A collection is searched from the file where its vectors do not fit, and by
            sqlite-vec where its signs do not, which is slower and finds at most 4,096 matches. Signs of 384 dimensions
            take 61 bytes a chunk.
        candidates: chunks that a search by signs scores exactly for its first 25 matches, and three more for each
            match beyond. Twice as many miss half as much.
        title_weight, text_weight: what a word counts in BM25.
    """

    def __init__(
        self,
        database: Database,
        *,
        exact_below: int = 50_000,
        memory: int = 512 * 2**20,
        candidates: int = 220,
        title_weight: float = 1.0,
        text_weight: float = 1.0,
    ) -> None:
        self._database = database
        self._exact_below = exact_below
        self._mirror = Mirror(budget=memory // 2)
        self._candidates = candidates
        self._signs = SignMirror(budget=memory // 2)
        self._aid = ThreadPoolExecutor(1, "appliance-search")
        self._passing = Passing(budget=memory // 8)
        self._weights = float(title_weight), float(text_weight)
        self._frequencies = Frequencies()
        self._closed = Event()

    def create(self, collection: str, dimensions: int) -> None:
        """See VectorStore."""
        check_dimensions(dimensions)
        with self._database.write() as connection:
            there = _stored(connection, collection)
            if there is not None:
                if there.dimensions != dimensions:
                    raise CollectionExists(f"the collection {collection!r} has vectors of another length")
                return
            run = connection.exec_driver_sql
            number = run(
                "INSERT INTO store_collection (name, dimensions) VALUES (?, ?)", (collection, dimensions)
            ).lastrowid
            bits.create(connection, number, dimensions)
            run(
                f"CREATE VIEW chunk_words_{number} AS SELECT id, {_INDEXED} "
                f"FROM chunk LEFT JOIN chunk_segmented AS s ON s.chunk_id = id WHERE collection = {number}"
            )
            run(
                f"CREATE VIRTUAL TABLE chunk_fts_{number} USING fts5 (title, text, content = 'chunk_words_{number}', "
                "content_rowid = 'id', tokenize = 'porter unicode61 remove_diacritics 2')"
            )

    def drop(self, collection: str) -> None:
        """See VectorStore."""
        with self._database.write() as connection:
            there = _stored(connection, collection)
            if there is None:
                return
            for statement in (
                f"DROP TABLE vec_bits_{there.id}",
                f"DROP TABLE chunk_fts_{there.id}",
                f"DROP VIEW chunk_words_{there.id}",
                f"DELETE FROM embedding WHERE chunk_id IN (SELECT id FROM chunk WHERE collection = {there.id})",
                f"DELETE FROM chunk_segmented WHERE chunk_id IN (SELECT id FROM chunk WHERE collection = {there.id})",
                f"DELETE FROM chunk WHERE collection = {there.id}",
                f"DELETE FROM store_collection WHERE id = {there.id}",
            ):
                connection.exec_driver_sql(statement)
        self._mirror.forget(there.id)
        self._signs.forget(there.id)
        self._passing.forget(there.id)
        self._frequencies.forget(there.id)

    def put(self, collection: str, document: str, chunks: Sequence[Chunk], vectors: Matrix) -> None:
        """See VectorStore."""
        self.put_many(collection, [Entry(document, chunks, vectors)])

    def put_many(self, collection: str, entries: Sequence[Entry]) -> None:
        """See VectorStore."""
        last = list({entry.document: entry for entry in entries}.values())
        metadata = [metadata_json(entry.chunks) for entry in last]
        with self._database.write() as connection:
            stored = _found(connection, collection)
            for entry in entries:
                checked_vectors(entry.vectors, rows=len(entry.chunks), dimensions=stored.dimensions)
            signs = bits.signs_of(connection, stored)
            removed = _delete(connection, stored, [entry.document for entry in last])
            added = _insert(connection, stored, last, metadata, signs)
            _count(connection, stored, added=added, removed=removed)
            if removed:
                bits.close_gaps(connection, stored, stored.chunks + added - removed)
            if self._due(signs, stored.chunks + added - removed):
                bits.make(connection, stored, most=_SIGNED)

    def remove(self, collection: str, document: str) -> int:
        """See VectorStore."""
        with self._database.write() as connection:
            stored = _found(connection, collection)
            removed = _delete(connection, stored, [document])
            _count(connection, stored, added=0, removed=removed)
            if removed:
                bits.close_gaps(connection, stored, stored.chunks - removed)
        return removed

    def rename(self, collection: str, document: str, new: str) -> None:
        """See VectorStore."""
        with self._database.write() as connection:
            stored = _found(connection, collection)
            run = connection.exec_driver_sql
            this = (stored.id, document)
            there = run("SELECT id FROM chunk WHERE collection = ? AND document = ? LIMIT 1", this).first()
            if there is None or document == new:
                return
            removed = _delete(connection, stored, [new])
            run("UPDATE chunk SET document = ? WHERE collection = ? AND document = ?", (new, *this))
            _count(connection, stored, added=0, removed=removed)

    def nearest(
        self, collection: str, vector: Vector, *, limit: int, where: Where = (), exact: bool = False
    ) -> list[Match]:
        """See VectorStore."""
        check_where(where)
        with self._database.read() as connection:
            stored = _found(connection, collection)
            query = checked_query(vector, dimensions=stored.dimensions)
            if limit < 1:
                return []
            ids, scores = self._nearest(connection, stored, query, limit=limit, where=where, exact=exact)
            return _matches(connection, stored, ids, scores, limit)

    def warm(self) -> None:
        """See Store. Large collections alone are worth it; signs that are missing are made first."""
        for collection in self.collections():
            with suppress(CollectionNotFound):  # dropped meanwhile
                self.improve(collection)
                with self._database.read() as connection:
                    stored = _found(connection, collection)
                    if self._centre(connection, stored) is not None and self._signs.fits(stored):
                        self._signs.view(connection, stored)

    def matching(self, collection: str, words: str, *, limit: int, where: Where = ()) -> list[Match]:
        """See WordIndex. Words are compared by their porter stems."""
        check_where(where)
        wanted = [expression(term) for term in terms(words)]
        with self._database.read() as connection:
            stored = _found(connection, collection)
            if not wanted or limit < 1:
                return []
            condition = compiled(where, "metadata") if where else None
            passing = None
            if condition is not None and stored.chunks > SCORED:
                passing = self._passing.ids(connection, stored, condition)
            index = Index(connection, stored, self._weights, where=condition, passing=passing)
            ids, scores = index.best(wanted, limit=limit, frequencies=self._frequencies)
            return _matches(connection, stored, ids, scores, limit)

    def chunks(self, collection: str, document: str, *, first: int = 0, last: int | None = None) -> list[Chunk]:
        """See VectorStore."""
        with self._database.read() as connection:
            stored = _found(connection, collection)
            rows = connection.exec_driver_sql(
                f"SELECT {_COLUMNS} FROM chunk WHERE collection = ? AND document = ? AND ordinal BETWEEN ? AND ? "
                "ORDER BY ordinal",
                (stored.id, document, first, _LAST if last is None else last),
            )
            return [_chunk(row) for row in rows]

    def vectors(self, collection: str, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Vector]:
        """See VectorStore."""
        with self._database.read() as connection:
            stored = _found(connection, collection)
            rows = connection.exec_driver_sql(
                "SELECT document, ordinal, vector FROM json_each(?) AS wanted "
                "CROSS JOIN chunk ON collection = ? AND document = wanted.value ->> 0 AND ordinal = wanted.value ->> 1 "
                "CROSS JOIN embedding ON chunk_id = chunk.id",
                (json.dumps([list(key) for key in keys]), stored.id),
            )
            return {(row[0], row[1]): np.frombuffer(row[2], np.float32) for row in rows}

    def count(self, collection: str) -> int:
        """See VectorStore."""
        with self._database.read() as connection:
            return _found(connection, collection).chunks

    def total(self) -> int:
        """See Store."""
        with self._database.read() as connection:
            return int(connection.exec_driver_sql("SELECT coalesce(sum(chunks), 0) FROM store_collection").scalar_one())

    def collections(self) -> dict[str, int]:
        """See Store."""
        with self._database.read() as connection:
            rows = connection.exec_driver_sql("SELECT name, dimensions FROM store_collection ORDER BY name")
            return {row[0]: row[1] for row in rows}

    def entries(self, collection: str, *, after: str = "", limit: int = 100) -> list[Entry]:
        """See Store."""
        with self._database.read() as connection:
            stored = _found(connection, collection)
            rows = connection.exec_driver_sql(
                f"SELECT vector, document, {_COLUMNS} FROM chunk JOIN embedding ON chunk_id = id WHERE collection = ? "
                "AND document IN (SELECT DISTINCT document FROM chunk WHERE collection = ? AND document > ? "
                "ORDER BY document LIMIT ?) ORDER BY document, ordinal",
                (stored.id, stored.id, after, limit),
            ).all()
        result = []
        for document, group in groupby(rows, key=lambda row: str(row[1])):
            own = list(group)
            vectors = np.frombuffer(b"".join(row[0] for row in own), np.float32).reshape(-1, stored.dimensions)
            result.append(Entry(document, [_chunk(row[2:]) for row in own], vectors))
        return result

    def improve(self, collection: str) -> None:
        """See Store. Makes the signs of what has become large, a part in each transaction, so that writers come in
        between and it can be cut short; until there are all, searches are exact.
        """
        while not self._closed.is_set():
            with self._database.read() as connection:
                stored = _found(connection, collection)
                if not self._due(bits.signs_of(connection, stored), stored.chunks):
                    return
            with self._database.write() as connection:
                stored = _found(connection, collection)
                if self._due(bits.signs_of(connection, stored), stored.chunks):
                    bits.make(connection, stored, most=_SIGNED)

    def close(self) -> None:
        """See VectorStore. Lets go of memory; the database is the caller's."""
        self._closed.set()
        self._mirror.clear()
        self._signs.clear()
        self._passing.clear()

    def _due(self, signs: Signs, chunks: int) -> bool:
        """Whether signs are to be made: not before there are many chunks, whose mean is then that of many, too."""
        return not signs.complete and chunks > 0 and (chunks >= self._exact_below or signs.centre is not None)

    def _centre(self, connection: Connection, stored: Stored) -> Vector | None:
        """What the signs are seen from; None for a collection that is to be searched exactly."""
        signs = bits.signs_of(connection, stored) if stored.chunks >= self._exact_below else None
        return signs.centre if signs is not None and signs.complete else None

    def _nearest(
        self, connection: Connection, stored: Stored, query: Vector, *, limit: int, where: Where, exact: bool
    ) -> tuple[Ids, Scores]:
        centre = None if exact else self._centre(connection, stored)
        if centre is None:
            best = self._exact if self._mirror.fits(stored) else _exact_from_file
            return best(connection, stored, query, limit, where)
        asked = turned(query[None], centre)[0]
        looked_for = steps(limit)
        condition = compiled(where, "metadata") if where else None
        view = self._signs.view(connection, stored) if self._signs.fits(stored) else None
        if view is None:
            near = bits.likeliest(connection, stored, asked, steps=looked_for, where=condition)
        else:
            rows = None
            if condition is not None:
                rows = self._signs.rows(view, condition, self._passing.ids(connection, stored, condition))
            wanted = [self._candidates + 3 * (each - looked_for[0]) for each in looked_for]
            near = likeliest(view, asked, wanted=wanted, rows=rows, aid=self._aid)
        ids, scores = _scored(connection, stored, np.unique(np.concatenate(near)).tolist(), query)
        known = dict(zip(ids.tolist(), scores.tolist(), strict=True))
        found = joined([{id_: known[id_] for id_ in some.tolist()} for some in near], looked_for, limit)
        return _arrays(found)

    def _exact(
        self, connection: Connection, stored: Stored, query: Vector, limit: int, where: Where
    ) -> tuple[Ids, Scores]:
        ids, rows = self._mirror.rows(connection, stored)
        rough = rows @ query
        places = np.arange(len(ids))
        if where:
            passing = self._passing.ids(connection, stored, compiled(where, "metadata"))
            places = np.flatnonzero(np.isin(ids, passing, assume_unique=True))
            rough = rough[places]
        places = places[_not_worse(rough, limit)]
        return ids[places], cosines(rows[places], query)


_INDEXED: Final = "coalesce(s.title, chunk.title) AS title, coalesce(s.text, chunk.text) AS text"
"""What FTS5 has of a chunk, where `s` is its row of chunk_segmented, if any."""

_COLUMNS: Final = 'ordinal, text, "start", "end", tokens, title, metadata'


def _arrays(scores: Mapping[int, float]) -> tuple[Ids, Scores]:
    return np.array(list(scores), np.int64), np.array(list(scores.values()), np.float64)


def _stored(connection: Connection, collection: str) -> Stored | None:
    row = connection.exec_driver_sql(
        "SELECT id, dimensions, chunks, added, removed FROM store_collection WHERE name = ?", (collection,)
    ).first()
    return Stored(*row) if row else None


def _found(connection: Connection, collection: str) -> Stored:
    stored = _stored(connection, collection)
    if stored is None:
        raise CollectionNotFound(f"there is no collection {collection!r}", name=collection)
    return stored


def _delete(connection: Connection, stored: Stored, documents: Sequence[str]) -> int:
    """Remove what the documents have; how many chunks that was."""
    run = connection.exec_driver_sql
    rows = run(
        f"SELECT id, {_INDEXED} FROM chunk LEFT JOIN chunk_segmented AS s ON s.chunk_id = id "
        f"WHERE collection = ? AND document IN ({', '.join('?' * len(documents))})",
        (stored.id, *documents),
    ).all()
    if rows:
        ids = [(row[0],) for row in rows]
        words = f"chunk_fts_{stored.id}"
        run(
            f"INSERT INTO {words} ({words}, rowid, title, text) VALUES ('delete', ?, ?, ?)",
            [tuple(row) for row in rows],
        )
        run(f"DELETE FROM vec_bits_{stored.id} WHERE chunk_id = ?", ids)
        run("DELETE FROM embedding WHERE chunk_id = ?", ids)
        run("DELETE FROM chunk_segmented WHERE chunk_id = ?", ids)
        run("DELETE FROM chunk WHERE id = ?", ids)
    return len(rows)


def _insert(
    connection: Connection, stored: Stored, entries: Sequence[Entry], metadata: Sequence[Sequence[str]], signs: Signs
) -> int:
    """Add chunks to all tables; how many."""
    chunks = [
        (entry.document, chunk, json_text)
        for entry, texts in zip(entries, metadata, strict=True)
        for chunk, json_text in zip(entry.chunks, texts, strict=True)
    ]
    if not chunks:
        return 0
    run = connection.exec_driver_sql
    last = run("SELECT seq FROM sqlite_sequence WHERE name = 'chunk'").scalar() or 0
    ids = range(last + 1, last + 1 + len(chunks))
    rows = np.concatenate([entry.vectors for entry in entries]).astype(np.float32, copy=False)
    run(
        f"INSERT INTO chunk (id, collection, document, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (id_, stored.id, document, one.ordinal, one.text, one.start, one.end, one.tokens, one.title, json_text)
            for id_, (document, one, json_text) in zip(ids, chunks, strict=True)
        ],
    )
    run("INSERT INTO embedding VALUES (?, ?)", [(id_, row.tobytes()) for id_, row in zip(ids, rows, strict=True)])
    bits.insert(connection, stored, signs, ids, rows)
    words = [(id_, segmented(one.title), segmented(one.text)) for id_, (_, one, _) in zip(ids, chunks, strict=True)]
    apart = [row for row, (_, one, _) in zip(words, chunks, strict=True) if row[1:] != (one.title, one.text)]
    if apart:
        run("INSERT INTO chunk_segmented VALUES (?, ?, ?)", apart)
    run(f"INSERT INTO chunk_fts_{stored.id} (rowid, title, text) VALUES (?, ?, ?)", words)
    return len(chunks)


def _count(connection: Connection, stored: Stored, *, added: int, removed: int) -> None:
    if added or removed:
        connection.exec_driver_sql(
            "UPDATE store_collection SET chunks = chunks + ?, added = added + ?, removed = removed + ? WHERE id = ?",
            (added - removed, added, removed, stored.id),
        )


def _exact_from_file(
    connection: Connection, stored: Stored, query: Vector, limit: int, where: Where
) -> tuple[Ids, Scores]:
    """The best of all chunks, read a block at a time."""
    condition, values = compiled(where, "metadata")
    every = connection.exec_driver_sql(
        f"SELECT id, vector FROM chunk CROSS JOIN embedding ON chunk_id = id WHERE collection = ? AND {condition}",
        (stored.id, *values),
    )
    ids, rough = np.empty(0, np.int64), np.empty(0, np.float32)
    for block in every.partitions(_BLOCK):
        rows = np.frombuffer(b"".join(row[1] for row in block), np.float32).reshape(-1, stored.dimensions)
        ids = np.concatenate([ids, np.array([row[0] for row in block], np.int64)])
        rough = np.concatenate([rough, rows @ query])
        keep = _not_worse(rough, limit)
        ids, rough = ids[keep], rough[keep]
    return _scored(connection, stored, ids.tolist(), query)


def _not_worse(rough: npt.NDArray[np.float32], limit: int) -> npt.NDArray[np.intp]:
    """Places of scores that may be among the best so many, for all that float32 can tell."""
    if len(rough) <= limit:
        return np.arange(len(rough))
    return np.flatnonzero(rough >= np.partition(rough, -limit)[-limit] - _SLACK)


def _scored(connection: Connection, stored: Stored, ids: Sequence[int], query: Vector) -> tuple[Ids, Scores]:
    """These chunks, in no order, by their stored vectors."""
    rows = connection.exec_driver_sql(
        "SELECT chunk_id, vector FROM embedding WHERE chunk_id IN (SELECT value FROM json_each(?))", (json.dumps(ids),)
    ).all()
    vectors = np.frombuffer(b"".join(row[1] for row in rows), np.float32).reshape(-1, stored.dimensions)
    return np.array([row[0] for row in rows], np.int64), cosines(vectors, query)


def _matches(connection: Connection, stored: Stored, ids: Ids, scores: Scores, limit: int) -> list[Match]:
    """The best of the chunks, whole; equal scores in the order of document and ordinal, also where they are cut."""
    by_id: dict[int, float] = {}
    if len(ids) > limit:
        last = float(np.partition(scores, -limit)[-limit])
        ids, scores, tied = ids[scores > last], scores[scores > last], ids[scores == last]
        by_id = dict.fromkeys(_first(connection, stored, tied, limit - len(ids)), last)
    by_id |= dict(zip(ids.tolist(), scores.tolist(), strict=True))
    rows = connection.exec_driver_sql(
        f"SELECT id, document, {_COLUMNS} FROM chunk WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(by_id)),),
    )
    found = [Match(document=row[1], chunk=_chunk(row[2:]), score=by_id[row[0]]) for row in rows]
    return sorted(found, key=lambda match: (-match.score, match.key))


def _first(connection: Connection, stored: Stored, ids: Ids, wanted: int) -> Sequence[int]:
    """The first of these chunks in the order of document and ordinal, without reading what they hold."""
    every: list[int] = ids.tolist()
    if len(every) <= wanted:
        return every
    few = len(every) <= _LOOKED_UP  # each costs a look at its row; many are met soon in the index that has their order
    rows = connection.exec_driver_sql(
        f"SELECT id FROM chunk WHERE {'+' if few else ''}collection = ? "
        f"AND {'' if few else '+'}id IN (SELECT value FROM json_each(?)) ORDER BY document, ordinal LIMIT ?",
        (stored.id, json.dumps(every), wanted),
    )
    return [row[0] for row in rows]


def _chunk(row: Sequence[Any]) -> Chunk:
    ordinal, text, start, end, tokens, title, metadata = row
    return Chunk(
        ordinal=ordinal, text=text, start=start, end=end, tokens=tokens, title=title, metadata=json.loads(metadata)
    )
