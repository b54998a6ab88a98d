"""Host names and free ports."""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress

PORTS = range(22000, 32768)
"""Below Linux's ephemeral ports, so that no outgoing connection takes a port between its choice and its use."""


def host_name() -> str:
    """SLURM's name of this node, else its host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def free_port() -> int:
    """A TCP port of this machine that is not in use. Raises OSError if there is none."""
    for port in random.SystemRandom().sample(PORTS, 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise OSError(f"no free port between {PORTS.start} and {PORTS.stop}")
