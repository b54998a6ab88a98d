"""Runs that take seconds: whole configs of every objective on a few synthetic faces."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import torch

from pfcluster.checkpoint import store
from pfcluster.checkpoint.manager import CheckpointManager
from pfcluster.checkpoint.tensor_shards import unsharded
from pfcluster.config import (
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    EvaluateConfig,
    ModelConfig,
    RunConfig,
    SyntheticConfig,
    presets,
)
from pfcluster.distributed.process_group import World
from pfcluster.runs.folder import checkpoint_steps, step_folder
from pfcluster.training import run

ROOT = Path(__file__).parents[1]
LAUNCH = [sys.executable, str(ROOT / "jobs/launch.py")]
OPTIONS = shlex.split(
    "--data.size 32 --data.synthetic.train 96 --data.synthetic.validation 32 --data.synthetic.test 40"
    " --data.synthetic.identities 12 --model.patch 8 --model.width 32 --model.depth 2 --model.heads 2"
    " --model.decoder-width 16 --model.decoder-depth 2 --model.decoder-heads 2 --batch-size 16 --epochs 2"
    " --engine.device cpu --engine.log-every 1 --evaluate.n-poker-faces 16 --pf-mag.warmup-steps 4"
    " --pf-mag.erasure-start 2 --pf-mag.weights.swap 0 --pf-mag.r1 0 --pf-mag.loss-balancing-steps 2"
)
"""Such a run on the command line, but for how often it saves and evaluates itself."""
MACHINE_METRICS = ("images_per_second", "tflops_per_device", "mfu", "host_wait", "peak_memory_gb")
"""Metrics that depend on the machine and its load."""
DATA = DataConfig(size=32, synthetic=SyntheticConfig(train=96, validation=32, test=40, identities=12, nuisance=0.3))
MODEL = ModelConfig(patch=8, width=32, depth=2, heads=2, decoder_width=16, decoder_depth=2, decoder_heads=2)
ROLES = {"mae": "mae", "finetune": "scratch", "pf_mag": "pf-vit"}


def config(objective: str, **changes: object) -> RunConfig:
    """Twelve steps of 16 faces, evaluated once an epoch; PF-MAG meets its adversary after three."""
    base = presets.recipe("mini")[ROLES[objective]]
    tiny = replace(
        base,
        epochs=2,
        batch_size=16,
        data=DATA,
        model=MODEL,
        optim=replace(base.optim, lr=1e-3, warmup_steps=2, clip_norm=1.0),
        engine=EngineConfig(device="cpu", log_every=1),
        checkpoint=CheckpointConfig(every_steps=3),
        evaluate=EvaluateConfig(n_poker_faces=16),
        pf_mag=replace(base.pf_mag, warmup_steps=3, loss_balancing_steps=2),
    )
    return replace(tiny, **changes)  # type: ignore[arg-type]


def train_here(run_config: RunConfig, folder: Path, threads: int = 1) -> None:
    """Train to the end in this process, with as many threads as a worker process that is compared with it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert run(run_config, folder)["status"] == "finished"
    finally:
        torch.set_num_threads(before)


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's last checkpoint, `group/name` -> tensor."""
    steps = checkpoint_steps(folder / "checkpoints")
    checkpoint = store.verify(step_folder(folder / "checkpoints", steps[-1]))
    return {f"{group}/{name}": value for group, part in checkpoint.tensors().items() for name, value in part.items()}


def write_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict) -> Path:
    """Write a checkpoint as a run of one process does; returns its folder."""
    values = {f"{group}/{name}": value for group, part in tensors.items() for name, value in part.items()}
    manager = CheckpointManager(folder, World(0, 1, torch.device("cpu")), keep=100, asynchronous=False, timeout=60)
    shapes = {key: tuple(value.shape) for key, value in values.items()}
    manager.save(step, {key: unsharded(value) for key, value in values.items()}, shapes, state, None)
    return step_folder(folder, step)
