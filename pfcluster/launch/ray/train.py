"""A run under Ray Train: `train(run, ...)` starts its workers on the cluster, and starts them again from the newest
checkpoint when one is lost.

The training runs inside Ray's worker processes, in the process group that Ray creates: once Ray has ended a group, no
process of it can still write while the next group starts.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pfcluster.config.json_files import try_read_record
from pfcluster.distributed.hosts import host_name
from pfcluster.distributed.signals import StopRequest
from pfcluster.launch import attempts
from pfcluster.launch.attempts import FINAL
from pfcluster.launch.plan import TrainRun
from pfcluster.launch.rank import RankInfo, redirect_output
from pfcluster.launch.training_lock import training_lock
from pfcluster.launch.worker import FAILED, FINISHED, INTERRUPTED, ExitStatus, informative_status, work
from pfcluster.runs.folder import (
    REQUESTED_CONFIG_FILE,
    STOP_FILE,
    exit_status_path,
    remove_exit_statuses,
    write_requested_config,
)
from pfcluster.system.atomic_files import write_atomically

RAY_JOB = "ray"
"""Stands for the job id in the attempts of a run."""


@dataclass(frozen=True)
class Workers:
    """The Ray workers of a run."""

    count: int
    cpus: float
    """Cores of each worker; below 1 several share a core."""
    gpus: float = 0.0
    """GPUs of each worker."""
    nodes: int = 1
    """Nodes over which the workers are spread."""


def train(run: TrainRun, *, workers: Workers, retries: int, command: str) -> ExitStatus:
    """Train a run; returns how it ended. Blocks. May be called in any Ray task or actor. STOP_FILE in the run's folder
    stops it, also before it has begun: remove an earlier one first.

    Failures that another attempt would repeat are final; others are retried `retries` times from the newest checkpoint.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    folder = run.folder.resolve()
    write_requested_config(folder, run.config)
    remove_exit_statuses(folder)
    storage = folder / "ray"
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"folder": str(folder), "command": command, "cpus": workers.cpus},
        torch_config=TorchConfig(
            backend="nccl" if workers.gpus else "gloo", timeout_s=max(1, round(run.config.engine.timeout))
        ),
        scaling_config=ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {}),
            placement_strategy=_placement(workers),
        ),
        run_config=RunConfig(
            name=f"train-{time.time_ns()}",
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=retries),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        failure = ExitStatus(FAILED, "lost rank", f"{_lost_worker(error)}, {retries + 1} times")
        return _reported_status(folder, workers.count) or failure
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    unreported = ExitStatus(FAILED, "bug", "it ended without reporting an exit status; see its logs")
    return _reported_status(folder, workers.count) or unreported


def _placement(workers: Workers) -> str:
    if workers.nodes == 1:
        return "PACK"
    return "STRICT_SPREAD" if workers.nodes == workers.count else "SPREAD"


def _lost_worker(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"a worker was lost ({lines[-1].strip()[:200]})" if lines else "a worker was lost"


def _reported_status(folder: Path, count: int) -> ExitStatus | None:
    """The exit status that the last group's ranks reported; None if some reported none and no other failed."""
    paths = [exit_status_path(folder, rank) for rank in range(count)]
    statuses = [status for path in paths if (status := try_read_record(ExitStatus, path)) is not None]
    failure = informative_status(statuses)
    if failure is not None:
        return failure
    return max(statuses, key=lambda status: status.code) if len(statuses) == count else None


def train_loop(config: Mapping[str, Any]) -> None:
    """Executed by each worker of a Ray Train group. Raises RuntimeError if Ray should start the group again."""
    from ray.train import get_context

    context = get_context()
    status = train_rank(
        Path(config["folder"]),
        config["command"],
        cpus=config["cpus"],
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        local_rank=context.get_local_rank(),
    )
    if status.kind is not None and status.kind not in FINAL:
        raise RuntimeError(status.error)


def train_rank(
    folder: Path, command: str, *, cpus: float, rank: int = 0, size: int = 1, local_rank: int = 0
) -> ExitStatus:
    """Train one rank of a run in this Ray process: its config is in the run folder. Rank 0 records the attempt; every
    rank writes how it ended. Raises RuntimeError if this machine does not see the folder.
    """
    if not (folder / REQUESTED_CONFIG_FILE).is_file():
        raise RuntimeError(f"this machine does not see {folder}: Ray's nodes need a shared file system")
    threads = max(1, int(cpus))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    _use_visible_gpu()
    ray_rank = RankInfo(
        rank=rank,
        size=size,
        local_rank=local_rank,
        job=RAY_JOB,
        restart=sum(attempt.job == RAY_JOB for attempt in attempts.read(folder)),
        nodes=host_name(),
        threads=threads,
    )
    exit_status_path(folder, rank).unlink(missing_ok=True)
    stop = StopRequest()
    status, attempt = ExitStatus(INTERRUPTED), None
    with (
        redirect_output(folder, ray_rank),
        _stop_on_file(folder / STOP_FILE, stop, rank),
        training_lock(folder, lambda: stop.requested) as acquired,
    ):
        if acquired:
            _wait_for_storage(folder, stop)
            attempt = attempts.begin(folder, RAY_JOB, ray_rank.restart, ray_rank.nodes) if rank == 0 else None
            status = work(folder / REQUESTED_CONFIG_FILE, folder, command, threads, stop)
    write_atomically(exit_status_path(folder, rank), json.dumps(asdict(status)) + "\n")
    if attempt is not None:
        outcome = {FINISHED: "finished", INTERRUPTED: "stopped"}.get(status.code, "failed")
        attempts.end(folder, attempt, outcome, kind=status.kind, error=status.error or None)  # type: ignore[arg-type]
    return status


def _wait_for_storage(folder: Path, stop: StopRequest) -> None:
    """Wait if the last attempts ended because the storage failed; a file server takes time to come back."""
    until = time.monotonic() + attempts.storage_delay(attempts.storage_failures(folder))
    while time.monotonic() < until and not (stop.requested or (folder / STOP_FILE).exists()):
        time.sleep(0.5)


def _use_visible_gpu() -> None:
    """Where Ray makes only one GPU visible to each worker, that GPU has the index 0."""
    import torch

    count = torch.cuda.device_count()
    if count and int(os.environ.get("LOCAL_RANK", "0")) >= count:
        os.environ["LOCAL_RANK"] = "0"


@contextmanager
def _stop_on_file(file: Path, stop: StopRequest, rank: int) -> Iterator[None]:
    """Request a stop of rank 0 as soon as a file exists."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            if file.exists():
                stop.ask(signal.SIGTERM)
                return

    if rank == 0:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
