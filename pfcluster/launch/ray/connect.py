"""Ray, started on this machine or joined at an address, for as long as a command needs it."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfcluster.config import ConfigError
from pfcluster.launch.code_snapshot import snapshot
from pfcluster.launch.redaction import VARIABLE

OBJECT_STORE = 200 * 2**20
"""Bytes; nothing but configs and endings goes through it."""
SECONDS = 10.0
"""That a head node has to answer."""


@dataclass(frozen=True)
class RayCluster:
    """What a Ray cluster has."""

    nodes: int
    cpus: int
    gpus: int
    local: bool

    def text(self) -> str:
        """In a few words."""
        where = "a local Ray" if self.local else "the Ray cluster"
        return f"{where}: {_count(self.nodes, 'node')}, {_count(self.cpus, 'core')}, {_count(self.gpus, 'GPU')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@contextmanager
def connected(address: str | None, folder: Path) -> Iterator[RayCluster]:
    """Join the cluster at an address, or start a Ray of this machine and end it afterwards. Workers run a copy of the
    code that is made in `folder`. Raises ConfigError where Ray is missing or nobody answers.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--executor ray: Ray is not installed; pip install 'pfcluster[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its progress tables; ours are shown
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default, and its warning's end
    if address is not None:
        _answers(address)
        if (Path.home() / ".ray/auth_token").is_file() or os.environ.get("RAY_AUTH_TOKEN_PATH"):
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # `ray start --head` asks for it, ray.init offers none
    import ray

    path = [str(snapshot(folder)), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"PYTHONPATH": os.pathsep.join(path)}
    variables |= {name: os.environ[name] for name in (VARIABLE, "DS_ACCELERATOR") if name in os.environ}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    quiet["runtime_env"] = {"env_vars": variables}
    temporary = None
    try:
        if address is not None:
            ray.init(address=address, **quiet)
        else:
            temporary = tempfile.mkdtemp(prefix="ray-")
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE,
                _temp_dir=temporary,
                **quiet,
            )
        alive = [node for node in ray.nodes() if node["Alive"]]
        have = ray.cluster_resources()
        yield RayCluster(len(alive), int(have.get("CPU", 0)), int(have.get("GPU", 0)), address is None)
    except ConnectionError as error:
        raise ConfigError(f"--address {address}: no Ray cluster answers there ({error})") from error
    finally:
        ray.shutdown()
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _answers(address: str) -> None:
    """Raises ConfigError where nobody listens: Ray itself would try for minutes."""
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise ConfigError(
            f"--address {address}: Ray's client does not carry training; run this command on a node of the cluster"
            " (`ray job submit`, `ray exec`), with --address auto"
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise ConfigError(
            f"--address {address}: write the head node's HOST:PORT, as `ray start --head` prints it, or auto"
        )
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"--address {address}: nobody answers there ({error}); is the head node up, and the port the one that"
            " `ray start --head` printed?"
        ) from error
