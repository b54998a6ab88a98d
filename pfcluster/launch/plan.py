"""What is to be run, whoever runs it: tasks in groups, and which groups wait for which.

A task is a training run or a command; a group holds the same task for several seeds or slices. A launcher needs no
more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pfcluster.config import RunConfig
from pfcluster.runs.early_stop import read_early_stop
from pfcluster.runs.folder import read_config, read_result

CLI = "pfcluster.cli.main"
RECORD = "pipeline.json"


@dataclass(frozen=True)
class TrainRun:
    """A training run: a config and the folder it is run in."""

    config: RunConfig
    folder: Path
    study: str = ""
    """Which of a plan's studies it belongs to, where there are several."""

    @property
    def label(self) -> str:
        return f"{self.study} {self.config.name} seed {self.config.seed}".strip()

    def finished(self) -> bool:
        """Whether the folder holds this config's finished result, or one that a limit ended early and that it still
        ends.
        """
        try:
            if read_config(self.folder) != self.config:
                return False
            result = read_result(self.folder)
            if result is None:
                return False
            limit = read_early_stop(self.folder) if result["status"] == "stopped" else None
            return result["status"] == "finished" or (limit is not None and result["steps"] >= limit.step)
        except (OSError, ValueError, KeyError):
            return False


@dataclass(frozen=True)
class Command:
    """A command: `python -m MODULE ARGUMENTS`. The folder holds its logs."""

    label: str
    folder: Path
    arguments: tuple[str, ...]
    module: str = CLI
    produces: Path | None = None
    """File that stands when it is done; None runs it whenever asked."""
    reads: tuple[Path, ...] = ()
    """Files that it is made from: when one is newer it is made anew."""

    def finished(self) -> bool:
        """Whether what it makes is there, and newer than what it is made from."""
        if self.produces is None or not self.produces.exists():
            return False
        made = self.produces.stat().st_mtime
        return all(path.exists() and path.stat().st_mtime <= made for path in self.reads)


Task = TrainRun | Command


@dataclass(frozen=True)
class Stage:
    """Tasks of one kind, and the groups that must have finished before."""

    name: str
    tasks: tuple[Task, ...]
    after: tuple[str, ...] = ()
    alone: bool = False
    """One process each, whatever number the user asked for."""
    always_run: bool = False
    """Run once those before have ended, also where some of them failed."""

    def finished(self) -> bool:
        return all(task.finished() for task in self.tasks)


@dataclass(frozen=True)
class Plan:
    """Groups in an order in which they can be run."""

    name: str
    folder: Path
    groups: tuple[Stage, ...]
    command: str
    """The command that repeats it."""
    continue_on_failure: bool = False
    """A task that fails ends only what waits for its group; else it ends the plan. SLURM is always tolerant."""

    def waves(self) -> Iterator[list[Stage]]:
        """Groups that wait for none of each other, together."""
        level: dict[str, int] = {}
        for group in self.groups:
            level[group.name] = 1 + max((level[name] for name in group.after), default=-1)
        for number in range(1 + max(level.values())):
            yield [group for group in self.groups if level[group.name] == number]

    def jobs(self) -> list[list[TrainRun]]:
        """The training runs, wave by wave."""
        found = [
            [task for group in wave for task in group.tasks if isinstance(task, TrainRun)] for wave in self.waves()
        ]
        return [jobs for jobs in found if jobs]


class Failures:
    """What failed of a tolerant plan so far, and which groups therefore cannot run."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, str]] = []
        """Label and reason of each failed task."""
        self.groups: set[str] = set()
        self.skipped: list[str] = []

    def runnable(self, wave: Sequence[Stage]) -> list[Stage]:
        """The groups of a wave that no failure stands before; the others are noted as skipped."""
        found = []
        for group in wave:
            if group.always_run or not self.groups & set(group.after):
                found.append(group)
            else:
                self.groups.add(group.name)
                self.skipped.append(group.name)
        return found

    def add(self, task: Task, reason: str, wave: Sequence[Stage]) -> None:
        """Note a task that failed."""
        self.tasks.append((task.label, reason))
        self.groups |= {group.name for group in wave if task in group.tasks}

    def text(self) -> str:
        """All of it, for the end of the plan."""
        lines = [f"{len(self.tasks)} of the plan's tasks failed; the same command tries them again:"]
        lines += [f"  {label}: {reason}" for label, reason in self.tasks]
        if self.skipped:
            lines.append(f"  not run, as they wait for those: {', '.join(self.skipped)}")
        return "\n".join(lines)


def stages_of(jobs: Sequence[TrainRun], after: Sequence[str] = ()) -> list[Stage]:
    """Runs that differ in their seed only, as groups by their names."""
    names = dict.fromkeys(job.config.name for job in jobs)
    return [Stage(name, tuple(job for job in jobs if job.config.name == name), tuple(after)) for name in names]
