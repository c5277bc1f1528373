"""Signs of vectors are made anew, in other coordinates: the store does so by itself, while it searches exactly.

A collection keeps what its signs are seen from, and up to which chunk there are any.
"""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Remove the signs that there are; a million take as long as the pages that hold them."""
    run = op.get_bind().exec_driver_sql
    run("ALTER TABLE store_collection ADD COLUMN centre BLOB")
    run("ALTER TABLE store_collection ADD COLUMN signs_to INTEGER NOT NULL DEFAULT 0")
    for number, dimensions in run("SELECT id, dimensions FROM store_collection").all():
        bits = max(-(-dimensions // 64) * 64, 384)
        run(f"DROP TABLE vec_bits_{number}")
        run(
            f"CREATE VIRTUAL TABLE vec_bits_{number} USING vec0 "
            f"(chunk_id INTEGER PRIMARY KEY, bits BIT[{bits}], chunk_size = 4096)"
        )
