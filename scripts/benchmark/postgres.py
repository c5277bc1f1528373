"""A PostgreSQL server with pgvector that holds what SQLite does, to be searched beside it."""

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import perf_counter

from appliance.database import Database
from appliance.postgres import PostgresDatabase
from appliance.settings import shipped
from appliance.store.postgres.store import PostgresStore
from appliance.store.sqlite import SqliteStore

URL = "BENCH_POSTGRES_URL"
"""In the environment: the address of a server with room for what is measured."""

_DOCUMENTS = 200
"""Put at once."""


@contextmanager
def server() -> Iterator[PostgresStore]:
    """The store on the server that is named."""
    with closing(PostgresDatabase(os.environ[URL])) as database:
        database.migrate(shipped("migrations") / "postgres")
        with closing(PostgresStore(database, bulk=True)) as store:
            yield store


def name(path: Path) -> str:
    """Of the collection that holds what the database at `path` does."""
    return f"bench-{path.parent.name}-{path.stem}"


def copied(path: Path) -> dict[str, float]:
    """Have the server hold the collection "c" of a database, with an index, unless it does; what that took.

    Returns:
        `seconds`, the index included, and `index`, what that takes, in MB (10^6 bytes).
    """
    notes, collection = path.with_suffix(".pgvector.json"), name(path)
    with closing(Database(path)) as database, server() as there, closing(SqliteStore(database)) as here:
        if notes.exists() and collection in there.collections() and there.count(collection) == here.count("c"):
            known: dict[str, float] = json.loads(notes.read_text())
            return known
        there.drop(collection)
        there.create(collection, here.collections()["c"])
        began, after = perf_counter(), ""
        while entries := here.entries("c", after=after, limit=_DOCUMENTS):
            there.put_many(collection, entries)
            after = entries[-1].document
        there.improve(collection)
        seconds = perf_counter() - began
    took = {"seconds": seconds, "index": _index(collection) / 1e6}
    notes.write_text(json.dumps(took))
    return took


def _index(collection: str) -> int:
    """Bytes; none where there are too few chunks for one."""
    with closing(PostgresDatabase(os.environ[URL])) as database, database.read() as connection:
        size = "SELECT pg_relation_size(to_regclass('vector_' || id || '_near')) FROM store_collection WHERE name = %s"
        return int(connection.exec_driver_sql(size, (collection,)).scalar_one() or 0)
