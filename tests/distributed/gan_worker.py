"""One rank: `gan_worker.py RESULT BACKEND...` trains PF-MAG on each backend with and without measuring gradient norms;
rank 0 writes whether the weights are equal, and the continuous metrics.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from pfcluster.config import EngineConfig, RunConfig
from pfcluster.distributed.process_group import world
from pfcluster.training.parity import ParityRun, single_process, tiny_config, train


def with_grad_norms(config: RunConfig, every: int) -> RunConfig:
    return replace(config, pf_mag=replace(config.pf_mag, grad_norms_every=every))


def continuous(run: ParityRun) -> dict[str, float]:
    """The metrics that do not count images."""
    return {key: value for key, value in run.metrics.items() if key.split("/")[1] not in run.discrete}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with world("cpu", 300) as group:
        result = {}
        for backend in sys.argv[2:]:
            config = tiny_config("pf_mag", EngineConfig(backend=backend, device="cpu"))  # type: ignore[arg-type]
            without, measured = (train(with_grad_norms(config, every), backend, group) for every in (0, 1))
            equal = torch.equal(without.weights, measured.weights)
            result[backend] = {"equal": equal, "metrics": continuous(measured)}
        reference = train(with_grad_norms(config, 1), "ddp", single_process(group))
        result["reference"] = {"metrics": continuous(reference)}
        if group.is_main:
            Path(sys.argv[1]).write_text(json.dumps(result))
