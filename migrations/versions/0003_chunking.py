"""A collection keeps how its documents are cut; those that are there follow the settings, as before."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the options, in the transaction that is open."""
    op.execute("ALTER TABLE collection ADD COLUMN chunking JSON NOT NULL DEFAULT '{}'")
