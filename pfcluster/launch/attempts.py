"""The attempts of a task: when it ran, where, how it ended and why. One small JSON file each in `FOLDER/attempts/`.

Rank 0 begins and ends an attempt; what it could not say is added by the end of the batch job (`end.py`), or by the
next attempt. Every rank that fails leaves a file of its own beside it. Standard library only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pfcluster.runs.atomic_files import write_atomically
from pfcluster.runs.folder import (
    ATTEMPTS_DIR,
    JOB_FILE,
    last_trained_step,
    newest_checkpoint_step,
    try_read_object,
)

Outcome = Literal[
    "running", "finished", "stopped", "failed", "cancelled", "preempted", "time limit", "requeued", "lost"
]
Kind = Literal["user", "training", "memory", "disk", "bug", "device", "lost rank", "killed", "submission"]
FINAL: tuple[Kind, ...] = ("user", "training", "memory", "disk")
"""Failures that another attempt would only repeat."""


@dataclass(frozen=True)
class Attempt:
    """One start of a task."""

    number: int
    job: str
    restart: int
    """How often SLURM had restarted the job before."""
    submission: int
    nodes: str
    started: str
    ended: str | None = None
    outcome: Outcome = "running"
    signal: str | None = None
    kind: Kind | None = None
    """Of a failure."""
    error: str | None = None
    node: str | None = None
    """Where a failure began, if that is known."""
    excluded: str | None = None
    """Node that the next attempt keeps away from."""
    from_step: int = 0
    """Step of the newest checkpoint when it began."""
    step: int = 0
    """Last step that it trained, as far as metrics.jsonl tells."""
    kept_step: int = 0
    """Step of the newest checkpoint when it ended."""
    next: str | None = None
    """What follows: "requeued", "submitted again as 17", "given up: ..."; None where nothing has to."""


@dataclass(frozen=True)
class Failure:
    """How one rank failed."""

    rank: int
    node: str
    kind: Kind
    error: str
    lost_node: str | None = None
    """Of the rank that this one waited for in vain."""


@dataclass(frozen=True)
class Submitted:
    """Which job a task was handed to. Kept in `FOLDER/job.json`."""

    job: str
    submission: int = 0
    retries: int = 2
    """Failures that may be tried again."""
    pipeline: str = ""
    """Folder of the pipeline that it belongs to."""
    group: str = ""
    script: str = ""
    """Folder of submitit's files."""
    token: str = ""
    """In the job's comment: finds a job whose number could not be written down."""
    moves: int = 0
    """How often it had to be submitted again because a requeue was refused."""


def now() -> str:
    """Local time to the second, with its zone."""
    return datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")


def read(folder: Path) -> list[Attempt]:
    """All attempts of a task, oldest first. Files that cannot be read are passed over."""
    found = []
    for path in sorted((folder / ATTEMPTS_DIR).glob("[0-9]*.json")):
        if ".rank-" not in path.name:
            values = try_read_object(path)
            if values is not None:
                found.append(Attempt(**values))
    return found


def begin(folder: Path, job: str, restart: int, nodes: str) -> Attempt:
    """A new attempt, after closing one that never told its end."""
    before = read(folder)
    if before and before[-1].outcome in ("running", "stopped"):
        kept, step = newest_checkpoint_step(folder), last_trained_step(folder)
        write(folder, replace(before[-1], ended=now(), outcome="lost", kept_step=kept, step=max(step, kept)))
    submission = submitted(folder).submission
    number = before[-1].number + 1 if before else 1
    attempt = Attempt(number, job, restart, submission, nodes, now(), from_step=newest_checkpoint_step(folder))
    write(folder, attempt)
    return attempt


def write(folder: Path, attempt: Attempt) -> None:
    """Keep an attempt."""
    path = folder / ATTEMPTS_DIR / f"{attempt.number:03d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asdict(attempt), indent=1) + "\n")


def end(folder: Path, attempt: Attempt, outcome: Outcome, **more: Any) -> Attempt:
    """The attempt with its end, kept."""
    kept = newest_checkpoint_step(folder)
    step = max(last_trained_step(folder), kept)
    ended = replace(attempt, ended=now(), outcome=outcome, step=step, kept_step=kept, **more)
    write(folder, ended)
    return ended


def write_failure(folder: Path, number: int, failure: Failure) -> None:
    """Keep how a rank failed in an attempt."""
    path = folder / ATTEMPTS_DIR / f"{number:03d}.rank-{failure.rank}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asdict(failure), indent=1) + "\n")


def failures(folder: Path, number: int) -> list[Failure]:
    """How the ranks of an attempt failed, those first that say most."""
    found = [try_read_object(path) for path in (folder / ATTEMPTS_DIR).glob(f"{number:03d}.rank-*.json")]
    order: list[Kind] = ["user", "training", "memory", "disk", "bug", "device", "lost rank"]
    failed = [Failure(**values) for values in found if values is not None]
    return sorted(failed, key=lambda failure: (order.index(failure.kind), failure.rank))


def submitted(folder: Path) -> Submitted:
    """The job that a task was handed to; an empty one where it was to none."""
    values = try_read_object(folder / JOB_FILE)
    return Submitted("") if values is None else Submitted(**values)


def submit(folder: Path, values: Submitted) -> None:
    """Keep which job a task was handed to."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / JOB_FILE, json.dumps(asdict(values), indent=1) + "\n")


def may_retry(attempts: list[Attempt], retries: int) -> str | None:
    """None where a failed task may be tried again; else why not. The newest attempt has its failure written down.

    Preemptions and time limits cost nothing. A failure that only repeats itself, with no new checkpoint in between, is
    final, and so are three attempts in a row that vanished without a word or a new checkpoint.
    """
    newest = attempts[-1]
    own = [attempt for attempt in attempts if attempt.submission == newest.submission]
    if newest.kind in FINAL:
        return "another attempt would fail in the same way"
    if newest.kind == "bug" and newest.step <= newest.from_step:
        return "it failed before it trained a step, and would again"
    failed = [attempt for attempt in own if attempt.outcome == "failed"]
    if len(failed) > 1 and newest.kind == "bug" and _same(failed[-2], newest):
        return "it failed twice in the same way"
    if len(failed) > retries:
        return f"it failed {len(failed)} times (--retries {retries})"
    return None


def vanished(attempts: list[Attempt]) -> bool:
    """Whether the last three attempts of a submission ended without a word and without a new checkpoint."""
    own = [attempt for attempt in attempts if attempt.submission == attempts[-1].submission][-3:]
    silent = all(attempt.outcome == "lost" and attempt.kept_step <= attempt.from_step for attempt in own)
    return len(own) == 3 and silent


def _same(one: Attempt, other: Attempt) -> bool:
    return one.error == other.error and other.kept_step <= one.kept_step
