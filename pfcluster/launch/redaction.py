"""Secrets of the environment never reach a log: whatever Python prints has their values replaced."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

VARIABLE = "PFCLUSTER_SECRETS"
"""Names of the variables that hold secrets, with commas between them; the launcher sets it for jobs."""
SHORTEST = 4
"""Shorter values would blacken ordinary words."""


def named(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Names of the variables that hold secrets here."""
    return [name for name in environment.get(VARIABLE, "").split(",") if name]


def conceal(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text with the secrets' values replaced by their names."""
    for name in named(environment):
        value = environment.get(name, "")
        if len(value) >= SHORTEST:
            text = text.replace(value, f"<{name}>")
    return text


class Concealing:
    """A text stream that conceals what is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(conceal(text))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def conceal_output() -> None:
    """Conceal what this process prints from here on; without secrets nothing changes."""
    if named() and not isinstance(sys.stdout, Concealing):
        sys.stdout, sys.stderr = Concealing(sys.stdout), Concealing(sys.stderr)
