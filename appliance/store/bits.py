"""The signs of a collection's vectors on disk: the table vec_bits_<n> of sqlite-vec.

They are made when a collection has become large, as seen from the mean of what it has then; from there on with each
chunk that comes. The mean stays: in which direction vectors lie all together is a matter of the engine more than of
the texts.
"""

# ruff: noqa: S608  # table names hold numbers of ours; whatever a caller gave is bound

import json
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from sqlalchemy import Connection

from appliance.store.base import Matrix, Vector
from appliance.store.mirror import Ids, Stored
from appliance.store.passing import Filter
from appliance.store.signing import Octets, sign_bits, sign_count, turned
from appliance.store.signs import taken

_LAST: Final = 2**63 - 1
"""An id that no chunk is behind."""

_PLACES: Final = 4096
"""In a chunk of vec0; and vectors that are read at a time."""

_SAMPLE: Final = 4096
"""Vectors whose mean stands for that of all."""

_MOVED: Final = 1024
"""Signs that are moved in one transaction to close gaps, at most."""

_MOST: Final = 4096
"""Neighbours that sqlite-vec finds in one query, at most; its time grows with their number times that of the rows."""

_OVERSAMPLING: Final = 400
"""Fewest candidates by signs alone that are worth it."""

_FEW: Final = 1000
"""Chunks that sqlite-vec is not asked about where no more pass."""


class Signs(NamedTuple):
    """Which signs there are: of vectors as seen from the centre, None before there are any; of chunks with ids up to
    `to`.
    """

    centre: Vector | None
    to: int

    @property
    def complete(self) -> bool:
        """There are those of all chunks, and there will be."""
        return self.to == _LAST


def create(connection: Connection, number: int, dimensions: int) -> None:
    """Make the table, empty, of the collection that has this number."""
    connection.exec_driver_sql(
        f"CREATE VIRTUAL TABLE vec_bits_{number} USING vec0 "
        f"(chunk_id INTEGER PRIMARY KEY, bits BIT[{sign_count(dimensions)}], chunk_size = {_PLACES})"
    )


def signs_of(connection: Connection, stored: Stored) -> Signs:
    """Which there are, as the transaction sees it."""
    ask = "SELECT centre, signs_to FROM store_collection WHERE id = ?"
    centre, to = connection.exec_driver_sql(ask, (stored.id,)).one()
    return Signs(None if centre is None else np.frombuffer(centre, np.float32), to)


def insert(connection: Connection, stored: Stored, signs: Signs, ids: Sequence[int], rows: Matrix) -> None:
    """Add those of new chunks, unless they are left to `make`."""
    if signs.centre is not None and signs.complete:
        _insert(connection, stored, ids, sign_bits(turned(rows, signs.centre)))


def make(connection: Connection, stored: Stored, *, most: int) -> None:
    """Make those of the next chunks that have none, `most` at most."""
    signs = signs_of(connection, stored)
    centre = _mean(connection, stored) if signs.centre is None else signs.centre
    rows = connection.exec_driver_sql(
        "SELECT id, vector FROM chunk CROSS JOIN embedding ON chunk_id = id "
        "WHERE collection = ? AND id > ? ORDER BY id LIMIT ?",
        (stored.id, signs.to, most),
    )
    to, done = signs.to, 0
    for block in rows.partitions(_PLACES):
        vectors = np.frombuffer(b"".join(row[1] for row in block), np.float32).reshape(-1, stored.dimensions)
        _insert(connection, stored, [row[0] for row in block], sign_bits(turned(vectors, centre)))
        to, done = block[-1][0], done + len(block)
    connection.exec_driver_sql(
        "UPDATE store_collection SET centre = ?, signs_to = ? WHERE id = ?",
        (centre.tobytes(), to if done == most else _LAST, stored.id),
    )


def close_gaps(connection: Connection, stored: Stored, chunks: int) -> None:
    """Give back some of the places that removed chunks leave in vec0, once they are many; it fills none of them itself.

    The signs of the emptiest chunk of vec0 are put in anew, at the end; sqlite-vec lets go of a chunk without any.
    """
    table, run = f"vec_bits_{stored.id}", connection.exec_driver_sql
    places = int(run(f"SELECT sum(size) FROM {table}_chunks WHERE chunk_id > 0").scalar() or 0)
    if places - _PLACES - chunks <= max(chunks // 4, _PLACES):
        return
    kept = {
        number: taken(validity)
        for number, validity in run(f"SELECT chunk_id, validity FROM {table}_chunks WHERE chunk_id > 0")
    }
    emptiest = min(sorted(kept)[:-1], key=lambda number: np.count_nonzero(kept[number]))
    ids, vectors = run(
        f"SELECT rowids, vectors FROM {table}_chunks JOIN {table}_vector_chunks00 AS signs ON signs.rowid = chunk_id "
        "WHERE chunk_id = ?",
        (emptiest,),
    ).one()
    places_taken = np.flatnonzero(kept[emptiest])[:_MOVED]
    moved = np.frombuffer(ids, np.int64)[places_taken].tolist()
    octets = np.frombuffer(vectors, np.uint8).reshape(len(kept[emptiest]), -1)[places_taken]
    run(f"DELETE FROM {table} WHERE chunk_id = ?", [(id_,) for id_ in moved])
    _insert(connection, stored, moved, octets)


def likeliest(
    connection: Connection, stored: Stored, asked: Vector, *, steps: Sequence[int], where: Filter | None
) -> list[Ids]:
    """For each number of matches, the least first, ids of the chunks among which they likely are, by sqlite-vec; of all
    that pass where they are few. `asked` is a query as `turned` gives it.
    """
    run = connection.exec_driver_sql
    condition, values = ("TRUE", ()) if where is None else where
    passing = f"SELECT id FROM chunk WHERE collection = {stored.id} AND {condition}"
    few = run(f"{passing} LIMIT ?", (*values, _FEW + 1)).scalars().all()
    if len(few) <= _FEW:
        return [np.array(few, np.int64)] * len(steps)
    wanted = [min(max(_OVERSAMPLING, 8 * step), _MOST) for step in steps]
    near = run(
        f"SELECT chunk_id FROM vec_bits_{stored.id} WHERE bits MATCH vec_bit(?) AND k = ? "
        f"{'' if where is None else f'AND chunk_id IN ({passing})'} ORDER BY distance",
        (sign_bits(asked[None]).tobytes(), wanted[-1], *values),
    )
    ids = np.array(near.scalars().all(), np.int64)
    return [ids[:number] for number in wanted]


def _insert(connection: Connection, stored: Stored, ids: Sequence[int], octets: Octets) -> None:
    connection.exec_driver_sql(
        f"INSERT INTO vec_bits_{stored.id} (chunk_id, bits) VALUES (?, vec_bit(?))",
        [(id_, row.tobytes()) for id_, row in zip(ids, octets, strict=True)],
    )


def _mean(connection: Connection, stored: Stored) -> Vector:
    """Of vectors from all over the collection."""
    run = connection.exec_driver_sql
    ids = run("SELECT id FROM chunk WHERE collection = ? ORDER BY id", (stored.id,)).scalars().all()
    some = json.dumps(list(ids[:: -(-len(ids) // _SAMPLE)]))
    vectors = run("SELECT vector FROM embedding WHERE chunk_id IN (SELECT value FROM json_each(?))", (some,)).scalars()
    rows = np.frombuffer(b"".join(vectors), np.float32).reshape(-1, stored.dimensions)
    mean: Vector = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean
