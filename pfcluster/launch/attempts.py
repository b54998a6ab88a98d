"""The attempts of a task: when it ran, where, and how it ended. One JSON file each in `FOLDER/attempts/`.

Rank 0 begins and ends an attempt. The end of the batch job (slurm/epilogue.py) or the next attempt completes one that
rank 0 could not end. Every rank that fails writes a file of its own. Standard library only.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pfcluster.config.json_files import JsonFileError, read_record, try_read_record
from pfcluster.launch.job_record import read_job
from pfcluster.runs.folder import ATTEMPTS_DIR, newest_checkpoint_step
from pfcluster.runs.metrics_file import last_trained_step
from pfcluster.system.atomic_files import write_atomically

Outcome = Literal[
    "running", "finished", "stopped", "failed", "cancelled", "preempted", "time limit", "requeued", "lost"
]
Kind = Literal["user", "training", "memory", "disk", "storage", "bug", "device", "lost rank", "killed", "submission"]
FINAL: tuple[Kind, ...] = ("user", "training", "memory", "disk")
"""Failures that another attempt would only repeat."""
STORAGE_DELAYS = (15.0, 60.0, 240.0)
"""Seconds to wait after the first, second and further failures of the storage in a row."""
INFORMATIVE: tuple[Kind, ...] = ("user", "training", "memory", "disk", "storage", "bug", "device", "lost rank")
"""Failures of ranks, the most informative first."""
CONTINUES = "the same command continues"
"""Ends `Attempt.next` of a task that could neither be requeued nor submitted again."""


@dataclass(frozen=True)
class Attempt:
    """One start of a task."""

    number: int
    job: str
    restart: int
    """How many times SLURM had restarted the job before."""
    submission: int
    nodes: str
    started: str
    ended: str | None = None
    outcome: Outcome = "running"
    signal: str | None = None
    """Name of the signal that stopped it."""
    kind: Kind | None = None
    """Kind of failure."""
    error: str | None = None
    node: str | None = None
    """Node on which a failure began, if known."""
    excluded: str | None = None
    """Nodes that the next attempt does not use."""
    from_step: int = 0
    """Step of the newest checkpoint at the start."""
    step: int = 0
    """Last step that was trained, according to metrics.jsonl."""
    checkpoint_step: int = 0
    """Step of the newest checkpoint at the end."""
    next: str | None = None
    """What follows: "requeued", "submitted again as 17", "given up: ..."; None if nothing has to."""


@dataclass(frozen=True)
class Failure:
    """How one rank failed."""

    rank: int
    node: str
    kind: Kind
    error: str
    lost_node: str | None = None
    """Node of the lost rank that this one waited for."""


def now() -> str:
    """Local time to the second, with its UTC offset."""
    return datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")


def read(folder: Path) -> list[Attempt]:
    """All attempts of a task, oldest first. A damaged file is left out with a warning."""
    recorded = []
    for path in sorted((folder / ATTEMPTS_DIR).glob("[0-9]*.json")):
        if ".rank-" in path.name:
            continue
        try:
            recorded.append(read_record(Attempt, path))
        except FileNotFoundError:
            continue
        except JsonFileError as error:
            warnings.warn(f"{error}; this attempt is ignored", stacklevel=2)
    return recorded


def begin(folder: Path, job: str, restart: int, nodes: str) -> Attempt:
    """Record a new attempt. A previous one without an end is closed as lost."""
    before = read(folder)
    if before and before[-1].outcome in ("running", "stopped"):
        checkpoint_step = newest_checkpoint_step(folder)
        step = max(last_trained_step(folder), checkpoint_step)
        write(folder, replace(before[-1], ended=now(), outcome="lost", checkpoint_step=checkpoint_step, step=step))
    number = before[-1].number + 1 if before else 1
    submission = read_job(folder).submission
    attempt = Attempt(number, job, restart, submission, nodes, now(), from_step=newest_checkpoint_step(folder))
    write(folder, attempt)
    return attempt


def write(folder: Path, attempt: Attempt) -> None:
    """Record an attempt, replacing what was recorded of it before."""
    _write_json(folder / ATTEMPTS_DIR / f"{attempt.number:03d}.json", asdict(attempt))


def end(folder: Path, attempt: Attempt, outcome: Outcome, **more: Any) -> Attempt:
    """Record the end of an attempt; returns the completed attempt."""
    checkpoint_step = newest_checkpoint_step(folder)
    step = max(last_trained_step(folder), checkpoint_step)
    ended = replace(attempt, ended=now(), outcome=outcome, step=step, checkpoint_step=checkpoint_step, **more)
    write(folder, ended)
    return ended


def storage_delay(failures: int) -> float:
    """Seconds to wait before the next attempt after so many failures of the storage in a row."""
    return STORAGE_DELAYS[min(failures, len(STORAGE_DELAYS)) - 1] if failures else 0.0


def storage_failures(folder: Path) -> int:
    """How many of the last attempts, without a gap, ended with a failure of the storage."""
    count = 0
    for attempt in reversed(read(folder)):
        if attempt.kind != "storage":
            break
        count += 1
    return count


def write_failure(folder: Path, number: int, failure: Failure) -> None:
    """Record how a rank failed in an attempt."""
    _write_json(folder / ATTEMPTS_DIR / f"{number:03d}.rank-{failure.rank}.json", asdict(failure))


def failures(folder: Path, number: int) -> list[Failure]:
    """How the ranks of an attempt failed, the most informative first."""
    records = [try_read_record(Failure, path) for path in (folder / ATTEMPTS_DIR).glob(f"{number:03d}.rank-*.json")]
    failed = [record for record in records if record is not None]
    return sorted(failed, key=lambda failure: (INFORMATIVE.index(failure.kind), failure.rank))


def reason_to_give_up(attempts: list[Attempt], retries: int) -> str | None:
    """Why a failed task is not retried; None if it is. The newest attempt is the failed one.

    Preemptions and time limits do not count. A task is given up if its failure is of a kind that repeats itself, if it
    failed before its first step, if it failed twice with the same error and no checkpoint in between, or if it failed
    more than `retries` times.
    """
    newest = attempts[-1]
    if newest.kind in FINAL:
        return "another attempt would fail in the same way"
    if newest.kind == "bug" and newest.step <= newest.from_step:
        return "it failed before it trained a step, and would again"
    failed = [each for each in attempts if each.submission == newest.submission and each.outcome == "failed"]
    if len(failed) > 1 and newest.kind == "bug" and _same_failure(failed[-2], newest):
        return "it failed twice in the same way"
    if len(failed) > retries:
        return f"it failed {len(failed)} times (--retries {retries})"
    return None


def is_given_up(attempt: Attempt) -> bool:
    """Whether a failed attempt was the last one by decision, not because SLURM refused another job."""
    follows = attempt.next or ""
    return attempt.outcome == "failed" and follows.startswith("given up") and not follows.endswith(CONTINUES)


def ended_repeatedly(attempts: list[Attempt]) -> bool:
    """Whether the last three attempts of a submission were lost, or ended by their time limit, without an error and
    without a new checkpoint.
    """
    last = [each for each in attempts if each.submission == attempts[-1].submission][-3:]
    ended = [each.outcome in ("lost", "time limit") and each.checkpoint_step <= each.from_step for each in last]
    return len(ended) == 3 and all(ended)


def _same_failure(first: Attempt, second: Attempt) -> bool:
    return first.error == second.error and second.checkpoint_step <= first.checkpoint_step


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(values, indent=1) + "\n")
