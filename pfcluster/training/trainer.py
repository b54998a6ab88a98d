"""`run(config, folder)`: build, train, save, evaluate. Whatever launched it, this is what happens in each process."""

from __future__ import annotations

import contextlib
import copy
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfcluster.checkpoint import store
from pfcluster.checkpoint.manager import CheckpointManager
from pfcluster.checkpoint.tensor_shards import TensorShards
from pfcluster.config import ConfigError, RunConfig
from pfcluster.data.batch import draw_augment_params, make_micro_batches, require_even_micro_batch
from pfcluster.data.dataset import cache_train_split, open_dataset, require_labels, sample_order
from pfcluster.data.sampler import read_ahead
from pfcluster.data.transforms import crop_on_host
from pfcluster.data.types import RawBatch, Split
from pfcluster.distributed.heartbeat import Heartbeat
from pfcluster.distributed.process_group import World, world
from pfcluster.distributed.signals import StopRequest
from pfcluster.distributed.stragglers import StragglerMonitor
from pfcluster.engine.base import EngineError, NonFiniteError
from pfcluster.engine.factory import choose
from pfcluster.engine.optimizer import Plateau, learning_rate
from pfcluster.engine.timing import seconds
from pfcluster.evaluate.evaluators import load_evaluators
from pfcluster.evaluate.final import evaluate_split, final_evaluation
from pfcluster.evaluate.tracked_faces import TrackedFaces
from pfcluster.models import factory
from pfcluster.models.from_runs import load_identity_net
from pfcluster.runs import provenance
from pfcluster.runs.early_stop import EarlyStop, read_early_stop
from pfcluster.runs.folder import (
    CHECKPOINTS_DIR,
    FAILURE_FILE,
    append_rank_times,
    changes_on_resume,
    checkpoint_steps,
    read_result,
    write_config,
    write_failure,
    write_result,
)
from pfcluster.runs.metrics_log import MetricsLog
from pfcluster.runs.progress import Progress
from pfcluster.training.factory import build_engines, build_objective


class TrainingError(RuntimeError):
    """Training cannot go on: names the step, the samples, and what to do."""


@dataclass
class State:
    """Where a run stands, besides the weights. JSON in every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    best: dict[str, float] | None = None
    """Step and score of the best evaluation so far; higher scores are better."""
    plateau: Plateau = field(default_factory=Plateau)


def run(config: RunConfig, folder: Path, command: str | None = None, stop: StopRequest | None = None) -> dict[str, Any]:
    """Train one config in the process group of the environment, or go on where `folder` says that it stopped.

    Returns the content of `result.json`: status "finished", "interrupted" after a signal, or "stopped" where a limit
    (runs/early_stop.py) ended it early; all with a checkpoint. A folder that is finished already gives its result
    again,
    but for a test split that is to be measured now and was not. A launcher that listens for signals before the training
    begins, or by other ways, hands its own `stop`, entered. Raises ValueError subclasses for what users can mend,
    TrainingError, OSError for a disk, and LostRankError where another rank is the reason.
    """
    with world(config.engine.device, config.engine.timeout) as here, contextlib.ExitStack() as entered:
        stop = entered.enter_context(StopRequest()) if stop is None else stop
        if config.batch_size % (here.size * config.engine.grad_accumulation_steps):
            raise ConfigError(
                f"batch_size must be a multiple of the number of processes ({here.size}) times"
                f" engine.grad_accumulation_steps ({config.engine.grad_accumulation_steps}), got {config.batch_size}"
            )
        finished = here.from_main(lambda: _claim(config, folder, command))
        if finished is not None:
            return finished
        with Heartbeat(here, config.engine.timeout) as heartbeat:
            try:
                return Trainer(config, folder, here, stop, heartbeat).train()
            except (RuntimeError, ConnectionError) as error:
                if here.size == 1 or not _of_communication(error):
                    raise
                raise heartbeat.blame(error) from error


def _of_communication(error: Exception) -> bool:
    """Whether an error may be another rank's. gloo and NCCL raise plain RuntimeErrors."""
    ours = isinstance(error, TrainingError | EngineError | NonFiniteError)
    return not ours and re.search(r"gloo|nccl|connection|timed out|store|socket", str(error), re.IGNORECASE) is not None


def _claim(config: RunConfig, folder: Path, command: str | None) -> dict[str, Any] | None:
    """Make the run folder this config's own; its result, if it is finished. Raises ConfigError for another's folder."""
    changed = changes_on_resume(folder, config)
    result = read_result(folder)
    if result is not None and result["status"] == "finished" and not _lacks_test(config, result):
        return result
    folder.mkdir(parents=True, exist_ok=True)
    for name, (old, new) in changed.items():
        provenance.warn(folder, f"{name} was {old!r} and is {new!r} from here on", True)
    write_config(folder, config)
    provenance.write(folder, command)
    return None


def _lacks_test(config: RunConfig, result: dict[str, Any]) -> bool:
    """Whether a finished run was told to leave the test split alone, and is told to measure it now."""
    return config.evaluate.final_split == "test" and result.get("measured_on") == "validation"


class Trainer:
    """One run in one process."""

    def __init__(self, config: RunConfig, folder: Path, here: World, stop: StopRequest, heartbeat: Heartbeat) -> None:
        self.config, self.folder, self.world, self.stop, self.heartbeat = config, folder, here, stop, heartbeat
        dataset = open_dataset(config.data, config.seed)
        require_labels(dataset, config.objective)
        require_even_micro_batch(config, here.size)
        self.dataset = cache_train_split(dataset, config.data, here.device)
        self.order = sample_order(config.data, dataset, config.seed)
        modules = factory.build(config, len(self.dataset.classes))
        self.parameters = factory.parameter_counts(config, modules)
        self.replica = copy.deepcopy(modules["model"])
        identity_net = load_identity_net(config, here)
        self.evaluators = load_evaluators(config, self.dataset, identity_net, here)
        self.choice = choose(config.engine, here)
        self.engines = build_engines(config, self.choice.backend, modules, here)
        self.objective = build_objective(config, self.engines, self.dataset, identity_net, here)
        self.total_steps = total_steps(config, len(self.dataset.train))
        self.evaluate_every = evaluation_steps(config, len(self.dataset.train))
        self.watch = TrackedFaces(config, self._chooses(), here) if config.objective == "pf_mag" else None
        self.saver = CheckpointManager(
            folder / CHECKPOINTS_DIR,
            here,
            keep=config.checkpoint.keep,
            asynchronous=config.checkpoint.asynchronous,
            timeout=config.engine.timeout,
        )
        self.pace = StragglerMonitor(here)
        self.state = State()
        self.limit: EarlyStop | None = None
        """Rank 0's knowledge of an early end."""

    def train(self) -> dict[str, Any]:
        """Resume, run the remaining steps, evaluate, write the result."""
        self._resume()
        progress = Progress(self.config, self.folder, self.total_steps, self.world)
        progress.say(f"engine {self.choice.backend} ({self.choice.reason})")
        progress.say(f"from step {self.state.step} of {self.total_steps}")
        with MetricsLog(self.folder, self.state.step, self.world) as log:
            status = self._loop(log, progress)
            self.saver.wait()
            pace = self.pace.summary()
            if pace is not None:
                progress.say(
                    f"slowest rank: {pace['slowest_rank']} on {pace['host']}, {pace['busy_ms']} ms a step before it"
                    f" waits, the median {pace['median_busy_ms']} ms"
                )
            result = self._result(status)
            if status == "finished":
                progress.say("final evaluation", stage="evaluate")
                result |= final_evaluation(
                    self.config, self.folder, self.dataset, self.replica, self.evaluators, self.world
                )
                result["on_validation"] = _on_validation(self.folder, result)
                if "test" in result:
                    log.write("test", self.state.step, self._epoch(), _flat(result["test"]))
        if self.world.is_main:
            write_result(self.folder, result)
        self.world.barrier()
        return result

    def _loop(self, log: MetricsLog, progress: Progress) -> str:
        """The remaining steps; "finished", or "interrupted" once a signal asked to stop."""
        started, resumed_seconds = time.monotonic(), self.state.seconds
        self._look_for_limit()
        if self.world.any(self._limited()):
            return self._stopped(progress)
        steps = range(self.state.step, self.total_steps)
        released = time.monotonic()
        for step, raw in zip(steps, read_ahead(self._read, steps, self.config.data.workers), strict=True):
            for name, engine in self.engines.items():
                options = self.config.discriminator_optim if name == "discriminator" else self.config.optim
                lr = learning_rate(options, step, self.total_steps, self.state.plateau)
                engine.set_lr(lr)
            batches = make_micro_batches(raw, self.config, step, self.world)
            data = time.monotonic() - released
            updates = self._updates()
            try:
                metrics = self.objective.step(batches, step)
            except NonFiniteError as error:
                raise self._not_finite(step, updates, error) from error
            self.state.step = self.heartbeat.step = step + 1
            self.state.seconds = resumed_seconds + time.monotonic() - started
            log.add(metrics)
            self.pace.add(data, self._forward_seconds(), time.monotonic() - released)
            if self.state.step % self.config.engine.log_every == 0 or self.state.step == self.total_steps:
                line = log.flush(self.state.step, self._epoch(), self.config.batch_size)
                progress.update(self.state.step, line)
                rank_times = self.pace.flush()
                if rank_times is not None and self.world.is_main:
                    append_rank_times(self.folder, self.state.step, rank_times)
                self._look_for_limit()
            improved = self._maybe_evaluate(log, progress)
            interrupted, limited = self.world.any_of(self.stop.requested, self._limited())
            due = self.state.step % self.config.checkpoint.every_steps == 0 or self.state.step == self.total_steps
            if improved or due or interrupted or limited:
                self._save()
            if limited:
                return self._stopped(progress)
            if interrupted and self.state.step < self.total_steps:
                progress.say(f"stopped at step {self.state.step}; the same command goes on from there")
                return "interrupted"
            released = time.monotonic()
        return "finished"

    def _look_for_limit(self) -> None:
        if self.world.is_main:
            self.limit = read_early_stop(self.folder)

    def _limited(self) -> bool:
        """Whether rank 0 knows that the run ends here."""
        return self.limit is not None and self.limit.step <= self.state.step < self.total_steps

    def _stopped(self, progress: Progress) -> str:
        if self.limit is not None:
            progress.say(f"ended early at step {self.state.step}: {self.limit.reason}")
        return "stopped"

    def _forward_seconds(self) -> float:
        """Time of the step that was just taken from its first forward pass to its first backward."""
        marks = [(engine.forward_began, engine.backward_began) for engine in self.engines.values()]
        began, turned = marks[0][0], marks[-1][1]  # Δ, the last engine, has the first turn
        assert began is not None
        assert turned is not None
        return seconds(began, turned)

    def _read(self, step: int) -> RawBatch:
        """This rank's samples of a step."""
        mine = self.world.slice_of(self.config.batch_size)
        raw = self.dataset.train.batch(self._indices(step)[mine])
        if self.config.data.augment_on == "device":
            return raw
        changes = draw_augment_params(self.config, step, self.world)
        return replace(raw, images=crop_on_host(raw.images, changes, self.config.data.size))

    def _indices(self, step: int) -> Tensor:
        size = self.config.batch_size
        return self.order.samples(step * size, size)

    def _epoch(self) -> float:
        return self.state.step * self.config.batch_size / len(self.dataset.train)

    def _maybe_evaluate(self, log: MetricsLog, progress: Progress) -> bool:
        """Evaluate where it is due; whether this is the best checkpoint so far."""
        step = self.state.step
        if step % self.evaluate_every and step != self.total_steps:
            return False
        model = self._evaluated()
        values, score = evaluate_split(self.config, model, self._chooses(), self.dataset.classes, self.world)
        if self.watch is not None:
            values |= self.watch.region_mse(model)
            if grid_due(self.config, step // self.evaluate_every) or step == self.total_steps:
                self.watch.draw(model, self.folder, step)
        model.to("cpu")
        log.write(self.config.evaluate.selection_split, step, self._epoch(), values)
        progress.update(step, {f"val {name}": value for name, value in values.items()})
        self.state.plateau = self.state.plateau.after(score, self.config.optim)
        if self.state.best is not None and score <= self.state.best["score"]:
            return False
        self.state.best = {"step": step, "score": score}
        return True

    def _chooses(self) -> Split:
        """The split that chooses the checkpoint."""
        on_test = self.config.evaluate.selection_split == "test" and self.dataset.test is not None
        split = self.dataset.test if on_test else self.dataset.validation
        assert split is not None
        return split

    def _evaluated(self) -> torch.nn.Module:
        """A plain copy of the model on the device, its weights whole: the moving average where one is kept. Ranks may
        call it unequally often, which the engines' own modules would not survive.
        """
        averaged = self.config.optim.ema > 0
        self.replica.load_state_dict(self.engines["model"].model_state(averaged=averaged))
        return self.replica.to(self.world.device)

    def _save(self) -> None:
        """Have all ranks write a checkpoint of this step."""
        tensor_shards: TensorShards = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, engine in self.engines.items():
            tensor_shards |= engine.tensor_shards(name)
            shapes |= engine.saved_shapes(name)
        state = {
            "seconds": self.state.seconds,
            "best": self.state.best,
            "plateau": vars(self.state.plateau) | {"best": _finite(self.state.plateau.best)},
            "objective": self.objective.state(),
            "world_size": self.world.size,
            "backend": self.choice.backend,
        }
        best = None if self.state.best is None else int(self.state.best["step"])
        self.saver.save(self.state.step, tensor_shards, shapes, state, best)

    def _resume(self) -> None:
        """Take over the newest checkpoint that can be trusted: rank 0 finds it, each rank reads its own part."""
        found, problems = self.world.from_main(lambda: store.latest(self.saver.folder))
        for problem in problems:
            provenance.warn(self.folder, f"skipped a damaged checkpoint: {problem}", self.world.is_main)
        if found is None:
            return
        for name, engine in self.engines.items():
            found.read_into(engine.tensor_shards(name, loading=True))
            engine.sync_after_load()
        plateau = found.state["plateau"]
        best = -float("inf") if plateau["best"] is None else plateau["best"]
        self.objective.load_state(found.state["objective"])
        self.state = State(found.step, found.state["seconds"], found.state["best"], Plateau(**plateau | {"best": best}))

    def _updates(self) -> list[int]:
        return [engine.updates for engine in self.engines.values()]

    def _not_finite(self, step: int, updates: list[int], error: NonFiniteError) -> TrainingError:
        """Record the batch that broke the run, and keep a checkpoint from before it. `updates` are from before it."""
        keys = self.dataset.train.keys(self._indices(step))
        if self._updates() == updates:
            self._save()  # nothing has changed since the step before
        self.saver.wait()
        kept = checkpoint_steps(self.saver.folder)
        record = {"step": step, "error": str(error), "sample_keys": keys, "checkpoint_step": kept[-1] if kept else None}
        if self.world.is_main:
            write_failure(self.folder, record)
        shown = ", ".join(keys[:8]) + (", ..." if len(keys) > 8 else "")
        return TrainingError(
            f"step {step}: {error}. Nothing was trained on this batch; its {len(keys)} samples ({shown}) are named in"
            f" {self.folder / FAILURE_FILE}. Look at them, or lower optim.lr, or set optim.clip_norm, in a new folder"
        )

    def _result(self, status: str) -> dict[str, Any]:
        """What result.json says of any run."""
        best = self.state.best
        warning = None
        if self.config.evaluate.selection_split == "test":
            warning = "the checkpoint was chosen on the test split, as in the paper: the test figures are optimistic"
        return {
            "format": 1,
            "name": self.config.name,
            "objective": self.config.objective,
            "seed": self.config.seed,
            "status": status,
            "steps": self.state.step,
            "seconds": round(self.state.seconds, 3),
            "images_per_second": round(self.state.step * self.config.batch_size / max(self.state.seconds, 1e-9), 1),
            "parameters": self.parameters,
            "dataset": {
                "name": self.dataset.name,
                "classes": list(self.dataset.classes),
                "votes": self.dataset.votes,
                **self.dataset.counts(),
            },
            "ended_early": None if status != "stopped" or self.limit is None else self.limit.reason,
            "selection_split": self.config.evaluate.selection_split,
            "best": None if best is None else {"step": best["step"], "value": best["score"]},
            "processes": self.world.size,
            "engine": {"backend": self.choice.backend, "reason": self.choice.reason},
            "checkpoints": self.saver.summary(),
            "pace": self.pace.summary(),
            "device": str(self.world.device.type),
            "warning": warning,
            **provenance.read(self.folder),
        }


def total_steps(config: RunConfig, samples: int) -> int:
    """Steps of a run over a training split of so many samples."""
    steps = max(1, round(config.epochs * samples / config.batch_size))
    return steps if config.max_steps is None else min(steps, config.max_steps)


def evaluation_steps(config: RunConfig, samples: int) -> int:
    """Steps between two evaluations; there is one at the end besides."""
    return max(1, round(config.evaluate.every_epochs * samples / config.batch_size))


def grid_due(config: RunConfig, evaluation: int) -> bool:
    """Whether a picture grid is to be drawn at an evaluation, the first being number 1."""
    every = config.evaluate.grid_every
    return every > 0 and evaluation % max(1, round(every / config.evaluate.every_epochs)) == 0


def _finite(value: float) -> float | None:
    """JSON has no infinities."""
    return value if abs(value) != float("inf") else None


def _on_validation(folder: Path, result: dict[str, Any]) -> dict[str, Any] | None:
    """Figures of poker faces on validation, of a run that measured them before its test split; None otherwise."""
    earlier = read_result(folder) if result["measured_on"] == "test" else None
    earlier = earlier or {}
    if earlier.get("measured_on") == "validation":
        return {name: earlier.get(name) for name in ("poker", "reconstruction")}
    known: dict[str, Any] | None = earlier.get("on_validation")
    return known


def _flat(values: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, float)}
