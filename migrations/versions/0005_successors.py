"""Collections that are embedded anew: under which name the store has them, and what is to take whose place."""

from alembic import op

revision = "0005"
down_revision = "0004"

_STATEMENTS = (
    "ALTER TABLE collection ADD COLUMN stored_as TEXT NOT NULL DEFAULT ''",
    "UPDATE collection SET stored_as = name",
    "CREATE UNIQUE INDEX collection_stored_as ON collection (stored_as)",
    "ALTER TABLE collection ADD COLUMN successor_of INTEGER",
    "ALTER TABLE collection ADD COLUMN job INTEGER",
    "ALTER TABLE collection ADD COLUMN kept_until VARCHAR",
    "ALTER TABLE document ADD COLUMN original INTEGER",
    # a document of a successor is looked up by the one that it is made of
    "CREATE UNIQUE INDEX document_of_original ON document (collection_id, original) WHERE original IS NOT NULL",
)


def upgrade() -> None:
    """Make them in the transaction that is open."""
    for statement in _STATEMENTS:
        op.execute(statement)
