"""Errors and warnings of the report."""

from __future__ import annotations

from dataclasses import dataclass


class ReportError(ValueError):
    """A study that cannot be reported: names the folder or file, the reason and the remedy."""


@dataclass(frozen=True)
class Notice:
    """A warning shown above the tables."""

    name: str
    text: str
