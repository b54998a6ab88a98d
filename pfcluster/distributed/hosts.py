"""What this machine is called among the others, and where they find it."""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress

PORTS = range(22000, 32768)
"""Below those that Linux gives to connections, so that none gets a port between its choice and its use."""


def host_name() -> str:
    """This node as its scheduler calls it, else the machine's name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def free_port() -> int:
    """A port of this machine on which nobody listens. Raises OSError where there is none."""
    for port in random.SystemRandom().sample(PORTS, 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise OSError(f"no free port between {PORTS.start} and {PORTS.stop}")
