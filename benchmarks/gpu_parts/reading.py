"""Steps on real data against steps on one batch that stays on the device, and how long they wait for the host.

Data: --shards, or shards of rendered faces with camera noise, built on the first call.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.measurements import Measurement, Slice, Unavailable
from benchmarks.gpu_parts.steps import MINIATURE_IMAGES, largest_batch, step_config, training_step
from pfcluster.config import RunConfig
from pfcluster.data.batch import Batch
from pfcluster.data.dataset import cache_train_split, open_dataset, sample_order
from pfcluster.data.prefetch import micro_batches
from pfcluster.data.types import RawBatch

IMAGES = 256
STEPS, WARMUP = 60, 12
FACES = 2048
MODES: dict[str, dict[str, Any]] = {
    "stream": {},
    "stream, host crops": {"augment_on": "host"},
    "stream, decoded on the device": {"decode_on": "device"},
    "host": {"cache_mode": "host"},
    "device": {"cache_mode": "device"},
}
"""Options of `data` by row."""


def reading_measurements() -> list[Measurement]:
    """Steps of MAE-B on one GPU, eager and compiled, in every mode."""
    measurements = []
    for compiled in (False, True):
        for name, options in MODES.items():
            needs = ("cv2",) if "augment_on" in options else ()
            measure = partial(_measure, reading=options, compiled=compiled)
            label = f"reading/{name}{', compiled' if compiled else ''}"
            measurements.append(Measurement(label, 60.0 if compiled else 35.0, measure, needs))
    return measurements


def _measure(here: Slice, *, reading: dict[str, Any], compiled: bool) -> dict[str, Any]:
    base = step_config(here, "mae", "b", compiled=compiled)
    shards = here.options.shards or _rendered_shards(here)
    workers = max(1, min(16, len(os.sched_getaffinity(0)) - 1))
    cache = str(here.options.output / "cache")
    data = replace(base.data, shards=str(shards), workers=workers, cache=cache, **reading)

    def measure(images: int) -> dict[str, Any]:
        return {"workers": workers, **_ratio(here, replace(base, data=data, batch_size=images))}

    return largest_batch(here, MINIATURE_IMAGES if here.options.miniature else IMAGES, measure)


def _ratio(here: Slice, config: RunConfig) -> dict[str, Any]:
    """Step times with one batch on the device, with the reader, and with that batch again."""
    steps, warmup = (2, 1) if here.options.miniature else (STEPS, WARMUP)
    dataset = cache_train_split(open_dataset(config.data, config.seed), config.data, here.world.device)
    order = sample_order(config.data, dataset, config.seed)
    train = training_step(config, "ddp", here.world)
    size, batches = config.batch_size, range(2 * (steps + warmup))

    def read(step: int) -> RawBatch:
        return dataset.train.batch(order.samples(step * size, size))

    prefetched = micro_batches(read, config, batches, here.world)
    kept = next(prefetched)[0]
    number = 0

    def timed(take: Callable[[], Batch]) -> tuple[float, float]:
        """Seconds per step, and share of them in which the host waits for its batch."""
        nonlocal number
        waited, began = 0.0, 0.0
        for turn in range(warmup + steps):
            if turn == warmup:
                here.wait()
                began, waited = time.perf_counter(), 0.0
            before = time.perf_counter()
            batch = take()
            waited += time.perf_counter() - before
            train(batch, number)
            number += 1
        here.wait()
        seconds = time.perf_counter() - began
        return seconds / steps, waited / seconds

    before, _ = timed(lambda: kept)
    real, waited = timed(lambda: next(prefetched)[0])
    after, _ = timed(lambda: kept)
    prefetched.close()  # type: ignore[attr-defined]
    synthetic = statistics.mean([before, after])
    return {
        "images_per_second": size / real,
        "synthetic_images_per_second": size / synthetic,
        "real_over_synthetic": real / synthetic,
        "host_wait": waited,
    }


def _rendered_shards(here: Slice) -> Path:
    """Shards of rendered faces, built unless an earlier call did. Raises Unavailable without the build's packages."""
    shards, photos = here.options.output / "shards", here.options.output / "photos"
    if (shards / "manifest.json").exists():
        return shards
    try:
        from benchmarks.data_variants import make_photos, make_shards

        shutil.rmtree(photos, ignore_errors=True)
        count, side = (64, 32) if here.options.miniature else (FACES, 224)
        make_shards(make_photos(photos, count, side), shards, side, val_share=0.1)
    except ImportError as error:
        raise Unavailable(f"needs --shards DIR, or what builds shards: {error}") from error
    return shards
