"""Trials under Ray Tune: it finds them a place in the cluster, counts the cores and shares of GPUs, and starts again
what lost its worker. What is run, and when it ends, the driver says: Tune asks it for trials as it would ask a search
algorithm.

Every run must see the sweep's folder at the same path: a shared file system where there is more than one machine.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pfcluster.config.io import load
from pfcluster.launch.attempts import FINAL
from pfcluster.launch.plan import TrainRun
from pfcluster.launch.processes import start
from pfcluster.launch.ray import train
from pfcluster.launch.worker import ExitStatus
from pfcluster.runs.folder import REQUESTED_CONFIG_FILE, STOP_FILE, last_metrics, write_requested_config
from pfcluster.sweep.executor import Resources


class RayExecutor:
    """Hands jobs to a Tuner that runs beside the driver."""

    name = "ray"
    poll_seconds = 0.5

    def __init__(self, folder: Path, share: Resources, nodes: int, retries: int, command: str) -> None:
        self.folder, self.share, self.nodes, self.retries, self.command = folder, share, nodes, retries, command
        self.waiting: queue.SimpleQueue[TrainRun] = queue.SimpleQueue()
        self.ended: queue.SimpleQueue[tuple[TrainRun, ExitStatus]] = queue.SimpleQueue()
        self.closing = threading.Event()
        self._error: BaseException | None = None
        (folder / STOP_FILE).unlink(missing_ok=True)
        self._tuner = threading.Thread(target=self._fit, name="tuner", daemon=True)
        self._tuner.start()

    @property
    def at_once(self) -> int:
        return self.share.at_once

    def start(self, jobs: Sequence[TrainRun]) -> None:
        for job in jobs:
            write_requested_config(job.folder, job.config)
            self.waiting.put(job)

    def poll(self) -> list[tuple[TrainRun, ExitStatus]]:
        found = []
        while not self.ended.empty():
            found.append(self.ended.get())
        if self._error is not None:
            raise RuntimeError(f"Ray Tune ended: {self._error}") from self._error
        return found

    def stop(self) -> None:
        """Have all runs save themselves, and wait for it."""
        (self.folder / STOP_FILE).touch()
        self.close()
        (self.folder / STOP_FILE).unlink(missing_ok=True)

    def close(self) -> None:
        """Let Tune end once its trials have."""
        self.closing.set()
        self._tuner.join()

    def _fit(self) -> None:
        """Tune's own loop, in a thread beside the driver's."""
        from ray import tune

        from pfcluster.sweep.ray_search import queued

        constant = {
            "share": asdict(self.share),
            "nodes": self.nodes,
            "retries": self.retries,
            "command": self.command,
            "sweep": str(self.folder.resolve()),
        }
        try:
            tune.Tuner(
                tune.with_resources(tune.with_parameters(run_job, constant=constant), self._resources()),
                tune_config=tune.TuneConfig(
                    search_alg=queued(self), num_samples=-1, trial_name_creator=_name, trial_dirname_creator=_name
                ),
                run_config=tune.RunConfig(
                    name=f"tune-{int(time.time())}",
                    storage_path=str(self.folder.resolve() / "ray"),
                    failure_config=tune.FailureConfig(max_failures=self.retries),
                    verbose=0,
                ),
            ).fit()
        except BaseException as error:  # raised again in the driver's thread
            self._error = error

    def _resources(self) -> Any:
        """What Tune sets aside for a trial: all of it where the trial is one process; nothing where Ray Train asks for
        the workers itself.
        """
        from ray import tune

        if self.share.processes > 1:
            return tune.PlacementGroupFactory([{"memory": 1}])  # of bytes: Tune wants something
        gpus = {"GPU": self.share.gpus} if self.share.gpus else {}
        return tune.PlacementGroupFactory([{"CPU": self.share.cpus} | gpus])


def _name(trial: Any) -> str:
    """What a run is called in Tune: its folder's last names."""
    return "-".join(Path(trial.config["folder"]).parts[-2:]) + f"-{trial.trial_id}"


def run_job(config: Mapping[str, Any], constant: Mapping[str, Any]) -> None:
    """One run as a trial of Tune, in an actor somewhere in the cluster. Reports each validation, and how it ended;
    raises where it shall be tried again.
    """
    from ray import tune

    folder, share = Path(config["folder"]), Resources(**constant["share"])
    sweep = Path(constant["sweep"])
    if not (folder / REQUESTED_CONFIG_FILE).is_file():
        raise RuntimeError(f"this machine does not see {folder}: Ray's nodes need a file system that all share")
    job = TrainRun(load(folder / REQUESTED_CONFIG_FILE), folder)
    if share.processes > 1:
        ending = _run_wide(job, share, constant, sweep / STOP_FILE)
    else:
        ending = _run_here(job, share, constant["command"], sweep / STOP_FILE)
    tune.report({"code": ending.code, "kind": ending.kind, "error": ending.error})
    if ending.kind is not None and ending.kind not in FINAL:
        raise RuntimeError(ending.error)


def _run_here(job: TrainRun, share: Resources, command: str, stop: Path) -> ExitStatus:
    """A run of one process, beside this actor."""
    from ray import tune

    running = start(job, processes=1, threads=share.cpus, command=command)
    told, asked = 0, False
    while (code := running.poll()) is None:
        line = last_metrics(job.folder, "validation")
        if line is not None and line["step"] > told:
            told = line["step"]
            tune.report({name: value for name, value in line.items() if name != "split"})
        if stop.exists() and not asked:
            asked = True
            running.signal(signal.SIGTERM)
        time.sleep(0.2)
    return running.ending(code)


def _run_wide(job: TrainRun, share: Resources, constant: Mapping[str, Any], stop: Path) -> ExitStatus:
    """A run of several workers, which Ray Train places and starts again."""
    workers = train.Workers(share.processes, share.cpus, share.gpus, constant["nodes"])
    over = threading.Event()

    def pass_on() -> None:
        while not over.wait(0.5):
            if stop.exists():
                (job.folder / STOP_FILE).touch()
                return

    threading.Thread(target=pass_on, daemon=True).start()
    try:
        return train.train(job, workers=workers, retries=constant["retries"], command=constant["command"])
    finally:
        over.set()
