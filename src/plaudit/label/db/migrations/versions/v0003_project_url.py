"""The address that browsers reached the server at, so that a later `plaudit label invite` prints a link that works."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("project", sa.Column("url", sa.Text()))
