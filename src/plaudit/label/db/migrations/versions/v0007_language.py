"""A project says in which language its pages speak to annotators."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("project", sa.Column("language", sa.String(16), nullable=False, server_default="browser"))
