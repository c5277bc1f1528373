"""Jobs, and documents that know which one they wait for and under which name the store still has them."""

from alembic import op

revision = "0004"
down_revision = "0003"

_STATEMENTS = (
    """
    CREATE TABLE job (
        id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        collection TEXT NOT NULL,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        origin TEXT NOT NULL,
        state TEXT NOT NULL,
        open INTEGER NOT NULL,
        prune INTEGER NOT NULL,
        priority INTEGER NOT NULL,
        error TEXT NOT NULL,
        total INTEGER NOT NULL,
        ready INTEGER NOT NULL,
        failed INTEGER NOT NULL,
        refused INTEGER NOT NULL,
        skipped INTEGER NOT NULL,
        unchanged INTEGER NOT NULL,
        moved INTEGER NOT NULL,
        created VARCHAR NOT NULL,
        ended VARCHAR
    )
    """,
    "CREATE INDEX job_going ON job (id) WHERE ended IS NULL",
    """
    CREATE TABLE job_item (
        seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        job_id INTEGER NOT NULL,
        id TEXT NOT NULL,
        document_seq INTEGER,
        state TEXT NOT NULL,
        error TEXT NOT NULL,
        UNIQUE (job_id, id),
        FOREIGN KEY (job_id) REFERENCES job (id) ON DELETE CASCADE
    )
    """,
    "CREATE INDEX job_item_by_state ON job_item (job_id, state)",
    "CREATE INDEX job_item_waiting ON job_item (document_seq) WHERE state = 'waiting'",
    "ALTER TABLE document ADD COLUMN job INTEGER",
    "ALTER TABLE document ADD COLUMN moved_from TEXT",
    "CREATE INDEX document_moving ON document (seq) WHERE moved_from IS NOT NULL",
    # the queue again, by job: what waits for a job that is paused is never walked over
    "DROP INDEX document_waiting",
    "CREATE INDEX document_waiting ON document (job, seq) WHERE state = 'waiting' AND taken IS NULL",
)


def upgrade() -> None:
    """Make them in the transaction that is open."""
    for statement in _STATEMENTS:
        op.execute(statement)
