"""Standard streams that print every character."""

from __future__ import annotations

import io
import sys


def accept_all_characters() -> None:
    """Print characters that the encoding of the terminal lacks as question marks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
