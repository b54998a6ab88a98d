"""Errors of a build."""

from __future__ import annotations


class BuildError(ValueError):
    """A build cannot start or continue: names the reason and the remedy."""
