"""What an engine costs: time of a step beside plain DDP, and what a checkpoint of ViT-B PF-MAG takes.

    python -m benchmarks.engines [--rounds 9] [--output benchmarks/results/engines.md]

Two gloo processes of one thread each. Steps: all engines in the same processes, in turn; the ratio is the median over
rounds of a round's step over the same round's step of DistributedDataParallel as one would write it (no checks, its
own bucket order). Checkpoints: weights and moments of both optimizers, written by both ranks, and read again.
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

from benchmarks.parity import BACKENDS, finish, ranks_of
from benchmarks.steps import CLASSES, SETTING, processor
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
"""Role of the vit-t preset and images a rank."""


class PlainDdp(DdpEngine):
    """torch's wrapper and nothing around it."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.module._forward_pre_hooks.clear()
        self.replica = DistributedDataParallel(self.module, gradient_as_bucket_view=True)

    def __call__(self, *inputs: Any, sync: bool = True, **named: Any) -> Any:
        return self._forward(inputs, named, sync=sync)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, *, more_updates_follow: bool = False) -> Tensor:
        return self._step()


def objective(config: RunConfig, backend: str, here: World) -> Objective:
    """A preset's objective on engines of one kind; "plain" takes DistributedDataParallel alone."""
    modules = factory.build(config, CLASSES)
    if backend == "plain":
        optims = optimizers_of(config)
        engines: dict[str, Engine] = {
            name: PlainDdp(module, optims[name], config.engine, here) for name, module in modules.items()
        }
    else:
        engines = build_engines(config, backend, modules, here)
    model = modules["model"]
    if isinstance(model, MAE):
        return MaeObjective(engines["model"], kept=model.kept, patch=config.model.patch, norm_pixels=True)
    fixed = replace(config.pf_mag, loss_balancing="fixed", weights=LossWeights(), warmup_steps=0)
    return PfMagObjective(engines["model"], engines["discriminator"], SETTING, fixed, here)


def steps(here: World, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each round by step and engine."""
    found: dict[str, dict[str, list[float]]] = {}
    for label, (role, images) in STEPS.items():
        base = presets.recipe("vit-t")[role]
        config = replace(base, engine=EngineConfig(device="cpu"), pf_mag=replace(base.pf_mag, identity_net="tokens"))
        size = config.data.size
        order = patch_order(config, images, "mask", 0) if role == "mae" else None
        batch = Batch(torch.rand(images, 3, size, size) * 2 - 1, torch.randint(0, CLASSES, (images,)), order)
        tried = {backend: objective(config, backend, here) for backend in ("plain", *BACKENDS)}
        times: dict[str, list[float]] = {backend: [] for backend in tried}
        for turn in range(rounds + 2):
            for backend, each in tried.items():
                seconds = _seconds(here, functools.partial(each.step, [batch], turn))
                if turn >= 2:
                    times[backend].append(seconds)
        found[label] = times
    return found


def _seconds(here: World, call: Callable[[], Any]) -> float:
    """Wall time from a common start until all ranks are done."""
    here.barrier()
    began = time.perf_counter()
    call()
    here.barrier()
    return time.perf_counter() - began


def checkpoints(here: World, backend: str, folder: Path) -> dict[str, float]:
    """Stall, writing, bytes and reading of one checkpoint of ViT-B PF-MAG, at once and in the background."""
    base = presets.recipe("vit-b")["pf-vit"]
    config = replace(base, engine=EngineConfig(device="cpu"))
    engines = build_engines(config, backend, factory.build(config, CLASSES), here)
    row: dict[str, float] = {}
    for asynchronous in (False, True):
        saver = CheckpointManager(folder, here, keep=1, asynchronous=asynchronous, timeout=600)
        tensor_shards = {
            key: piece for name, engine in engines.items() for key, piece in engine.tensor_shards(name).items()
        }
        shapes = {key: shape for name, engine in engines.items() for key, shape in engine.saved_shapes(name).items()}
        saver.save(1, tensor_shards, shapes, {}, None)
        saver.wait()
        kind = "async" if asynchronous else "sync"
        row |= {f"{kind} stall": saver.stalls[0], f"{kind} write": saver.seconds[0]}
    path = step_folder(folder, 1)
    row["bytes"] = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    row["largest file"] = max(file.stat().st_size for file in path.glob("*.safetensors"))

    def read() -> None:
        record = here.from_main(lambda: store.verify(path))
        for name, engine in engines.items():
            record.read_into(engine.tensor_shards(name, loading=True))
            engine.sync_after_load()

    row["read"] = _seconds(here, read)
    return row


def one_rank(task: str, result: Path, rounds: int) -> None:
    """What one rank of a measurement does; rank 0 writes."""
    torch.set_num_threads(1)
    with world("cpu", 600) as here:
        found: Any = steps(here, rounds) if task == "steps" else checkpoints(here, task, result.parent / task)
        if here.is_main:
            result.write_text(json.dumps(found))


def measured(task: str, folder: Path, rounds: int) -> Any:
    """Run a measurement in fresh processes."""
    result = folder / f"{task}.json"
    finish(ranks_of("benchmarks.engines", ["--task", task, "--result", str(result), "--rounds", str(rounds)], RANKS))
    shutil.rmtree(folder / task, ignore_errors=True)
    return json.loads(result.read_text())


def report(folder: Path, rounds: int) -> str:
    """Both tables."""
    lines = ["| engine | " + " | ".join(f"{label}: ms | over plain DDP" for label in STEPS) + " |"]
    lines.append("| --- " + "| ---: " * 2 * len(STEPS) + "|")
    found = measured("steps", folder, rounds)
    for backend in ("plain", *BACKENDS):
        cells = []
        for label in STEPS:
            times, plain = found[label][backend], found[label]["plain"]
            ratio = statistics.median(own / other for own, other in zip(times, plain, strict=True))
            cells += [f"{1e3 * statistics.median(times):.0f}", f"{ratio:.3f}"]
        lines.append(f"| {'plain DDP' if backend == 'plain' else backend} | " + " | ".join(cells) + " |")
    images = ", ".join(f"{label} {images}" for label, (_, images) in STEPS.items())
    lines += ["", f"224 px, fp32, images a rank: {images}; no recognition net.", ""]
    columns = ("sync stall", "async stall", "async write", "read")
    lines += ["## Checkpoint of ViT-B PF-MAG (138.6 M parameters, two Adams)", ""]
    lines += ["| engine | " + " | ".join(f"{name}, s" for name in columns) + " | GB | largest file, GB |"]
    lines += ["| --- " + "| ---: " * (len(columns) + 2) + "|"]
    for backend in BACKENDS:
        row = measured(backend, folder, rounds)
        cells = [f"{row[name]:.2f}" for name in columns]
        sizes = f"{row['bytes'] / 1e9:.2f} | {row['largest file'] / 1e9:.2f}"
        lines.append(f"| {backend} | " + " | ".join(cells) + f" | {sizes} |")
    note = "stall: what the training waits for; read: verify the checksums, read, and make the module follow."
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
