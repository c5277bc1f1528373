"""One way to open SQLite and to migrate it: driver choice, extension, write-ahead log, one writer, many readers."""

import fcntl
import importlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Any, Final, Protocol

import sqlite_vec  # type: ignore[import-untyped]  # it ships no types
from sqlalchemy import URL, Connection, Engine, NullPool, QueuePool, create_engine, event
from sqlalchemy.exc import DBAPIError

from appliance.errors import SchemaMismatch, StoreFull, StoreUnavailable

DRIVERS: Final = ("pysqlite3.dbapi2", "sqlean.dbapi2", "sqlite3")
"""DB-API modules in the order they win when equally new."""

PAGE_SIZE: Final = 16384
"""Bytes. With SQLite's own 4096, vectors of 1,536 bytes waste a quarter of the file and insert at half the rate."""

MMAP_SIZE: Final = 128 * 2**20
"""Bytes read through the page cache of the system instead of copied page by page; halves the time of a vector scan."""

_PRAGMAS: Final = (
    f"page_size = {PAGE_SIZE}",  # counts only for a new file, and only before it has a log
    "busy_timeout = 5000",
    "foreign_keys = ON",
    "temp_store = MEMORY",
    f"mmap_size = {MMAP_SIZE}",
    "trusted_schema = OFF",
    "cell_size_check = ON",
    "synchronous = FULL",
)
_WRITER: Final = ("journal_mode = WAL", "journal_size_limit = 67108864")
_READER: Final = ("wal_autocheckpoint = 0", "query_only = ON")

_BUSY, _LOCKED, _READONLY, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _NOTADB = 5, 6, 8, 10, 11, 13, 14, 26
_BROKEN: Final = frozenset({_READONLY, _IOERR, _CORRUPT, _CANTOPEN, _NOTADB})
"""Result codes after which the connection that met them is not used again. https://sqlite.org/rescode.html"""

_REASONS: Final = {
    _BUSY: "the database is locked by another program",
    _LOCKED: "the database is locked by another program",
    _READONLY: "the database cannot be written to",
    _IOERR: "the disk failed while the database was read or written",
    _CORRUPT: "the database is damaged; restore a backup",
    _CANTOPEN: "the database cannot be opened; check the data directory and its permissions",
    _NOTADB: "the database file is no SQLite database",
}


def choose_driver(names: tuple[str, ...] = DRIVERS) -> Any:
    """The DB-API module with the newest SQLite among those that can load extensions.

    Raises:
        StoreUnavailable: there is none; the message names the fix.
    """
    found = []
    for name in names:
        with suppress(ImportError):
            module: Any = importlib.import_module(name)
            if hasattr(module.Connection, "enable_load_extension"):
                found.append(module)
    if not found:
        raise StoreUnavailable(
            "this Python's sqlite3 cannot load extensions, which the vector index needs: `pip install pysqlite3` "
            "(Linux on x86-64) or `pip install sqlean.py` (elsewhere)"
        )
    return max(found, key=lambda module: module.sqlite_version_info)


@dataclass(frozen=True, slots=True)
class Driver:
    """What opens databases here: the DB-API module, and the versions of SQLite and of the vector extension."""

    module: str
    sqlite: str
    vectors: str


def about_driver() -> Driver:
    """Try what `Database` needs, in memory.

    Raises:
        StoreUnavailable: no driver, or one without word search, or the vector extension does not load.
    """
    module = choose_driver()
    try:
        with closing(module.connect(":memory:")) as connection:
            connection.execute("CREATE VIRTUAL TABLE words USING fts5(text)")
            _load_extension(connection)
            (vectors,) = connection.execute("SELECT vec_version()").fetchone()
    except module.Error as error:
        raise StoreUnavailable(f"{module.__name__} {module.sqlite_version} is not fit: {error}") from error
    return Driver(module.__name__, module.sqlite_version, str(vectors))


def _load_extension(connection: Any) -> None:
    connection.enable_load_extension(True)  # noqa: FBT003  # the driver takes it by position
    connection.load_extension(sqlite_vec.loadable_path())
    connection.enable_load_extension(False)  # noqa: FBT003  # same


class Transactions(Protocol):
    """A database, as far as its transactions go. Any thread. What is the machine's doing leaves as a StoreError."""

    def read(self) -> AbstractContextManager[Connection]:
        """A read-only transaction: everything in the block sees one moment, whatever is written meanwhile."""

    def write(self) -> AbstractContextManager[Connection]:
        """One transaction, of one writer at a time: on disk when the block ends, undone when it raises."""

    def claim(self) -> AbstractContextManager[Connection]:
        """A transaction that need not wait for the writer: what it changes, it has locked before, row by row."""


class Database:
    """An SQLite file that this process alone has open.

    One connection writes and checkpoints; readers have connections of their own and see the state of one moment for
    as long as their block lasts. Any thread. What SQLite says of full disks, broken files and locks leaves here as
    StoreFull and StoreUnavailable.

    Raises:
        StoreUnavailable: no driver, no permission, or another process has the data directory open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writing = Lock()
        self._open = False
        self._driver = choose_driver()
        with ExitStack() as stack:
            stack.callback(locked(path).close)
            self._readers = self._engine(QueuePool, "BEGIN", _READER, pool_size=8, max_overflow=56)
            self._writer = self._engine(QueuePool, "BEGIN IMMEDIATE", _WRITER, pool_size=1, max_overflow=0)
            stack.callback(self._writer.dispose)
            self._open = True
            with self.write():
                pass
            self._exit = stack.pop_all()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction of the only writer: on disk when the block ends, undone when it raises. Not re-entrant."""
        with self._writing, _border():
            self._check_open()
            with self._writer.connect() as connection:
                try:
                    with connection.begin():
                        yield connection
                except DBAPIError as error:
                    if _code(error) in _BROKEN:
                        connection.invalidate()  # the next block starts on a fresh one
                    raise

    def claim(self) -> AbstractContextManager[Connection]:
        """As `write`: there are no locks on rows."""
        return self.write()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only transaction: everything in the block sees one moment, whatever is written meanwhile."""
        with _border():
            self._check_open()
            with self._readers.connect() as connection:
                try:
                    with connection.begin():
                        yield connection
                except DBAPIError as error:
                    if _code(error) in _BROKEN:
                        connection.invalidate()
                    raise

    def migrate(self, folder: Path) -> None:
        """Bring the schema to the newest revision of an Alembic folder, in one transaction.

        A file in `versions/` is named for its revision: `0001_what.py` is revision 0001, and the greatest is the head;
        so Alembic is imported only when there is something to do. A database that has content is first copied to
        `<name>.before-<head>` beside itself.

        Raises:
            SchemaMismatch: the database is of a newer appliance, or of none.
        """
        revisions = sorted(path.name.partition("_")[0] for path in (folder / "versions").glob("[0-9]*_*.py"))
        if not revisions:
            raise StoreUnavailable("the migrations are missing; install the appliance again")
        head, current = revisions[-1], self._revision()
        if current == head:
            return
        if current is not None and current not in revisions:
            raise SchemaMismatch(
                f"the database is at schema {current}, which this version (schema {head}) does not know: "
                "run the newer appliance that wrote it, or use another data directory"
            )
        if current is not None:
            self.backup(self.path.with_name(f"{self.path.name}.before-{head}"))
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        with self.write() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def backup(self, target: Path) -> None:
        """Write a whole, compact copy of the database as it is now; `target` is replaced. Writers go on meanwhile."""
        part = target.with_name(target.name + ".part")
        part.unlink(missing_ok=True)
        engine = self._engine(NullPool, None, _READER[:1])
        with _border(), engine.connect() as connection:
            self._check_open()
            connection.exec_driver_sql("VACUUM INTO ?", (str(part),))
        with part.open("rb") as copy:
            os.fsync(copy.fileno())
        part.replace(target)

    def close(self) -> None:
        """Checkpoint and let go of the file. Blocks still open must have ended. Safe to call twice."""
        with self._writing:
            if not self._open:
                return
            self._open = False
            self._readers.dispose()  # first, so that the last connection to close is the one that checkpoints
            with self._exit, suppress(self._driver.Error, DBAPIError), closing(self._writer.raw_connection()) as raw:
                cursor = raw.cursor()  # past SQLAlchemy, which would begin a transaction that no checkpoint can run in
                for pragma in ("analysis_limit = 400", "optimize", "wal_checkpoint(TRUNCATE)"):
                    cursor.execute(f"PRAGMA {pragma}").fetchall()

    def _check_open(self) -> None:
        if not self._open:
            raise StoreUnavailable("the database is closed")

    def _revision(self) -> str | None:
        """The schema's revision; None for an empty file."""
        with self.read() as connection:
            tables = {row[0] for row in connection.exec_driver_sql("SELECT name FROM sqlite_master")}
            if not tables:
                return None
            if "alembic_version" in tables:
                return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one())
        raise SchemaMismatch("the database file was not written by the appliance; use another data directory")

    def _engine(
        self, pool: type[QueuePool | NullPool], begin: str | None, pragmas: tuple[str, ...], **sizes: int
    ) -> Engine:
        """An engine whose connections are set up alike, and whose transactions start with `begin`."""
        engine = create_engine(
            URL.create("sqlite", database=str(self.path)),
            module=self._driver,
            poolclass=pool,
            connect_args={"check_same_thread": False},
            **sizes,
        )

        def set_up(connection: Any, _record: object) -> None:
            connection.isolation_level = None  # the driver starts no transactions of its own
            for pragma in (*_PRAGMAS, *pragmas):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            _load_extension(connection)

        event.listen(engine, "connect", set_up)
        if begin:
            event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
        return engine


def locked(path: Path) -> IO[bytes]:
    """Keep other processes off the directory for as long as the file is open.

    Raises:
        StoreUnavailable: another one uses it, or it cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(path.name + ".lock").open("wb")
    except OSError as error:
        raise StoreUnavailable(f"the data directory cannot be written to: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise StoreUnavailable(
            "another appliance is using this data directory: stop it, or give this one another `--data` directory"
        ) from error
    return file


def _code(error: DBAPIError) -> int:
    """SQLite's primary result code."""
    return int(getattr(error.orig, "sqlite_errorcode", 0)) & 0xFF


@contextmanager
def _border() -> Iterator[None]:
    """What is the machine's doing leaves as an error of ours; what is a mistake in our SQL stays what it is."""
    try:
        yield
    except DBAPIError as error:
        code = _code(error)
        if code == _FULL:
            raise StoreFull("no space is left for the database; free some, or remove documents") from error
        if code in _REASONS:
            raise StoreUnavailable(_REASONS[code]) from error
        raise
