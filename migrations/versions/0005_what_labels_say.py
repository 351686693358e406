"""A label's sentence and the model that wrote it stand beside it."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute("ALTER TABLE neuron ADD COLUMN sentence TEXT")
    op.execute("ALTER TABLE neuron ADD COLUMN model TEXT")
