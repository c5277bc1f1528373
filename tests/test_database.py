"""One way to open SQLite: one process, one writer, readers of one moment, and errors that are ours."""

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from appliance.database import PAGE_SIZE, Database, about_driver, choose_driver
from appliance.errors import StoreFull, StoreUnavailable

SHORT_OF_DISK = """
import resource, sys
from pathlib import Path
from appliance.database import Database
from appliance.errors import StoreUnavailable

database = Database(Path(sys.argv[1]))
with database.write() as connection:
    connection.exec_driver_sql("CREATE TABLE t (a)")
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, most))
try:
    with database.write() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (zeroblob(4000000))")
except StoreUnavailable as error:
    print(error.message)
with database.read() as connection:
    print(connection.exec_driver_sql("SELECT count(*) FROM t").scalar())
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
with database.write() as connection:
    connection.exec_driver_sql("INSERT INTO t VALUES (zeroblob(4000000))")
with database.read() as connection:
    print(connection.exec_driver_sql("SELECT count(*) FROM t").scalar())
    print(connection.exec_driver_sql("PRAGMA integrity_check").scalar())
database.close()
"""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "data" / "appliance.db")
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE t (a INTEGER PRIMARY KEY)")
    yield database
    database.close()


def numbers(database: Database) -> list[int]:
    with database.read() as connection:
        return list(connection.exec_driver_sql("SELECT a FROM t ORDER BY a").scalars())


def test_the_newest_driver_that_loads_extensions_is_chosen() -> None:
    chosen = choose_driver()

    assert hasattr(chosen.Connection, "enable_load_extension")
    if hasattr(sqlite3.Connection, "enable_load_extension"):
        assert chosen.sqlite_version_info >= sqlite3.sqlite_version_info


def test_without_a_driver_the_fix_is_named() -> None:
    with pytest.raises(StoreUnavailable, match="pip install pysqlite3"):
        choose_driver(("no_such_module", "no_such_driver.dbapi2"))


def test_the_driver_can_be_tried_without_a_file() -> None:
    driver = about_driver()

    assert driver.module == choose_driver().__name__
    assert driver.sqlite == choose_driver().sqlite_version
    assert driver.vectors.startswith("v0.")


def test_connections_are_safe_and_large_paged(database: Database) -> None:
    def settings(connection: object) -> dict[str, object]:
        names = ("page_size", "journal_mode", "synchronous", "foreign_keys", "trusted_schema", "query_only")
        run = connection.exec_driver_sql  # type: ignore[attr-defined]  # an SQLAlchemy connection
        return {name: run(f"PRAGMA {name}").scalar() for name in names}

    common = {"page_size": PAGE_SIZE, "journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "trusted_schema": 0}
    with database.write() as connection:
        assert settings(connection) == common | {"query_only": 0}
    with database.read() as connection:
        assert settings(connection) == common | {"query_only": 1}
        assert connection.exec_driver_sql("PRAGMA wal_autocheckpoint").scalar() == 0
        with pytest.raises(OperationalError):
            connection.exec_driver_sql("SELECT load_extension('vec0')")


def test_what_a_block_wrote_stays_only_when_it_ended_well(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
    with suppress(ZeroDivisionError), database.write() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (2)")
        raise ZeroDivisionError

    assert numbers(database) == [1]


def test_a_reader_sees_one_moment(database: Database) -> None:
    with database.read() as reader:
        before = reader.exec_driver_sql("SELECT count(*) FROM t").scalar()
        with database.write() as writer:
            writer.exec_driver_sql("INSERT INTO t VALUES (1)")
        after = reader.exec_driver_sql("SELECT count(*) FROM t").scalar()

    assert (before, after) == (0, 0)
    assert numbers(database) == [1]


def test_a_reader_cannot_write(database: Database) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be written"), database.read() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")

    assert numbers(database) == []


def test_writers_of_many_threads_wait_for_each_other(database: Database) -> None:
    def write(first: int) -> None:
        for n in range(10):
            with database.write() as connection:
                connection.exec_driver_sql("INSERT INTO t VALUES (?)", (first + n,))

    threads = [threading.Thread(target=write, args=(10 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert numbers(database) == list(range(80))


def test_our_own_mistakes_are_not_called_the_machines(database: Database) -> None:
    with pytest.raises(IntegrityError), database.write() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1), (1)")
    with pytest.raises(OperationalError), database.read() as connection:
        connection.exec_driver_sql("SELECT * FROM nothing")


def test_a_second_one_on_the_same_file_is_refused_until_the_first_is_closed(database: Database) -> None:
    program = "import sys, pathlib, appliance.database as d; d.Database(pathlib.Path(sys.argv[1])).close()"
    root = Path(__file__).parents[1]

    def open_elsewhere() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, str(database.path)]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)

    refused = open_elsewhere()
    with pytest.raises(StoreUnavailable, match="another appliance is using this data directory"):
        Database(database.path)
    database.close()
    accepted = open_elsewhere()

    assert "StoreUnavailable: another appliance is using this data directory" in refused.stderr
    assert (accepted.returncode, accepted.stderr) == (0, "")


def test_a_full_disk_is_said_and_reading_goes_on(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        connection.exec_driver_sql("CREATE TABLE big (a)")
    with database.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(StoreFull, match="no space"), database.write() as connection:
        connection.exec_driver_sql("INSERT INTO big VALUES (zeroblob(1000000))")

    assert numbers(database) == [1]


def test_after_a_failed_write_reading_and_later_writing_go_on(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", SHORT_OF_DISK, str(tmp_path / "a.db")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["the disk failed while the database was read or written", "0", "1", "ok"]


def test_a_file_that_is_no_database_is_said_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "appliance.db"
    path.write_bytes(b"these are my notes, not a database\n" * 1000)

    with pytest.raises(StoreUnavailable, match="no SQLite database"):
        Database(path)

    assert path.read_bytes().startswith(b"these are my notes")


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreUnavailable, match="data directory"):
        Database(tmp_path / "file" / "appliance.db")


def test_a_backup_is_whole_and_takes_the_place_of_an_older_one(database: Database, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    target.write_bytes(b"older")
    with database.write() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1), (2)")

    database.backup(target)

    copy = Database(target)
    try:
        assert numbers(copy) == [1, 2]
    finally:
        copy.close()
    assert not target.with_name("copy.db.part").exists()


def test_closing_empties_the_log_even_while_another_connection_is_open(database: Database) -> None:
    with closing(choose_driver().connect(str(database.path))) as other:
        other.execute("SELECT * FROM t").fetchall()

        database.close()

        assert database.path.with_name("appliance.db-wal").stat().st_size == 0


def test_closing_leaves_one_file_and_refuses_more_work(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
    assert numbers(database) == [1]

    database.close()
    database.close()

    assert sorted(path.name for path in database.path.parent.iterdir()) == ["appliance.db", "appliance.db.lock"]
    with pytest.raises(StoreUnavailable, match="closed"), database.read():
        pass
    with pytest.raises(StoreUnavailable, match="closed"), database.write():
        pass
