"""The tables of the labelling service, for SQLite and PostgreSQL.

Times are seconds since 1970 in UTC by the server's clock. `label` and `conflict` are append-only: triggers refuse
UPDATE and DELETE. What bounds the overlap is in the schema, not in code: of an item's slots no two live leases hold the
same one (`lease_slot`), slots are counted from 1 to the overlap, and `item.free` cannot fall below 0.

A new database is made from here. A change needs a migration in label/db/migrations/versions too, for the databases that
are there; a test holds the two against each other.
"""

from typing import Any

import sqlalchemy as sa

TASKS = ("rank", "write", "compare")
ROLES = ("admin", "annotator")
STATES = ("open", "done", "expired", "released")
PURPOSES = ("normal", "consistency", "gold")

metadata = sa.MetaData()
# SQLite numbers rows by itself in a column that is exactly INTEGER PRIMARY KEY.
_number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_json = sa.JSON(none_as_null=True)


def _partial(name: str, where: str, *columns: sa.ColumnElement[Any], unique: bool = True) -> None:
    """An index of the rows where something holds."""
    sa.Index(name, *columns, unique=unique, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def _one_of(column: str, values: tuple[str, ...]) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{column} IN ({', '.join(repr(value) for value in values)})", name=f"{column}_known")


project = sa.Table(
    "project",
    metadata,
    sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1", "one_project"), primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("guidelines", sa.Text, nullable=False),
    sa.Column("overlap", sa.Integer, sa.CheckConstraint("overlap >= 1", name="overlap_positive"), nullable=False),
    sa.Column("lease_minutes", sa.Float, nullable=False),
    sa.Column("consistency_rate", sa.Float, nullable=False),
    sa.Column("gold_rate", sa.Float, nullable=False),
    sa.Column("reasons", _json, nullable=False),  # no longer read: nothing ever showed it
    sa.Column("flags", _json, nullable=False),
    sa.Column("secret", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("url", sa.Text),
    sa.Column("plain_text", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("version", sa.Integer, nullable=False, server_default="1"),
    sa.Column("guidelines_version", sa.Integer, nullable=False, server_default="1"),
    sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("webhook", sa.Text),
    sa.Column("crowd_token", sa.String(64)),
    sa.Column("crowd_quota", sa.Integer),
    sa.Column("crowd_code", sa.Text),
    sa.Column("language", sa.String(16), nullable=False, server_default="browser"),
)
"""One row. `secret` signs the tokens of the login form; `url` is how browsers reached the server that was started last,
null before the first. `plain_text`: texts are shown as their characters until somebody asks for them formatted.
`version` counts the changes of the settings, `guidelines_version` those of the guidelines; `paused`: nobody is given an
item; `webhook`: who is told when a batch is done.
`crowd_token` is the hash of that of the link by which anybody may come in, null for none; `crowd_quota` is of each of
them, `crowd_code` what they are told at the end.
`language` is that of the annotators' pages, "browser" for each browser's own."""

person = sa.Table(
    "person",
    metadata,
    sa.Column("id", _number, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("role", sa.String(16), _one_of("role", ROLES), nullable=False),
    sa.Column("password_hash", sa.Text),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("quota", sa.Integer),
    sa.Column("crowd", sa.Boolean, nullable=False, server_default=sa.false()),
)
"""Somebody who is `paused` keeps what they hold and is given nothing more; `quota` is the most labels they give;
`crowd`: they came by the link for everybody."""

person_field = sa.Table(
    "person_field",
    metadata,
    sa.Column("person", sa.ForeignKey("person.id"), primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("quota", sa.Integer),
)
"""The kinds of prompts that somebody is given, each up to a quota of its own; who has no row here is given all."""

invite = sa.Table(
    "invite",
    metadata,
    sa.Column("token_hash", sa.String(64), primary_key=True),
    sa.Column("person", sa.ForeignKey("person.id"), nullable=False, index=True),
    sa.Column("role", sa.String(16), _one_of("role", ROLES), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
    sa.Column("used", sa.Float),
)

identity = sa.Table(
    "identity",
    metadata,
    sa.Column("issuer", sa.Text, primary_key=True),
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("person", sa.ForeignKey("person.id"), nullable=False, index=True),
    sa.Column("created", sa.Float, nullable=False),
)
"""Who of the people somebody is whom an OpenID Connect provider knows."""

session = sa.Table(
    "session",
    metadata,
    sa.Column("token_hash", sa.String(64), primary_key=True),
    sa.Column("person", sa.ForeignKey("person.id"), nullable=False, index=True),
    sa.Column("csrf", sa.String(64), nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
)

login_attempt = sa.Table(
    "login_attempt",
    metadata,
    sa.Column("id", _number, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False, index=True),
)
"""Tries to log in that did not succeed (yet); what the rate limit counts."""

item = sa.Table(
    "item",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False, unique=True),
    sa.Column("task", sa.String(16), _one_of("task", TASKS), nullable=False),
    sa.Column("prompt", _json, nullable=False),
    sa.Column("replies", _json, nullable=False),
    sa.Column("prompt_id", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("split", sa.String(16), nullable=False),
    sa.Column("gold", _json),
    sa.Column("priority", sa.Float, nullable=False),
    sa.Column("overlap", sa.Integer, sa.CheckConstraint("overlap >= 1", name="overlap_positive")),
    sa.Column("free", sa.Integer, sa.CheckConstraint("free >= 0", name="free_not_negative"), nullable=False),
    sa.Column("source_file", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("withdrawn", sa.Boolean, nullable=False, server_default=sa.false()),
    # No reference: PostgreSQL walks the index below in its order for a value, and not for "is null".
    sa.Column("assigned", sa.BigInteger, nullable=False, server_default="0"),
)
"""`assigned`: the one person whom the item is for, 0 for anybody. `free` is the number of slots that nobody holds or
has filled; 0 for gold items, which are outside the overlap, and for items that an admin has `withdrawn`: those are
served no more, and their labels do not count."""
WAITING = item.c.free > sa.literal_column("0")
"""In the very words of the index, by which databases see that it will do."""
_next = (item.c.priority.desc(), item.c.number, item.c.free)
_partial("item_waiting", "free > 0", item.c.assigned, *_next, unique=False)
_partial("item_waiting_of_file", "free > 0", item.c.source_file, unique=False)
_partial("item_waiting_of_kind", "free > 0", item.c.assigned, item.c.kind, *_next, unique=False)
_partial("item_gold", "gold IS NOT NULL", item.c.number, unique=False)
# Progress is counted from this alone, however long the texts are. The overlap comes first because nobody looks for it:
# SQLite would take an index that begins with the task for the next item's, and sort.
sa.Index("item_counted", *item.c["overlap", "task", "withdrawn"])

batch = sa.Table(
    "batch",
    metadata,
    sa.Column("id", _number, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("digest", sa.String(64), index=True),
    sa.Column("task", sa.String(16)),
    sa.Column("gold", sa.Boolean, nullable=False),
    sa.Column("items", sa.Integer, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("told", sa.Float),
)
"""Files whose items are all in: by the SHA-256 of their bytes (null for what is no single file), so that starting again
with the same file need not read it. `name` is the `source_file` of its items; `task` is what was asked for, if
anything was; `items` counts those that were there already, too; `told`: when the webhook
was told that they are done, or given up."""

lease = sa.Table(
    "lease",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("item", sa.ForeignKey("item.id"), nullable=False, index=True),
    sa.Column("person", sa.ForeignKey("person.id"), nullable=False),
    sa.Column("task", sa.String(16), nullable=False),
    sa.Column("slot", sa.Integer, sa.CheckConstraint("slot >= 1", name="slot_positive")),
    sa.Column("order", _json, nullable=False),
    sa.Column("served_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("state", sa.String(16), _one_of("state", STATES), nullable=False),
    sa.Column("purpose", sa.String(16), _one_of("purpose", PURPOSES), nullable=False),
    sa.Column("late", sa.Boolean, nullable=False),
    sa.Column("guidelines", sa.Integer),
    sa.Column("aside", sa.Boolean, nullable=False, server_default=sa.false()),
)
"""`slot` is null outside the overlap (consistency checks, gold items, what could not be judged); `late`: answered when
it no longer held; `guidelines`: the version that held when it was given out; `aside`: an admin had others asked
instead, and its labels do not count."""
LIVE = lease.c.state.in_(("open", "done"))
_LIVE = "state IN ('open', 'done')"
_partial("lease_slot", f"slot IS NOT NULL AND {_LIVE}", lease.c.item, lease.c.slot)
_partial("lease_once", f"purpose <> 'consistency' AND {_LIVE}", lease.c.item, lease.c.person)
_partial("lease_checked_once", f"purpose = 'consistency' AND {_LIVE}", lease.c.item, lease.c.person)
_partial("lease_one_open", "state = 'open'", lease.c.person, lease.c.task)
sa.Index("lease_person", lease.c.person, lease.c.item)
_partial("lease_expiry", "state = 'open'", lease.c.expires_at, unique=False)

label = sa.Table(
    "label",
    metadata,
    sa.Column("seq", _number, primary_key=True),
    sa.Column("client_id", sa.String(64), nullable=False, unique=True),
    sa.Column("lease", sa.ForeignKey("lease.id"), nullable=False, index=True),
    sa.Column("item", sa.ForeignKey("item.id"), nullable=False, index=True),
    sa.Column("person", sa.ForeignKey("person.id"), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("body_hash", sa.String(64), nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("order", _json, nullable=False),
    sa.Column("late", sa.Boolean, nullable=False),
    sa.Column("supersedes", sa.ForeignKey("label.seq"), unique=True),
    sa.Column("guidelines", sa.Integer),
    sa.Column("active_seconds", sa.Float),
    sqlite_autoincrement=True,
)
"""The ledger. `body` is canonical JSON in the item's order; `order[p]` is the reply that was shown at position p;
`guidelines` is the version that held; `active_seconds`: while the page was seen and used, by the browser's word."""
sa.Index("label_person", label.c.person, label.c.seq)
_partial("label_first", "supersedes IS NULL", label.c.lease)

conflict = sa.Table(
    "conflict",
    metadata,
    sa.Column("id", _number, primary_key=True),
    sa.Column("client_id", sa.String(64), nullable=False, index=True),
    sa.Column("person", sa.ForeignKey("person.id"), nullable=False),
    sa.Column("lease", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)
"""A second body for a client id that the ledger has already."""


picture = sa.Table(
    "picture",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("type", sa.String(16), nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)
"""Pictures of guidelines, by the hash of their bytes."""

admin_log = sa.Table(
    "admin_log",
    metadata,
    sa.Column("id", _number, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("person", sa.ForeignKey("person.id")),
    sa.Column("what", sa.String(32), nullable=False),
    sa.Column("detail", _json, nullable=False),
)
"""What admins did, append-only; `person` is null for the command line. `detail` of `settings` has each changed field as
[before, after]: the texts of earlier guidelines are there."""


def _append_only(table: sa.Table, connection: sa.Connection, **_: Any) -> None:
    """Triggers that refuse to change or remove a row."""
    refusal = f"{table} is append-only"
    if connection.dialect.name == "sqlite":
        refuse = f"BEGIN SELECT RAISE(ABORT, '{refusal}'); END"
        # INSERT OR REPLACE removes the old row without a word to the trigger on DELETE.
        key = "seq" if table is label else "id"
        same = f"{key} = NEW.{key}" + (" OR client_id = NEW.client_id" if table is label else "")
        there = f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {same}) "
        triggers = [("UPDATE", "update", ""), ("DELETE", "delete", ""), ("INSERT", "replace", there)]
        for verb, name, when in triggers:
            trigger = f"CREATE TRIGGER {table}_no_{name} BEFORE {verb} ON {table} {when}{refuse}"
            connection.exec_driver_sql(trigger)
        return
    body = f"LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '{refusal}'; END $$"
    connection.exec_driver_sql(f"CREATE FUNCTION {table}_refuse() RETURNS trigger {body}")
    for verb, each in (("UPDATE", "ROW"), ("DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
        trigger = f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table}"
        connection.exec_driver_sql(f"{trigger} FOR EACH {each} EXECUTE FUNCTION {table}_refuse()")


for _ledger in (label, conflict, admin_log):
    sa.event.listen(_ledger, "after_create", _append_only)
