"""One rank: `run_worker.py FOLDER...` joins a process group, then runs requested_config.json of each folder in it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as torch_dist

from pfcluster.config.io import load
from pfcluster.distributed.process_group import world
from pfcluster.runs.folder import REQUESTED_CONFIG_FILE
from pfcluster.training import run

if __name__ == "__main__":
    torch.set_num_threads(1)
    with world("cpu", 300) as group:
        assert (group.size > 1) == torch_dist.is_initialized()
        for name in sys.argv[1:]:
            assert run(load(Path(name) / REQUESTED_CONFIG_FILE), Path(name))["status"] == "finished"
