"""Timestamps on the computing device: the host's clock for a CPU, CUDA events for a GPU, which runs asynchronously."""

from __future__ import annotations

import time

import torch

Timestamp = float | torch.cuda.Event


def timestamp(device: torch.device) -> Timestamp:
    """The current time; on a GPU the time at which it has finished the work queued so far."""
    if device.type != "cuda":
        return time.monotonic()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def elapsed_seconds(began: Timestamp, ended: Timestamp) -> float:
    """Seconds between two timestamps of one device. Waits until it has reached both."""
    if isinstance(began, float) or isinstance(ended, float):
        assert isinstance(began, float)
        assert isinstance(ended, float)
        return ended - began
    ended.synchronize()
    return began.elapsed_time(ended) / 1e3
