"""From nothing, or from what an older version wrote, to the newest schema."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from appliance.database import Database
from appliance.errors import SchemaMismatch, StoreUnavailable
from appliance.store.sqlite import SqliteStore

ROOT = Path(__file__).parents[1]
MIGRATIONS = ROOT / "migrations"
HEAD = max(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*_*.py"))
LATER = '''
"""A change that a later version makes."""

from alembic import op

revision = "0099"
down_revision = "{head}"


def upgrade() -> None:
    """Add a column, and then what the test asks for."""
    op.execute("ALTER TABLE collection ADD COLUMN later TEXT")
    op.execute("{then}")
'''


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "appliance.db")
    yield database
    database.close()


def later(tmp_path: Path, *, then: str = "SELECT 1") -> Path:
    """The migrations as a later version ships them."""
    folder = tmp_path / "later 100%"
    shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "0099_later.py").write_text(LATER.format(then=then, head=HEAD))
    return folder


def first_release(tmp_path: Path) -> Path:
    """The migrations as the first version shipped them."""
    folder = tmp_path / "first"
    shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__", "000[2-9]_*", "00[1-9]*"))
    return folder


TEXTS = ("plain words", "東京都の人口", "서울에서", "ภาษาไทย", "mixed 東京 text")


def fill_first_release(database: Database) -> None:
    """Two collections as the first version's store left them, 1,200 chunks in each."""
    with database.write() as connection:
        run = connection.exec_driver_sql
        for number in (1, 2):
            run("INSERT INTO store_collection VALUES (?, ?, 8, 1200, 1200, 0)", (number, f"c{number}"))
            run(f"CREATE VIRTUAL TABLE vec_bits_{number} USING vec0 (chunk_id INTEGER PRIMARY KEY, bits BIT[8])")
            run(f"CREATE VIEW chunk_words_{number} AS SELECT id, title, text FROM chunk WHERE collection = {number}")  # noqa: S608  # same
            run(
                f"CREATE VIRTUAL TABLE chunk_fts_{number} USING fts5 (title, text, content = 'chunk_words_{number}', "
                "content_rowid = 'id', tokenize = 'porter unicode61 remove_diacritics 2')"
            )
            ids = range(1200 * number - 1199, 1200 * number + 1)
            made = [(n, number, f"d{n}", f"title {n}", f"{TEXTS[n % 5]} {n}") for n in ids]
            run("INSERT INTO chunk VALUES (?, ?, ?, 0, ?, ?, 0, 9, 3, '{\"k\": 1}')", made)
            run("INSERT INTO embedding VALUES (?, ?)", [(n, np.eye(1, 8, dtype=np.float32).tobytes()) for n in ids])
            run(f"INSERT INTO vec_bits_{number} VALUES (?, vec_bit(?))", [(n, b"\1") for n in ids])  # noqa: S608  # a number
            run(
                f"INSERT INTO chunk_fts_{number} (rowid, title, text) SELECT id, title, text FROM chunk_words_{number}"  # noqa: S608  # same
            )


def columns(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.exec_driver_sql("SELECT name FROM pragma_table_info('collection')").scalars())


def test_an_empty_database_gets_the_schema_that_the_tables_declare(database: Database, tmp_path: Path) -> None:
    database.migrate(MIGRATIONS)

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.write() as connection:
        config.attributes["connection"] = connection
        command.check(config)  # raises when the two differ
    assert list(tmp_path.glob("*.before-*")) == []


def test_file_names_tell_the_head_that_alembic_finds() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))

    head = ScriptDirectory.from_config(config).get_current_head()

    assert head == max(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*_*.py"))


def test_alembic_is_not_loaded_when_there_is_nothing_to_do(database: Database) -> None:
    database.migrate(MIGRATIONS)
    database.close()
    program = (
        "import sys, pathlib\n"
        "from appliance.database import Database\n"
        "database = Database(pathlib.Path(sys.argv[1]))\n"
        "database.migrate(pathlib.Path(sys.argv[2]))\n"
        "database.close()\n"
        "print('alembic' in sys.modules)\n"
    )

    command_line = [sys.executable, "-c", program, str(database.path), str(MIGRATIONS)]
    ended = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, check=True)

    assert ended.stdout == "False\n"


def test_what_is_there_is_copied_before_it_is_migrated(database: Database, tmp_path: Path) -> None:
    database.migrate(MIGRATIONS)
    with database.write() as connection:
        connection.exec_driver_sql(
            "INSERT INTO collection (id, name, model, space, dimensions, state, created) "
            "VALUES (1, 'kept', 'm', 's', 3, 'ready', '2026-01-01')"
        )

    database.migrate(later(tmp_path))

    assert "later" in columns(database)
    copy = Database(tmp_path / "appliance.db.before-0099")
    try:
        assert "later" not in columns(copy)
        with copy.read() as connection:
            assert connection.exec_driver_sql("SELECT name FROM collection").scalar() == "kept"
    finally:
        copy.close()


def test_texts_without_spaces_are_indexed_again_even_when_it_is_broken_off_at_first(
    database: Database, tmp_path: Path
) -> None:
    database.migrate(first_release(tmp_path))
    fill_first_release(database)
    store = SqliteStore(database)
    with pytest.raises(Exception, match="nowhere"):
        database.migrate(later(tmp_path, then="INSERT INTO nowhere VALUES (1)"))

    database.migrate(MIGRATIONS)

    for collection in ("c1", "c2"):
        assert len(store.matching(collection, "東京", limit=2000)) == 480
        assert len(store.matching(collection, "서울", limit=2000)) == 240
        assert len(store.matching(collection, "ไทย", limit=2000)) == 240
        assert len(store.matching(collection, "plain", limit=2000)) == 240
        assert len(store.matching(collection, "title", limit=2000)) == 1200
        assert len(store.nearest(collection, np.eye(1, 8, dtype=np.float32)[0], limit=2000)) == 1200
        assert store.remove(collection, "d1") == (collection == "c1")
    with database.write() as connection:
        for words in ("chunk_fts_1", "chunk_fts_2"):
            connection.exec_driver_sql(f"INSERT INTO {words} ({words}, rank) VALUES ('integrity-check', 1)")  # noqa: S608  # ours
        assert connection.exec_driver_sql("SELECT count(*) FROM chunk_segmented").scalar() == 2 * 960 - 1


def test_signs_of_an_older_version_are_left_out_until_there_are_new_ones(database: Database, tmp_path: Path) -> None:
    database.migrate(first_release(tmp_path))
    fill_first_release(database)
    database.migrate(MIGRATIONS)
    store, query = SqliteStore(database, exact_below=1000), np.eye(1, 8, dtype=np.float32)[0]

    before = store.nearest("c1", query, limit=2000)
    store.warm()

    assert len(before) == 1200
    assert [match.score for match in store.nearest("c1", query, limit=1200)] == [1] * 1200
    with database.read() as connection:
        for number in (1, 2):
            assert connection.exec_driver_sql(f"SELECT count(*) FROM vec_bits_{number}").scalar() == 1200  # noqa: S608  # ours
        signs = connection.exec_driver_sql("SELECT DISTINCT length(bits) FROM vec_bits_1").scalars().all()
    assert signs == [48]


def test_a_migration_that_fails_changes_nothing(database: Database, tmp_path: Path) -> None:
    database.migrate(MIGRATIONS)

    with pytest.raises(Exception, match="nowhere"):
        database.migrate(later(tmp_path, then="INSERT INTO nowhere VALUES (1)"))

    assert "later" not in columns(database)
    database.migrate(MIGRATIONS)


def test_a_database_of_a_newer_version_is_refused_and_left_alone(database: Database, tmp_path: Path) -> None:
    database.migrate(later(tmp_path))

    with pytest.raises(SchemaMismatch, match="0099"):
        database.migrate(MIGRATIONS)

    assert "later" in columns(database)


def test_a_database_of_something_else_is_refused(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE recipes (name)")

    with pytest.raises(SchemaMismatch, match="not written by the appliance"):
        database.migrate(MIGRATIONS)


def test_missing_migrations_are_said(database: Database, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="install"):
        database.migrate(tmp_path / "nowhere")
