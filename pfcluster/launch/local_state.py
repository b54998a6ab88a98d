"""The state of a task that was started on this machine or on Ray, from its run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pfcluster.config.json_files import try_read_object
from pfcluster.launch import attempts
from pfcluster.launch.task_status import TaskStatus
from pfcluster.runs.folder import CONFIG_FILE, LOGS_DIR, RESULT_FILE, TRAINING_LOCK, read_progress
from pfcluster.system.locks import is_locked

CONTINUES = "the same command continues it"


def task_state(
    stage: str, label: str, folder: Path, output: str | None, *, trains: bool, launcher_alive: bool
) -> TaskStatus:
    """The state of a task. `output`: the file that a command produces; `launcher_alive`: whether the plan's launcher
    still runs.
    """
    task = TaskStatus(stage, label, folder, "waiting" if launcher_alive else "not run")
    if not trains:
        finished = output is not None and Path(output).exists()
        return TaskStatus(stage, label, folder, "finished") if finished else task
    return _run_state(task, launcher_alive=launcher_alive)


def _run_state(task: TaskStatus, *, launcher_alive: bool) -> TaskStatus:
    """The state of a training run. Runs of Ray also have attempts, of which the newest counts."""
    folder = task.folder
    recorded = attempts.read(folder)
    newest = recorded[-1] if recorded else None
    details: dict[str, Any] = {
        "restarts": max(0, len(recorded) - 1),
        "failures": sum(attempt.outcome == "failed" for attempt in recorded),
        "nodes": newest.nodes if newest is not None else "",
    }

    def state(name: str, reason: str = "", error: str | None = None) -> TaskStatus:
        return TaskStatus(task.stage, task.label, folder, name, reason, error=error, **details)

    running = is_locked(folder / TRAINING_LOCK) or (
        launcher_alive and newest is not None and newest.outcome == "running"
    )
    if running:
        return state("evaluating" if read_progress(folder).get("stage") == "evaluate" else "running")
    result = (try_read_object(folder / RESULT_FILE) or {}).get("status")
    if result in ("finished", "stopped"):  # "stopped": by an early stop
        return state("finished", "early stop" if result == "stopped" else "")
    error = _error_of_ranks(folder)
    if error is not None:
        return state("failed", CONTINUES, error)
    if newest is not None and newest.outcome == "failed":
        return state("failed", CONTINUES, newest.error)
    if launcher_alive:
        return state("waiting")
    if result == "interrupted":
        return state("stopped", CONTINUES)
    if (folder / CONFIG_FILE).exists():
        return state("lost", f"its process is gone; {CONTINUES}")
    return state("not run")


def _error_of_ranks(folder: Path) -> str | None:
    """The error that a rank reported when it exited last; the error of a lost rank only if there is no other."""
    statuses = [try_read_object(path) or {} for path in sorted((folder / LOGS_DIR).glob("exit-status-*.json"))]
    failures = [status for status in statuses if status.get("kind")]
    if not failures:
        return None
    first: str = min(failures, key=lambda status: status["kind"] == "lost rank").get("error", "")
    return first
