"""Gold items are found by an index, and not by a look at every item."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    where = sa.text("gold IS NOT NULL")
    op.create_index("item_gold", "item", ["number"], sqlite_where=where, postgresql_where=where)
