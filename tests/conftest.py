"""Markers by folder, and the scheduling of `-n`: files run in parallel, longest first."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

import pytest

ORDER = (
    "slurm",
    "ray",
    "distributed",
    "smoke/test_launch.py",
    "smoke/test_reproduce.py",
    "smoke",
    "unit/test_sweep_driver.py",
    "hostile",
    "unit",
)
"""Scheduling order under `-n`. Tests of clusters wait much, so they start first and the others run beside them."""

XDIST_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if XDIST_WORKER:  # before torch is imported: one thread a worker, so that two tests do not compete for the cores
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def scope_of(node_id: str) -> str:
    """Scheduling scope of a test: its file (module fixtures are built once); its cluster, of which a machine runs one
    at a time, "slurm" or "ray"; or "distributed", whose processes are forked from one server.
    """
    path = PurePosixPath(node_id.split("::")[0]).relative_to("tests")
    if path.parts[0] == "distributed":
        return "distributed"
    if path.parts[0] != "cluster":
        return str(path)
    return "ray" if path.name.startswith("test_ray_") else "slurm"


def priority(node_id: str) -> int:
    scope = scope_of(node_id)
    return next((number for number, start in enumerate(ORDER) if scope.startswith(start)), len(ORDER))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests/cluster as `cluster` and tests/hostile as `slow`; under xdist, sort by priority."""
    for item in items:
        if item.nodeid.startswith("tests/cluster/"):
            item.add_marker(pytest.mark.cluster)
        if item.nodeid.startswith("tests/hostile/"):
            item.add_marker(pytest.mark.slow)
    if XDIST_WORKER:
        items.sort(key=lambda item: priority(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    # not `--dist loadgroup`, which loses its groups under pytest 9.2 (pytest-xdist issue 1386)
    from xdist.scheduler import LoadScopeScheduling

    class FileScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    config.option.loadscopereorder = False
    return FileScheduling(config, log)
