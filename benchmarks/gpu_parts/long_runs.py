"""Studies at length on one device: each run is a measurement that stops with a checkpoint at the end of a slice."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.measurements import GpuDayOptions, Measurement, Slice, Unavailable, Unfinished
from benchmarks.poker_aims import run_figures
from benchmarks.poker_faces import COMPARED_RUNS, SEEDS, SHARED_RUNS, plan, seeds_of
from pfcluster.config import EvaluateConfig, RunConfig, SyntheticConfig, presets
from pfcluster.config.data import DataConfig
from pfcluster.config.starts import MAE_VIT, from_mae_vit, starts_from_mae_vit
from pfcluster.distributed.signals import StopRequest
from pfcluster.launch.plan import TrainRun
from pfcluster.profiling.training_cost import step_flops
from pfcluster.runs.folder import read_result
from pfcluster.training import run
from pfcluster.training.parity import MODEL

FER_SEEDS = (1, 2, 3)
FER_RUNS = ("scratch", MAE_VIT, "pf-vit")
SAVING = 20.0
"""Seconds before the end of a slice at which a run stops, to write its checkpoint."""
FIGURES = (
    "accuracy",
    "rec_neutralised_rate",
    "poker_neutralised_rate",
    "poker_emotion_agreement",
    "poker_mse_inside",
    "poker_mse_outside",
)
"""Of the test split; result.json in the run's folder has all."""
MINIATURE_SEEDS = (1,)


def fer_measurements(options: GpuDayOptions) -> list[Measurement]:
    """The preset's runs on --fer: judge and MAE once, classifiers and PF-ViT with every seed."""
    seeds = MINIATURE_SEEDS if options.miniature else FER_SEEDS
    names = [("judge", 0), ("mae", 0), *((name, seed) for name in FER_RUNS for seed in seeds)]
    return [_measurement("fer2013", name, seed, fer_run) for name, seed in names]


def poker_measurements(options: GpuDayOptions) -> list[Measurement]:
    """The runs of benchmarks/poker_faces.py, which afterwards writes its report with --folder DIR/poker-faces."""
    seeds = MINIATURE_SEEDS if options.miniature else SEEDS
    compared = COMPARED_RUNS[:2] if options.miniature else COMPARED_RUNS
    names = [
        *((name, 0) for name in SHARED_RUNS),
        *((name, seed) for seed in seeds for name in compared if seed in seeds_of(name, seeds)),
    ]
    return [_measurement("poker-face", name, seed, poker_run) for name, seed in names]


Planned = Callable[[Slice, str, int], TrainRun]


def _measurement(study: str, name: str, seed: int, planned: Planned) -> Measurement:
    measure = partial(_train, planned=planned, name=name, seed=seed)
    needs = ("sklearn",) if study == "poker-face" and name in COMPARED_RUNS else ()  # probes
    return Measurement(f"{study}/{name}, seed {seed}", 300.0, measure, needs, continues=True)


def _train(here: Slice, *, planned: Planned, name: str, seed: int) -> dict[str, Any]:
    """Train until the end of the run or of the slice. Raises Unfinished at the latter."""
    task = planned(here, name, seed)
    if here.seconds_left < 3 * SAVING and not here.options.miniature:
        raise Unfinished("no time left in this slice, give the command again")
    _require_starts(task.config)
    stop = StopRequest()
    timer = threading.Timer(max(0.0, here.seconds_left - SAVING), stop.ask, (signal.SIGALRM,))
    timer.daemon = True
    timer.start()
    try:
        with stop:
            result = run(task.config, task.folder, stop=stop, step_flops=step_flops)
    finally:
        timer.cancel()
    if stop.signal not in (None, signal.SIGALRM):
        raise KeyboardInterrupt
    if result["status"] != "finished":
        raise Unfinished(f"at step {result['steps']}, give the command again")
    figures = run_figures(result) if "accuracy" in result.get("test", {}) else {}
    return {
        **{figure: figures[figure] for figure in FIGURES if figure in figures},
        "steps": result["steps"],
        "seconds": result["seconds"],
        "mfu": result["efficiency"]["mfu"],
        "host_wait": result["efficiency"]["host_wait"],
    }


def _require_starts(config: RunConfig) -> None:
    """Raises Unfinished if a run that the config starts from has not finished."""
    for folder in (config.model.init, config.pf_mag.decoder_init, config.evaluate.judge):
        if folder is not None and (read_result(Path(folder)) or {}).get("status") != "finished":
            raise Unfinished(f"waits for {folder}")


def fer_run(here: Slice, name: str, seed: int) -> TrainRun:
    """A run of the preset --fer-preset, as `pfcluster study` plans it. Raises Unavailable without --fer."""
    options, folder = here.options, here.options.output / "fer2013"
    if options.fer is None and not options.miniature:
        raise Unavailable("needs --fer DIR, shards of FER2013 built by `pfcluster build`")
    recipe = presets.recipe(options.fer_preset)
    config = replace(recipe[name], name=name, seed=seed)
    if options.fer is not None:
        config = replace(config, data=replace(config.data, shards=str(options.fer)))
    config = replace(config, epochs=config.epochs * options.fer_length)
    mae, judge = folder / "mae" / "seed-0", folder / "judge" / "seed-0"
    if name == MAE_VIT or (name == "pf-vit" and not starts_from_mae_vit(recipe)):
        config = replace(config, model=replace(config.model, init=str(mae)))
    elif name == "pf-vit":
        config = from_mae_vit(config, str(folder / MAE_VIT / f"seed-{seed}"), str(mae))
    if name == "pf-vit":
        config = replace(config, evaluate=replace(config.evaluate, judge=str(judge)))
    return TrainRun(_for_this_device(config, options), folder / name / f"seed-{seed}")


def poker_run(here: Slice, name: str, seed: int) -> TrainRun:
    """A run of benchmarks/poker_faces.py."""
    options = here.options
    planned = _poker_plan(options.output / "poker-faces")
    task = planned[name, seed]
    return replace(task, config=_for_this_device(task.config, options))


@functools.cache
def _poker_plan(folder: Path) -> Mapping[tuple[str, int], TrainRun]:
    tasks = [task for stage in plan(folder, SEEDS, COMPARED_RUNS).stages for task in stage.tasks]
    return {(task.folder.parent.name, task.config.seed): task for task in tasks if isinstance(task, TrainRun)}


def _for_this_device(config: RunConfig, options: GpuDayOptions) -> RunConfig:
    """The config unchanged, so that other commands know the run; the miniature in two steps on a few rendered faces."""
    if options.device != "auto":
        config = replace(config, engine=replace(config.engine, device=options.device))  # type: ignore[arg-type]
    if not options.miniature:
        return config
    faces = SyntheticConfig(train=64, validation=24, test=24, identities=12, nuisance=0.3)
    cnn = config.model.architecture == "cnn"
    evaluate = EvaluateConfig(
        every_epochs=1000,
        n_poker_faces=8,
        n_probe_images=min(24, config.evaluate.n_probe_images),
        judge=config.evaluate.judge,
    )
    start = None if config.pf_mag.erasure_start is None else 0
    pf_mag = replace(config.pf_mag, warmup_steps=1, erasure_start=start, generate_every=1, grad_norms_every=0)
    return replace(
        config,
        max_steps=2,
        batch_size=16,
        tracker=(),
        data=DataConfig(size=32, synthetic=faces),
        model=config.model if cnn else replace(MODEL, init=config.model.init),
        evaluate=evaluate,
        pf_mag=pf_mag,
    )
