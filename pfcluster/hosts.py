"""What this machine is called among the others."""

from __future__ import annotations

import os
import socket


def host_name() -> str:
    """This node as its scheduler calls it, else the machine's name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
