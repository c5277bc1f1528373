"""Run migrations on the connection, and inside the transaction, that `Database.migrate` hands over."""

from alembic import context
from sqlmodel import SQLModel

from appliance.catalog import tables  # noqa: F401  # declares the catalog's tables in SQLModel.metadata


def _ours_to_compare(name: str | None, kind: str, _parents: object) -> bool:
    """Autogenerate looks at the catalog only; the store's tables are plain SQL."""
    return kind != "table" or name in SQLModel.metadata.tables


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    include_name=_ours_to_compare,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
