"""A port for a process group to meet at: `python -m pfcluster.launch.ports` prints one. Standard library only."""

from __future__ import annotations

import random
import socket
from pathlib import Path

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOW = 20000


def free_port() -> int:
    """A port that nobody listens at, below those that the kernel gives to outgoing connections: none of these can take
    it before it is used. Raises OSError where there is none.
    """
    try:
        high = int(RANGE.read_text().split()[0])
    except (OSError, ValueError):
        high = 32768
    candidates = range(LOW, high) if high > LOW + 1000 else range(LOW, 60000)
    for port in random.SystemRandom().sample(candidates, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"100 ports between {candidates[0]} and {candidates[-1]} are taken")


if __name__ == "__main__":
    print(free_port())
