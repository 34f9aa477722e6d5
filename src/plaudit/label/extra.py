"""What the labelling service needs beside the core; importing this module needs none of it."""

from importlib.util import find_spec

NEEDED = (
    *("fastapi", "uvicorn", "sqlalchemy", "alembic", "argon2"),
    *("itsdangerous", "python_multipart", "markdown_it", "nh3", "pygments"),
)


SIGN_IN = ("authlib",)
"""What sign-in by a provider needs: the extra `oidc`."""


def missing_packages(needed: tuple[str, ...] = NEEDED) -> list[str]:
    """Names of those that are not installed."""
    return [name for name in needed if find_spec(name) is None]
