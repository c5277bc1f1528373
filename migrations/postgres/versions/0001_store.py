"""The first schema of a store in PostgreSQL: which collections there are, and how their words are read.

The store adds chunk_<id>, vector_<id> and words_<id> for each collection when it is created.
"""

from alembic import op

revision = "0001"
down_revision = None

_STATEMENTS = (
    """
    CREATE TABLE store_collection (
        id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text COLLATE "C" NOT NULL UNIQUE,
        dimensions integer NOT NULL,
        space text NOT NULL,
        chunks bigint NOT NULL DEFAULT 0,
        words bigint NOT NULL DEFAULT 0,
        index_kind text NOT NULL DEFAULT '',
        index_lists integer NOT NULL DEFAULT 0,
        index_chunks bigint NOT NULL DEFAULT 0
    )
    """,
    # whose tables are still to go: one at a time, as their readers end
    "CREATE TABLE store_leaving (id integer PRIMARY KEY)",
    # as the parser tells words apart, so they are; the appliance hands it words between spaces
    "CREATE TEXT SEARCH DICTIONARY appliance_stem (TEMPLATE = snowball, LANGUAGE = english)",
    "CREATE TEXT SEARCH CONFIGURATION appliance_words (PARSER = default)",
    """
    ALTER TEXT SEARCH CONFIGURATION appliance_words ADD MAPPING FOR asciiword, word, numword, int, uint, float, sfloat,
        version, asciihword, hword, numhword, hword_asciipart, hword_part, hword_numpart, email, url, url_path, host,
        file WITH appliance_stem
    """,
)


def upgrade() -> None:
    """Make every table in the transaction that is open."""
    for statement in _STATEMENTS:
        op.execute(statement)
