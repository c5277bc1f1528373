"""Embeddings in an SQLite file, which may be deleted at any time."""

import asyncio
import fcntl
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from time import monotonic, time
from typing import Any, Final, TypeVar

import structlog

from appliance.database import PAGE_SIZE, choose_driver
from appliance.embedding.caches.entry import Figures, Kept, as_sqlite, packed, packed_size, unpacked

T = TypeVar("T")

SCHEMA: Final = 1
"""In `user_version`: a file of another one is replaced."""

_APPLICATION: Final = 0x61706563
_CHUNK = 256
"""Keys of one query, and rows of one transaction, at most: others wait for it."""

_FULL_AT, _EMPTIED_TO = 0.9, 0.8
"""Shares of the size at which old entries go, and at which that stops."""

_REST = 30.0
"""Seconds that a file which cannot be used is left alone."""

_TOUCHES = 1024
"""Uses remembered until they are written down."""

_BUSY, _LOCKED, _CORRUPT, _FULL, _NOT_A_DATABASE = 5, 6, 11, 13, 26

_TABLE = """
CREATE TABLE entry (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, used INTEGER NOT NULL, value BLOB NOT NULL);
CREATE INDEX entry_used ON entry (used);
"""

log = structlog.get_logger(__name__)


class _Unusable(Exception):
    """The file is of another version or too large, or it rests."""


class Disk:
    """Belongs to one event loop; the file is read and written on a thread of its own.

    Several processes may use one file. Damaged, of another version, or deleted, it is made anew. Where it cannot be
    (no room, no permission), everything is a miss, and another try is made half a minute later.

    Args:
        path: of the file; its folder is made.
        size: bytes of the file at most. What was not used for longest goes first.
        ttl: seconds an entry stays.
        now: seconds since 1970.
        clock: in seconds, never going back.
    """

    name = "disk"

    def __init__(
        self,
        path: Path,
        *,
        size: int,
        ttl: float,
        now: Callable[[], float] = time,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._path = path
        self._size = size
        self._ttl = ttl
        self._now = now
        self._clock = clock
        self._grain = max(1, int(min(ttl / 20, 3600)))  # of the times of use
        self._driver = choose_driver()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedding-cache")
        self._connection: Any = None
        self._inode = 0
        self._touched: dict[int, int] = {}
        self._resting = float("-inf")
        self._told = False
        self._closed = False
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self.errors = 0

    async def get(self, keys: Sequence[str], *, dimensions: int) -> dict[str, Kept]:
        """What is known of `keys`."""
        nothing: dict[str, Kept] = {}
        found = await self._run(partial(self._get, keys=keys, dimensions=dimensions), nothing)
        self.hits += len(found)
        self.misses += len(keys) - len(found)
        return found

    async def put(self, kept: Mapping[str, Kept]) -> None:
        """Remember entries."""
        rows = iter(kept.items())
        while part := list(islice(rows, self._rows_at_once(kept))):
            await self._run(partial(self._put, part=part), None)

    async def remove(self, pattern: str | None) -> int:
        """Forget the keys that match, or all."""
        if pattern is None:
            return await self._run(self._clear, 0)
        glob, after, total = as_sqlite(pattern), "", 0
        nothing: list[str] = []
        while True:
            gone = await self._run(partial(self._remove, glob=glob, after=after), nothing)
            if not gone:
                return total
            after, total = gone[-1], total + len(gone)

    async def figures(self) -> Figures:
        """How it does."""
        entries, taken = await self._run(_counted, (0, 0))
        return Figures(
            name=self.name,
            up=not self._told,
            entries=entries,
            bytes=taken,
            hits=self.hits,
            misses=self.misses,
            evictions=self.evictions,
            errors=self.errors,
        )

    async def close(self) -> None:
        """Write down what was used, and let go of the file."""
        if self._closed:
            return
        await self._run(self._write_touches, None)
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._thread, self._let_go)
        self._thread.shutdown(wait=False)

    async def _run(self, run: Callable[[Any], T], otherwise: T) -> T:
        """What `run` makes of the connection, on the thread; `otherwise` where the file cannot be used."""
        if self._closed:
            return otherwise
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._tried, run, otherwise)

    def _tried(self, run: Callable[[Any], T], otherwise: T) -> T:
        try:
            result = run(self._opened())
        except _Unusable:
            return otherwise
        except (self._driver.Error, OSError) as error:
            self._failed(error)
            return otherwise
        if self._told:
            self._told = False
            log.info("embedding cache on disk is used again")
        return result

    def _failed(self, error: Exception) -> None:
        self.errors += 1
        code = _code(error)
        if code in (_BUSY, _LOCKED):
            return
        self._let_go()
        if code in (_CORRUPT, _NOT_A_DATABASE):
            log.warning("embedding cache on disk is damaged and begun anew")
            with suppress(OSError), self._alone():
                if not self._inode or self._is_ours():
                    self._unlink()
            return
        self._resting = self._clock() + _REST
        if not self._told:
            self._told = True
            reason = "no room" if code == _FULL else type(error).__name__
            log.warning("embedding cache on disk is not used for now", reason=reason)

    def _opened(self) -> Any:
        if self._clock() < self._resting:
            raise _Unusable
        if self._connection is not None and not self._is_ours():
            self._let_go()
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._inode = 0
            with self._alone():
                try:
                    self._connection = self._open()
                except _Unusable:
                    self._unlink()
                    self._connection = self._open()
                self._inode = self._path.stat().st_ino
        return self._connection

    def _is_ours(self) -> bool:
        try:
            return self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Other processes neither make the file nor replace it meanwhile."""
        with self._path.with_name(self._path.name + ".lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _open(self) -> Any:
        if not self._path.exists():
            self._unlink()  # a log without its file
        connection = self._driver.connect(str(self._path), timeout=2.0, isolation_level=None, check_same_thread=False)
        try:
            self._set_up(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_up(self, connection: Any) -> None:
        logged = max(4, min(256, self._size // PAGE_SIZE // 8))
        for pragma in (
            f"page_size = {PAGE_SIZE}",  # counts only for a new file, and only before it has a log
            "trusted_schema = OFF",
            "cell_size_check = ON",
            "journal_mode = WAL",
            f"wal_autocheckpoint = {logged}",
            f"journal_size_limit = {logged * PAGE_SIZE}",
            "synchronous = NORMAL",
            "temp_store = MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        with _transaction(connection):
            version, application = _pragma(connection, "user_version"), _pragma(connection, "application_id")
            if not version and not _pragma(connection, "schema_version"):
                for statement in _TABLE.strip().split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {SCHEMA}")
            elif (version, application) != (SCHEMA, _APPLICATION):
                raise _Unusable
        most = self._size // _pragma(connection, "page_size")
        if _pragma(connection, "page_count") > most:  # the setting was changed, and a file does not shrink
            raise _Unusable
        connection.execute(f"PRAGMA max_page_count = {most}").fetchall()

    def _unlink(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        self._touched.clear()  # they are of this file's rows
        if connection is not None:
            with suppress(self._driver.Error):
                connection.close()

    def _get(self, connection: Any, *, keys: Sequence[str], dimensions: int) -> dict[str, Kept]:
        now = self._now()
        found: dict[str, Kept] = {}
        for start in range(0, len(keys), _CHUNK):
            part = keys[start : start + _CHUNK]
            marks = ",".join("?" * len(part))
            rows = connection.execute(f"SELECT id, key, used, value FROM entry WHERE key IN ({marks})", part)  # noqa: S608  # marks
            for row, key, used, value in rows:
                kept = unpacked(key, value, dimensions=dimensions) if isinstance(value, bytes) else None
                if kept is None:
                    self.errors += 1
                elif now - kept.made < self._ttl:
                    found[key] = kept
                    if now - used >= self._grain:
                        self._touched[row] = int(now)
        if len(self._touched) >= _TOUCHES:
            self._write_touches(connection)
        return found

    def _rows_at_once(self, kept: Mapping[str, Kept]) -> int:
        """Rows of one transaction: few enough for a file that is nearly full."""
        widest = max((packed_size(len(each.entry.vector)) for each in kept.values()), default=1)
        return max(1, min(_CHUNK, self._size // 16 // widest))

    def _put(self, connection: Any, *, part: list[tuple[str, Kept]]) -> None:
        now = int(self._now())
        self._write_touches(connection)
        self._make_room(connection, now)
        with _transaction(connection):
            connection.executemany(
                "INSERT INTO entry (key, used, value) VALUES (?, ?, ?)"
                " ON CONFLICT (key) DO UPDATE SET used = excluded.used, value = excluded.value",
                [(key, now, packed(key, kept)) for key, kept in part],
            )

    def _write_touches(self, connection: Any) -> None:
        if self._touched:
            touched, self._touched = self._touched, {}
            with _transaction(connection):
                connection.executemany(
                    "UPDATE entry SET used = max(used, ?) WHERE id = ?", [(used, row) for row, used in touched.items()]
                )

    def _make_room(self, connection: Any, now: int) -> None:
        with _transaction(connection):
            connection.execute(
                "DELETE FROM entry WHERE id IN (SELECT id FROM entry WHERE used < ? LIMIT ?)",
                (now - self._ttl, 2 * _CHUNK),
            )
        if _taken(connection) <= _FULL_AT * self._size:
            return
        while _taken(connection) > _EMPTIED_TO * self._size:
            with _transaction(connection):
                cursor = connection.execute(
                    "DELETE FROM entry WHERE id IN (SELECT id FROM entry ORDER BY used, id LIMIT ?)",
                    (self._oldest(connection),),
                )
                self.evictions += cursor.rowcount
            if cursor.rowcount == 0:
                return

    def _oldest(self, connection: Any) -> int:
        """How many rows to drop at a time: a sixteenth of the file's worth, and no more than a moment takes."""
        (widest,) = connection.execute("SELECT max(length(value)) FROM (SELECT value FROM entry LIMIT 16)").fetchone()
        return max(1, min(2 * _CHUNK, self._size // 16 // (widest or 1)))

    def _remove(self, connection: Any, *, glob: str, after: str) -> list[str]:
        rows = connection.execute(
            "SELECT key FROM entry WHERE key > ? AND key GLOB ? ORDER BY key LIMIT ?", (after, glob, 2 * _CHUNK)
        ).fetchall()
        with _transaction(connection):
            connection.executemany("DELETE FROM entry WHERE key = ?", rows)
        return [key for (key,) in rows]

    def _clear(self, connection: Any) -> int:
        with _transaction(connection):
            entries, _ = _counted(connection)
            connection.execute("DELETE FROM entry")
        with suppress(self._driver.OperationalError):  # another process is reading
            connection.execute("VACUUM")
        return entries


def _code(error: Exception) -> int:
    """SQLite's primary result code."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _counted(connection: Any) -> tuple[int, int]:
    (entries,) = connection.execute("SELECT count(*) FROM entry").fetchone()
    return int(entries), _taken(connection)


def _taken(connection: Any) -> int:
    """Bytes of the pages in use."""
    pages = _pragma(connection, "page_count") - _pragma(connection, "freelist_count")
    return pages * _pragma(connection, "page_size")


def _pragma(connection: Any, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


@contextmanager
def _transaction(connection: Any) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
