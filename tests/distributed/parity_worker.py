"""One rank: `parity_worker.py RESULT CASES` compares each case with one process; rank 0 writes the differences.

CASES is JSON: [{"backend", "objective", "r1", "stabilised", "options"}, ...], options being those of EngineConfig.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from pfcluster.config import EngineConfig
from pfcluster.distributed.process_group import world
from pfcluster.training.parity import compare

if __name__ == "__main__":
    torch.set_num_threads(1)
    with world("cpu", 300) as here:
        differences = []
        for case in json.loads(sys.argv[2]):
            engine = EngineConfig(backend=case["backend"], device="cpu", **case["options"])
            difference = compare(
                case["backend"], case["objective"], here, engine=engine, r1=case["r1"], stabilised=case["stabilised"]
            )
            differences.append([difference.weights, difference.metrics])
        if here.is_main:
            Path(sys.argv[1]).write_text(json.dumps(differences))
