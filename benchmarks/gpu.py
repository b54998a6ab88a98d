"""Training throughput, MFU and peak memory on one GPU: MAE and PF-MAG of a preset, DDP and FSDP2, eager and compiled.

    python -m benchmarks.gpu [--preset vit-b] [--images 128] [--output benchmarks/results/gpu.md]

bf16 autocast, random images created on the device, one rank, no identity net. MFU: FLOPs per image
(pfcluster/profiling/flops.py) times images per second over --peak-tflops, the throughput of a large bf16 matrix product
on this card. `--device cpu --preset demo --precision fp32` runs without a GPU and leaves the memory column empty.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from datetime import date
from itertools import product
from pathlib import Path

import torch

from benchmarks.engines import objective
from benchmarks.steps import CLASSES, processor
from pfcluster.config import EngineConfig, RunConfig, presets
from pfcluster.data.batch import Batch, patch_order
from pfcluster.distributed.process_group import World, world
from pfcluster.profiling.flops import profile

ROLES = {"MAE": "mae", "PF-MAG": "pf-vit"}


def random_batch(config: RunConfig, images: int, here: World) -> Batch:
    """Random images, labels and patch orders on the device."""
    size = (images, 3, config.data.size, config.data.size)
    order = patch_order(config, slice(0, images), "mask", 0).to(here.device) if config.objective == "mae" else None
    labels = torch.randint(0, CLASSES, (images,), device=here.device)
    return Batch(torch.rand(size, device=here.device) * 2 - 1, labels, order)


def images_per_second(config: RunConfig, backend: str, images: int, steps: int, here: World) -> tuple[float, float]:
    """Median images per second over `steps` steps after warm-up, and peak bytes on the device (0 on a CPU)."""
    cuda = here.device.type == "cuda"
    step_objective, batch = objective(config, backend, here), random_batch(config, images, here)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for turn in range(steps + 3):
        started = time.perf_counter()
        step_objective.step([batch], turn)
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    return images / statistics.median(times[3:]), float(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="vit-b", choices=sorted(presets.PRESETS))
    parser.add_argument("--images", type=int, default=128, help="images per step")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--peak-tflops", type=float, default=790.0)
    parser.add_argument("--output", type=Path, default=None, help="Markdown file to write")
    options = parser.parse_args()
    columns = ("step", "engine", "", "images/s", "MFU %", "peak GiB")
    lines = ["| " + " | ".join(columns) + " |", "| --- | --- | --- " + "| ---: " * 3 + "|"]
    with world(options.device) as here:
        name = torch.cuda.get_device_name() if here.device.type == "cuda" else processor()
        for (label, role), backend, compiled in product(ROLES.items(), ("ddp", "fsdp2"), (False, True)):
            base = presets.recipe(options.preset)[role]
            engine = EngineConfig(device=options.device, precision=options.precision, compile=compiled)
            config = replace(base, engine=engine, pf_mag=replace(base.pf_mag, identity_net="tokens"))
            speed, peak = images_per_second(config, backend, options.images, options.steps, here)
            use = 100 * speed * profile(config, CLASSES).flops / (1e12 * options.peak_tflops)
            memory = f"{peak / 2**30:.1f}" if peak else ""
            kind = "compiled" if compiled else "eager"
            lines.append(f"| {label} | {backend} | {kind} | {speed:.0f} | {use:.1f} | {memory} |")
            print(lines[-1], flush=True)
    if options.output:
        head = (
            f"# One device\n\n`python -m benchmarks.gpu --preset {options.preset} --images {options.images}`,"
            f" {date.today()}, {name}, torch {torch.__version__}, {options.precision},"
            f" {options.images} images per step, MFU over {options.peak_tflops:g} TFLOP/s.\n\n"
        )
        options.output.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
