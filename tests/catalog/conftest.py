"""The databases that a catalog is tried on."""

from collections.abc import Iterator
from typing import Any

import pytest

from appliance.catalog.members import SharedCatalog
from appliance.database import Database, Transactions
from appliance.postgres import CATALOG_VERSION, PostgresDatabase
from appliance.settings import shipped

_TABLES = "member, collection, document, source, document_text, job, job_item"


@pytest.fixture(scope="session")
def catalog_server(postgres_server: Any) -> Iterator[PostgresDatabase]:
    """A migrated database on a server, which tests leave things in."""
    database = PostgresDatabase(postgres_server.database(), connections=16)
    database.migrate(shipped("migrations") / "postgres_catalog", version_table=CATALOG_VERSION, vectors=False)
    yield database
    database.close()


@pytest.fixture
def empty_server(catalog_server: PostgresDatabase) -> PostgresDatabase:
    """The same without content."""
    with catalog_server.write() as connection:
        connection.exec_driver_sql(f"TRUNCATE {_TABLES} RESTART IDENTITY CASCADE")
    return catalog_server


@pytest.fixture(params=["sqlite", "postgres"])
def transactions(request: pytest.FixtureRequest) -> Transactions:
    """An empty database of either kind."""
    if request.param == "sqlite":
        database: Database = request.getfixturevalue("database")
        return database
    return SharedCatalog(request.getfixturevalue("empty_server"))
