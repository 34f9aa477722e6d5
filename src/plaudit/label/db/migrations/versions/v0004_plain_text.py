"""A project can show its texts as plain characters."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("project", sa.Column("plain_text", sa.Boolean(), nullable=False, server_default=sa.false()))
