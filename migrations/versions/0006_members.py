"""Who has a document in hand and who reads a job's folder, where several appliances share a catalog; and what a
document's bytes hash to, to find those of the same.
"""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make them in the transaction that is open."""
    op.execute("ALTER TABLE document ADD COLUMN taken_by INTEGER")
    op.execute("ALTER TABLE job ADD COLUMN member INTEGER")
    op.execute("ALTER TABLE document ADD COLUMN body_hash TEXT NOT NULL DEFAULT ''")
    op.execute("CREATE INDEX document_by_body ON document (collection_id, body_hash)")
