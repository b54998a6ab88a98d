"""The error of a failed run."""

from __future__ import annotations


class LaunchError(RuntimeError):
    """A run failed: the message holds its error, `code` is the exit code of the launcher."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
