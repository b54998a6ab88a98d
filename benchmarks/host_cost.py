"""Host work of one rank for a step of the paper's MAE (batch size 4,096, 196 patches): drawing augmentations and masks.

    python -m benchmarks.host_cost           a table
    python -m benchmarks.host_cost --json    a line {"ranks": N, "ms": T} for each number of ranks

Needs no other processes: a rank's draws do not depend on the others. Median of repeated steps, one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from pfcluster.config import presets
from pfcluster.data.batch import draw_augment_params, patch_order
from pfcluster.distributed.process_group import World

RANKS = (1, 8, 32, 128, 512)
STEPS = 9


def host_milliseconds(ranks: int) -> float:
    """Median time of the draws of one rank of `ranks` for a step."""
    config = presets.recipe("vit-b")["mae"]
    world = World(ranks // 2, ranks, torch.device("cpu"))
    samples = world.slice_of(config.batch_size)
    seconds = []
    for step in range(STEPS):
        began = time.perf_counter()
        draw_augment_params(config, step, world)
        patch_order(config, samples, "mask", step)
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


def main() -> None:
    """Print the table or the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a JSON object for each number of ranks")
    as_json = parser.parse_args().json
    torch.set_num_threads(1)
    for ranks in RANKS:
        cost = host_milliseconds(ranks)
        print(json.dumps({"ranks": ranks, "ms": round(cost, 3)}) if as_json else f"{ranks:4d} ranks  {cost:8.3f} ms")


if __name__ == "__main__":
    main()
