"""Points in time on the device that computes: the host's clock for a CPU, events for a GPU, which works on its own."""

from __future__ import annotations

import time

import torch

Timestamp = float | torch.cuda.Event


def mark(device: torch.device) -> Timestamp:
    """Now, in the device's order of work."""
    if device.type != "cuda":
        return time.monotonic()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds(began: Timestamp, ended: Timestamp) -> float:
    """Seconds between two marks of one device that has passed both."""
    if isinstance(began, float) or isinstance(ended, float):
        assert isinstance(began, float)
        assert isinstance(ended, float)
        return ended - began
    return began.elapsed_time(ended) / 1e3
