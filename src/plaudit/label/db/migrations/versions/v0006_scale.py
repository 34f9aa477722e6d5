"""Files that were added are known by their hash; what waits and how far the work is are counted from indexes alone.

People pause, and have quotas and fields; crowds come by one link; items can be for one person; guidelines have
pictures; a webhook is told of batches that are done.
"""

import sqlalchemy as sa
from alembic import op

from plaudit.label.db.schema import batch, item, person_field, picture

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("person", sa.Column("paused", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("person", sa.Column("quota", sa.Integer()))
    op.add_column("person", sa.Column("crowd", sa.Boolean(), nullable=False, server_default=sa.false()))
    for column in (sa.Column("crowd_token", sa.String(64)), sa.Column("crowd_quota", sa.Integer())):
        op.add_column("project", column)
    for name in ("webhook", "crowd_code"):
        op.add_column("project", sa.Column(name, sa.Text()))
    op.add_column("item", sa.Column("assigned", sa.BigInteger(), nullable=False, server_default="0"))
    for table in (batch, person_field, picture):
        table.create(op.get_bind())  # a later change of it is a migration of its own
    op.drop_index("item_waiting", "item")
    for index in item.indexes:
        if str(index.name).startswith("item_waiting") or index.name == "item_counted":
            index.create(op.get_bind())
