"""Where things are kept that can be made again: `$PLAUDIT_CACHE`, else `plaudit` in the user's cache folder."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder; it need not exist yet."""
    own = os.environ.get("PLAUDIT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "plaudit"
