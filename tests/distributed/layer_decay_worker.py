"""One rank: `layer_decay_worker.py RESULT` takes one step with every engine; rank 0 writes how far each layer moved.

Adam's first update has the size of the learning rate.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from pfcluster.config import EngineConfig, OptimConfig
from pfcluster.distributed.process_group import world
from pfcluster.engine.factory import build_engine
from pfcluster.models.vit import Classifier, ViT

BACKENDS = ("ddp", "fsdp2", "zero1", "zero2", "zero3")

if __name__ == "__main__":
    torch.set_num_threads(1)
    moved = {}
    with world("cpu", 300) as group:
        for backend in BACKENDS:
            torch.manual_seed(0)
            model = Classifier(ViT(size=16, patch=8, width=8, depth=2, heads=2), 8, 3)
            before = {name: value.detach().clone() for name, value in model.named_parameters()}
            optim = OptimConfig(algorithm="adam", weight_decay=0.0, layer_decay=0.5)
            engine = build_engine(backend, model, optim, EngineConfig(backend=backend, device="cpu"), group)
            engine.set_lr(1e-4)  # as the schedule does before each step
            engine.backward(engine(torch.randn(4, 3, 16, 16)).square().mean())
            engine.step()
            after = engine.model_state()
            moved[backend] = {name: float((after[name] - value).abs().max()) for name, value in before.items()}
        if group.is_main:
            Path(sys.argv[1]).write_text(json.dumps(moved))
