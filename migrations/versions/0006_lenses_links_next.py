"""Lenses under names, links between near-copies, and room for what another encoder makes of texts.

``vector_next`` and ``trace_next`` are alike to the tables they will stand for: a switch renames them.
"""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE lens (
            encoder_id INTEGER NOT NULL REFERENCES encoder(id),
            name TEXT NOT NULL,
            expression TEXT NOT NULL,
            "by" TEXT NOT NULL,
            threshold REAL NOT NULL,
            grade REAL,
            category TEXT,
            created_at INTEGER NOT NULL,
            PRIMARY KEY (encoder_id, name)
        ) WITHOUT ROWID
        """
    )
    op.execute(
        """
        CREATE TABLE link (
            memory_id INTEGER NOT NULL PRIMARY KEY REFERENCES memory(id) ON DELETE CASCADE,
            other_id INTEGER NOT NULL REFERENCES memory(id) ON DELETE CASCADE,
            cosine REAL NOT NULL
        )
        """
    )
    op.execute("CREATE INDEX link_other ON link (other_id)")
    for table, columns in (
        ("vector_next", "vector BLOB NOT NULL"),
        ("trace_next", "neurons BLOB NOT NULL, activations BLOB NOT NULL"),
    ):
        op.execute(
            f"""
            CREATE TABLE {table} (
                memory_id INTEGER PRIMARY KEY REFERENCES memory (id) ON DELETE CASCADE,
                encoder_id INTEGER NOT NULL REFERENCES encoder (id),
                {columns}
            )
            """
        )
    op.execute(
        """
        CREATE TRIGGER next_forgets AFTER UPDATE OF text ON memory BEGIN
            DELETE FROM vector_next WHERE memory_id = new.id;
            DELETE FROM trace_next WHERE memory_id = new.id;
        END
        """
    )
