"""From nothing, or from what an older version wrote, to the newest schema."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from appliance.database import Database
from appliance.errors import SchemaMismatch, StoreUnavailable

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
        connection.exec_driver_sql("INSERT INTO collection VALUES (1, 'kept', 'm', 's', 3, 'ready', '2026-01-01')")

    database.migrate(later(tmp_path))

    assert "later" in columns(database)
    copy = Database(tmp_path / "appliance.db.before-0099")
    try:
        assert "later" not in columns(copy)
        with copy.read() as connection:
            assert connection.exec_driver_sql("SELECT name FROM collection").scalar() == "kept"
    finally:
        copy.close()


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
