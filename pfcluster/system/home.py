"""The user's home folder, which a container may lack."""

from __future__ import annotations

from pathlib import Path


def home_folder() -> Path | None:
    """None if HOME is not set and the system does not know the user, as in a container with a user id of its own."""
    try:
        return Path.home()
    except RuntimeError:
        return None
