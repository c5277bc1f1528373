"""The index in Milvus, a cluster for more than one server holds; several appliances may share it.

    appliance_collections     what there is, with its dimensions
    appliance_documents       of each document the version that counts
    appliance_chunks_<d>      chunks of every collection whose vectors have d dimensions, apart by a partition key

Milvus has no transactions. A document is put as rows of a new version, then the one row that names the version that
counts is changed, then older rows are removed. Readers drop what is of another version, so that nobody sees half of a
document, also after a crash; what a crash leaves behind goes with the next change of that document. Two appliances that
change one document in the same moment may lose both changes: put it again.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import groupby
from threading import Lock
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit

import numpy as np

from appliance.errors import CollectionExists, CollectionNotFound, InvalidInput, StoreUnavailable
from appliance.kept import given, kept
from appliance.store.asked import asked, worded
from appliance.store.base import AllOf, AnyOf, Chunk, Condition, Entry, Expression, Match, Matrix, Not, Vector, Where
from appliance.store.checks import check_dimensions, check_space, checked_query, checked_vectors, metadata_json
from appliance.store.where import check_where

_COLLECTIONS: Final = "appliance_collections"
_DOCUMENTS: Final = "appliance_documents"

_MOST: Final = 16_384
"""Rows of one answer, at most. https://milvus.io/docs/limitations.md"""

_BYTES: Final = 65_535
"""UTF-8 bytes of a text, at most."""

_ROWS: Final = 500
"""Rows of one request: it may have 64 MiB."""

_SLACK: Final = 16
_WIDEST: Final = 32_768
"""Candidates that HNSW keeps in hand, at most."""

_TRUE: Final = "version >= 0"
_FALSE: Final = "version < 0"
_OPPOSITE: Final = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}
_KEY: Final = ["document", "version", "ordinal"]
_PAYLOAD: Final = ["document", "version", "ordinal", "text", "title", "metadata", "start", "end", "tokens"]


class MilvusStore:
    """A VectorStore and WordIndex in Milvus 2.5 or newer.

    Differs from other stores: `put_many` is whole for each document, not for all of them together; a text, and a
    chunk's metadata, have at most 65,535 bytes; how rare a word is is counted over all collections of the same
    dimensions, those of a title like those of a text; the words of a phrase are looked up one by one, and a beginning
    is taken for a word; a search gives at most 16,384 matches, and `exact` is the widest that the index can look.

    Args:
        url: http://user:password@host:19530, or a file that ends in .db for Milvus Lite, which is for tests.
        index: what finds the nearest: hnsw, ivfflat, or none, which compares with all.
        distance: how the index compares; unit vectors come in one order by each.
        search_width: candidates that HNSW keeps in hand.
        seconds: that a request may take.
        space_of: in which space a collection's vectors are; "" where that is not known.

    Raises:
        InvalidInput: no such address.
        StoreUnavailable: it does not answer, or its client is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        index: Literal["hnsw", "ivfflat", "none"] = "hnsw",
        distance: Literal["ip", "cosine", "l2"] = "ip",
        search_width: int = 200,
        seconds: float = 30.0,
        space_of: Callable[[str], str] = lambda _: "",
    ) -> None:
        self._index = index
        self._distance = distance
        self._search_width = search_width
        self._space_of = space_of
        self._writing = Lock()
        self._last = 0
        self._open = True
        address = _address(url)
        try:
            import pymilvus
        except ModuleNotFoundError as error:
            raise StoreUnavailable(
                'store = milvus needs pymilvus, which is not installed: `pip install "rag-appliance[milvus]"`'
            ) from error
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs requests
        with _border():
            self._client: Any = pymilvus.MilvusClient(**address, timeout=seconds)
            self._types = pymilvus
            self._set_up()

    def create(self, collection: str, dimensions: int) -> None:
        """See VectorStore. Raises ModelMismatch where another appliance has vectors of another space there."""
        check_dimensions(dimensions)
        space = self._space_of(collection)
        with self._writing, _border():
            there = self._registered(collection)
            if there is not None:
                if int(there["dimensions"]) != dimensions:
                    raise CollectionExists(f"the collection {collection!r} has vectors of another length")
                check_space(collection, space, there["space"])
            if there is None or (space and not there["space"]):
                self._make_room(dimensions)
                row = {
                    "id": _digest(collection),
                    "name": kept(collection),
                    "dimensions": dimensions,
                    "space": space,
                    "none": [0.0, 1.0],
                }
                self._client.upsert(_COLLECTIONS, [row])

    def drop(self, collection: str) -> None:
        """See VectorStore."""
        with self._writing, _border():
            there = self._dimensions(collection)
            if there is not None:
                mine = f'collection == "{_digest(collection)}"'
                self._client.delete(_COLLECTIONS, ids=[_digest(collection)])
                self._client.delete(_DOCUMENTS, filter=mine)
                self._client.delete(_rows(there), filter=mine)

    def put(self, collection: str, document: str, chunks: Sequence[Chunk], vectors: Matrix) -> None:
        """See VectorStore."""
        self.put_many(collection, [Entry(document, chunks, vectors)])

    def put_many(self, collection: str, entries: Sequence[Entry]) -> None:
        """See VectorStore; whole for each document."""
        last = list({entry.document: entry for entry in entries}.values())
        metadata = [metadata_json(entry.chunks) for entry in last]
        with self._writing, _border():
            dimensions = self._found(collection)
            for entry in entries:
                checked_vectors(entry.vectors, rows=len(entry.chunks), dimensions=dimensions)
            version = self._version()
            rows = [
                _row(collection, entry.document, chunk, version=version, metadata=text, vector=vector)
                for entry, texts in zip(last, metadata, strict=True)
                for chunk, text, vector in zip(entry.chunks, texts, entry.vectors, strict=True)
            ]
            for start in range(0, len(rows), _ROWS):
                self._client.insert(_rows(dimensions), rows[start : start + _ROWS])
            self._commit(collection, dimensions, last, version)

    def _commit(self, collection: str, dimensions: int, entries: Sequence[Entry], version: int) -> None:
        """From here on this version counts; older ones go."""
        counting = [
            {
                "id": _digest(collection, entry.document),
                "collection": _digest(collection),
                "document": kept(entry.document),
                "version": version,
                "chunks": len(entry.chunks),
                "none": [0.0, 1.0],
            }
            for entry in entries
            if entry.chunks
        ]
        if counting:
            self._client.upsert(_DOCUMENTS, counting)
        if without := [_digest(collection, entry.document) for entry in entries if not entry.chunks]:
            self._client.delete(_DOCUMENTS, ids=without)
        owners = [_digest(collection, entry.document) for entry in entries]
        for start in range(0, len(owners), _ROWS):
            among = f"owner in {json.dumps(owners[start : start + _ROWS])} and version < {version}"
            self._client.delete(_rows(dimensions), filter=f'collection == "{_digest(collection)}" and {among}')

    def remove(self, collection: str, document: str) -> int:
        """See VectorStore."""
        with self._writing, _border():
            dimensions = self._found(collection)
            owner = _digest(collection, document)
            there = self._client.query(_DOCUMENTS, ids=[owner], output_fields=["chunks"])
            self._client.delete(_DOCUMENTS, ids=[owner])
            self._client.delete(
                _rows(dimensions), filter=f'collection == "{_digest(collection)}" and owner == "{owner}"'
            )
        return int(there[0]["chunks"]) if there else 0

    def rename(self, collection: str, document: str, new: str) -> None:
        """See VectorStore. Puts it in anew, then removes the old: a crash between leaves both."""
        with _border():
            dimensions = self._found(collection)
            rows = self._own(collection, dimensions, document, [*_PAYLOAD, "vector"])
        if rows and document != new:
            vectors = np.array([row["vector"] for row in rows], np.float32).reshape(-1, dimensions)
            self.put(collection, new, [_chunk(row) for row in rows], vectors)
            self.remove(collection, document)

    def nearest(
        self, collection: str, vector: Vector, *, limit: int, where: Where = (), exact: bool = False
    ) -> list[Match]:
        """See VectorStore."""
        check_where(where)
        with _border():
            dimensions = self._found(collection)
            query = checked_query(vector, dimensions=dimensions)
            if limit < 1:
                return []
            width = _WIDEST if exact else self._search_width
            found = self._search(
                collection, dimensions, field="vector", query=query.tolist(), where=where, limit=limit, width=width
            )
            if len(found) < limit:
                found = self._all(collection, dimensions, query, where) or found
        return _best(found, limit)

    def matching(self, collection: str, words: str, *, limit: int, where: Where = ()) -> list[Match]:
        """See WordIndex. Words are compared as Milvus' analyzer leaves them."""
        check_where(where)
        wanted = " ".join(text for text, _ in asked(words)).encode()[:_BYTES].decode(errors="ignore")
        with _border():
            dimensions = self._found(collection)
            if limit < 1 or not wanted:
                return []
            found = self._search(collection, dimensions, field="sparse", query=wanted, where=where, limit=limit)
        return _best(found, limit)

    def chunks(self, collection: str, document: str, *, first: int = 0, last: int | None = None) -> list[Chunk]:
        """See VectorStore."""
        with _border():
            dimensions = self._found(collection)
            rows = self._own(collection, dimensions, document, _PAYLOAD, first=first, last=last)
        return [_chunk(row) for row in rows]

    def vectors(self, collection: str, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Vector]:
        """See VectorStore."""
        found: dict[tuple[str, int], Vector] = {}
        with _border():
            dimensions = self._found(collection)
            versions = self._versions([_digest(collection, name) for name, _ in keys])
            ids = {
                f"{owner}-{versions[owner]}-{ordinal}": (name, ordinal)
                for name, ordinal in keys
                if (owner := _digest(collection, name)) in versions
            }
            every = list(ids)
            for start in range(0, len(every), _ROWS):
                part = self._client.query(
                    _rows(dimensions), ids=every[start : start + _ROWS], output_fields=["id", "vector"]
                )
                found |= {ids[row["id"]]: np.array(row["vector"], np.float32) for row in part}
        return found

    def count(self, collection: str) -> int:
        """See VectorStore."""
        with _border():
            rows = _rows(self._found(collection))
            mine = f'collection == "{_digest(collection)}"'
            return int(self._client.query(rows, filter=mine, output_fields=["count(*)"])[0]["count(*)"])

    def total(self) -> int:
        """See Store."""
        return sum(self.count(name) for name in self.collections())

    def collections(self) -> dict[str, int]:
        """See Store."""
        with _border():
            rows = self._each(_COLLECTIONS, 'id != ""', ["name", "dimensions"])
        return dict(sorted((given(row["name"]), int(row["dimensions"])) for row in rows))

    def entries(self, collection: str, *, after: str = "", limit: int = 100) -> list[Entry]:
        """See Store. Looks at the names of all documents."""
        with _border():
            dimensions = self._found(collection)
            names = self._names(collection, after, limit)
            if not names:
                return []
            owners = json.dumps([_digest(collection, name) for name in names])
            mine = f'collection == "{_digest(collection)}" and owner in {owners}'
            rows = self._each(_rows(dimensions), mine, [*_PAYLOAD, "vector"])
            rows = sorted(self._counting(rows, collection), key=lambda row: (given(row["document"]), row["ordinal"]))
        result = []
        for name, group in groupby(rows, key=lambda row: given(row["document"])):
            own = list(group)
            vectors = np.array([row["vector"] for row in own], np.float32).reshape(-1, dimensions)
            result.append(Entry(name, [_chunk(row) for row in own], vectors))
        return result

    def improve(self, collection: str) -> None:
        """See Store. Milvus does by itself."""

    def warm(self) -> None:
        """See Store. Milvus loads collections by itself."""

    def close(self) -> None:
        """See VectorStore."""
        if self._open:
            self._open = False
            self._client.close()

    def _own(
        self,
        collection: str,
        dimensions: int,
        document: str,
        fields: Sequence[str],
        *,
        first: int = 0,
        last: int | None = None,
    ) -> list[Mapping[str, Any]]:
        """The rows of a document's chunks that count, in order, however many."""
        mine = f'collection == "{_digest(collection)}" and owner == "{_digest(collection, document)}"'
        mine += f" and ordinal >= {first}" + ("" if last is None else f" and ordinal <= {last}")
        rows = self._each(_rows(dimensions), mine, fields)
        return sorted(self._counting(rows, collection), key=lambda row: int(row["ordinal"]))

    def _names(self, collection: str, after: str, limit: int) -> list[str]:
        mine = f'collection == "{_digest(collection)}"'
        found = [given(row["document"]) for row in self._each(_DOCUMENTS, mine, ["document"], at_once=5000)]
        return sorted(name for name in found if name > after)[:limit]

    def _each(
        self, table: str, condition: str, fields: Sequence[str], *, at_once: int = _ROWS
    ) -> list[Mapping[str, Any]]:
        """All rows that pass, in no order; one answer has `_MOST` at most."""
        rows: list[Mapping[str, Any]] = []
        pages = self._client.query_iterator(table, filter=condition, output_fields=fields, batch_size=at_once)
        while page := pages.next():
            rows += page
        pages.close()
        return rows

    def _search(
        self,
        collection: str,
        dimensions: int,
        *,
        field: str,
        query: object,
        where: Where,
        limit: int,
        width: int = 0,
    ) -> list[Match]:
        """The best chunks, rather more than so many. Milvus parts equals as it likes: where the limit would, more of
        them are asked for, without their texts, until the first in the order of document and ordinal are known.
        """
        scale = _cosine if field == "vector" and self._distance == "l2" else float
        rows, fields = min(2 * limit + _SLACK, _MOST), _PAYLOAD
        while True:
            (hits,) = self._client.search(
                _rows(dimensions),
                data=[query],
                anns_field=field,
                filter=_filter(collection, where),
                limit=rows,
                output_fields=fields,
                search_params={"params": {"ef": min(max(width, rows), _WIDEST), "nprobe": 32} if width else {}},
                consistency_level="Strong",
            )
            scores = {hit["id"]: _bounded(scale(hit["distance"]), field) for hit in hits}
            found = self._counting([{**hit["entity"], "id": hit["id"]} for hit in hits], collection)
            parted = len(found) < limit or scores[found[limit - 1]["id"]] == scores[hits[-1]["id"]]
            if len(hits) < rows or rows == _MOST or not parted:
                break
            rows, fields = min(8 * rows, _MOST), _KEY
        if fields is _KEY:
            found.sort(key=lambda row: (-scores[row["id"]], given(row["document"]), int(row["ordinal"])))
            found = self._whole(dimensions, [row["id"] for row in found[:limit]])
        return [Match(given(row["document"]), _chunk(row), scores[row["id"]]) for row in found]

    def _whole(self, dimensions: int, ids: Sequence[str]) -> list[Mapping[str, Any]]:
        """Rows with all that is given back, in no order."""
        rows: list[Mapping[str, Any]] = []
        for start in range(0, len(ids), _ROWS):
            part = ids[start : start + _ROWS]
            rows += self._client.query(_rows(dimensions), ids=part, output_fields=["id", *_PAYLOAD])
        return rows

    def _all(self, collection: str, dimensions: int, query: Vector, where: Where) -> list[Match]:
        """Whatever passes, scored here: for when the index gave too few."""
        rows = self._client.query(
            _rows(dimensions), filter=_filter(collection, where), output_fields=[*_PAYLOAD, "vector"], limit=_MOST
        )
        return [
            Match(given(row["document"]), _chunk(row), _bounded(float(np.dot(query, row["vector"])), "vector"))
            for row in self._counting(rows, collection)
        ]

    def _counting(self, rows: Sequence[Mapping[str, Any]], collection: str) -> list[Mapping[str, Any]]:
        """Those of the version of their document that counts."""
        if not rows:
            return []
        versions = self._versions([_digest(collection, given(row["document"])) for row in rows])
        return [row for row in rows if versions.get(_digest(collection, given(row["document"]))) == int(row["version"])]

    def _versions(self, documents: Sequence[str]) -> dict[str, int]:
        """Of each document that is there the version that counts."""
        owners = list(set(documents))
        versions: dict[str, int] = {}
        for start in range(0, len(owners), _ROWS):
            part = self._client.query(
                _DOCUMENTS,
                ids=owners[start : start + _ROWS],
                output_fields=["id", "version"],
                consistency_level="Strong",
            )
            versions |= {row["id"]: int(row["version"]) for row in part}
        return versions

    def _version(self) -> int:
        """Greater than any before."""
        self._last = max(self._last + 1, time.time_ns() // 1000)
        return self._last

    def _registered(self, collection: str) -> Mapping[str, Any] | None:
        rows = self._client.query(
            _COLLECTIONS, ids=[_digest(collection)], output_fields=["dimensions", "space"], consistency_level="Strong"
        )
        return rows[0] if rows else None

    def _dimensions(self, collection: str) -> int | None:
        there = self._registered(collection)
        return None if there is None else int(there["dimensions"])

    def _found(self, collection: str) -> int:
        dimensions = self._dimensions(collection)
        if dimensions is None:
            raise CollectionNotFound(f"there is no collection {collection!r}", name=collection)
        return dimensions

    # The schema

    def _set_up(self) -> None:
        kinds = self._types.DataType
        for name, fields in (
            (_COLLECTIONS, {"name": kinds.VARCHAR, "dimensions": kinds.INT64, "space": kinds.VARCHAR}),
            (
                _DOCUMENTS,
                {
                    "collection": kinds.VARCHAR,
                    "document": kinds.VARCHAR,
                    "version": kinds.INT64,
                    "chunks": kinds.INT64,
                },
            ),
        ):
            if not self._client.has_collection(name):
                schema = self._schema(fields)
                schema.add_field("none", kinds.FLOAT_VECTOR, dim=2)  # each has to have a vector
                indexes = self._client.prepare_index_params()
                indexes.add_index("none", index_type="FLAT", metric_type="IP")
                self._client.create_collection(name, schema=schema, index_params=indexes, consistency_level="Strong")

    def _make_room(self, dimensions: int) -> None:
        name = _rows(dimensions)
        if self._client.has_collection(name):
            return
        kinds = self._types.DataType
        texts = dict.fromkeys(("document", "owner", "title", "text", "metadata"), kinds.VARCHAR)
        numbers = dict.fromkeys(("version", "ordinal", "start", "end", "tokens"), kinds.INT64)
        schema = self._schema({**texts, **numbers, "fields": kinds.JSON})
        schema.add_field("collection", kinds.VARCHAR, max_length=64, is_partition_key=True)
        schema.add_field(
            "words",
            kinds.VARCHAR,
            max_length=_BYTES,
            enable_analyzer=True,
            analyzer_params={"tokenizer": "standard", "filter": [{"type": "stemmer", "language": "english"}]},
        )
        schema.add_field("vector", kinds.FLOAT_VECTOR, dim=dimensions)
        schema.add_field("sparse", kinds.SPARSE_FLOAT_VECTOR)
        bm25 = self._types.FunctionType.BM25
        schema.add_function(
            self._types.Function(
                name="bm25", function_type=bm25, input_field_names=["words"], output_field_names=["sparse"]
            )
        )
        indexes = self._client.prepare_index_params()
        kind, parameters = {
            "hnsw": ("HNSW", {"M": 16, "efConstruction": 200}),
            "ivfflat": ("IVF_FLAT", {"nlist": 1024}),
            "none": ("FLAT", {}),
        }[self._index]
        indexes.add_index("vector", index_type=kind, metric_type=self._distance.upper(), params=parameters)
        indexes.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
        self._client.create_collection(name, schema=schema, index_params=indexes, consistency_level="Strong")

    def _schema(self, fields: Mapping[str, Any]) -> Any:
        kinds = self._types.DataType
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", kinds.VARCHAR, is_primary=True, max_length=128)
        for name, kind in fields.items():
            schema.add_field(name, kind, **({"max_length": _BYTES} if kind == kinds.VARCHAR else {}))
        return schema


def _address(url: str) -> dict[str, str]:
    """What the client takes."""
    if url.endswith(".db") and "://" not in url:
        return {"uri": url}
    try:
        parts = urlsplit(url)
        port = parts.port or 19530
    except ValueError:  # its text has the password
        parts, port = urlsplit(""), 0
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidInput(
            "store_url is no address of a Milvus server: http://user:password@host:19530", param="store_url"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    address = {"uri": f"{parts.scheme}://{host}:{port}"}
    if parts.username:
        address |= {"user": unquote(parts.username), "password": unquote(parts.password or "")}
    if name := parts.path.strip("/"):
        address["db_name"] = name
    return address


def _rows(dimensions: int) -> str:
    return f"appliance_chunks_{dimensions}"


def _digest(*parts: object) -> str:
    """A name without quotes and of one length for anything."""
    text = json.dumps(parts, ensure_ascii=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _row(
    collection: str, document: str, chunk: Chunk, *, version: int, metadata: str, vector: Vector
) -> dict[str, object]:
    owner = _digest(collection, document)
    row: dict[str, object] = {
        "id": f"{owner}-{version}-{chunk.ordinal}",
        "collection": _digest(collection),
        "owner": owner,
        "document": _fitting(document),
        "version": version,
        "ordinal": chunk.ordinal,
        "text": _fitting(chunk.text),
        "title": _fitting(chunk.title),
        "metadata": _fitting(metadata),
        "start": chunk.start,
        "end": chunk.end,
        "tokens": chunk.tokens,
        "words": _spaced(f"{chunk.title} {chunk.text}"),
        "fields": _fields(chunk.metadata),
        "vector": vector.tolist(),
    }
    if len(json.dumps(row["fields"])) > _BYTES:
        raise InvalidInput(f"Milvus keeps metadata of at most {_BYTES} bytes", param="metadata")
    return row


def _fitting(text: str) -> str:
    fit = kept(text)
    if len(fit.encode()) > _BYTES:
        raise InvalidInput(f"Milvus keeps texts, and metadata, of at most {_BYTES} bytes")
    return fit


def _spaced(text: str) -> str:
    """Words between spaces, cut to what Milvus takes."""
    words = " ".join(worded(text))
    return words.encode()[:_BYTES].decode(errors="ignore")


def _chunk(row: Mapping[str, Any]) -> Chunk:
    return Chunk(
        ordinal=int(row["ordinal"]),
        text=given(row["text"]),
        start=int(row["start"]),
        end=int(row["end"]),
        tokens=int(row["tokens"]),
        title=given(row["title"]),
        metadata=json.loads(given(row["metadata"])),
    )


def _cosine(squared: float) -> float:
    """From the square of the distance between unit vectors."""
    return 1 - squared / 2


def _bounded(score: float, field: str) -> float:
    return min(max(score, -1.0), 1.0) if field == "vector" else abs(score)  # of words, Milvus Lite tells it negative


def _best(matches: list[Match], limit: int) -> list[Match]:
    return sorted(matches, key=lambda match: (-match.score, match.key))[:limit]


# Conditions. A chunk's fields are a list of facts, one for each value and for the type of each, so that a condition
# asks for facts; and the values that have an order, texts as hexadecimal digits, which sort as they do.


def _kind(value: object) -> str:
    match value:
        case bool():
            return "b"
        case int() | float():
            return "n"
        case str():
            return "t"
    return ""


def _plain(value: object) -> object:
    match value:
        case bool():
            return int(value)
        case float() if value.is_integer():
            return int(value)
        case str():
            return value.encode().hex()
    return value


def _fact(key: str, *more: object) -> str:
    return _digest(key, *more)[:16]


def _fields(metadata: Mapping[str, object]) -> dict[str, object]:
    facts: list[str] = []
    fields: dict[str, object] = {"facts": facts}
    for key, value in metadata.items():
        facts.append(_fact(key))
        if kind := _kind(value):
            facts += [_fact(key, kind), _fact(key, kind, _plain(value))]
            fields[f"{kind}{_fact(key)}"] = _plain(value)
        if isinstance(value, list | tuple):  # of which no more is asked than what it holds
            facts += dict.fromkeys(_fact(key, kind, _plain(each)) for each in value if (kind := _kind(each)))
    return fields


def _filter(collection: str, where: Where) -> str:
    parts = [f'collection == "{_digest(collection)}"', *(_written(each, holds=True) for each in where)]
    return " and ".join(parts)


def _written(expression: Expression, *, holds: bool) -> str:
    """The expression, or its opposite: what is not there is neither less nor more, so `not` is left to facts alone."""
    match expression:
        case Not():
            return _written(expression.part, holds=not holds)
        case AllOf() | AnyOf():
            every = isinstance(expression, AllOf) == holds
            parts = [_written(part, holds=holds) for part in expression.parts]
            return f"({(' and ' if every else ' or ').join(parts)})" if parts else (_TRUE if every else _FALSE)
        case Condition():
            return _compared(expression, holds=holds)


def _compared(condition: Condition, *, holds: bool) -> str:
    key, value = condition.key, condition.value
    match condition.op:
        case "exists":
            text = _has(_fact(key), holds=bool(value) == holds)
        case "=" | "!=":
            text = _has(_fact(key, _kind(value), _plain(value)), holds=(condition.op == "=") == holds)
        case "in":
            wanted = value if isinstance(value, tuple) else (value,)
            facts = json.dumps([_fact(key, _kind(each), _plain(each)) for each in wanted])
            either = f'json_contains_any(fields["facts"], {facts})'
            text = (either if holds else f"not ({either})") if wanted else (_FALSE if holds else _TRUE)
        case "between":
            least, greatest = value if isinstance(value, tuple) else (value, value)
            ends = (_ordered(key, ">=", least, holds=holds), _ordered(key, "<=", greatest, holds=holds))
            text = (" and " if holds else " or ").join(ends)
        case op:
            text = _ordered(key, op, value, holds=holds)
    return f"({text})"


def _has(fact: str, *, holds: bool) -> str:
    text = f'json_contains(fields["facts"], "{fact}")'
    return text if holds else f"not ({text})"


def _ordered(key: str, op: str, value: object, *, holds: bool) -> str:
    field, there = f'fields["{_kind(value)}{_fact(key)}"]', _fact(key, _kind(value))
    literal = json.dumps(_plain(value))
    if holds:
        return f"({_has(there, holds=True)} and {field} {op} {literal})"
    return f"({_has(there, holds=False)} or {field} {_OPPOSITE[op]} {literal})"


@contextmanager
def _border() -> Iterator[None]:
    """What Milvus says of itself leaves as StoreUnavailable."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except MilvusException as error:
        raise StoreUnavailable("the Milvus server does not answer, or refuses what it was asked") from error
