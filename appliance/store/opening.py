"""From names to a store: the only place that imports one, and only the one that is asked for."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from appliance.database import Database
from appliance.errors import InvalidInput
from appliance.store.base import Store

Kind: TypeAlias = Literal["sqlite", "postgres", "milvus"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a store is, and how it is to index.

    Attributes:
        kind: what it is built on.
        url: its address, which may hold a password; of SQLite none.
        index, distance, precision: see `PostgresStore` and `MilvusStore`; SQLite has no choice.
        title_weight: what a word of a title counts for beside one of the text; Milvus has no choice.
        memory, candidates: see `SqliteStore`; servers have memory of their own.
    """

    kind: Kind
    url: str = ""
    index: Literal["hnsw", "ivfflat", "none"] = "hnsw"
    distance: Literal["ip", "cosine", "l2"] = "ip"
    precision: Literal["half", "single"] = "half"
    title_weight: float = 1.0
    memory: int = 512 * 2**20
    candidates: int = 220

    def __repr__(self) -> str:
        """Without the address."""
        return f"Place(kind={self.kind!r})"


def open_store(
    place: Place,
    *,
    database: Database | None,
    migrations: Path,
    stack: ExitStack,
    space_of: Callable[[str], str],
    bulk: bool = False,
) -> Store:
    """Open a store and bring its schema up to date. Blocking.

    Args:
        place: which one.
        database: migrated; what SQLite's store is in.
        migrations: the folder that has one for each server.
        stack: closes it.
        space_of: in which space the vectors of a collection of this appliance are; "" for one that it does not have.
        bulk: indexes are not built before `improve` is called.

    Raises:
        InvalidInput: no address, or one that is none.
        StoreUnavailable: it does not answer, or what it needs is not installed.
        SchemaMismatch: it was written by a newer appliance.
    """
    store: Store
    match place.kind:
        case "sqlite":
            if database is None:
                raise TypeError("a store in SQLite needs its database")
            from appliance.store.sqlite import SqliteStore

            store = SqliteStore(
                database, memory=place.memory, candidates=place.candidates, title_weight=place.title_weight
            )
        case "postgres":
            from appliance.postgres import PostgresDatabase
            from appliance.store.postgres.store import PostgresStore

            server = PostgresDatabase(_address(place))
            stack.callback(server.close)
            server.migrate(migrations / "postgres")
            store = PostgresStore(
                server,
                index=place.index,
                distance=place.distance,
                precision=place.precision,
                bulk=bulk,
                space_of=space_of,
                title_weight=place.title_weight,
            )
        case "milvus":
            from appliance.store.milvus import MilvusStore

            store = MilvusStore(_address(place), index=place.index, distance=place.distance, space_of=space_of)
    stack.callback(store.close)
    return store


def _address(place: Place) -> str:
    if not place.url:
        raise InvalidInput(
            f"store = {place.kind} needs the address of the server: set store_url, best as APPLIANCE_STORE_URL in the "
            "environment or in secrets_file",
            param="store_url",
        )
    return place.url
