"""One rank: `game_worker.py RESULT BACKEND...` trains PF-MAG on each, looked at never and at every step; rank 0 writes
whether the weights are equal, and what was seen.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from pfcluster.config import EngineConfig
from pfcluster.distributed.process_group import world
from pfcluster.training.parity import alone, tiny_config, train

if __name__ == "__main__":
    torch.set_num_threads(1)
    with world("cpu", 300) as here:
        result = {}
        for backend in sys.argv[2:]:
            base = tiny_config("pf_mag", EngineConfig(backend=backend, device="cpu"))  # type: ignore[arg-type]
            weights, seen = [], {}
            for every in (0, 1):
                found, log = train(replace(base, pf_mag=replace(base.pf_mag, grad_norms_every=every)), backend, here)
                weights.append(found)
                seen = {name: value for name, value in log.items() if name.split("/")[1] not in ("loss", "grad_norm")}
            result[backend] = {"equal": torch.equal(*weights), "seen": seen}
        result["alone"] = {
            "seen": train(replace(base, pf_mag=replace(base.pf_mag, grad_norms_every=1)), "ddp", alone(here))[1]
        }
        if here.is_main:
            Path(sys.argv[1]).write_text(json.dumps(result))
