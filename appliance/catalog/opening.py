"""Opens a catalog on a server, which several appliances share."""

import secrets
from contextlib import ExitStack
from pathlib import Path

from appliance.catalog.catalog import Catalog
from appliance.catalog.members import Member, SharedCatalog
from appliance.postgres import CATALOG_VERSION, PostgresDatabase


def open_shared(url: str, *, data: Path, migrations: Path, stack: ExitStack) -> Catalog:
    """A catalog on a PostgreSQL server, its schema brought up to date. Blocking.

    Args:
        url: of the server.
        data: the directory that has this appliance's name among those that share the catalog, `member`.
        migrations: the folder that has one for it.
        stack: closes it.

    Raises:
        InvalidInput: no address.
        StoreUnavailable: the server does not answer, or another appliance uses this or a copied directory.
        SchemaMismatch: it was written by a newer appliance.
    """
    database = migrated(url, migrations=migrations, stack=stack)
    catalog = Catalog(SharedCatalog(database), Member(database, own_name(data)))
    stack.callback(catalog.leave)
    return catalog


def migrated(url: str, *, migrations: Path, stack: ExitStack) -> PostgresDatabase:
    """The database of such a catalog. As `open_shared`, without being a member."""
    database = PostgresDatabase(url, param="catalog_url")
    stack.callback(database.close)
    database.migrate(migrations / "postgres_catalog", version_table=CATALOG_VERSION, vectors=False)
    return database


def own_name(data: Path) -> str:
    """What this appliance is called among those that share a catalog; made up once."""
    path = data / "member"
    if not path.exists():
        part = path.with_name(path.name + ".part")
        part.write_text(secrets.token_hex(16), encoding="ascii")
        part.replace(path)
    return path.read_text(encoding="ascii").strip()
