"""Training steps on one device: MAE and PF-MAG in three sizes, by engine, eager and compiled, beside the plain step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_parts.measurements import GpuDayOptions, Measurement, Slice
from benchmarks.gpu_parts.report import PRODUCT
from pfcluster.config import DataConfig, EngineConfig, RunConfig, presets
from pfcluster.data.batch import Batch, patch_order
from pfcluster.data.labels import CANONICAL
from pfcluster.distributed.process_group import World
from pfcluster.engine.peak import device_name, peak_tflops
from pfcluster.models import factory
from pfcluster.profiling.training_cost import step_flops
from pfcluster.training.factory import build_engines, build_objective
from pfcluster.training.parity import MODEL
from pfcluster.training.step_checks import StepChecks

SIZES = ("b", "s", "t")
ROLES = {"mae": "mae", "pf-mag": "pf-vit"}
IMAGES = {"mae": 512, "pf-mag": 128}
"""Images per step; halved until they fit into the device's memory."""
BACKENDS = ("ddp", "fsdp2", "zero2")
MINIATURE_IMAGES = 4
ESTIMATES = {("mae", False): 15.0, ("mae", True): 60.0, ("pf-mag", False): 25.0, ("pf-mag", True): 120.0}
"""Seconds, by step and whether it is compiled."""


@dataclass(frozen=True)
class Timing:
    """How long steps are measured."""

    warmup: int
    rounds: int
    steps: int
    """Steps of a round. The host waits for the device only after a round."""


FULL, MINIATURE = Timing(5, 3, 10), Timing(1, 1, 2)


def sizes(options: GpuDayOptions) -> tuple[str, ...]:
    """ViT-B, S and T; the miniature has one size."""
    return SIZES[:1] if options.miniature else SIZES


def step_measurements(options: GpuDayOptions, kind: str, *, compiled: bool) -> list[Measurement]:
    """All sizes and engines of "mae" or "pf-mag"; the eager MAE with the plain step in the same process."""
    measurements = []
    for size in sizes(options):
        if kind == "mae" and not compiled:
            for fused in (False, True):
                name = f"mae-{size}/plain{', fused attention' if fused else ''}"
                measurements.append(Measurement(name, 15.0, partial(_plain, size=size, fused=fused), needs=("timm",)))
        for backend in BACKENDS:
            needs = ("deepspeed",) if backend == "zero2" else ()
            measure = partial(_ours, kind=kind, size=size, backend=backend, compiled=compiled)
            name = f"{kind}-{size}/{backend}, {'compiled' if compiled else 'eager'}"
            measurements.append(Measurement(name, ESTIMATES[kind, compiled], measure, needs))
    if kind == "pf-mag" and not compiled:
        measure = partial(_ours, kind=kind, size="b", backend="ddp", compiled=False, r1_every=8)
        measurements.append(Measurement("pf-mag-b/ddp, eager, R1 every 8 steps", 30.0, measure))
    return measurements


def peak_measurement() -> Measurement:
    """The throughput of a large bf16 matrix product, against which MFU is given besides the data sheet's."""
    return Measurement(PRODUCT, 5.0, _matrix_product)


def step_config(here: Slice, kind: str, size: str, *, compiled: bool = False, r1_every: int | None = None) -> RunConfig:
    """The preset's config in bf16 without identity net, in PF-MAG's adversarial part with fixed loss weights."""
    base = presets.recipe(f"vit-{size}")[ROLES[kind]]
    options = here.options
    engine = EngineConfig(
        device=options.device,  # type: ignore[arg-type]
        precision="bf16",
        compile=compiled,
        peak_tflops=options.peak_tflops,
    )
    pf_mag = replace(base.pf_mag, identity_net="tokens", loss_balancing="fixed", warmup_steps=0, grad_norms_every=0)
    if r1_every is not None:
        pf_mag = replace(pf_mag, r1=0.1, r1_every=r1_every)
    config = replace(base, engine=engine, pf_mag=pf_mag)
    return replace(config, model=MODEL, data=DataConfig(size=32)) if options.miniature else config


def first_images(here: Slice, kind: str) -> int:
    """Images per step to try first."""
    return MINIATURE_IMAGES if here.options.miniature else IMAGES[kind]


def random_batch(config: RunConfig, images: int, here: World) -> Batch:
    """Random images, labels and patch orders on the device."""
    size = (images, 3, config.data.size, config.data.size)
    order = patch_order(config, slice(0, images), "mask", 0).to(here.device) if config.hides_patches else None
    labels = torch.randint(0, len(CANONICAL), (images,), device=here.device)
    return Batch(torch.rand(size, device=here.device) * 2 - 1, labels, order)


def training_step(config: RunConfig, backend: str, world: World) -> Callable[[Batch, int], None]:
    """A function that trains on a batch at a 0-based step, as the trainer does."""
    engines = build_engines(config, backend, factory.build(config, len(CANONICAL), load_init=False), world)
    objective = build_objective(config, engines, CANONICAL, world)
    checks = StepChecks(engines, objective, world.device)

    def train(batch: Batch, step: int) -> None:
        checks.run(step, lambda: objective.step([batch], step))

    return train


def seconds_per_step(here: Slice, step: Callable[[int], object]) -> float:
    """Median over rounds of the mean seconds of a step."""
    timing = MINIATURE if here.options.miniature else FULL
    for number in range(timing.warmup):
        step(number)
    rounds, number = [], timing.warmup
    for _ in range(timing.rounds):
        here.wait()
        began = time.perf_counter()
        for _ in range(timing.steps):
            step(number)
            number += 1
        here.wait()
        rounds.append((time.perf_counter() - began) / timing.steps)
    return statistics.median(rounds)


def largest_batch(here: Slice, images: int, measure: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """`measure(images)`, with half as many images each time the device's memory does not suffice."""
    while True:
        try:
            return {"images": images, **measure(images)}
        except torch.OutOfMemoryError:
            if images == 1:
                raise
            images //= 2
        here.release()


def figures(here: Slice, config: RunConfig, images: int, seconds: float) -> dict[str, Any]:
    """Images/s, MFU against the data sheet's or the given peak, and peak memory."""
    per_image = step_flops(config, len(CANONICAL), False)
    tflops = images * per_image / seconds / 1e12
    peak = peak_tflops(device_name(here.world.device), here.options.peak_tflops)
    return {
        "images_per_second": images / seconds,
        "ms": 1000 * seconds,
        "tflops": tflops,
        "mfu": None if peak is None else tflops / peak[0],
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if here.cuda else None,
    }


def _ours(
    here: Slice, *, kind: str, size: str, backend: str, compiled: bool, r1_every: int | None = None
) -> dict[str, Any]:
    config = step_config(here, kind, size, compiled=compiled, r1_every=r1_every)

    def measure(images: int) -> dict[str, Any]:
        train, batch = training_step(config, backend, here.world), random_batch(config, images, here.world)
        return figures(here, config, images, seconds_per_step(here, lambda step: train(batch, step)))

    return largest_batch(here, first_images(here, kind), measure)


def _plain(here: Slice, *, size: str, fused: bool) -> dict[str, Any]:
    from benchmarks.originals import PlainMaeTraining  # imports timm

    config = step_config(here, "mae", size)

    def measure(images: int) -> dict[str, Any]:
        plain = PlainMaeTraining(config, here.world.device, fused_attention=fused)
        batch = random_batch(config, images, here.world).images
        values = figures(here, config, images, seconds_per_step(here, lambda step: plain.step(batch)))
        return {name: value for name, value in values.items() if name not in ("tflops", "mfu")}  # it computes others

    return largest_batch(here, first_images(here, "mae"), measure)


def _matrix_product(here: Slice) -> dict[str, Any]:
    side = 256 if here.options.miniature else 8192
    left, right = (torch.randn(side, side, device=here.world.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = seconds_per_step(here, lambda step: left @ right)
    peak = peak_tflops(device_name(here.world.device), here.options.peak_tflops)
    return {"tflops": 2 * side**3 / seconds / 1e12, "peak_tflops": peak and peak[0], "peak_source": peak and peak[1]}
