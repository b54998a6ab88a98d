"""One rank: `parity_worker.py RESULT CASES` compares each case with one process; rank 0 writes the differences.

CASES is JSON: [{"backend", "objective", "r1", "stabilised", "options"}, ...], options being those of EngineConfig.

The engines compute R1's gradient in a thread of its own, as on GPUs: autograd then orders the nodes of the second
derivative after those of the forward pass, and before them where all is done in one thread, as the reference does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from pfcluster.config import EngineConfig, RunConfig
from pfcluster.distributed.process_group import World, world
from pfcluster.training import parity


@contextmanager
def gradients_in_a_thread() -> Iterator[None]:
    """torch.autograd.grad runs in a new thread each time."""
    gradient = torch.autograd.grad

    def in_a_thread(*arguments: Any, **named: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(gradient, *arguments, **named).result()

    with mock.patch.object(torch.autograd, "grad", in_a_thread):
        yield


def train_as_on_gpus(config: RunConfig, backend: str, group: World) -> parity.ParityRun:
    """`parity.train`; the reference, and plain torch on one rank, in one thread."""
    with nullcontext() if (backend, group.size) == ("ddp", 1) else gradients_in_a_thread():
        return train(config, backend, group)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train = parity.train
    parity.train = train_as_on_gpus
    with world("cpu", 300) as group:
        differences = []
        for case in json.loads(sys.argv[2]):
            engine = EngineConfig(backend=case["backend"], device="cpu", **case["options"])
            difference = parity.compare(
                case["backend"], case["objective"], group, engine=engine, r1=case["r1"], stabilised=case["stabilised"]
            )
            differences.append([difference.weights, difference.metrics])
        if group.is_main:
            Path(sys.argv[1]).write_text(json.dumps(differences))
