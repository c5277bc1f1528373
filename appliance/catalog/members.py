"""Who works on a catalog: this appliance alone, or several that share it on a PostgreSQL server.

A member holds a lock of the server for as long as its session lasts. So the others know, without any clock, whether it
is still there; what it had in hand when it ended is taken up again.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Final, Protocol

from sqlalchemy import Column, Connection, Integer, MetaData, Table, Text, insert, select

from appliance.errors import StoreError, StoreUnavailable
from appliance.postgres import PostgresDatabase

_WRITING: Final = 0x0A991D
_CHANGING: Final = 0x0A991E
_PRESENT: Final = 0x0A991F
"""Of advisory locks, which all programs of a database share. The last has a second number, the member's."""

_MEMBER: Final = Table(
    "member", MetaData(), Column("id", Integer, primary_key=True), Column("name", Text, nullable=False)
)

_NOTICE: Final = "SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
"""A server that notices within 20 seconds when a client is gone that could not say so."""

_PATIENCE: Final = 25.0
"""Seconds to wait for that of one's own former life."""


class Membership(Protocol):
    """What keeps the appliances apart that work on one catalog. Blocking; any thread."""

    id: int
    """Of this appliance; the same after a restart."""

    shared: bool
    """Others may be at work, too."""

    def turn(self, *, alone: bool) -> AbstractContextManager[None]:
        """Around a change of store and catalog: `alone`, while nobody else is at one, or beside others who are not."""

    def gone(self, connection: Connection, members: list[int]) -> list[int]:
        """Those of the members that are not there any more, and will not be before the transaction ends."""

    def check(self) -> None:
        """Be there again, should the server have ended the session. Raises StoreUnavailable."""

    def leave(self) -> None:
        """Be there no more. Safe to call twice."""


class Alone:
    """Nobody else: the database is a file that one process has open."""

    id = 0
    shared = False

    def turn(self, *, alone: bool) -> AbstractContextManager[None]:  # noqa: ARG002  # see Membership
        """See Membership."""
        return nullcontext()

    def gone(self, connection: Connection, members: list[int]) -> list[int]:  # noqa: ARG002  # same
        """See Membership."""
        return []

    def check(self) -> None:
        """See Membership."""

    def leave(self) -> None:
        """See Membership."""


class Member:
    """One of several.

    Args:
        database: migrated.
        name: of this appliance, that no other has; kept with its data.

    Raises:
        StoreUnavailable: the server does not answer, or another appliance of this name is there.
    """

    shared = True

    def __init__(self, database: PostgresDatabase, name: str) -> None:
        self._database = database
        self._checking = threading.Lock()
        self._session: Connection | None = None
        self._held = ExitStack()
        self._left = False
        self.id = member_id(SharedCatalog(database), name)
        self.check()

    @contextmanager
    def turn(self, *, alone: bool) -> Iterator[None]:
        """See Membership."""
        with self._database.write() as connection:
            lock = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
            connection.exec_driver_sql(f"SELECT {lock}(%s)", (_CHANGING,))
            yield

    def gone(self, connection: Connection, members: list[int]) -> list[int]:
        """See Membership."""
        others = [member for member in members if member != self.id]
        lock = "SELECT pg_try_advisory_xact_lock(%s, %s)"
        return [each for each in others if connection.exec_driver_sql(lock, (_PRESENT, each)).scalar_one()]

    def check(self) -> None:
        """See Membership. What it had in hand may be in other hands by then."""
        with self._checking:
            if self._left:
                return
            if self._session is not None:
                try:
                    self._session.exec_driver_sql("SELECT 1")
                except Exception:  # noqa: BLE001  # whatever it is, the session is of no use any more
                    self._let_go()
                else:
                    return
            self._join()

    def leave(self) -> None:
        """See Membership."""
        with self._checking:
            self._left = True
            self._let_go()

    def _join(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        with ExitStack() as stack:
            session = stack.enter_context(self._database.session())
            run = session.exec_driver_sql
            run(_NOTICE)
            while not run("SELECT pg_try_advisory_lock(%s, %s)", (_PRESENT, self.id)).scalar_one():
                if time.monotonic() > deadline:
                    raise StoreUnavailable(
                        "another appliance works on this catalog with a copy of this data directory: give each its own"
                    )
                time.sleep(0.2)
            self._session = session
            self._held = stack.pop_all()

    def _let_go(self) -> None:
        self._session = None
        held, self._held = self._held, ExitStack()
        with suppress(StoreError):  # it was over already
            held.close()


class SharedCatalog:
    """Transactions of a catalog on a PostgreSQL server: whoever writes does so alone, as in SQLite."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    def read(self) -> AbstractContextManager[Connection]:
        """See Transactions."""
        return self._database.read()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """See Transactions."""
        with self._database.write() as connection:
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_WRITING,))
            yield connection

    def claim(self) -> AbstractContextManager[Connection]:
        """See Transactions."""
        return self._database.write()


def member_id(catalog: SharedCatalog, name: str) -> int:
    """The number of the appliance of this name; it gets one the first time."""
    query = select(_MEMBER.c.id).where(_MEMBER.c.name == name)
    with catalog.write() as connection:
        known = connection.execute(query).scalar()
        if known is None:
            connection.execute(insert(_MEMBER).values(name=name))
            known = connection.execute(query).scalar_one()
    return int(known)
