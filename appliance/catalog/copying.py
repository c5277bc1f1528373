"""A whole catalog from one database into another, where it has its numbers again; compared afterwards."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Table, func, insert, select

from appliance.catalog.tables import COLLECTION, DOCUMENT, JOB, JOB_ITEM, SOURCE, TEXT
from appliance.database import Transactions
from appliance.errors import Conflict

Progress = Callable[[str, int], None]
"""Told the table, and how many rows more are done."""

_TABLES: Final = (COLLECTION, DOCUMENT, SOURCE, TEXT, JOB, JOB_ITEM)
_LARGE: Final = frozenset({SOURCE.name, TEXT.name})
"""Rows of these may have many megabytes."""


def check_empty(target: Transactions) -> None:
    """Raise Conflict unless there is no collection and no job."""
    with target.read() as connection:
        if any(connection.execute(select(table).limit(1)).first() is not None for table in (COLLECTION, JOB)):
            raise Conflict("the catalog there has collections or jobs of its own: copy into an empty one")


def rows(source: Transactions) -> int:
    """How many rows a copy will have."""
    with source.read() as connection:
        return sum(connection.execute(select(func.count()).select_from(table)).scalar_one() for table in _TABLES)


def copy(
    source: Transactions, target: Transactions, *, member: int, progress: Progress = lambda _name, _rows: None
) -> list[str]:
    """Put everything into an empty catalog, all of it or nothing; what differs afterwards. Blocking.

    What is in hand waits again. Nobody may change either meanwhile.

    Args:
        source: a migrated database.
        target: another one, empty; see `check_empty`.
        member: who reads on, there, what jobs have not read yet.
        progress: told of rows that were copied and, again, compared.

    Raises:
        StoreError: one of them does not answer.
    """
    with source.read() as reading, target.write() as writing:
        for table in _TABLES:
            for batch in _batches(reading, table):
                writing.execute(insert(table), [_settled(table, row, member=member) for row in batch])
                progress(table.name, len(batch))
            _count_on(writing, table)
    differences = []
    with source.read() as ours, target.read() as theirs:
        for table in _TABLES:
            copies = (row for batch in _batches(theirs, table) for row in batch)
            for batch in _batches(ours, table):
                differences += [
                    f"{table.name}: row {row[_key(table)]} differs"
                    for row in batch
                    if next(copies, None) != _settled(table, row, member=member)
                ]
                progress(table.name, len(batch))
            differences += [f"{table.name}: row {row[_key(table)]} is there alone" for row in copies]
    return differences


def _key(table: Table) -> str:
    (column,) = table.primary_key
    return column.name


def _batches(connection: Connection, table: Table) -> Iterator[Sequence[dict[str, Any]]]:
    """Rows in the order of their numbers."""
    key = table.c[_key(table)]
    after = -1
    while True:
        found = connection.execute(select(table).where(key > after).order_by(key).limit(_size(table))).mappings().all()
        if not found:
            return
        yield [dict(row) for row in found]
        after = found[-1][key.name]


def _size(table: Table) -> int:
    return 4 if table.name in _LARGE else 500


def _settled(table: Table, row: dict[str, Any], *, member: int) -> dict[str, Any]:
    """A row as it is when nobody is at work."""
    match table.name:
        case "document":
            state = "waiting" if row["state"] == "working" else row["state"]
            return {**row, "state": state, "taken": None, "taken_by": None}
        case "job":
            return {**row, "member": member}
        case _:
            return row


def _count_on(connection: Connection, table: Table) -> None:
    """New rows come after the copied ones; SQLite sees to that by itself."""
    if connection.dialect.name != "postgresql" or table.name in _LARGE:
        return
    key = _key(table)
    connection.exec_driver_sql(
        f"SELECT setval(pg_get_serial_sequence('{table.name}', '{key}'), coalesce(max({key}), 0) + 1, false) "  # noqa: S608  # names of ours
        f"FROM {table.name}"
    )
