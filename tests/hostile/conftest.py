"""A small shard folder to damage, and the number of examples per property test.

PFCLUSTER_EXAMPLES=10 runs ten times as many examples.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from pfcluster.data.build.pipeline import build
from tests.photos import make_folder, options

TIMES = int(os.environ.get("PFCLUSTER_EXAMPLES", "1"))

settings.register_profile(
    "hostile",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=50 * TIMES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("hostile")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 photos of 3 classes in 2 training shards and 1 validation shard. Tests modify copies only."""
    root = tmp_path_factory.mktemp("hostile")
    output = root / "shards"
    build(options(make_folder(root / "raw", per_class=4), output, val_share=0.25, samples_per_shard=6))
    return output
