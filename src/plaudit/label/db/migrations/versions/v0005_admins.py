"""Settings have versions, admins a log; items can be withdrawn and labels set aside; labels know their guidelines."""

import sqlalchemy as sa
from alembic import op

from plaudit.label.db.schema import admin_log

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    for table, name in (("project", "paused"), ("item", "withdrawn"), ("lease", "aside")):
        op.add_column(table, sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false()))
    for name in ("version", "guidelines_version"):
        op.add_column("project", sa.Column(name, sa.Integer(), nullable=False, server_default="1"))
    for table in ("lease", "label"):
        op.add_column(table, sa.Column("guidelines", sa.Integer()))
    op.add_column("label", sa.Column("active_seconds", sa.Float()))
    admin_log.create(op.get_bind())  # with its triggers; a later change of it is a migration of its own
