"""A throw-away Ray of several nodes on this machine: `ray start` in folders of its own, and exactly that stopped again.

By hand: `python -m tests.cluster.ray_cluster [NODES]` prints the address and stays until Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pfcluster.distributed.hosts import free_port

RAY = Path(sys.executable).with_name("ray")


@dataclass
class Ray:
    """Nodes under way."""

    address: str
    temporary: Path
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """Environment of commands that use the cluster."""
        return os.environ | {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token"}


@contextmanager
def running(nodes: int = 2, cpus: int = 1) -> Iterator[Ray]:
    """Start a head node and further nodes with `cpus` cores each."""
    port = free_port()
    temporary = Path(tempfile.mkdtemp(prefix="ray-"))
    cluster = Ray(f"127.0.0.1:{port}", temporary)
    options = ["--num-cpus", str(cpus), "--object-store-memory", str(80 * 2**20), "--block"]
    head = ["--head", "--port", str(port), "--include-dashboard", "false", "--temp-dir", str(temporary / "head")]
    try:
        cluster.nodes.append(_start([*head, *options], temporary / "head.log"))
        _wait(port)
        for number in range(1, nodes):
            other = ["--address", cluster.address]
            cluster.nodes.append(_start([*other, *options], temporary / f"node-{number}.log"))
        _joined(cluster.address, nodes)
        yield cluster
    finally:
        for node in reversed(cluster.nodes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGTERM)
        for node in cluster.nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
        shutil.rmtree(temporary, ignore_errors=True)


def _start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
    with open(log, "wb") as file:
        return subprocess.Popen(
            [RAY, "start", *arguments], stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def _wait(port: int) -> None:
    limit = time.monotonic() + 180
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < limit, "the head node did not begin to listen within 180 s"
            time.sleep(0.2)


def _joined(address: str, nodes: int) -> None:
    """Wait until all nodes are there."""
    code = (
        "import os\nos.environ['RAY_AUTH_MODE'] = 'token'\nimport ray, time, logging\n"
        f"ray.init('{address}', logging_level=logging.ERROR, log_to_driver=False)\n"
        f"while sum(node['Alive'] for node in ray.nodes()) < {nodes}: time.sleep(0.2)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


if __name__ == "__main__":
    with running(int(sys.argv[1]) if len(sys.argv) > 1 else 2) as cluster:
        print(f"RAY_ADDRESS={cluster.address}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
