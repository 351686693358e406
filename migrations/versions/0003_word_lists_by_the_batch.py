"""Word lists grow by the batch: a trigger a row costs FTS5 five times as much as one statement.

The triggers on UPDATE and DELETE stay: those rows come one by one.
"""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("DROP TRIGGER memory_words_insert")
