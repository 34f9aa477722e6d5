"""The first schema, as migrations must find it: what label/db/schema.py said then. It never changes with that file."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
TASK = "task IN ('rank', 'write', 'compare')"
STATE = "state IN ('open', 'done', 'expired', 'released')"
PURPOSE = "purpose IN ('normal', 'consistency', 'gold')"
ROLE = "role IN ('admin', 'annotator')"
LIVE = "state IN ('open', 'done')"


def upgrade() -> None:
    _people()
    _work()
    _ledger()
    for table in ("label", "conflict"):
        _append_only(table)


def _where(name: str, table: str, columns: Sequence[str | sa.TextClause], where: str, *, unique: bool = True) -> None:
    op.create_index(name, table, columns, unique=unique, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def _people() -> None:
    op.create_table(
        "project",
        sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1", "one_project"), primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("guidelines", sa.Text, nullable=False),
        sa.Column("overlap", sa.Integer, sa.CheckConstraint("overlap >= 1", "overlap_positive"), nullable=False),
        sa.Column("lease_minutes", sa.Float, nullable=False),
        sa.Column("consistency_rate", sa.Float, nullable=False),
        sa.Column("gold_rate", sa.Float, nullable=False),
        sa.Column("reasons", sa.JSON, nullable=False),
        sa.Column("flags", sa.JSON, nullable=False),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
    )
    op.create_table(
        "person",
        sa.Column("id", NUMBER, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("role", sa.String(16), sa.CheckConstraint(ROLE, "role_known"), nullable=False),
        sa.Column("password_hash", sa.Text),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
    )
    op.create_table(
        "invite",
        sa.Column("token_hash", sa.String(64), primary_key=True),
        sa.Column("person", NUMBER, sa.ForeignKey("person.id"), nullable=False, index=True),
        sa.Column("role", sa.String(16), sa.CheckConstraint(ROLE, "role_known"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
        sa.Column("used", sa.Float),
    )
    op.create_table(
        "session",
        sa.Column("token_hash", sa.String(64), primary_key=True),
        sa.Column("person", NUMBER, sa.ForeignKey("person.id"), nullable=False, index=True),
        sa.Column("csrf", sa.String(64), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
    )
    op.create_table(
        "login_attempt",
        sa.Column("id", NUMBER, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("at", sa.Float, nullable=False, index=True),
    )


def _work() -> None:
    op.create_table(
        "item",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False, unique=True),
        sa.Column("task", sa.String(16), sa.CheckConstraint(TASK, "task_known"), nullable=False),
        sa.Column("prompt", sa.JSON, nullable=False),
        sa.Column("replies", sa.JSON, nullable=False),
        sa.Column("prompt_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("split", sa.String(16), nullable=False),
        sa.Column("gold", sa.JSON),
        sa.Column("priority", sa.Float, nullable=False),
        sa.Column("overlap", sa.Integer, sa.CheckConstraint("overlap >= 1", "overlap_positive")),
        sa.Column("free", sa.Integer, sa.CheckConstraint("free >= 0", "free_not_negative"), nullable=False),
        sa.Column("source_file", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
    )
    _where("item_waiting", "item", [sa.text("priority DESC"), "number"], "free > 0", unique=False)
    op.create_table(
        "lease",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("item", sa.String(64), sa.ForeignKey("item.id"), nullable=False, index=True),
        sa.Column("person", NUMBER, sa.ForeignKey("person.id"), nullable=False),
        sa.Column("task", sa.String(16), nullable=False),
        sa.Column("slot", sa.Integer, sa.CheckConstraint("slot >= 1", "slot_positive")),
        sa.Column("order", sa.JSON, nullable=False),
        sa.Column("served_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("state", sa.String(16), sa.CheckConstraint(STATE, "state_known"), nullable=False),
        sa.Column("purpose", sa.String(16), sa.CheckConstraint(PURPOSE, "purpose_known"), nullable=False),
        sa.Column("late", sa.Boolean, nullable=False),
    )
    _where("lease_slot", "lease", ["item", "slot"], f"slot IS NOT NULL AND {LIVE}")
    _where("lease_once", "lease", ["item", "person"], f"purpose <> 'consistency' AND {LIVE}")
    _where("lease_checked_once", "lease", ["item", "person"], f"purpose = 'consistency' AND {LIVE}")
    _where("lease_one_open", "lease", ["person", "task"], "state = 'open'")
    op.create_index("lease_person", "lease", ["person", "item"])
    _where("lease_expiry", "lease", ["expires_at"], "state = 'open'", unique=False)


def _ledger() -> None:
    op.create_table(
        "label",
        sa.Column("seq", NUMBER, primary_key=True),
        sa.Column("client_id", sa.String(64), nullable=False, unique=True),
        sa.Column("lease", sa.String(32), sa.ForeignKey("lease.id"), nullable=False, index=True),
        sa.Column("item", sa.String(64), sa.ForeignKey("item.id"), nullable=False, index=True),
        sa.Column("person", NUMBER, sa.ForeignKey("person.id"), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("body_hash", sa.String(64), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("order", sa.JSON, nullable=False),
        sa.Column("late", sa.Boolean, nullable=False),
        sa.Column("supersedes", NUMBER, sa.ForeignKey("label.seq"), unique=True),
        sqlite_autoincrement=True,
    )
    op.create_index("label_person", "label", ["person", "seq"])
    _where("label_first", "label", ["lease"], "supersedes IS NULL")
    op.create_table(
        "conflict",
        sa.Column("id", NUMBER, primary_key=True),
        sa.Column("client_id", sa.String(64), nullable=False, index=True),
        sa.Column("person", NUMBER, sa.ForeignKey("person.id"), nullable=False),
        sa.Column("lease", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
    )


def _append_only(table: str) -> None:
    """Triggers that refuse to change or remove a row."""
    refusal = f"{table} is append-only"
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{refusal}'); END"
            )
        # INSERT OR REPLACE removes the old row without a word to the trigger on DELETE.
        key = "seq" if table == "label" else "id"
        same = f"{key} = NEW.{key}" + (" OR client_id = NEW.client_id" if table == "label" else "")
        op.execute(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
            f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {same}) BEGIN SELECT RAISE(ABORT, '{refusal}'); END"
        )
        return
    op.execute(
        f"CREATE FUNCTION {table}_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{refusal}'; END $$"
    )
    for verb, each in (("UPDATE", "ROW"), ("DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
        op.execute(
            f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
            f"FOR EACH {each} EXECUTE FUNCTION {table}_refuse()"
        )
