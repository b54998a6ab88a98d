"""CPU time of a training step (forward + backward, one thread), alternating with the plain step in one process.

    python -m benchmarks.steps [--rounds 7] [--output benchmarks/results/steps.md]

"Plain" is the straightforward step with the same nets and losses (tests/reference/plain_steps.py). The ratio is the
median over rounds of plain / ours. fp32; without the optimizer step, which is the same for both.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import nn

from pfcluster.config import EngineConfig, LossWeights, OptimConfig, RunConfig, presets
from pfcluster.data.batch import Batch, patch_order
from pfcluster.distributed.process_group import World
from pfcluster.engine.ddp import DdpEngine
from pfcluster.models import factory, losses
from pfcluster.models.discriminator import Discriminator
from pfcluster.models.mae import MAE, hidden_patches
from pfcluster.models.pf_vit import PFViT
from pfcluster.training.loss_balancing import LossBalancer
from pfcluster.training.pf_mag import pf_mag_step
from pfcluster.training.pf_mag_terms import LossSettings
from tests.reference.plain_steps import plain_mae_loss, plain_pf_mag_step

CLASSES = 8
WEIGHTS = LossWeights()
LOSS_SETTINGS = LossSettings(0, None, 0.0, "ignore", None)


class _NoUpdateEngine(DdpEngine):
    """Skips the optimizer step, so that only forward and backward are timed."""

    def _step(self) -> torch.Tensor:
        self.module.zero_grad(set_to_none=True)
        return torch.zeros(())


def steps(config: RunConfig, images: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Our step and the plain one on the same nets and the same random images."""
    torch.manual_seed(0)
    modules = factory.build(config, CLASSES)
    size = config.data.size
    batch = Batch(torch.rand(images, 3, size, size) * 2 - 1, torch.randint(0, CLASSES, (images,)))
    model = modules["model"]
    if isinstance(model, MAE):
        return _mae(model, batch, patch_order(config, slice(0, images), "mask", 0), config.model.patch)
    return _pf_mag(modules, batch)


def _mae(model: MAE, batch: Batch, order: torch.Tensor, patch: int) -> tuple[Callable[[], None], Callable[[], None]]:
    def ours() -> None:
        target = hidden_patches(batch.images, order, model.kept, patch)
        losses.mae(model(batch.images, order), target, norm_pixels=True).backward()
        model.zero_grad(set_to_none=True)

    def plain() -> None:
        plain_mae_loss(model, batch.images, order).backward()
        model.zero_grad(set_to_none=True)

    return ours, plain


def _pf_mag(modules: dict[str, nn.Module], batch: Batch) -> tuple[Callable[[], None], Callable[[], None]]:
    world = World(0, 1, torch.device("cpu"))
    model, discriminator = modules["model"], modules["discriminator"]
    assert isinstance(model, PFViT)
    assert isinstance(discriminator, Discriminator)
    pf_vit, discriminator_engine = (
        _NoUpdateEngine(module, OptimConfig(), EngineConfig(device="cpu"), world) for module in (model, discriminator)
    )

    def ours() -> None:
        pf_mag_step(
            [batch],
            pf_vit,
            discriminator_engine,
            LOSS_SETTINGS,
            LossBalancer(WEIGHTS, False, 1, 1.0, 1.0, world),
            warmup=False,
        )

    def plain() -> None:
        plain_pf_mag_step(
            model, discriminator, batch, LOSS_SETTINGS, WEIGHTS, lambda: discriminator.zero_grad(set_to_none=True)
        )
        model.zero_grad(set_to_none=True)

    return ours, plain


def timed(step: Callable[[], None]) -> float:
    """CPU seconds of one step."""
    started = time.process_time()
    step()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=None, help="Markdown file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["| step | images | ours, ms per image | plain | plain / ours |", "| --- | ---: | ---: | ---: | ---: |"]
    cases = (
        ("MAE, demo", "demo", "mae", 32),
        ("PF-MAG, demo", "demo", "pf-vit", 32),
        ("MAE-T, 224 px", "vit-t", "mae", 8),
        ("PF-MAG-T, 224 px, without φ", "vit-t", "pf-vit", 4),
    )
    for label, preset, role, images in cases:
        ours, plain = steps(presets.recipe(preset)[role], images)
        for warm_up in (ours, plain):
            warm_up()
        times = [(timed(ours), timed(plain)) for _ in range(options.rounds)]
        our_ms, plain_ms = (1e3 * statistics.median(column) / images for column in zip(*times, strict=True))
        ratio = statistics.median(plain_time / our_time for our_time, plain_time in times)
        lines.append(f"| {label} | {images} | {our_ms:.2f} | {plain_ms:.2f} | {ratio:.2f} |")
        print(lines[-1], flush=True)
    if options.output:
        head = (
            f"# Time of a training step\n\n`python -m benchmarks.steps --rounds {options.rounds} --output"
            f" benchmarks/results/steps.md`, {date.today()}, one thread of {processor()}, torch {torch.__version__},"
            " fp32.\nMedians of CPU time, forward + backward, both variants alternating in one process.\n\n"
        )
        options.output.write_text(head + "\n".join(lines) + "\n")


def processor() -> str:
    """The CPU's name."""
    path = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in path.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
