"""Where a database of the first schema begins. A new one is made by label/db/schema.py, as it is now, and needs no
step."""

revision = "0001"
down_revision = None
