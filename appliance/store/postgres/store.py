"""The index in PostgreSQL with pgvector: text, words and vectors of a document under one transaction.

    store_collection    what there is, with counts
    chunk_<n>           text, range, metadata: what is given back
    vector_<n>          float32 vectors and the fields of the metadata: what is searched by meaning
    words_<n>           the words of title and text, stemmed: what is searched by words

Collections have tables of their own, so that a search walks over nothing else and a collection goes at once. Several
appliances may use one database: whatever one has put is found by all.
"""

# ruff: noqa: S608  # table names hold numbers of ours; whatever a caller gave is bound

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from heapq import nlargest
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson
import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import ProgrammingError

from appliance.errors import ApplianceError, CollectionExists, CollectionNotFound
from appliance.kept import given, kept
from appliance.postgres import PostgresDatabase
from appliance.store.base import Chunk, Entry, Match, Matrix, Vector, Where
from appliance.store.checks import check_dimensions, check_space, checked_query, checked_vectors, cosines, metadata_json
from appliance.store.postgres.where import compiled, fields
from appliance.store.postgres.words import CONFIGURATION, Frequencies, Words, spaced
from appliance.store.where import check_where

Index: TypeAlias = Literal["hnsw", "ivfflat", "none"]
Distance: TypeAlias = Literal["ip", "cosine", "l2"]
Precision: TypeAlias = Literal["half", "single"]

_OPERATORS: Final = {"ip": "<#>", "cosine": "<=>", "l2": "<->"}
_LIMITS: Final = {"vector": 2000, "halfvec": 4000}
"""Dimensions that pgvector can index; beyond, their signs alone are indexed."""

_INLINE: Final = 1900
"""Dimensions of a vector that fits into a page with what is beside it."""

_SLACK: Final = 16
"""Candidates beyond the limit: the server's float32 may order near ties otherwise than the exact scores do."""

_LOOKED_AT: Final = 50_000
"""Chunks that a search with the index looks at before it gives up."""

_SAMPLE: Final = 2000
"""Chunks that are looked at to tell how many pass a condition."""

_SEAM: Final = "'''|'':1'::tsvector"
"""Stands between title and text, so that no phrase runs over; nobody asks for it, as it is no word."""

_UNDEFINED_TABLE: Final = "42P01"

_CREATING: Final = 0x0A991B
_BUILDING: Final = 0x0A991C
"""Of advisory locks, which all programs of a database share."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Held:
    """A row of store_collection."""

    id: int
    dimensions: int
    chunks: int
    words: int
    index_kind: str
    index_lists: int
    index_chunks: int


class PostgresStore:
    """A VectorStore and WordIndex in a migrated database, which stays open when the store is closed.

    Args:
        database: others may use it at the same time.
        index: what finds the nearest among many: hnsw (best answers, slow to build), ivfflat (quick to build and
            small, misses more), or none (every search compares with all).
        distance: how the index compares. Unit vectors come in one order by each: ip costs the least.
        precision: of the numbers in the index; half halves it, and the best are compared again in float32 anyway.
        index_from: collections with fewer chunks are searched exactly, without an index.
        few: chunks that pass a condition and are compared one by one rather than looked for with the index.
        search_width: candidates that HNSW keeps in hand (`hnsw.ef_search`): more find better and take longer.
        bulk: no index is built before `improve` is called.
        space_of: in which space a collection's vectors are; "" where that is not known.
        title_weight, text_weight: what a word counts in BM25.
    """

    def __init__(
        self,
        database: PostgresDatabase,
        *,
        index: Index = "hnsw",
        distance: Distance = "ip",
        precision: Precision = "half",
        index_from: int = 10_000,
        few: int = 10_000,
        search_width: int = 200,
        bulk: bool = False,
        space_of: Callable[[str], str] = lambda _: "",
        title_weight: float = 1.0,
        text_weight: float = 1.0,
    ) -> None:
        self._database = database
        self._index = index
        self._distance = distance
        self._precision = precision
        self._index_from = index_from
        self._few = few
        self._search_width = search_width
        self._bulk = bulk
        self._space_of = space_of
        self._weights = float(title_weight), float(text_weight)
        self._frequencies = Frequencies()

    def create(self, collection: str, dimensions: int) -> None:
        """See VectorStore. Raises ModelMismatch where another appliance has vectors of another space there."""
        check_dimensions(dimensions)
        space = self._space_of(collection)
        with self._database.write() as connection:
            run = connection.exec_driver_sql
            run("SELECT pg_advisory_xact_lock(%s)", (_CREATING,))
            there = _held(connection, collection)
            if there is not None:
                if there.dimensions != dimensions:
                    raise CollectionExists(f"the collection {collection!r} has vectors of another length")
                known = run("SELECT space FROM store_collection WHERE id = %s", (there.id,)).scalar_one()
                check_space(collection, space, known)
                if space and not known:
                    run("UPDATE store_collection SET space = %s WHERE id = %s", (space, there.id))
                return
            number = run(
                "INSERT INTO store_collection (name, dimensions, space) VALUES (%s, %s, %s) RETURNING id",
                (kept(collection), dimensions, space),
            ).scalar_one()
            for statement in _tables(number, dimensions):
                run(statement)

    def drop(self, collection: str) -> None:
        """See VectorStore."""
        with self._database.write() as connection:
            there = _held(connection, collection, "FOR UPDATE")
            if there is not None:
                connection.exec_driver_sql("DELETE FROM store_collection WHERE id = %s", (there.id,))
                connection.exec_driver_sql("INSERT INTO store_leaving VALUES (%s)", (there.id,))
        self._sweep()

    def _sweep(self) -> None:
        """Let go of the tables of dropped collections, one in each transaction: whoever held two of them could wait for
        a reader that waits for it. What another drops at the same time is gone by then.
        """
        with self._database.read() as connection:
            leaving = connection.exec_driver_sql("SELECT id FROM store_leaving").scalars().all()
        for number in leaving:
            for name in ("words", "chunk", "vector"):
                with self._database.write() as connection:
                    connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name}_{number}")
            with self._database.write() as connection:
                connection.exec_driver_sql("DELETE FROM store_leaving WHERE id = %s", (number,))

    def put(self, collection: str, document: str, chunks: Sequence[Chunk], vectors: Matrix) -> None:
        """See VectorStore."""
        self.put_many(collection, [Entry(document, chunks, vectors)])

    def put_many(self, collection: str, entries: Sequence[Entry]) -> None:
        """See VectorStore. Builds the collection's index when it has become large enough for one."""
        last = list({entry.document: entry for entry in entries}.values())
        metadata = [metadata_json(entry.chunks) for entry in last]
        with self._database.write() as connection:
            held = _found(connection, collection, "FOR KEY SHARE")
            for entry in entries:
                checked_vectors(entry.vectors, rows=len(entry.chunks), dimensions=held.dimensions)
            removed, fewer = _delete(connection, held, [entry.document for entry in last])
            added, more = _insert(connection, held, last, metadata)
            _count(connection, held, added - removed, more - fewer)
        if not self._bulk and self._due(replace(held, chunks=held.chunks + added - removed)):
            self.improve(collection)

    def remove(self, collection: str, document: str) -> int:
        """See VectorStore."""
        with self._database.write() as connection:
            held = _found(connection, collection, "FOR KEY SHARE")
            removed, fewer = _delete(connection, held, [document])
            _count(connection, held, -removed, -fewer)
        return removed

    def rename(self, collection: str, document: str, new: str) -> None:
        """See VectorStore."""
        with self._database.write() as connection:
            held = _found(connection, collection, "FOR KEY SHARE")
            _lock(connection, held, [document, new])
            table, run = f"vector_{held.id}", connection.exec_driver_sql
            there = run(f"SELECT 1 FROM {table} WHERE document = %s LIMIT 1", (kept(document),)).first()
            if there is None or document == new:
                return
            removed, fewer = _delete(connection, held, [new])
            run(f"UPDATE {table} SET document = %s WHERE document = %s", (kept(new), kept(document)))
            _count(connection, held, -removed, -fewer)

    def nearest(
        self, collection: str, vector: Vector, *, limit: int, where: Where = (), exact: bool = False
    ) -> list[Match]:
        """See VectorStore."""
        check_where(where)
        condition, values = compiled(where, "fields") if where else ("TRUE", ())
        with self._database.read() as connection:
            held = _found(connection, collection)
            query = checked_query(vector, dimensions=held.dimensions)
            if limit < 1 or not held.chunks:
                return []
            with _gone_is_not_found(collection):
                search = _Search(connection, held, query, limit, condition, values)
                if not exact and held.index_kind and search.worth_the_index(few=self._few if where else 0):
                    found = search.by_index(self._search_width)
                    if len(found) >= min(limit, held.chunks):
                        return found[:limit]
                return search.exactly()[:limit]

    def matching(self, collection: str, words: str, *, limit: int, where: Where = ()) -> list[Match]:
        """See WordIndex. Words are compared by their stems."""
        check_where(where)
        condition, values = compiled(where, "v.fields") if where else ("", ())
        with self._database.read() as connection:
            held = _found(connection, collection)
            if limit < 1:
                return []
            with _gone_is_not_found(collection):
                index = Words(connection, held.id, held.chunks, held.words, self._weights)
                stems = index.stems(words)
                if not stems:
                    return []
                scores = index.best(
                    stems, limit=limit, condition=condition, values=values, frequencies=self._frequencies
                )
                scores = _cut(connection, held, scores, limit)
                rows = connection.exec_driver_sql(
                    f"SELECT id, {_COLUMNS} FROM vector_{held.id} JOIN chunk_{held.id} USING (id) WHERE id = ANY (%s)",
                    (list(scores),),
                )
                found = [Match(given(row[1]), _chunk(row[2:]), scores[row[0]]) for row in rows]
        return sorted(found, key=lambda match: (-match.score, match.key))

    def chunks(self, collection: str, document: str, *, first: int = 0, last: int | None = None) -> list[Chunk]:
        """See VectorStore."""
        with self._database.read() as connection:
            held = _found(connection, collection)
            with _gone_is_not_found(collection):
                rows = connection.exec_driver_sql(
                    f"SELECT {_COLUMNS} FROM vector_{held.id} JOIN chunk_{held.id} USING (id) WHERE document = %s "
                    "AND ordinal BETWEEN %s AND coalesce(%s, ordinal) ORDER BY ordinal",
                    (kept(document), first, last),
                )
                return [_chunk(row[1:]) for row in rows]

    def vectors(self, collection: str, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Vector]:
        """See VectorStore."""
        with self._database.read() as connection:
            held = _found(connection, collection)
            with _gone_is_not_found(collection):
                rows = connection.exec_driver_sql(
                    "SELECT document, ordinal, vector_send(embedding) FROM unnest(%s::text[], %s::bigint[]) "
                    f"AS wanted (document, ordinal) JOIN vector_{held.id} USING (document, ordinal)",
                    ([kept(name) for name, _ in keys], [ordinal for _, ordinal in keys]),
                ).all()
        vectors = _received([row[2] for row in rows], held.dimensions)
        return {(given(row[0]), row[1]): vector for row, vector in zip(rows, vectors, strict=True)}

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
            return {given(row[0]): row[1] for row in rows}

    def entries(self, collection: str, *, after: str = "", limit: int = 100) -> list[Entry]:
        """See Store."""
        with self._database.read() as connection:
            held = _found(connection, collection)
            run = connection.exec_driver_sql
            names = run(
                f"SELECT DISTINCT document FROM vector_{held.id} WHERE document > %s ORDER BY document LIMIT %s",
                (kept(after), limit),
            ).scalars()
            rows = run(
                f"SELECT vector_send(embedding), {_COLUMNS} FROM vector_{held.id} JOIN chunk_{held.id} USING (id) "
                "WHERE document = ANY (%s) ORDER BY document, ordinal",
                (list(names),),
            ).all()
        documents: dict[str, list[Any]] = {}
        for row in rows:
            documents.setdefault(given(row[1]), []).append(row)
        return [
            Entry(name, [_chunk(row[2:]) for row in own], _received([row[0] for row in own], held.dimensions))
            for name, own in documents.items()
        ]

    def improve(self, collection: str) -> None:
        """See Store. Builds the index that the collection has become large enough for, unless another is at it. Writers
        wait meanwhile, readers do not. What fails is tried again after a later change.
        """
        try:
            with self._database.write() as connection:
                held = _found(connection, collection)
                run = connection.exec_driver_sql
                mine = run("SELECT pg_try_advisory_xact_lock(%s, %s)", (_BUILDING, held.id)).scalar_one()
                if mine and self._due(held):
                    self._build(connection, held)
        except ApplianceError as error:
            log.warning("index not built", collection=collection, error=error.message)

    def warm(self) -> None:
        """See Store. The server keeps what it needs."""

    def close(self) -> None:
        """See VectorStore. The database is the caller's."""

    def _due(self, held: _Held) -> bool:
        if held.chunks < self._index_from or self._index == "none":
            return False
        if not held.index_kind:
            return True
        return bool(held.index_lists) and held.chunks > 8 * held.index_chunks  # its lists have become long

    def _build(self, connection: Connection, held: _Held) -> None:
        run = connection.exec_driver_sql
        kind, wide = _indexable(held.dimensions, self._precision)
        operators = "bit_hamming_ops" if kind == "bit" else f"{kind}_{self._distance}_ops"
        lists = 0
        more = ""
        if self._index == "ivfflat":
            lists = max(int(held.chunks / 1000 if held.chunks < 10**6 else math.sqrt(held.chunks)), 10)
            more = f"WITH (lists = {lists})"
        run("SET LOCAL statement_timeout = 0")
        run(  # HNSW is built several times faster where its graph fits
            "SELECT set_config('maintenance_work_mem', greatest(setting::bigint, 524288) || 'kB', true) "
            "FROM pg_settings WHERE name = 'maintenance_work_mem'"
        )
        run(f"DROP INDEX IF EXISTS vector_{held.id}_near")
        run(
            f"CREATE INDEX vector_{held.id}_near ON vector_{held.id} USING {self._index} "
            f"(({_as_indexed('embedding', kind, wide)}) {operators}) {more}"
        )
        run(
            "UPDATE store_collection SET index_kind = %s, index_lists = %s, index_chunks = chunks WHERE id = %s",
            (f"{self._index} {kind} {self._distance}", lists, held.id),
        )
        run(f"ANALYZE vector_{held.id}, chunk_{held.id}, words_{held.id}")


@dataclass(frozen=True, slots=True)
class _Search:
    """One search by meaning inside a transaction."""

    connection: Connection
    held: _Held
    query: Vector
    limit: int
    condition: str
    values: tuple[Any, ...]

    def worth_the_index(self, *, few: int) -> bool:
        """Whether more than `few` pass the condition, and so many that the index finds enough of them early: by a
        sample. 0 when there is no condition.
        """
        chunks = self.held.chunks
        if not few:
            return self.limit * 2 < chunks
        share = min(100 * _SAMPLE / chunks, 100)
        passing, seen = self.connection.exec_driver_sql(
            f"SELECT count(*) FILTER (WHERE {self.condition}), count(*) FROM vector_{self.held.id} "
            "TABLESAMPLE SYSTEM (%s)",
            (*self.values, share),
        ).one()
        part = passing / max(seen, 1)
        return bool(part * chunks > few and part * _LOOKED_AT > 4 * self.limit)

    def by_index(self, width: int) -> list[Match]:
        """Candidates by the index, scored exactly."""
        method, kind, distance = self.held.index_kind.split()
        fetched = 2 * self.limit + _SLACK if kind != "bit" else max(8 * self.limit, 400)
        if method == "hnsw":
            kept_in_hand = min(max(width, fetched if kind == "bit" else self.limit), 1000)
            settings = [
                f"SET LOCAL hnsw.ef_search = {kept_in_hand}",
                "SET LOCAL hnsw.iterative_scan = relaxed_order",
                f"SET LOCAL hnsw.max_scan_tuples = {max(_LOOKED_AT, 2 * fetched)}",
            ]
        else:
            lists = max(self.held.index_lists, 1)
            settings = [
                f"SET LOCAL ivfflat.probes = {min(max(math.isqrt(lists), 8), lists)}",
                "SET LOCAL ivfflat.iterative_scan = relaxed_order",
            ]
        self.connection.exec_driver_sql("; ".join(settings))
        wide = self.held.dimensions
        operator = "<~>" if kind == "bit" else _OPERATORS[distance]
        mine, asked = _as_indexed("embedding", kind, wide), _as_indexed(f"%s::vector({wide})", kind, wide)
        return self._matches(f"{mine} {operator} {asked}", fetched)

    def exactly(self) -> list[Match]:
        """By comparing with all that pass."""
        wide = self.held.dimensions
        # + 0: no index is on that
        return self._matches(f"(embedding <#> %s::vector({wide})) + 0, document, ordinal", self.limit + _SLACK)

    def _matches(self, order: str, fetched: int) -> list[Match]:
        number = self.held.id
        rows = self.connection.exec_driver_sql(
            f"WITH best AS MATERIALIZED (SELECT id FROM vector_{number} WHERE {self.condition} "
            f"ORDER BY {order} LIMIT %s) "
            f"SELECT vector_send(embedding), {_COLUMNS} FROM best JOIN vector_{number} USING (id) "
            f"JOIN chunk_{number} USING (id)",
            (*self.values, _sent(self.query), fetched),
        ).all()
        if not rows:
            return []
        scores = cosines(_received([row[0] for row in rows], self.held.dimensions), self.query)
        order_of = sorted(range(len(rows)), key=lambda n: (-scores[n], given(rows[n][1]), rows[n][2]))
        return [Match(given(rows[n][1]), _chunk(rows[n][2:]), float(scores[n])) for n in order_of[: self.limit]]


_COLUMNS: Final = 'document, ordinal, text, "start", "end", tokens, title, metadata'
_HELD: Final = "id, dimensions, chunks, words, index_kind, index_lists, index_chunks"


def _tables(number: int, dimensions: int) -> Iterator[str]:
    yield (
        f"CREATE TABLE chunk_{number} (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, "
        '"start" bigint NOT NULL, "end" bigint NOT NULL, tokens bigint NOT NULL, title text NOT NULL, '
        "text text NOT NULL, metadata text NOT NULL)"
    )
    yield (
        f"CREATE TABLE vector_{number} (id bigint PRIMARY KEY, ordinal bigint NOT NULL, "
        'document text COLLATE "C" NOT NULL, fields jsonb NOT NULL, '
        f"embedding vector({dimensions}) NOT NULL, UNIQUE (document, ordinal))"
    )
    inline = "PLAIN" if dimensions <= _INLINE else "EXTERNAL"
    yield f"ALTER TABLE vector_{number} ALTER COLUMN embedding SET STORAGE {inline}"
    yield f"CREATE INDEX vector_{number}_fields ON vector_{number} USING gin (fields jsonb_path_ops)"
    yield (
        f"CREATE TABLE words_{number} (id bigint PRIMARY KEY, length integer NOT NULL, words tsvector NOT NULL) "
        "WITH (toast_tuple_target = 8160)"
    )
    yield f"CREATE INDEX words_{number}_words ON words_{number} USING gin (words)"


def _held(connection: Connection, collection: str, lock: str = "") -> _Held | None:
    row = connection.exec_driver_sql(
        f"SELECT {_HELD} FROM store_collection WHERE name = %s {lock}", (kept(collection),)
    ).first()
    return _Held(*row) if row else None


def _found(connection: Connection, collection: str, lock: str = "") -> _Held:
    held = _held(connection, collection, lock)
    if held is None:
        raise CollectionNotFound(f"there is no collection {collection!r}", name=collection)
    return held


@contextmanager
def _gone_is_not_found(collection: str) -> Iterator[None]:
    """Another may drop the collection between a look at what there is and the search."""
    try:
        yield
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != _UNDEFINED_TABLE:
            raise
        raise CollectionNotFound(f"there is no collection {collection!r}", name=collection) from error


def _indexable(dimensions: int, precision: Precision) -> tuple[str, int]:
    """The type that an index of such vectors has."""
    for kind in ("vector", "halfvec") if precision == "single" else ("halfvec",):
        if dimensions <= _LIMITS[kind]:
            return kind, dimensions
    return "bit", dimensions


def _as_indexed(column: str, kind: str, dimensions: int) -> str:
    if kind == "bit":
        return f"binary_quantize({column})::bit({dimensions})"
    return f"({column})" if kind == "vector" else f"({column}::halfvec({dimensions}))"


def _lock(connection: Connection, held: _Held, documents: Sequence[str]) -> None:
    """Keep others from changing the documents until the transaction ends."""
    keys = sorted(
        {
            int.from_bytes(blake2b(f"{held.id} {kept(name)}".encode(), digest_size=8).digest(), signed=True)
            for name in documents
        }
    )
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(key) FROM unnest(%s::bigint[]) AS key", (keys,))


def _delete(connection: Connection, held: _Held, documents: Sequence[str]) -> tuple[int, int]:
    """Remove what the documents have, and keep others from changing them; how many chunks and words that was."""
    run = connection.exec_driver_sql
    _lock(connection, held, documents)
    names = [kept(name) for name in documents]
    number = held.id
    removed, words = run(
        f"WITH gone AS (DELETE FROM vector_{number} WHERE document = ANY (%s) RETURNING id), "
        f"texts AS (DELETE FROM chunk_{number} USING gone WHERE chunk_{number}.id = gone.id), "
        f"words AS (DELETE FROM words_{number} USING gone WHERE words_{number}.id = gone.id RETURNING length) "
        "SELECT count(*), coalesce(sum(length), 0) FROM words",
        (names,),
    ).one()
    return int(removed), int(words)


def _insert(
    connection: Connection, held: _Held, entries: Sequence[Entry], metadata: Sequence[Sequence[str]]
) -> tuple[int, int]:
    """Add chunks to all three tables; how many, and how many words they have."""
    chunks = [
        (entry.document, chunk, json_text)
        for entry, texts in zip(entries, metadata, strict=True)
        for chunk, json_text in zip(entry.chunks, texts, strict=True)
    ]
    if not chunks:
        return 0, 0
    number = held.id
    run = connection.exec_driver_sql
    ids = (
        run(
            f"SELECT nextval(pg_get_serial_sequence('chunk_{number}', 'id')) FROM generate_series(1, %s)",
            (len(chunks),),
        )
        .scalars()
        .all()
    )
    rows = np.concatenate([entry.vectors for entry in entries]).astype(np.float32, copy=False)
    titles, texts = [spaced(one.title) for _, one, _ in chunks], [spaced(one.text) for _, one, _ in chunks]
    lengths = [
        (title.count(" ") + bool(title)) + (text.count(" ") + bool(text))
        for title, text in zip(titles, texts, strict=True)
    ]
    with _cursor(connection) as cursor:
        with cursor.copy(f'COPY chunk_{number} (id, "start", "end", tokens, title, text, metadata) FROM STDIN') as copy:
            for id_, (_, one, text) in zip(ids, chunks, strict=True):
                copy.write_row((id_, one.start, one.end, one.tokens, kept(one.title), kept(one.text), kept(text)))
        with cursor.copy(f"COPY vector_{number} (id, ordinal, document, fields, embedding) FROM STDIN") as copy:
            last: tuple[object, str] = (None, "")
            for id_, (document, one, _), row in zip(ids, chunks, rows, strict=True):
                if one.metadata is not last[0]:
                    last = one.metadata, fields(one.metadata)
                copy.write_row((id_, one.ordinal, kept(document), last[1], _sent(row)))
        cursor.execute(
            f"INSERT INTO words_{number} (id, length, words) "
            f"SELECT id, length, setweight(to_tsvector({CONFIGURATION}, title), 'A') || {_SEAM} || "
            f"to_tsvector({CONFIGURATION}, text) "
            "FROM unnest(%s::bigint[], %s::integer[], %s::text[], %s::text[]) AS new (id, length, title, text)",
            (ids, lengths, titles, texts),
        )
    return len(chunks), sum(lengths)


def _count(connection: Connection, held: _Held, chunks: int, words: int) -> None:
    """Last in a transaction: others wait for the row until its end."""
    if chunks or words:
        connection.exec_driver_sql(
            "UPDATE store_collection SET chunks = chunks + %s, words = words + %s WHERE id = %s",
            (chunks, words, held.id),
        )


def _cut(connection: Connection, held: _Held, scores: Mapping[int, float], limit: int) -> dict[int, float]:
    """The best so many by their ids; of equals, the first in the order of document and ordinal."""
    if len(scores) <= limit:
        return dict(scores)
    last = nlargest(limit, scores.values())[-1]
    best = {id_: score for id_, score in scores.items() if score > last}
    first = connection.exec_driver_sql(
        f"SELECT id FROM vector_{held.id} WHERE id = ANY (%s) ORDER BY document, ordinal LIMIT %s",
        ([id_ for id_, score in scores.items() if score == last], limit - len(best)),
    )
    return best | dict.fromkeys(first.scalars(), last)


def _cursor(connection: Connection) -> Any:
    """The driver's own cursor, which can copy."""
    raw = connection.connection.driver_connection
    if raw is None:
        raise TypeError("the connection is closed")
    return raw.cursor()


def _sent(row: Vector) -> str:
    """A vector as pgvector reads it: the shortest digits that give the same float32."""
    return orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def _received(rows: Sequence[bytes], dimensions: int) -> Matrix:
    """Vectors as pgvector sends them: two int16 before, then big-endian float32."""
    raw = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), 4 + 4 * dimensions)[:, 4:]
    result: npt.NDArray[np.float32] = np.ascontiguousarray(raw).view(">f4").astype(np.float32)
    return result


def _chunk(row: Sequence[Any]) -> Chunk:
    ordinal, text, start, end, tokens, title, metadata = row
    return Chunk(
        ordinal=ordinal,
        text=given(text),
        start=start,
        end=end,
        tokens=tokens,
        title=given(title),
        metadata=json.loads(given(metadata)),
    )
