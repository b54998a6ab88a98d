"""Stop requests: SIGINT (Ctrl-C), SIGTERM and SIGUSR2 stop a run after the current step, with a checkpoint. A second
Ctrl-C stops at once. Schedulers send SIGTERM or SIGUSR2 (NCCL uses SIGUSR1 itself).
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """A flag that SIGINT, SIGTERM and SIGUSR2 set while it is entered. Outside the main thread, where Python allows no
    signal handlers, only `ask` sets it.
    """

    def __init__(self) -> None:
        self.requested = False
        self.signal: int | None = None
        """The first signal."""
        self._previous: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.ask(number)

    def ask(self, number: int) -> None:
        """Set the flag as this signal would."""
        self.requested = True
        self.signal = self.signal or number

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
