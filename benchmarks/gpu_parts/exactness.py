"""Whether engines agree in bf16, whether a run repeats itself to the bit, and whether an interrupted one does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_parts.measurements import GpuDayOptions, Measurement, Slice
from benchmarks.gpu_parts.steps import BACKENDS
from benchmarks.parity import distance, last_tensors, short_run
from pfcluster.config import CheckpointConfig, EngineConfig, RunConfig
from pfcluster.runs.folder import CHECKPOINTS_DIR, RESULT_FILE, checkpoint_steps, step_folder
from pfcluster.training import run
from pfcluster.training.parity import relative_difference, single_process, tiny_config, train

OBJECTIVES = ("mae", "finetune", "pf_mag")
PRECISIONS = ("fp32", "bf16")
MODES = ("default algorithms", "deterministic algorithms")
STEPS = 12
ROLES = {"mae": "mae", "pf_mag": "pf-vit"}


def exactness_measurements(options: GpuDayOptions) -> list[Measurement]:
    """Engines in a world of one against plain torch; runs against their repetition, whole and interrupted."""
    measurements = [
        Measurement(
            f"parity/{objective}, {backend}, {precision}",
            10.0,
            partial(_parity, objective=objective, backend=backend, precision=precision),
            needs=("deepspeed",) if backend == "zero2" else (),
        )
        for objective in OBJECTIVES
        for precision in PRECISIONS
        for backend in BACKENDS[1:]
    ]
    return measurements + [
        Measurement(f"resume/{objective}, {mode}", 40.0, partial(_resume, objective=objective, mode=mode))
        for objective in ROLES
        for mode in (MODES[:1] if options.miniature and objective == "mae" else MODES)
    ]


def _parity(here: Slice, *, objective: Any, backend: Any, precision: Any) -> dict[str, Any]:
    """Relative difference of weights and metrics after four steps to plain torch in the same precision."""
    engine = EngineConfig(backend=backend, device=here.options.device, precision=precision)  # type: ignore[arg-type]
    config = tiny_config(objective, engine, r1=0.5, stabilised=objective == "pf_mag")
    plain = replace(config, engine=replace(engine, backend="ddp"))
    ours, reference = train(config, backend, here.world), train(plain, "ddp", single_process(here.world))
    return {
        "weights": float((ours.weights - reference.weights).norm() / reference.weights.norm()),
        "metrics": relative_difference(ours.metrics, reference.metrics, ours.discrete),
        "communication": torch.distributed.get_backend(),
    }


def _resume(here: Slice, *, objective: str, mode: str) -> dict[str, Any]:
    """Relative differences to a run of another run of the same config, and of one that was interrupted; 0 only if all
    weights, averages and moments are bit-identical.
    """
    folder = here.options.output / "resume" / f"{objective}-{mode.split()[0]}"
    shutil.rmtree(folder, ignore_errors=True)
    config = _run_config(here, objective)
    with deterministic(mode.startswith("deterministic")):
        for name in ("first", "second"):
            run(config, folder / name)
        shutil.copytree(folder / "second", folder / "resumed")
        _forget_end(folder / "resumed", config.checkpoint.every_steps)
        run(config, folder / "resumed")
    first, second, resumed = (last_tensors(folder / name) for name in ("first", "second", "resumed"))
    shutil.rmtree(folder)
    return {"repeated": distance(second, first), "resumed": distance(resumed, first), "steps": config.max_steps}


def _forget_end(folder: Path, step: int) -> None:
    """Make a finished run one that was killed after its checkpoint of a step."""
    (folder / RESULT_FILE).unlink()
    checkpoints = folder / CHECKPOINTS_DIR
    for other in checkpoint_steps(checkpoints):
        if other != step:
            shutil.rmtree(step_folder(checkpoints, other))
    assert checkpoint_steps(checkpoints) == [step], checkpoint_steps(checkpoints)


def _run_config(here: Slice, objective: str) -> RunConfig:
    """A short run in bf16 on rendered faces with weight averaging, accumulation, clipping and, in PF-MAG, R1."""
    steps = 4 if here.options.miniature else STEPS
    engine = EngineConfig(
        device=here.options.device,  # type: ignore[arg-type]
        precision="bf16",
        grad_accumulation_steps=2,
        log_every=1,
    )
    base = short_run(ROLES[objective], steps, engine)
    return replace(
        base,
        tracker=(),
        checkpoint=CheckpointConfig(every_steps=steps // 2, keep=steps),
        evaluate=replace(base.evaluate, every_epochs=1000, n_poker_faces=16),
        pf_mag=replace(base.pf_mag, warmup_steps=1, loss_balancing_steps=1, r1=0.1, r1_every=2, grad_norms_every=0),
    )


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """torch's deterministic algorithms where they exist. cuBLAS reads CUBLAS_WORKSPACE_CONFIG at its first use."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(enabled, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
