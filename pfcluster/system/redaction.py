"""Secrets in environment variables, and credentials in URLs, are redacted from everything that Python prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from pfcluster.system.credentials import hide_credentials

VARIABLE = "PFCLUSTER_SECRETS"
"""Names of the variables that hold secrets, separated by commas; the launcher sets it for jobs."""
SHORTEST = 4
"""Shorter values are not redacted, as they occur in ordinary words."""


def secret_names(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Names of the variables that hold secrets."""
    return [name for name in environment.get(VARIABLE, "").split(",") if name]


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text with the values of secrets replaced by `<NAME>`, and without the credentials of URLs."""
    for name in secret_names(environment):
        value = environment.get(name, "")
        if len(value) >= SHORTEST:
            text = text.replace(value, f"<{name}>")
    return hide_credentials(text)


class RedactedStream:
    """A text stream that redacts what is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "_stream":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._stream, name)


def redact_output() -> None:
    """Redact stdout and stderr of this process, as far as they are open, from now on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, RedactedStream):
            setattr(sys, name, RedactedStream(stream))
