"""One temporary SLURM for all cluster tests, and a folder for each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import slurm
from tests.cluster.work import Work

os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves its workers beside other tests


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Slurm]:
    """Four nodes. Skips if SLURM is not installed."""
    reason = slurm.missing()
    if reason is not None:
        pytest.skip(reason)
    with slurm.running(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def work(cluster: slurm.Slurm, tmp_path: Path) -> Iterator[Work]:
    """An empty folder with a site file; jobs that are left are cancelled at the end."""
    work = Work(tmp_path, cluster)
    yield work
    work.clear()
