"""What the labelling service needs beside the core; importing this module needs none of it."""

from importlib.util import find_spec

NEEDED = (
    *("fastapi", "uvicorn", "sqlalchemy", "alembic", "argon2"),
    *("itsdangerous", "python_multipart", "markdown_it", "nh3", "pygments"),
)


def missing_packages() -> list[str]:
    """Names of those that are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]
