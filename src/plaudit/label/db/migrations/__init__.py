"""Alembic's migrations: every schema a database of ours ever had, and the steps between them."""
