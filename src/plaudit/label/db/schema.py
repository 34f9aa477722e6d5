"""The tables of the labelling service, for SQLite and PostgreSQL.

Times are seconds since 1970 in UTC by the server's clock. `label` and `conflict` are append-only: triggers, which the
migrations make, refuse UPDATE and DELETE. What bounds the overlap is in the schema, not in code: of an item's slots no
two live leases hold the same one (`lease_slot`), slots are counted from 1 to the overlap, and `item.free` cannot fall
below 0.

A change here needs a migration in label/migrations/versions; a test holds the two against each other.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

TASKS = ("rank", "write", "compare")
ROLES = ("admin", "annotator")
STATES = ("open", "done", "expired", "released")
PURPOSES = ("normal", "consistency", "gold")

metadata = MetaData()
# SQLite numbers rows by itself in a column that is exactly INTEGER PRIMARY KEY.
_number = BigInteger().with_variant(Integer, "sqlite")
_json = JSON(none_as_null=True)


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(value) for value in values)})", name=f"{column}_known")


project = Table(
    "project",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1", name="one_project"), primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("guidelines", Text, nullable=False),
    Column("overlap", Integer, CheckConstraint("overlap >= 1", name="overlap_positive"), nullable=False),
    Column("lease_minutes", Float, nullable=False),
    Column("consistency_rate", Float, nullable=False),
    Column("gold_rate", Float, nullable=False),
    Column("reasons", _json, nullable=False),  # no longer read: nothing ever showed it
    Column("flags", _json, nullable=False),
    Column("secret", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("url", Text),
)
"""One row. `secret` signs the tokens of the login form; `url` is how browsers reached the server that was started last,
null before the first."""

person = Table(
    "person",
    metadata,
    Column("id", _number, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("role", String(16), _one_of("role", ROLES), nullable=False),
    Column("password_hash", Text),
    Column("active", Boolean, nullable=False),
    Column("created", Float, nullable=False),
)

invite = Table(
    "invite",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("person", ForeignKey("person.id"), nullable=False, index=True),
    Column("role", String(16), _one_of("role", ROLES), nullable=False),
    Column("name", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("used", Float),
)

session = Table(
    "session",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("person", ForeignKey("person.id"), nullable=False, index=True),
    Column("csrf", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
)

login_attempt = Table(
    "login_attempt",
    metadata,
    Column("id", _number, primary_key=True),
    Column("name", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("at", Float, nullable=False, index=True),
)
"""Tries to log in that did not succeed (yet); what the rate limit counts."""

item = Table(
    "item",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("number", BigInteger, nullable=False, unique=True),
    Column("task", String(16), _one_of("task", TASKS), nullable=False),
    Column("prompt", _json, nullable=False),
    Column("replies", _json, nullable=False),
    Column("prompt_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("split", String(16), nullable=False),
    Column("gold", _json),
    Column("priority", Float, nullable=False),
    Column("overlap", Integer, CheckConstraint("overlap >= 1", name="overlap_positive")),
    Column("free", Integer, CheckConstraint("free >= 0", name="free_not_negative"), nullable=False),
    Column("source_file", Text, nullable=False),
    Column("created", Float, nullable=False),
)
"""`free` is the number of slots that nobody holds or has filled; 0 for gold items, which are outside the overlap."""
Index(
    "item_waiting",
    item.c.priority.desc(),
    item.c.number,
    sqlite_where=text("free > 0"),
    postgresql_where=text("free > 0"),
)
Index("item_gold", item.c.number, sqlite_where=text("gold IS NOT NULL"), postgresql_where=text("gold IS NOT NULL"))

lease = Table(
    "lease",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("item", ForeignKey("item.id"), nullable=False, index=True),
    Column("person", ForeignKey("person.id"), nullable=False),
    Column("task", String(16), nullable=False),
    Column("slot", Integer, CheckConstraint("slot >= 1", name="slot_positive")),
    Column("order", _json, nullable=False),
    Column("served_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("state", String(16), _one_of("state", STATES), nullable=False),
    Column("purpose", String(16), _one_of("purpose", PURPOSES), nullable=False),
    Column("late", Boolean, nullable=False),
)
"""`slot` is null outside the overlap (consistency checks and gold items); `late`: answered when it no longer held."""
_LIVE = "state IN ('open', 'done')"


def _unique_where(name: str, columns: list[Column], where: str) -> None:  # type: ignore[type-arg]
    Index(name, *columns, unique=True, sqlite_where=text(where), postgresql_where=text(where))


_unique_where("lease_slot", [lease.c.item, lease.c.slot], f"slot IS NOT NULL AND {_LIVE}")
_unique_where("lease_once", [lease.c.item, lease.c.person], f"purpose <> 'consistency' AND {_LIVE}")
_unique_where("lease_checked_once", [lease.c.item, lease.c.person], f"purpose = 'consistency' AND {_LIVE}")
_unique_where("lease_one_open", [lease.c.person, lease.c.task], "state = 'open'")
Index("lease_person", lease.c.person, lease.c.item)
Index("lease_expiry", lease.c.expires_at, sqlite_where=text("state = 'open'"), postgresql_where=text("state = 'open'"))

label = Table(
    "label",
    metadata,
    Column("seq", _number, primary_key=True),
    Column("client_id", String(64), nullable=False, unique=True),
    Column("lease", ForeignKey("lease.id"), nullable=False, index=True),
    Column("item", ForeignKey("item.id"), nullable=False, index=True),
    Column("person", ForeignKey("person.id"), nullable=False),
    Column("body", Text, nullable=False),
    Column("body_hash", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("order", _json, nullable=False),
    Column("late", Boolean, nullable=False),
    Column("supersedes", ForeignKey("label.seq"), unique=True),
    sqlite_autoincrement=True,
)
"""The ledger. `body` is canonical JSON in the item's order; `order[p]` is the reply that was shown at position p."""
Index("label_person", label.c.person, label.c.seq)
_unique_where("label_first", [label.c.lease], "supersedes IS NULL")

conflict = Table(
    "conflict",
    metadata,
    Column("id", _number, primary_key=True),
    Column("client_id", String(64), nullable=False, index=True),
    Column("person", ForeignKey("person.id"), nullable=False),
    Column("lease", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("created", Float, nullable=False),
)
"""A second body for a client id that the ledger has already."""
