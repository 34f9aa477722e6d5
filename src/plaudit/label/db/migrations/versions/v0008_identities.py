"""People may be known by the identity that an organisation's sign-in gives them."""

from alembic import op

from plaudit.label.db.schema import identity

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    identity.create(op.get_bind())  # a later change of it is a migration of its own
