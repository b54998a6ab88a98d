"""With every engine a layer's learning rate is the scheduled rate times its layer decay."""

from __future__ import annotations

import json

import pytest

from tests.distributed.ranks import launch

pytestmark = pytest.mark.slow

RATE, DECAY = 1e-4, 0.5
LAYERS_ABOVE = {
    "head.weight": 0,
    "encoder.norm.weight": 0,
    "encoder.blocks.1.mlp.fc1.weight": 1,
    "encoder.blocks.0.norm1.bias": 2,
    "encoder.patch_embed.weight": 3,
    "encoder.cls_token": 3,
}


def test_every_engine_applies_layer_decay(tmp_path):
    launch("layer_decay_worker.py", [str(tmp_path / "moved.json")], 2)
    moved = json.loads((tmp_path / "moved.json").read_text())
    assert set(moved) == {"ddp", "fsdp2", "zero1", "zero2", "zero3"}
    for backend, layers in moved.items():
        for name, above in LAYERS_ABOVE.items():
            assert layers[name] == pytest.approx(RATE * DECAY**above, rel=0.02), (backend, name)
