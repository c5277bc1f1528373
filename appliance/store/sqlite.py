"""The index in SQLite: text, words and vectors of a document under one transaction.

    chunk              text, range, metadata
    embedding          unit float32 vectors: the truth
    vec_bits_<n>       their signs in sqlite-vec, to find candidates among many; derived
    chunk_fts_<n>      words of title and text in FTS5, which keeps no copy of them; derived
    chunk_words_<n>    a view of what chunk_fts_<n> indexes, so that FTS5 can check itself and be rebuilt

Collections have tables of their own for what is derived, so that a search walks over nothing else. FTS5 finds text
behind a NUL character like any other; only SQL's own `length()` stops there, and nothing here uses it.
"""

# ruff: noqa: S608  # table names hold numbers of ours; whatever a caller gave is bound

import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from appliance.database import Database
from appliance.errors import CollectionExists, CollectionNotFound
from appliance.store.base import Chunk, Entry, Match, Matrix, Value, Vector, Where
from appliance.store.checks import check_dimensions, checked_query, checked_vectors, cosines, metadata_json
from appliance.store.mirror import Ids, Mirror, Stored
from appliance.store.where import check_where, compiled
from appliance.store.words import terms

_MOST: Final = 4096
"""Neighbours that sqlite-vec finds in one query, at most; its time grows with their number times that of the rows."""

_OVERSAMPLING: Final = 400
"""Fewest candidates by signs alone that are scored exactly; measured to find 97 of the best 100 of 900,000 chunks."""

_SLACK: Final = 1e-5
"""How far a float32 product may be from the exact score."""

Scores = npt.NDArray[np.float64]


class SqliteStore:
    """A VectorStore and WordIndex in a migrated database.

    Args:
        database: stays open when the store is closed.
        exact_below: collections with fewer chunks are searched exactly, in memory; others by the signs of their
            vectors first, which finds at most 4,096 matches.
        mirror_bytes: memory for the vectors of collections that are searched exactly.
        title_weight, text_weight: what a word counts in BM25.
    """

    def __init__(
        self,
        database: Database,
        *,
        exact_below: int = 50_000,
        mirror_bytes: int = 80 * 2**20,
        title_weight: float = 1.0,
        text_weight: float = 1.0,
    ) -> None:
        self._database = database
        self._exact_below = exact_below
        self._mirror = Mirror(budget=mirror_bytes)
        self._rank = f"bm25({float(title_weight)}, {float(text_weight)})"

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
            run(
                f"CREATE VIRTUAL TABLE vec_bits_{number} USING vec0 "
                f"(chunk_id INTEGER PRIMARY KEY, bits BIT[{_padded(dimensions)}], chunk_size = 4096)"
            )
            run(f"CREATE VIEW chunk_words_{number} AS SELECT id, title, text FROM chunk WHERE collection = {number}")
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
                f"DELETE FROM chunk WHERE collection = {there.id}",
                f"DELETE FROM store_collection WHERE id = {there.id}",
            ):
                connection.exec_driver_sql(statement)
        self._mirror.forget(there.id)

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
            removed = _delete(connection, stored, [entry.document for entry in last])
            added = _insert(connection, stored, last, metadata)
            _count(connection, stored, added=added, removed=removed)

    def remove(self, collection: str, document: str) -> int:
        """See VectorStore."""
        with self._database.write() as connection:
            stored = _found(connection, collection)
            removed = _delete(connection, stored, [document])
            _count(connection, stored, added=0, removed=removed)
        return removed

    def nearest(self, collection: str, vector: Vector, *, limit: int, where: Where = ()) -> list[Match]:
        """See VectorStore."""
        check_where(where)
        with self._database.read() as connection:
            stored = _found(connection, collection)
            query = checked_query(vector, dimensions=stored.dimensions)
            if limit < 1:
                return []
            if stored.chunks < self._exact_below and self._mirror.fits(stored):
                ids, scores = self._exact(connection, stored, query, limit, where)
            else:
                ids, scores = _by_signs(connection, stored, query, limit, where)
            return _matches(connection, ids, scores, limit)

    def matching(self, collection: str, words: str, *, limit: int, where: Where = ()) -> list[Match]:
        """See WordIndex. Words are compared by their porter stems."""
        check_where(where)
        either = " OR ".join(f'"{term}"' for term in terms(words))
        with self._database.read() as connection:
            stored = _found(connection, collection)
            if not either or limit < 1:
                return []
            index = f"chunk_fts_{stored.id}"
            condition, values = compiled(where, "metadata")
            source = f"{index} CROSS JOIN chunk ON chunk.id = {index}.rowid" if where else index
            rows = connection.exec_driver_sql(
                f"SELECT {index}.rowid, -rank FROM {source} WHERE {index} MATCH ? AND rank MATCH ? AND {condition} "
                "ORDER BY rank LIMIT ?",
                (either, self._rank, *values, limit),
            ).all()
            ids = np.array([row[0] for row in rows], np.int64)
            return _matches(connection, ids, np.array([row[1] for row in rows], np.float64), limit)

    def chunks(self, collection: str, document: str) -> list[Chunk]:
        """See VectorStore."""
        with self._database.read() as connection:
            stored = _found(connection, collection)
            rows = connection.exec_driver_sql(
                f"SELECT {_COLUMNS} FROM chunk WHERE collection = ? AND document = ? ORDER BY ordinal",
                (stored.id, document),
            )
            return [_chunk(row) for row in rows]

    def count(self, collection: str) -> int:
        """See VectorStore."""
        with self._database.read() as connection:
            return _found(connection, collection).chunks

    def total(self) -> int:
        """How many chunks there are in all collections."""
        with self._database.read() as connection:
            return int(connection.exec_driver_sql("SELECT coalesce(sum(chunks), 0) FROM store_collection").scalar_one())

    def close(self) -> None:
        """See VectorStore. Lets go of memory; the database is the caller's."""
        self._mirror.clear()

    def _exact(
        self, connection: Connection, stored: Stored, query: Vector, limit: int, where: Where
    ) -> tuple[Ids, Scores]:
        ids, rows = self._mirror.rows(connection, stored)
        rough = rows @ query
        places = np.arange(len(ids))
        if where:
            condition, values = compiled(where, "metadata")
            passing = connection.exec_driver_sql(
                f"SELECT id FROM chunk WHERE collection = ? AND {condition} ORDER BY id", (stored.id, *values)
            )
            places = np.searchsorted(ids, np.fromiter((row[0] for row in passing), np.int64))
            rough = rough[places]
        if len(places) > limit:
            places = places[rough >= np.partition(rough, -limit)[-limit] - _SLACK]
        return ids[places], cosines(rows[places], query)


_COLUMNS: Final = 'ordinal, text, "start", "end", tokens, title, metadata'


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


def _padded(dimensions: int) -> int:
    """Bits come in whole bytes."""
    return -(-dimensions // 8) * 8


def _signs(rows: Matrix) -> npt.NDArray[np.uint8]:
    """One bit a dimension, zeros up to a whole byte; uint8 (n, bytes)."""
    return np.packbits(rows > 0, axis=1, bitorder="little")


def _delete(connection: Connection, stored: Stored, documents: Sequence[str]) -> int:
    """Remove what the documents have; how many chunks that was."""
    run = connection.exec_driver_sql
    rows = run(
        f"SELECT id, title, text FROM chunk WHERE collection = ? AND document IN ({', '.join('?' * len(documents))})",
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
        run("DELETE FROM chunk WHERE id = ?", ids)
    return len(rows)


def _insert(connection: Connection, stored: Stored, entries: Sequence[Entry], metadata: Sequence[Sequence[str]]) -> int:
    """Add chunks to all four tables; how many."""
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
    run(
        f"INSERT INTO vec_bits_{stored.id} (chunk_id, bits) VALUES (?, vec_bit(?))",
        [(id_, row.tobytes()) for id_, row in zip(ids, _signs(rows), strict=True)],
    )
    run(
        f"INSERT INTO chunk_fts_{stored.id} (rowid, title, text) VALUES (?, ?, ?)",
        [(id_, one.title, one.text) for id_, (_, one, _) in zip(ids, chunks, strict=True)],
    )
    return len(chunks)


def _count(connection: Connection, stored: Stored, *, added: int, removed: int) -> None:
    if added or removed:
        connection.exec_driver_sql(
            "UPDATE store_collection SET chunks = chunks + ?, added = added + ?, removed = removed + ? WHERE id = ?",
            (added - removed, added, removed, stored.id),
        )


def _by_signs(connection: Connection, stored: Stored, query: Vector, limit: int, where: Where) -> tuple[Ids, Scores]:
    """Candidates by their signs, scored exactly; all that pass, when a condition leaves few."""
    wanted = min(max(_OVERSAMPLING, 8 * limit), _MOST)
    narrowed = ""
    values: tuple[Value, ...] = ()
    if where:
        condition, values = compiled(where, "metadata")
        passing = f"SELECT id FROM chunk WHERE collection = {stored.id} AND {condition}"
        few = connection.exec_driver_sql(f"{passing} LIMIT ?", (*values, wanted + 1)).scalars().all()
        if len(few) <= wanted:
            return _scored(connection, stored, few, query)
        narrowed = f"AND chunk_id IN ({passing})"
    near = connection.exec_driver_sql(
        f"SELECT chunk_id FROM vec_bits_{stored.id} WHERE bits MATCH vec_bit(?) AND k = ? {narrowed}",
        (_signs(query[None]).tobytes(), wanted, *values),
    )
    return _scored(connection, stored, near.scalars().all(), query)


def _scored(connection: Connection, stored: Stored, ids: Sequence[int], query: Vector) -> tuple[Ids, Scores]:
    rows = connection.exec_driver_sql(
        "SELECT chunk_id, vector FROM embedding WHERE chunk_id IN (SELECT value FROM json_each(?))", (json.dumps(ids),)
    ).all()
    vectors = np.frombuffer(b"".join(row[1] for row in rows), np.float32).reshape(-1, stored.dimensions)
    return np.array([row[0] for row in rows], np.int64), cosines(vectors, query)


def _matches(connection: Connection, ids: Ids, scores: Scores, limit: int) -> list[Match]:
    """The best of the chunks, whole; equal scores in the order of document and ordinal."""
    if len(ids) > limit:
        keep = scores >= np.partition(scores, -limit)[-limit]
        ids, scores = ids[keep], scores[keep]
    by_id = dict(zip(ids.tolist(), scores.tolist(), strict=True))
    if len(by_id) > limit:  # ties for the last places: choose before texts are read
        keys = connection.exec_driver_sql(
            "SELECT id, document, ordinal FROM chunk WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(by_id)),),
        ).all()
        first = sorted(keys, key=lambda row: (-by_id[row[0]], row[1], row[2]))[:limit]
        by_id = {row[0]: by_id[row[0]] for row in first}
    rows = connection.exec_driver_sql(
        f"SELECT id, document, {_COLUMNS} FROM chunk WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(by_id)),),
    )
    found = [Match(document=row[1], chunk=_chunk(row[2:]), score=by_id[row[0]]) for row in rows]
    return sorted(found, key=lambda match: (-match.score, match.key))


def _chunk(row: Sequence[Any]) -> Chunk:
    ordinal, text, start, end, tokens, title, metadata = row
    return Chunk(
        ordinal=ordinal, text=text, start=start, end=end, tokens=tokens, title=title, metadata=json.loads(metadata)
    )
