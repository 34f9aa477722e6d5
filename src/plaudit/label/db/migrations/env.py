"""Alembic runs this file. The connection comes from `plaudit.label.db.database`, which holds the transaction."""

from alembic import context

from plaudit.label.db.schema import metadata


def run() -> None:
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=metadata,
        # SQLite cannot alter a constraint in place: Alembic copies the table instead.
        render_as_batch=True,
    )
    context.run_migrations()


if __name__ == "env_py":  # the name that Alembic loads it by
    run()
