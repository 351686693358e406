"""Neuron expressions are saved under names, near-copies are linked to what they are near to."""

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
