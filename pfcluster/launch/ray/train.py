"""A run under Ray Train: `train(job, ...)` starts its workers somewhere in the cluster, and has them started again from
the newest checkpoint when one is lost.

The training runs inside Ray's worker processes, in the process group that Ray makes: when Ray ends a group, nothing
of it can still be writing while the next one starts.
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

from pfcluster.distributed.hosts import host_name
from pfcluster.distributed.signals import StopRequest
from pfcluster.launch import attempts
from pfcluster.launch.attempts import FINAL
from pfcluster.launch.plan import TrainRun
from pfcluster.launch.rank import RankInfo, redirect_output
from pfcluster.launch.worker import FAILED, FINISHED, INTERRUPTED, ExitStatus, work
from pfcluster.runs.atomic_files import write_atomically
from pfcluster.runs.folder import REQUESTED_CONFIG_FILE, STOP_FILE, exit_status_path, write_requested_config

OURS = "ray"
"""In the place of a job's number, in a run's attempts."""


@dataclass(frozen=True)
class Workers:
    """Who trains a run."""

    count: int
    cpus: float
    """Cores of each; below 1 they share one."""
    gpus: float = 0.0
    """Of each."""
    nodes: int = 1
    """Over which they are spread."""


def train(job: TrainRun, *, workers: Workers, retries: int, command: str) -> ExitStatus:
    """Run a job to its end; how it ended. Blocks; may be called in any task or actor of Ray.

    What another attempt would only repeat is not tried again; anything else `retries` times, from the newest
    checkpoint.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    folder = job.folder.resolve()
    write_requested_config(folder, job.config)
    (folder / STOP_FILE).unlink(missing_ok=True)
    for rank in range(workers.count):
        exit_status_path(folder, rank).unlink(missing_ok=True)
    own = folder / "ray"
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"folder": str(folder), "command": command, "cpus": workers.cpus},
        torch_config=TorchConfig(
            backend="nccl" if workers.gpus else "gloo", timeout_s=max(1, round(job.config.engine.timeout))
        ),
        scaling_config=ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {}),
            placement_strategy=_placement(workers),
        ),
        run_config=RunConfig(
            name=f"train-{time.time_ns()}",
            storage_path=str(own),
            failure_config=FailureConfig(max_failures=retries),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        return _told(folder, workers.count) or ExitStatus(FAILED, "lost rank", f"{_reason(error)}, {retries + 1} times")
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return _told(folder, workers.count) or ExitStatus(FAILED, "bug", "it ended without a word; look at its logs")


def _placement(workers: Workers) -> str:
    if workers.nodes == 1:
        return "PACK"
    return "STRICT_SPREAD" if workers.nodes == workers.count else "SPREAD"


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"a worker was lost ({lines[-1].strip()[:200]})" if lines else "a worker was lost"


def _told(folder: Path, count: int) -> ExitStatus | None:
    """How the last group's ranks said that they ended; None where none could."""
    files = [exit_status_path(folder, rank) for rank in range(count)]
    told = [ExitStatus(**json.loads(path.read_text())) for path in files if path.exists()]
    failed = [one for one in told if one.kind is not None]
    if failed:
        return min(failed, key=lambda one: one.kind == "lost rank")
    return max(told, key=lambda one: one.code) if len(told) == count else None


def train_loop(config: Mapping[str, Any]) -> None:
    """What each worker of a Ray Train group runs. Raises RuntimeError where Ray should start the group again."""
    from ray.train import get_context

    context = get_context()
    ending = train_rank(
        Path(config["folder"]),
        config["command"],
        cpus=config["cpus"],
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        local_rank=context.get_local_rank(),
    )
    if ending.kind is not None and ending.kind not in FINAL:
        raise RuntimeError(ending.error)


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
    _own_gpu()
    ray_rank = RankInfo(
        rank=rank,
        size=size,
        local_rank=local_rank,
        job=OURS,
        restart=sum(attempt.job == OURS for attempt in attempts.read(folder)),
        nodes=host_name(),
        threads=threads,
    )
    exit_status_path(folder, rank).unlink(missing_ok=True)
    stop = StopRequest()
    with redirect_output(folder, ray_rank), _watched(folder / STOP_FILE, stop, rank):
        attempt = attempts.begin(folder, OURS, ray_rank.restart, ray_rank.nodes) if rank == 0 else None
        ending = work(folder / REQUESTED_CONFIG_FILE, folder, command, threads, stop)
    write_atomically(exit_status_path(folder, rank), json.dumps(asdict(ending)) + "\n")
    if attempt is not None:
        outcome = {FINISHED: "finished", INTERRUPTED: "stopped"}.get(ending.code, "failed")
        attempts.end(folder, attempt, outcome, kind=ending.kind, error=ending.error or None)  # type: ignore[arg-type]
    return ending


def _own_gpu() -> None:
    """Where Ray shows a worker its own GPU alone, that is number 0 there."""
    import torch

    count = torch.cuda.device_count()
    if count and int(os.environ.get("LOCAL_RANK", "0")) >= count:
        os.environ["LOCAL_RANK"] = "0"


@contextmanager
def _watched(file: Path, stop: StopRequest, rank: int) -> Iterator[None]:
    """While rank 0 trains, a file asks it to stop."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            if file.exists():
                stop.ask(signal.SIGTERM)
                return

    if rank == 0:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
