"""The first schema: what exists (catalog), and what is searched (store), in one file."""

from alembic import op

revision = "0001"
down_revision = None

_CATALOG = (
    """
    CREATE TABLE collection (
        id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        model TEXT NOT NULL,
        space TEXT NOT NULL,
        dimensions INTEGER NOT NULL,
        state TEXT NOT NULL,
        created VARCHAR NOT NULL
    )
    """,
    """
    CREATE TABLE document (
        seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        collection_id INTEGER NOT NULL REFERENCES collection (id),
        id TEXT NOT NULL,
        title TEXT NOT NULL,
        metadata JSON NOT NULL,
        media_type TEXT NOT NULL,
        size INTEGER NOT NULL,
        content_hash TEXT NOT NULL,
        version INTEGER NOT NULL,
        taken INTEGER,
        state TEXT NOT NULL,
        error TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        chunks INTEGER NOT NULL,
        tokens INTEGER NOT NULL,
        truncated INTEGER NOT NULL,
        created VARCHAR NOT NULL,
        updated VARCHAR NOT NULL,
        UNIQUE (collection_id, id)
    )
    """,
    "CREATE INDEX document_in_order ON document (collection_id)",
    "CREATE INDEX document_by_state ON document (collection_id, state)",
    # the queue: as long as what waits, however many documents are ready
    "CREATE INDEX document_waiting ON document (seq) WHERE state = 'waiting' AND taken IS NULL",
    "CREATE INDEX document_in_hand ON document (collection_id) WHERE taken IS NOT NULL",
    "CREATE INDEX document_leaving ON document (seq) WHERE state = 'removing'",
    """
    CREATE TABLE source (
        document_seq INTEGER NOT NULL PRIMARY KEY,
        body BLOB NOT NULL,
        FOREIGN KEY (document_seq) REFERENCES document (seq) ON DELETE CASCADE
    )
    """,
    """
    CREATE TABLE document_text (
        document_seq INTEGER NOT NULL PRIMARY KEY,
        text TEXT NOT NULL,
        FOREIGN KEY (document_seq) REFERENCES document (seq) ON DELETE CASCADE
    )
    """,
)

# The store adds vec_bits_<id> and chunk_fts_<id> for each collection when it is created.
_STORE = (
    """
    CREATE TABLE store_collection (
        id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        dimensions INTEGER NOT NULL,
        chunks INTEGER NOT NULL DEFAULT 0,
        added INTEGER NOT NULL DEFAULT 0,
        removed INTEGER NOT NULL DEFAULT 0
    )
    """,
    """
    CREATE TABLE chunk (
        id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        collection INTEGER NOT NULL,
        document TEXT NOT NULL,
        ordinal INTEGER NOT NULL,
        title TEXT NOT NULL,
        text TEXT NOT NULL,
        "start" INTEGER NOT NULL,
        "end" INTEGER NOT NULL,
        tokens INTEGER NOT NULL,
        metadata JSON NOT NULL,
        UNIQUE (collection, document, ordinal)
    )
    """,
    "CREATE INDEX chunk_of_collection ON chunk (collection)",
    "CREATE TABLE embedding (chunk_id INTEGER NOT NULL PRIMARY KEY, vector BLOB NOT NULL)",
)


def upgrade() -> None:
    """Make every table in the transaction that is open."""
    for statement in (*_CATALOG, *_STORE):
        op.execute(statement)
