"""The memory plan of `--dry-run` compared with the memory of real ranks: two gloo processes, new ones for each row.

    python -m benchmarks.memory [--only TEXT] [--output benchmarks/results/memory.md]

Planned: `pfcluster.profiling.memory_plan.plan`, which allocates nothing; offloaded memory is added, as host and device
are the same here. Measured: the kernel's resident set size of a rank. Baseline: after imports and two steps of a tiny
net under the same engine. Peak: after two steps, when optimizer states exist and ZeRO-3 has recorded the order of the
weights, VmHWM is reset and two more steps are run. glibc writes to every allocated block (MALLOC_PERTURB_), so that
allocated memory is resident, as on a GPU, and returns freed blocks at once (MALLOC_MMAP_THRESHOLD_,
MALLOC_TRIM_THRESHOLD_). torch.profiler's memory events agree for DDP, ZeRO-1 and ZeRO-2, but miss blocks that gloo's
threads free, which accumulate under ZeRO-3 and FSDP2.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.steps import CLASSES, processor
from pfcluster.config import EngineConfig, RunConfig, presets
from pfcluster.data.batch import Batch
from pfcluster.data.labels import CANONICAL
from pfcluster.distributed.process_group import World, world
from pfcluster.launch.local import rank_environments
from pfcluster.models import factory
from pfcluster.models.identity_net import FaceNet
from pfcluster.profiling.flops import empty_batches
from pfcluster.profiling.memory_plan import BACKENDS, MemoryPlan, plan
from pfcluster.training import parity
from pfcluster.training.factory import build_engines, build_objective
from pfcluster.training.objective import Objective

RANKS, WARM_STEPS = 2, 2
MIB = 2**20
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_PERTURB_": "85"}
"""glibc maps larger blocks individually and unmaps them when freed; MALLOC_PERTURB_ may be any byte but 0."""


@dataclass(frozen=True)
class Case:
    """A run of the vit-s preset at 224 px; `images` per forward pass of a rank."""

    label: str
    role: str
    images: int
    backends: Sequence[str] = BACKENDS
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of `EngineConfig`."""
    ema: float = 0.0
    identity_net: bool = False

    def config(self, backend: str) -> RunConfig:
        """The run's config for a backend, without warm-up."""
        base = presets.recipe("vit-s")[self.role]
        engine = EngineConfig(device="cpu", backend=backend, **self.options)  # type: ignore[arg-type]
        return replace(
            base,
            batch_size=self.images * RANKS * engine.grad_accumulation_steps,
            engine=engine,
            optim=replace(base.optim, ema=self.ema),
            pf_mag=replace(base.pf_mag, identity_net="tokens", warmup_steps=0, loss_balancing="fixed"),
        )

    def phi(self) -> FaceNet | None:
        """φ with random weights; None if the case has none."""
        if not self.identity_net:
            return None
        from facenet_pytorch import InceptionResnetV1

        return FaceNet(InceptionResnetV1(pretrained=None))


ZERO, SHARDED = ("zero1", "zero2", "zero3"), ("zero1", "zero2", "zero3", "fsdp2")
CASES = (
    Case("MAE-S, 16 images", "mae", 16),
    Case("PF-MAG-S, 2 images", "pf-vit", 2),
    Case("PF-MAG-S with φ, 2 images", "pf-vit", 2, ("ddp", "zero2", "fsdp2"), identity_net=True),
    Case("PF-MAG-S, 2 x 1 images (gradient accumulation)", "pf-vit", 1, options={"grad_accumulation_steps": 2}),
    Case("MAE-S, 2 x 8 images (gradient accumulation)", "mae", 8, options={"grad_accumulation_steps": 2}),
    Case(
        "MAE-S, 16 images, activation checkpointing, EMA",
        "mae",
        16,
        options={"activation_checkpointing": True},
        ema=0.99,
    ),
    Case("MAE-S, 16 images, bf16", "mae", 16, options={"precision": "bf16"}),
    Case("MAE-S, 16 images, bf16_params", "mae", 16, SHARDED, {"precision": "bf16_params"}),
    Case("MAE-S, 16 images, offload_optimizer", "mae", 16, ZERO, {"offload_optimizer": True}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only cases whose label or engine contains this text")
    parser.add_argument("--output", type=Path, default=None, help="Markdown file to write")
    parser.add_argument("--rank", nargs=2, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        print(measure(CASES[int(options.rank[0])], options.rank[1]))
        return
    lines = ["| step of a rank | engine | planned MiB | measured MiB | planned / measured |"]
    lines.append("| --- | --- | ---: | ---: | ---: |")
    print(*lines, sep="\n", flush=True)
    ratios = []
    for number, case in enumerate(CASES):
        for backend in case.backends:
            if options.only not in f"{case.label} {backend}":
                continue
            planned, measured = total(planned_for(case, backend)), measure_in_new_processes(number, backend)
            ratios.append(planned / measured)
            cells = f"{planned / MIB:.0f} | {measured / MIB:.0f} | {ratios[-1]:.2f}"
            lines.append(f"| {case.label} | {backend} | {cells} |")
            print(lines[-1], flush=True)
    if options.output:
        options.output.write_text(head(ratios) + "\n".join(lines) + "\n")


def planned_for(case: Case, backend: str) -> MemoryPlan:
    """The plan of a case."""
    phi = case.phi()
    return plan(case.config(backend), CLASSES, RANKS, backend, None if phi is None else phi.to("meta"))


def total(planned: MemoryPlan) -> int:
    """Device and host bytes together."""
    return planned.peak + planned.host


def measure_in_new_processes(case: int, backend: str) -> int:
    """The larger of the ranks' `measure`, in new processes."""
    command = [sys.executable, "-m", "benchmarks.memory", "--rank", str(case), backend]
    ranks = [
        subprocess.Popen(command, env=environment | MALLOC, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for environment in rank_environments(RANKS, 1)
    ]
    outputs = [rank.communicate() for rank in ranks]
    for rank, (_, errors) in zip(ranks, outputs, strict=True):
        if rank.returncode:
            raise RuntimeError(f"{CASES[case].label} under {backend} exited with {rank.returncode}:\n{errors[-2000:]}")
    return max(int(output.splitlines()[-1]) for output, _ in outputs)


def measure(case: Case, backend: str) -> int:
    """This rank's peak memory in a step above the baseline, in bytes."""
    torch.set_num_threads(1)
    config, phi = case.config(backend), case.phi()
    with world("cpu") as group:
        tiny = replace(parity.tiny_config(config.objective, config.engine), pf_mag=config.pf_mag)
        _train(_objective(tiny, backend, group, None), tiny, group, range(WARM_STEPS))
        gc.collect()
        baseline = _resident("VmRSS") - _bytes(phi)
        objective = _objective(config, backend, group, phi)
        _train(objective, config, group, range(WARM_STEPS))
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
        _train(objective, config, group, range(WARM_STEPS, 2 * WARM_STEPS))
        return _resident("VmHWM") - baseline


def _train(objective: Objective, config: RunConfig, group: World, steps: range) -> None:
    for step in steps:
        objective.step(_batches(config, group), step)


def _objective(config: RunConfig, backend: str, group: World, phi: FaceNet | None) -> Objective:
    engines = build_engines(config, backend, factory.build(config, CLASSES), group)
    return build_objective(config, engines, CANONICAL[:CLASSES], group, identity_net=phi)


def _batches(config: RunConfig, group: World) -> list[Batch]:
    """Random images, labels and patch orders of a rank."""
    parts = config.engine.grad_accumulation_steps
    batches = empty_batches(config, config.batch_size // (group.size * parts), parts)
    for batch in batches:
        batch.images.uniform_(-1, 1)
        batch.labels.random_(CLASSES)
        if batch.order is not None:
            batch.order.copy_(torch.rand(batch.order.shape).argsort(1))
    return batches


def _resident(name: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def _bytes(module: torch.nn.Module | None) -> int:
    """Bytes of φ: part of the plan, but allocated before the baseline is measured."""
    return 0 if module is None else sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def head(ratios: Sequence[float]) -> str:
    """Heading and notes of the result file."""
    versions = f"torch {torch.__version__}, deepspeed {importlib.metadata.version('deepspeed')}"
    return (
        "# The memory plan compared with real ranks\n\n"
        f"`python -m benchmarks.memory --output benchmarks/results/memory.md`, {date.today()}, {RANKS} gloo processes,"
        f" one thread each of {processor()}, {versions}.\n"
        f"ViT-S/16 at 224 px, {CLASSES} classes, fp32 unless stated; images per forward pass of a rank.\n\n"
        "Planned: `pfcluster.profiling.memory_plan.plan` on fake tensors; with offload_optimizer, device and host"
        " memory together. Measured: peak resident memory (VmHWM) of two steady-state steps above that after imports"
        " and steps of a tiny net, in new processes for every row; glibc writes to every allocated block, so that"
        " allocated memory is resident, and returns freed blocks at once.\n\n"
        f"All {len(ratios)} rows: planned / measured {min(ratios):.2f} to {max(ratios):.2f}.\n\n"
    )


if __name__ == "__main__":
    main()
