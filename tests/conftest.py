"""`-n 2` runs two files of tests at once, those that take longest first. Without `-n` nothing here matters."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

import pytest

ORDER = ("slurm", "distributed", "ray", "smoke", "unit/test_sweep_driver.py", "hostile", "unit")
"""SLURM's tests mostly wait, so they begin first, and the others run beside them."""

WORKER = "PYTEST_XDIST_WORKER" in os.environ
if WORKER:  # before torch is imported: threads of two tests would only wait for each other
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def unit_of(test: str) -> str:
    """What a test shares a process with: its file, for what the file's fixtures cost, or all tests of its cluster, of
    which a machine has one: `slurm` or `ray`.
    """
    path = PurePosixPath(test.split("::")[0]).relative_to("tests")
    if path.parts[0] != "cluster":
        return str(path)
    return "ray" if path.name.startswith("test_ray_") else "slurm"


def place(test: str) -> int:
    unit = unit_of(test)
    return next((number for number, start in enumerate(ORDER) if unit.startswith(start)), len(ORDER))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if WORKER:
        items.sort(key=lambda item: place(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    # not `--dist loadgroup`, which forgets its groups under pytest 9.2 (pytest-xdist issue 1386)
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    config.option.loadscopereorder = False
    return Scheduling(config, log)
