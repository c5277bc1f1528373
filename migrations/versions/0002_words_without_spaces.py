"""Words of scripts that write without spaces can be found: their texts are indexed again, with spaces."""

from alembic import op

from appliance.store.words import segmented

revision = "0002"
down_revision = "0001"

_BLOCK = 500
_VIEW = """
CREATE VIEW chunk_words_{number} AS
SELECT id, coalesce(s.title, chunk.title) AS title, coalesce(s.text, chunk.text) AS text
FROM chunk LEFT JOIN chunk_segmented AS s ON s.chunk_id = id WHERE collection = {number}
"""


def upgrade() -> None:
    """Keep those texts as they are indexed, and index them so, a collection at a time."""
    run = op.get_bind().exec_driver_sql
    run("CREATE TABLE chunk_segmented (chunk_id INTEGER NOT NULL PRIMARY KEY, title TEXT NOT NULL, text TEXT NOT NULL)")
    for number in run("SELECT id FROM store_collection ORDER BY id").scalars().all():
        words = f"chunk_fts_{number}"
        last = 0
        while block := run(
            "SELECT id, title, text FROM chunk WHERE collection = ? AND id > ? ORDER BY id LIMIT ?",
            (number, last, _BLOCK),
        ).all():
            last = block[-1][0]
            before = [tuple(row) for row in block if any(segmented(text) != text for text in row[1:])]
            after = [(id_, segmented(title), segmented(text)) for id_, title, text in before]
            if before:
                remove = f"INSERT INTO {words} ({words}, rowid, title, text) VALUES ('delete', ?, ?, ?)"  # noqa: S608  # a number
                run(remove, before)
                run("INSERT INTO chunk_segmented VALUES (?, ?, ?)", after)
                run(f"INSERT INTO {words} (rowid, title, text) VALUES (?, ?, ?)", after)  # noqa: S608  # same
        run(f"DROP VIEW chunk_words_{number}")
        run(_VIEW.format(number=number))
