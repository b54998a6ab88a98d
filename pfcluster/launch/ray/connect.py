"""A connection to Ray, started on this machine or joined at an address, for the duration of a command."""

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
from pfcluster.system.extras import install_command
from pfcluster.system.home import home_folder
from pfcluster.system.redaction import VARIABLE

OBJECT_STORE = 200 * 2**20
"""Bytes of Ray's object store; only configs and exit statuses pass through it."""
CONNECT_SECONDS = 10.0
"""Timeout of a connection to the head node."""


@dataclass(frozen=True)
class RayCluster:
    """Resources of a Ray cluster."""

    nodes: int
    cpus: int
    gpus_of_nodes: tuple[int, ...]
    local: bool

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(self.gpus_of_nodes)

    def text(self) -> str:
        """The resources in one line."""
        where = "a local Ray" if self.local else "the Ray cluster"
        return f"{where}: {_count(self.nodes, 'node')}, {_count(self.cpus, 'core')}, {_count(self.gpus, 'GPU')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@contextmanager
def connected(address: str | None, folder: Path) -> Iterator[RayCluster]:
    """Join the cluster at an address, or start Ray on this machine and stop it afterwards. Workers run a copy of the
    code in `folder`. Raises ConfigError if Ray is not installed or no cluster answers.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(f"--executor ray: Ray is not installed: {install_command('ray')}")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # no progress tables of Ray
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the future default; avoids a warning
    if address is not None:
        _check_address(address)
        home = home_folder()
        if (home is not None and (home / ".ray/auth_token").is_file()) or os.environ.get("RAY_AUTH_TOKEN_PATH"):
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # `ray start --head` requires it, ray.init does not set it
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
        gpus = tuple(int(node["Resources"].get("GPU", 0)) for node in alive)
        yield RayCluster(len(alive), int(ray.cluster_resources().get("CPU", 0)), gpus, address is None)
    except ConnectionError as error:
        raise ConfigError(f"--address {address}: no Ray cluster answers there ({error})") from error
    finally:
        ray.shutdown()
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _check_address(address: str) -> None:
    """Raises ConfigError if nothing listens at the address; Ray itself would retry for minutes."""
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise ConfigError(
            f"--address {address}: Ray's client does not support training; run this command on a node of the cluster"
            " (`ray job submit`, `ray exec`), with --address auto"
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise ConfigError(
            f"--address {address}: write the head node's HOST:PORT, as `ray start --head` prints it, or auto"
        )
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"--address {address}: no connection ({error}); check that the head node runs, and that the port is the"
            " one that `ray start --head` printed"
        ) from error
