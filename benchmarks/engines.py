"""Cost of the engines: step time compared with plain DDP, and checkpoints of ViT-B PF-MAG.

    python -m benchmarks.engines [--rounds 9] [--output benchmarks/results/engines.md]

Two gloo processes of one thread each. Steps: all engines alternate in the same processes; the ratio is the median over
rounds of a step's time over that of torch's DistributedDataParallel without this project's checks and bucket order, in
the same round. Checkpoints: weights and both optimizers' moments, written by both ranks and read again.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.parity import BACKENDS, finish, start_ranks
from benchmarks.steps import CLASSES, LOSS_SETTINGS, processor
from pfcluster.checkpoint import store
from pfcluster.checkpoint.manager import CheckpointManager
from pfcluster.config import EngineConfig, LossWeights, RunConfig, presets
from pfcluster.data.batch import Batch, patch_order
from pfcluster.distributed.process_group import World, world
from pfcluster.engine.base import Engine
from pfcluster.engine.ddp import DdpEngine
from pfcluster.engine.optimizer import optimizers_of
from pfcluster.models import factory
from pfcluster.models.mae import MAE
from pfcluster.runs.folder import step_folder
from pfcluster.training.factory import build_engines
from pfcluster.training.mae import MaeObjective
from pfcluster.training.objective import Objective
from pfcluster.training.pf_mag import PfMagObjective

RANKS = 2
STEPS = {"MAE-T": ("mae", 8), "PF-MAG-T": ("pf-vit", 2)}
"""Role in the vit-t preset, and images per rank."""


class PlainDdp(DdpEngine):
    """torch's DistributedDataParallel without the engine's checks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.module._forward_pre_hooks.clear()
        self.replica = DistributedDataParallel(self.module, gradient_as_bucket_view=True)

    def __call__(self, *inputs: Any, sync: bool = True, **kwargs: Any) -> Any:
        return self._forward(inputs, kwargs, sync=sync)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, *, more_updates_follow: bool = False) -> Tensor:
        return self._step()


def objective(config: RunConfig, backend: str, group: World) -> Objective:
    """A preset's objective on engines of one backend; "plain" is `PlainDdp`."""
    modules = factory.build(config, CLASSES)
    if backend == "plain":
        optims = optimizers_of(config)
        engines: dict[str, Engine] = {
            name: PlainDdp(module, optims[name], config.engine, group) for name, module in modules.items()
        }
    else:
        engines = build_engines(config, backend, modules, group)
    model = modules["model"]
    if isinstance(model, MAE):
        return MaeObjective(engines["model"], kept=model.kept, patch=config.model.patch, norm_pixels=True)
    fixed = replace(config.pf_mag, loss_balancing="fixed", weights=LossWeights(), warmup_steps=0)
    return PfMagObjective(engines["model"], engines["discriminator"], LOSS_SETTINGS, fixed, group)


def steps(group: World, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each round, by step and engine."""
    by_step: dict[str, dict[str, list[float]]] = {}
    for label, (role, images) in STEPS.items():
        base = presets.recipe("vit-t")[role]
        config = replace(base, engine=EngineConfig(device="cpu"), pf_mag=replace(base.pf_mag, identity_net="tokens"))
        size = config.data.size
        order = patch_order(config, slice(0, images), "mask", 0) if role == "mae" else None
        batch = Batch(torch.rand(images, 3, size, size) * 2 - 1, torch.randint(0, CLASSES, (images,)), order)
        objectives = {backend: objective(config, backend, group) for backend in ("plain", *BACKENDS)}
        times: dict[str, list[float]] = {backend: [] for backend in objectives}
        for turn in range(rounds + 2):
            for backend, backend_objective in objectives.items():
                seconds = _seconds(group, functools.partial(backend_objective.step, [batch], turn))
                if turn >= 2:
                    times[backend].append(seconds)
        by_step[label] = times
    return by_step


def _seconds(group: World, call: Callable[[], Any]) -> float:
    """Wall-clock time between barriers before and after the call."""
    group.barrier()
    started = time.perf_counter()
    call()
    group.barrier()
    return time.perf_counter() - started


def checkpoints(group: World, backend: str, folder: Path) -> dict[str, float]:
    """Stall, write time, size and read time of a checkpoint of ViT-B PF-MAG, synchronous and asynchronous."""
    base = presets.recipe("vit-b")["pf-vit"]
    config = replace(base, engine=EngineConfig(device="cpu"))
    engines = build_engines(config, backend, factory.build(config, CLASSES), group)
    row: dict[str, float] = {}
    for asynchronous in (False, True):
        manager = CheckpointManager(folder, group, keep=1, asynchronous=asynchronous, timeout=600)
        tensor_shards = {
            key: shard for name, engine in engines.items() for key, shard in engine.tensor_shards(name).items()
        }
        shapes = {key: shape for name, engine in engines.items() for key, shape in engine.saved_shapes(name).items()}
        manager.save(1, tensor_shards, shapes, {}, None)
        manager.wait()
        kind = "async" if asynchronous else "sync"
        row |= {f"{kind} stall": manager.stalls[0], f"{kind} write": manager.seconds[0]}
    path = step_folder(folder, 1)
    row["bytes"] = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    row["largest file"] = max(file.stat().st_size for file in path.glob("*.safetensors"))

    def read() -> None:
        checkpoint = group.from_main(lambda: store.verify(path))
        for name, engine in engines.items():
            checkpoint.read_into(engine.tensor_shards(name, loading=True))
            engine.sync_after_load()

    row["read"] = _seconds(group, read)
    return row


def one_rank(task: str, result: Path, rounds: int) -> None:
    """Measure on one rank; rank 0 writes the result."""
    torch.set_num_threads(1)
    with world("cpu", 600) as group:
        values: Any = steps(group, rounds) if task == "steps" else checkpoints(group, task, result.parent / task)
        if group.is_main:
            result.write_text(json.dumps(values))


def measure(task: str, folder: Path, rounds: int) -> Any:
    """Measure in fresh processes."""
    result = folder / f"{task}.json"
    finish(start_ranks("benchmarks.engines", ["--task", task, "--result", str(result), "--rounds", str(rounds)], RANKS))
    shutil.rmtree(folder / task, ignore_errors=True)
    return json.loads(result.read_text())


def report(folder: Path, rounds: int) -> str:
    """Both tables."""
    lines = ["| engine | " + " | ".join(f"{label}: ms | over plain DDP" for label in STEPS) + " |"]
    lines.append("| --- " + "| ---: " * 2 * len(STEPS) + "|")
    seconds = measure("steps", folder, rounds)
    for backend in ("plain", *BACKENDS):
        cells = []
        for label in STEPS:
            times, plain = seconds[label][backend], seconds[label]["plain"]
            ratio = statistics.median(ours / theirs for ours, theirs in zip(times, plain, strict=True))
            cells += [f"{1e3 * statistics.median(times):.0f}", f"{ratio:.3f}"]
        lines.append(f"| {'plain DDP' if backend == 'plain' else backend} | " + " | ".join(cells) + " |")
    images = ", ".join(f"{label} {images}" for label, (_, images) in STEPS.items())
    lines += ["", f"224 px, fp32, images per rank: {images}; no identity net.", ""]
    columns = ("sync stall", "async stall", "async write", "read")
    lines += ["## Checkpoint of ViT-B PF-MAG (138.6 M parameters, two Adam optimizers)", ""]
    lines += ["| engine | " + " | ".join(f"{name}, s" for name in columns) + " | GB | largest file, GB |"]
    lines += ["| --- " + "| ---: " * (len(columns) + 2) + "|"]
    for backend in BACKENDS:
        row = measure(backend, folder, rounds)
        cells = [f"{row[name]:.2f}" for name in columns]
        sizes = f"{row['bytes'] / 1e9:.2f} | {row['largest file'] / 1e9:.2f}"
        lines.append(f"| {backend} | " + " | ".join(cells) + f" | {sizes} |")
    note = "stall: time for which training is blocked; read: verify checksums, read, and synchronise the module."
    return "\n".join(["## Time of a step", "", *lines, "", note, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=None, help="Markdown file to write")
    parser.add_argument("--task", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task is not None:
        one_rank(options.task, options.result, options.rounds)
        return
    with tempfile.TemporaryDirectory() as name:
        text = report(Path(name), options.rounds)
    print(text)
    if options.output:
        versions = f"torch {torch.__version__}, deepspeed {importlib.metadata.version('deepspeed')}"
        head = (
            f"# Engines\n\n`python -m benchmarks.engines --rounds {options.rounds} --output"
            f" benchmarks/results/engines.md`, {date.today()}, {processor()}, {RANKS} gloo processes of one thread,"
            f" {versions}.\n\n"
        )
        options.output.write_text(head + text)


if __name__ == "__main__":
    main()
