"""One rank: `parity_worker.py RESULT CASES` compares each case with one process; rank 0 writes what it found.

CASES is JSON: [{"backend", "objective", "r1", "options"}, ...], options being those of EngineConfig.
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
        found = []
        for case in json.loads(sys.argv[2]):
            options = EngineConfig(backend=case["backend"], device="cpu", **case["options"])
            asked = {"r1": case["r1"], "stabilised": case["stabilised"]}
            difference = compare(case["backend"], case["objective"], here, engine=options, **asked)
            found.append([difference.weights, difference.metrics])
        if here.is_main:
            Path(sys.argv[1]).write_text(json.dumps(found))
