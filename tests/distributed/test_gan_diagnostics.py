"""Measuring gradient norms of adversarial training does not change the weights, and gives the same values on all
engines.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.distributed.ranks import launch

pytestmark = pytest.mark.slow

BACKENDS = ("ddp", "fsdp2", "zero2", "zero3")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """For two ranks of each backend: whether the weights are equal with and without measuring, and the metrics."""
    file = tmp_path_factory.mktemp("gan") / "result.json"
    launch("gan_worker.py", [str(file), *BACKENDS], 2)
    return json.loads(file.read_text())


@pytest.mark.parametrize("backend", BACKENDS)
def test_grad_norms_do_not_change_weights(trained, backend):
    assert trained[backend]["equal"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_grad_norms_match_one_process(trained, backend):
    metrics, reference = trained[backend]["metrics"], trained["reference"]["metrics"]
    assert sum(key.split("/")[1].startswith("grad_") for key in metrics) > 20
    assert metrics == pytest.approx(reference, rel=1e-3, abs=1e-6)
