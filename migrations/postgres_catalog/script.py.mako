"""${message}."""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Run once, inside one transaction."""
    ${upgrades if upgrades else "op.execute()"}
