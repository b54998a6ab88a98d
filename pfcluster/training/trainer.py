"""`run(config, folder)`: build, train, checkpoint, evaluate. Every process of a run calls it, under any launcher."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pfcluster.checkpoint.manager import CheckpointManager
from pfcluster.config import ConfigError, RunConfig
from pfcluster.data.batch import Batch, require_fitting_micro_batch
from pfcluster.data.dataset import cache_train_split, open_dataset, require_labels, sample_order
from pfcluster.data.prefetch import micro_batches
from pfcluster.data.types import RawBatch
from pfcluster.distributed.heartbeat import Heartbeat
from pfcluster.distributed.process_group import World, world
from pfcluster.distributed.signals import StopRequest
from pfcluster.distributed.stragglers import StragglerMonitor
from pfcluster.engine.factory import choose_backend
from pfcluster.engine.optimizer import set_learning_rates
from pfcluster.engine.timing import elapsed_seconds
from pfcluster.evaluate.evaluators import load_evaluators
from pfcluster.evaluate.final import final_evaluation
from pfcluster.models import factory
from pfcluster.models.from_runs import load_identity_net
from pfcluster.runs.early_stop import EarlyStop, read_early_stop
from pfcluster.runs.folder import CHECKPOINTS_DIR, FAILURE_FILE, checkpoint_steps, write_failure, write_result
from pfcluster.runs.metrics_file import append_rank_times
from pfcluster.runs.metrics_log import MetricsLog
from pfcluster.runs.progress import Progress, warn
from pfcluster.tracking.trackers import open_trackers
from pfcluster.training.damaged_samples import DamagedSamples
from pfcluster.training.errors import TrainingError, is_communication_error
from pfcluster.training.factory import build_class_weights, build_engines, build_objective
from pfcluster.training.flight_recorder import record_collectives, write_collectives
from pfcluster.training.objective import Metrics
from pfcluster.training.result import earlier_figures, earlier_validation_result, training_result
from pfcluster.training.resume import TrainState, claim_folder, load_checkpoint, save_checkpoint
from pfcluster.training.schedule import schedule_warnings, total_steps
from pfcluster.training.selection import PeriodicEvaluation
from pfcluster.training.step_checks import NonFiniteStep, StepChecks
from pfcluster.training.step_profiler import StepProfiler
from pfcluster.training.throughput import StepFlops, Throughput


def run(
    config: RunConfig,
    folder: Path,
    command: str | None = None,
    stop: StopRequest | None = None,
    step_flops: StepFlops | None = None,
) -> dict[str, Any]:
    """Train a config in the process group of the environment, resuming if `folder` has a checkpoint.

    Returns the content of result.json: status "finished", "interrupted" after a signal, or "stopped" early by
    early_stop.json; all leave a checkpoint. The result of a finished run is returned again, unless its test split is
    still to be measured. `stop` is an entered StopRequest of a launcher that handles signals itself. `step_flops`
    (profiling/training_cost.py) counts FLOPs; without it FLOP/s and MFU are unknown.

    Raises ValueError subclasses for what users can correct, TrainingError, OSError for disks, and LostRankError if
    another rank is lost.
    """
    record_collectives(folder)
    with world(config.engine.device, config.engine.timeout) as group, contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest()) if stop is None else stop
        if config.batch_size % (group.size * config.engine.grad_accumulation_steps):
            raise ConfigError(
                f"batch_size must be a multiple of the number of processes ({group.size}) times"
                f" engine.grad_accumulation_steps ({config.engine.grad_accumulation_steps}), got {config.batch_size}"
            )
        finished = group.from_main(lambda: claim_folder(config, folder, command))
        if finished is not None:
            return finished
        with Heartbeat(group, config.engine.timeout, lambda: write_collectives(folder, group.rank)) as heartbeat:
            try:
                return Trainer(config, folder, group, stop, heartbeat, step_flops).train()
            except (RuntimeError, ConnectionError) as error:
                if group.size == 1 or not is_communication_error(error):
                    raise
                raise heartbeat.diagnose(error) from error


class Trainer:
    """One run in one process."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        world: World,
        stop: StopRequest,
        heartbeat: Heartbeat,
        step_flops: StepFlops | None = None,
    ) -> None:
        self.config, self.folder, self.world, self.stop, self.heartbeat = config, folder, world, stop, heartbeat
        dataset = open_dataset(config.data, config.seed)
        require_labels(dataset, config)
        require_fitting_micro_batch(config, world.size)
        self.dataset = cache_train_split(dataset, config.data, world.device)
        self.order = sample_order(config.data, dataset, config.seed)
        modules = factory.build(config, len(self.dataset.classes))
        self.parameters = factory.parameter_counts(modules)
        self.replica = copy.deepcopy(modules["model"])
        identity_net = load_identity_net(config, world)
        self.evaluators = load_evaluators(config, self.dataset, identity_net, world)
        self.backend_choice = choose_backend(config.engine, world)
        self.engines = build_engines(config, self.backend_choice.backend, modules, world)
        self.objective = build_objective(
            config,
            self.engines,
            self.dataset.classes,
            world,
            class_weights=build_class_weights(config, self.dataset.train, world),
            identity_net=identity_net,
        )
        self.checks = StepChecks(self.engines, self.objective, world.device)
        self.total_steps = total_steps(config, len(self.dataset.train))
        self.evaluation = PeriodicEvaluation(config, folder, self.dataset, self.replica, self.total_steps, world)
        self.checkpoints = CheckpointManager(
            folder / CHECKPOINTS_DIR,
            world,
            keep=config.checkpoint.keep,
            asynchronous=config.checkpoint.asynchronous,
            timeout=config.engine.timeout,
        )
        self.stragglers = StragglerMonitor(world)
        self.throughput = Throughput(config, len(self.dataset.classes), world, step_flops)
        self.damaged = DamagedSamples(self.dataset, folder, world)
        self.state = TrainState()
        self.first_step = 0
        """Step of the checkpoint from which this attempt has resumed."""
        self.early_stop: EarlyStop | None = None
        """Read by rank 0 only."""

    def train(self) -> dict[str, Any]:
        """Resume, run the remaining steps, evaluate, and write the result."""
        self.state = load_checkpoint(
            self.checkpoints, self.engines, self.objective, folder=self.folder, world=self.world
        )
        self.first_step = self.state.step
        progress = Progress(self.config, self.folder, self.total_steps, self.world)
        progress.report(f"engine {self.backend_choice.backend} ({self.backend_choice.reason})")
        progress.report(f"from step {self.state.step} of {self.total_steps}")
        if self.state.step == 0:
            for warning in schedule_warnings(self.config, self.total_steps):
                warn(self.folder, warning, self.world.is_main)
        log = MetricsLog(self.folder, self.state.step, self.world)
        with open_trackers(self.config, self.folder, self.world) as trackers:
            try:
                with StepProfiler(self.config, self.folder, self.state.step, self.world) as profiler:
                    status = self._loop(log, progress, profiler)
            except NonFiniteStep as error:
                raise self._non_finite_error(error) from error
            except Exception as error:
                if self.world.size == 1 or not is_communication_error(error):
                    self.checkpoints.finish()  # the writers of all ranks are still there
                raise
            self.checkpoints.wait()
            result = self._result(status, progress)
            if status == "finished":
                result = self._final_evaluation(log, progress, result)
            result["damaged_samples"] = self.damaged.collect()
            if self.world.is_main:
                write_result(self.folder, result)
            trackers.status = status
        self.world.barrier()
        return result

    def _final_evaluation(self, log: MetricsLog, progress: Progress, result: dict[str, Any]) -> dict[str, Any]:
        """The result with the figures of the best checkpoint."""
        progress.report("final evaluation", stage="evaluate")
        result = result | final_evaluation(
            self.config, self.folder, self.dataset, self.replica, self.evaluators, self.world
        )
        result["on_validation"] = earlier_validation_result(self.folder, result)
        if "test" in result:
            scalars = {name: value for name, value in result["test"].items() if isinstance(value, float)}
            log.write("test", self.state.step, self._epoch(), scalars)
        return result

    def _loop(self, log: MetricsLog, progress: Progress, profiler: StepProfiler) -> str:
        """Run the remaining steps; -> "finished", "interrupted" by a signal, or "stopped" early."""
        started, earlier_seconds = time.monotonic(), self.state.seconds
        self._read_early_stop()
        if self.world.any(self._stops_early()):
            return self._report_early_stop(progress)
        steps = range(self.state.step, self.total_steps)
        step_began = time.monotonic()
        self.throughput.restart()
        prefetched = micro_batches(self._read_batch, self.config, steps, self.world)
        for step, batches in zip(steps, prefetched, strict=True):
            log.add(self._train_step(step, batches, step_began))
            self.state.step = self.heartbeat.step = step + 1
            self.state.seconds = earlier_seconds + time.monotonic() - started
            if self._due(self.config.engine.log_every):
                self.checks.require_finite()
                self._log(log, progress)
            improved = self.evaluation.due(self.state.step) and self._evaluate(log, progress)
            interrupted, stopped = self.world.any_of(self.stop.requested, self._stops_early())
            if improved or interrupted or stopped or self._due(self.config.checkpoint.every_steps):
                self.checks.require_finite()
                with self.throughput.paused():
                    self._save()
            if stopped:
                return self._report_early_stop(progress)
            if interrupted and self.state.step < self.total_steps:
                progress.report(f"stopped at step {self.state.step}; the same command resumes from there")
                return "interrupted"
            profiler.step()
            step_began = time.monotonic()
        return "finished"

    def _train_step(self, step: int, batches: list[Batch], began: float) -> Metrics:
        """Train on the micro-batches of a step; `began` is when the wait for them began. Raises NonFiniteStep."""
        data_seconds = time.monotonic() - began
        set_learning_rates(self.engines, self.config, step, self.total_steps, self.state.plateaus)
        metrics = self.checks.run(step, lambda: self.objective.step(batches, step))
        self.throughput.add(step, data_seconds)
        self.stragglers.add(data_seconds, self._forward_seconds(), time.monotonic() - began)
        return metrics

    def _due(self, every: int) -> bool:
        """Whether something is due after this step that is due every so many steps and at the end."""
        return self.state.step % every == 0 or self.state.step == self.total_steps

    def _read_batch(self, step: int) -> RawBatch:
        """This rank's samples of a step."""
        return self.dataset.train.batch(self._sample_indices(step)[self.world.slice_of(self.config.batch_size)])

    def _sample_indices(self, step: int) -> Tensor:
        """Indices of the global batch, (b,)."""
        size = self.config.batch_size
        return self.order.samples(step * size, size)

    def _forward_seconds(self) -> Callable[[], float]:
        """Reads the time of the last step from its first forward pass to its first backward pass."""
        began = self.engines["model"].forward_began
        first = [engine.backward_began for engine in reversed(self.engines.values())]  # the discriminator updates first
        ended = next((time for time in first if time is not None), None)
        assert began is not None
        assert ended is not None
        return partial(elapsed_seconds, began, ended)

    def _epoch(self) -> float:
        return self.state.step * self.config.batch_size / len(self.dataset.train)

    def _log(self, log: MetricsLog, progress: Progress) -> None:
        """Write mean metrics and rank times since the last call. A collective."""
        progress.update(self.state.step, log.flush(self.state.step, self._epoch(), self.throughput.flush))
        rank_times = self.stragglers.flush()
        if rank_times is not None and self.world.is_main:
            append_rank_times(self.folder, self.state.step, rank_times)
        self._read_early_stop()
        self.damaged.collect()

    def _evaluate(self, log: MetricsLog, progress: Progress) -> bool:
        """Evaluate and log; whether the score is the best so far."""
        self.checks.require_finite()  # waits for queued steps, which is training time
        with self.throughput.paused():
            metrics, improved = self.evaluation.evaluate(self.engines["model"], self.state)
        log.write(self.config.evaluate.selection_split, self.state.step, self._epoch(), metrics)
        progress.update(self.state.step, {f"val {name}": value for name, value in metrics.items()})
        return improved

    def _save(self) -> None:
        self.evaluation.before_saving(self.engines["model"], self.state.step)
        save_checkpoint(
            self.checkpoints,
            self.engines,
            self.objective,
            self.state,
            world=self.world,
            backend=self.backend_choice.backend,
        )

    def _read_early_stop(self) -> None:
        if self.world.is_main:
            self.early_stop = read_early_stop(self.folder)

    def _stops_early(self) -> bool:
        """Whether early_stop.json ends the run at this step; valid on rank 0 only."""
        return self.early_stop is not None and self.early_stop.step <= self.state.step < self.total_steps

    def _report_early_stop(self, progress: Progress) -> str:
        if self.early_stop is not None:
            progress.report(f"ended early at step {self.state.step}: {self.early_stop.reason}")
        return "stopped"

    def _non_finite_error(self, error: NonFiniteStep) -> TrainingError:
        """Record the batch and keep a checkpoint from before it."""
        self.state.step = step = error.step
        keys = self.dataset.train.keys(self._sample_indices(step))
        if error.untouched:
            self._save()
        self.checkpoints.wait()
        saved = checkpoint_steps(self.checkpoints.folder)
        record = {"step": step, "error": str(error), "sample_keys": keys}
        if self.world.is_main:
            write_failure(self.folder, record | {"checkpoint_step": saved[-1] if saved else None})
        listed = ", ".join(keys[:8]) + (", ..." if len(keys) > 8 else "")
        return TrainingError(
            f"step {step}: {error}. Nothing was trained on this batch; its {len(keys)} samples ({listed}) are listed in"
            f" {self.folder / FAILURE_FILE}. Inspect them, lower optim.lr, or set optim.clip_norm, in a new folder"
        )

    def _result(self, status: str, progress: Progress) -> dict[str, Any]:
        """The training part of result.json; reports the slowest rank."""
        stragglers = self.stragglers.summary()
        if stragglers is not None:
            progress.report(
                f"slowest rank: {stragglers['slowest_rank']} on {stragglers['host']}, {stragglers['busy_ms']} ms per"
                f" step before it waits for others; median {stragglers['median_busy_ms']} ms"
            )
        figures = {
            "images_per_second": self.throughput.images_per_second(),
            "checkpoints": self.checkpoints.summary(),
            "stragglers": stragglers,
            "efficiency": self.throughput.summary(),
        }
        if self.state.step == self.first_step:
            figures = earlier_figures(self.folder, figures)
        stopped = status == "stopped" and self.early_stop is not None
        return training_result(
            self.config,
            self.folder,
            self.dataset,
            self.state,
            self.backend_choice,
            status=status,
            processes=self.world.size,
        ) | {
            "parameters": self.parameters,
            "ended_early": self.early_stop.reason if stopped and self.early_stop is not None else None,
            "device": self.world.device.type,
            **figures,
        }
