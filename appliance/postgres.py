"""One way to reach a PostgreSQL server and to migrate what is ours there: connections, transactions, errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnection

from appliance.errors import InvalidInput, SchemaMismatch, StoreError, StoreFull, StoreUnavailable

STORE_VERSION: Final = "appliance_version"
CATALOG_VERSION: Final = "appliance_catalog_version"
"""Tables where Alembic notes a schema's revision."""

LEAST_PGVECTOR: Final = (0, 8)
"""The first that goes on looking when a filter leaves out too much."""

_MIGRATING: Final = 0x0A991A  # of advisory locks, which all programs of a database share
_PLACE: Final = "postgresql://user:password@host:5432/database"

_REASONS: Final = {
    "08": "the connection to the PostgreSQL server was lost",
    "25006": "the PostgreSQL server is read-only: name the primary, not a replica",
    "28": "the PostgreSQL server refuses the user or the password",
    "3D000": "the PostgreSQL server has no such database",
    "40001": "another change came between; try again",
    "40P01": "another change came between; try again",
    "42501": "the PostgreSQL user may not do this; it has to own the tables of the appliance",
    "53": "the PostgreSQL server is short of memory or connections",
    "55P03": "another change takes too long",
    "57014": "the PostgreSQL server took too long",
    "57P": "the PostgreSQL server is stopping or starting",
    "58": "the PostgreSQL server's disk failed",
    "XX001": "the database is damaged; restore a backup",
    "XX002": "the database is damaged; restore a backup",
}
"""By the code of the error or its beginning. https://www.postgresql.org/docs/current/errcodes-appendix.html"""


class PostgresDatabase:
    """A database on a PostgreSQL server, which others may use at the same time. Any thread.

    Nothing is connected before the first block. A connection that the server has ended is replaced when it is next
    needed. What the server says of itself leaves here as StoreUnavailable and StoreFull.

    Args:
        url: postgresql://user:password@host:5432/database, with libpq's parameters behind a question mark.
        connections: at most.
        seconds: that a statement may take.
        param: the setting that the address comes from.

    Raises:
        InvalidInput: no such address.
        StoreUnavailable: the driver is not installed.
    """

    def __init__(self, url: str, *, connections: int = 32, seconds: float = 30.0, param: str = "store_url") -> None:
        place = _address(url, param)
        self._closed = False
        self.seconds = seconds
        try:
            self._engine = create_engine(
                place,
                pool_pre_ping=True,
                pool_size=connections,
                max_overflow=0,
                pool_timeout=10,
                pool_use_lifo=True,
                hide_parameters=True,
                connect_args={
                    "connect_timeout": 5,
                    "keepalives_idle": 30,
                    "tcp_user_timeout": 30_000,
                    "prepare_threshold": None,  # a plan is made for the values at hand, and poolers need no sessions
                    "application_name": "appliance",
                },
            )
        except ModuleNotFoundError as error:
            raise StoreUnavailable(
                'PostgreSQL needs psycopg, which is not installed: `pip install "rag-appliance[postgres]"`'
            ) from error
        event.listen(self._engine, "connect", self._set_up)
        self._readers = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def _set_up(self, raw: Any, _record: object) -> None:
        milliseconds = int(1000 * self.seconds)
        with raw.cursor() as cursor:
            cursor.execute(f"SET statement_timeout = {milliseconds}; SET lock_timeout = {milliseconds}")
            cursor.execute("SET jit = off")  # compiling takes longer than our searches
        raw.commit()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: on disk when the block ends, undone when it raises. Not re-entrant."""
        with _border(), self._connected(self._engine) as connection, connection.begin():
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only transaction: everything in the block sees one moment, whatever is written meanwhile."""
        with _border(), self._connected(self._readers) as connection, connection.begin():
            yield connection

    @contextmanager
    def session(self) -> Iterator[Connection]:
        """A connection without a transaction, for as long as the block lasts; locks of its session are held by it."""
        with _border(), self._connected(self._engine.execution_options(isolation_level="AUTOCOMMIT")) as connection:
            try:
                yield connection
            finally:
                connection.invalidate()  # what it held is let go of by the server

    def migrate(self, folder: Path, *, version_table: str = STORE_VERSION, vectors: bool = True) -> None:
        """Bring what is ours to the newest revision of an Alembic folder, in one transaction; others wait meanwhile.

        Args:
            folder: with `versions/` as `Database.migrate` takes it.
            version_table: where the revision is noted.
            vectors: pgvector is needed.

        Raises:
            SchemaMismatch: it is of a newer appliance.
            StoreUnavailable: pgvector is not there, or too old.
        """
        revisions = sorted(path.name.partition("_")[0] for path in (folder / "versions").glob("[0-9]*_*.py"))
        if not revisions:
            raise StoreUnavailable("the migrations are missing; install the appliance again")
        with self.read() as connection:
            current = _revision(connection, version_table)
        if current != revisions[-1]:
            with self.write() as connection:
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_MIGRATING,))
                current = _revision(connection, version_table)
                if current is not None and current not in revisions:
                    raise SchemaMismatch(
                        f"the database is at schema {current}, which this version ({revisions[-1]}) does not know: "
                        "run the newer appliance that wrote it, or use another database"
                    )
                if vectors:
                    _add_pgvector(connection)
                _upgrade(connection, folder, version_table)
        if vectors:
            with self.read() as connection:
                _check_pgvector(connection)

    def close(self) -> None:
        """Let go of every connection; of one that is in use when its block ends. Safe to call twice."""
        self._closed = True
        self._engine.dispose()

    @contextmanager
    def _connected(self, engine: Engine) -> Iterator[Connection]:
        if self._closed:
            raise StoreUnavailable("the database is closed")
        with engine.connect() as connection:
            try:
                yield connection
            finally:
                if self._closed:  # there is no pool any more to give it back to
                    connection.invalidate()


def _address(url: str, param: str) -> URL:
    try:
        place = make_url(url)
    except (ArgumentError, ValueError):  # its text has the password
        place = None
    if place is None or place.drivername not in {"postgresql", "postgres"}:
        raise InvalidInput(f"{param} is no address of a PostgreSQL server: {_PLACE}", param=param)
    return place.set(drivername="postgresql+psycopg")


def _revision(connection: Connection, version_table: str) -> str | None:
    there = connection.exec_driver_sql("SELECT to_regclass(%s)", (version_table,)).scalar_one()
    if there is None:
        return None
    found = connection.exec_driver_sql(f"SELECT version_num FROM {version_table}").scalar()  # noqa: S608  # a constant
    return None if found is None else str(found)


def _upgrade(connection: Connection, folder: Path, version_table: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["version_table"] = version_table
    command.upgrade(config, "head")


def _add_pgvector(connection: Connection) -> None:
    if connection.exec_driver_sql("SELECT 1 FROM pg_extension WHERE extname = 'vector'").first():
        return
    try:
        with connection.begin_nested():
            connection.exec_driver_sql("CREATE EXTENSION vector")
    except DBAPIError as error:
        raise StoreUnavailable(
            "the PostgreSQL server has no pgvector in this database: install it on the server, and run "
            "CREATE EXTENSION vector there as its owner"
        ) from error


def _check_pgvector(connection: Connection) -> None:
    version = connection.exec_driver_sql("SELECT extversion FROM pg_extension WHERE extname = 'vector'").scalar()
    if version is None or tuple(int(part) for part in str(version).split(".")[:2]) < LEAST_PGVECTOR:
        raise StoreUnavailable(
            f"pgvector {version or 'is missing'}: 0.8 or newer is needed; install it and run "
            "ALTER EXTENSION vector UPDATE"
        )


@contextmanager
def _border() -> Iterator[None]:
    """What is the server's doing leaves as an error of ours; what is a mistake in our SQL stays what it is."""
    import psycopg

    try:
        yield
    except NoConnection as error:
        raise StoreUnavailable("every connection to the PostgreSQL server is in use") from error
    except (DBAPIError, psycopg.Error) as error:
        told = _told(error.orig if isinstance(error, DBAPIError) else error)
        if told is None:
            raise
        raise told from error


def _told(error: object) -> StoreError | None:
    code = getattr(error, "sqlstate", None)
    if code == "53100":
        return StoreFull("no space is left on the PostgreSQL server; free some, or remove documents")
    for known in (code, code[:3], code[:2]) if code else ():
        if known in _REASONS:
            return StoreUnavailable(_REASONS[known])
    import psycopg

    if code is None and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return StoreUnavailable("the PostgreSQL server does not answer")
    return None
