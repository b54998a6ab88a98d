"""What is to run, independent of the launcher: tasks in stages, and which stages wait for which.

A task is a training run or a command. A stage holds the same task for several seeds or slices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pfcluster.config import RunConfig
from pfcluster.runs.early_stop import read_early_stop
from pfcluster.runs.folder import read_config, read_result
from pfcluster.runs.output_inputs import is_made_from

CLI_MODULE = "pfcluster"


@dataclass(frozen=True)
class TrainRun:
    """A training run: a config and its run folder."""

    config: RunConfig
    folder: Path
    study: str = ""
    """Name of its study, if the plan has several."""

    @property
    def label(self) -> str:
        return f"{self.study} {self.config.name} seed {self.config.seed}".strip()

    def finished(self) -> bool:
        """Whether the folder holds this config's finished result, or one that an early stop ended and still ends."""
        try:
            if read_config(self.folder) != self.config:
                return False
            result = read_result(self.folder) or {}
            if result.get("status") == "finished":
                return True
            early_stop = read_early_stop(self.folder) if result.get("status") == "stopped" else None
            return early_stop is not None and result["steps"] >= early_stop.step
        except (OSError, ValueError, KeyError):
            return False


@dataclass(frozen=True)
class Command:
    """A command, `python -m MODULE ARGUMENTS`, and the folder for its logs."""

    label: str
    folder: Path
    arguments: tuple[str, ...]
    module: str = CLI_MODULE
    produces: Path | None = None
    """File that exists once the command has run. None: it runs every time."""
    reads: tuple[Path, ...] = ()
    """Files that it reads. It records them with `record_inputs`, and runs again if one of them has changed."""

    def finished(self) -> bool:
        """Whether the output exists and was made from the inputs as they are now."""
        if self.produces is None or not self.produces.exists():
            return False
        return not self.reads or is_made_from(self.produces, self.reads)


Task = TrainRun | Command


@dataclass(frozen=True)
class Stage:
    """Tasks of one kind, and the stages that must finish before."""

    name: str
    tasks: tuple[Task, ...]
    after: tuple[str, ...] = ()
    same_seed: tuple[str, ...] = ()
    """Stages of training runs with the same seeds in the same order: each run waits only for the one with its own
    seed."""
    single_process: bool = False
    """Run each task in one process, whatever the layout of the training runs."""
    always_run: bool = False
    """Run once the stages before have ended, even if some of their tasks failed."""

    @property
    def predecessors(self) -> tuple[str, ...]:
        """All stages that it waits for, as a whole or seed by seed."""
        return (*self.after, *self.same_seed)

    def finished(self) -> bool:
        return all(task.finished() for task in self.tasks)


@dataclass(frozen=True)
class Plan:
    """Stages in an order in which they can run."""

    name: str
    folder: Path
    stages: tuple[Stage, ...]
    command: str
    """The shell command that repeats the plan."""
    continue_on_failure: bool = False
    """A failed task ends only the stages that wait for its stage, not the plan. SLURM always continues."""
    grows: bool = False
    """A sweep's: tasks are added while it runs."""

    def __post_init__(self) -> None:
        by_name = {stage.name: stage for stage in self.stages}
        for stage in self.stages:
            for name in stage.same_seed:
                assert _seeds(by_name[name]) == _seeds(stage), f"{stage.name} and {name} differ in their seeds"

    def waves(self) -> Iterator[list[Stage]]:
        """Stages that can run at the same time, together. A stage that waits for another seed by seed may be in the
        same wave, after it.
        """
        level: dict[str, int] = {}
        for stage in self.stages:
            after, beside = [1 + level[name] for name in stage.after], [level[name] for name in stage.same_seed]
            level[stage.name] = max([0, *after, *beside])
        for number in range(1 + max(level.values())):
            yield [stage for stage in self.stages if level[stage.name] == number]

    def train_runs(self) -> list[list[TrainRun]]:
        """The training runs of each wave that has any."""
        waves = [
            [task for stage in wave for task in stage.tasks if isinstance(task, TrainRun)] for wave in self.waves()
        ]
        return [runs for runs in waves if runs]

    def same_seed_runs(self) -> dict[Path, list[TrainRun]]:
        """Folder of each run that waits for runs with its own seed, and those runs."""
        by_name = {stage.name: stage for stage in self.stages}
        runs: dict[Path, list[TrainRun]] = {}
        for stage in self.stages:
            for name in stage.same_seed:
                for task, before in zip(stage.tasks, by_name[name].tasks, strict=True):
                    assert isinstance(before, TrainRun)
                    runs.setdefault(task.folder, []).append(before)
        return runs


def _seeds(stage: Stage) -> list[int | None]:
    return [task.config.seed if isinstance(task, TrainRun) else None for task in stage.tasks]


class Failures:
    """The failed tasks of a plan that continues on failure, and the stages that therefore cannot run."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, str]] = []
        """Label and reason of each failed task."""
        self.stages: set[str] = set()
        """Names of stages that failed or were skipped, at least in part."""
        self.skipped: list[str] = []
        """Names of skipped stages, and labels of single skipped runs."""
        self.folders: set[Path] = set()
        """Folders of failed and of skipped runs."""
        self.codes: set[int] = set()
        """Exit codes of the failed tasks."""

    def runnable(self, wave: Sequence[Stage]) -> list[Stage]:
        """The stages of a wave whose predecessors did not fail; the others are recorded as skipped."""
        runnable = []
        for stage in wave:
            if stage.always_run or not self.stages & set(stage.after):
                runnable.append(stage)
            else:
                self.stages.add(stage.name)
                self.skipped.append(stage.name)
                self.folders |= {task.folder for task in stage.tasks}
        return runnable

    def add(self, task: Task, reason: str, code: int, wave: Sequence[Stage]) -> None:
        """Record a failed task of one of the wave's stages."""
        self.tasks.append((task.label, reason))
        self.codes.add(code)
        self.folders.add(task.folder)
        self.stages |= {stage.name for stage in wave if task in stage.tasks}

    def skip(self, run: TrainRun, wave: Sequence[Stage]) -> None:
        """Record a run of one of the wave's stages that cannot start, because one with its seed failed."""
        self.skipped.append(run.label)
        self.folders.add(run.folder)
        self.stages |= {stage.name for stage in wave if run in stage.tasks}

    def text(self) -> str:
        """Error message for the end of the plan."""
        lines = [f"{len(self.tasks)} of the plan's tasks failed; the same command runs them again:"]
        lines += [f"  {label}: {reason}" for label, reason in self.tasks]
        if self.skipped:
            lines.append(f"  not run, because they wait for failed tasks: {', '.join(self.skipped)}")
        return "\n".join(lines)


def stages_of(runs: Sequence[TrainRun], after: Sequence[str] = (), same_seed: Sequence[str] = ()) -> list[Stage]:
    """One stage for each run name; its tasks differ in their seed only."""
    by_name: dict[str, list[TrainRun]] = {}
    for run in runs:
        by_name.setdefault(run.config.name, []).append(run)
    return [Stage(name, tuple(tasks), tuple(after), tuple(same_seed)) for name, tasks in by_name.items()]
