"""Looking at a GAN's gradients changes no bit of what is trained, on any layout, and shows the same on all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.distributed.ranks import launch

BACKENDS = ("ddp", "fsdp2", "zero2", "zero3")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Whether two ranks of each backend train the same weights when they are looked at, and what was seen."""
    file = tmp_path_factory.mktemp("game") / "result.json"
    launch("game_worker.py", [str(file), *BACKENDS], 2)
    return json.loads(file.read_text())


@pytest.mark.parametrize("backend", BACKENDS)
def test_looking_changes_no_weight(trained, backend):
    assert trained[backend]["equal"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_sees_what_one_process_sees(trained, backend):
    found = trained[backend]["seen"]
    wanted = {name: trained["alone"]["seen"][name] for name in found}
    assert sum(name.split("/")[1].startswith("grad_") for name in wanted) > 20
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-6)
