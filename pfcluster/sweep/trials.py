"""Trials and their runs on disk: what is trained where, and what came of it. A sweep's folder holds

sweep.json               the spec
trials.json              the trials: values, parents, where they were stopped and why
mae/ judge/              runs that all trials start from
trials/007/seed-0/       a run; mae-seed-0/ a pre-training of its own; failed.json why it has no result
confirmed.json           which trials are trained again on fresh seeds
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pfcluster.launch.plan import TrainRun
from pfcluster.runs.atomic_files import write_atomically
from pfcluster.runs.early_stop import EarlyStop, clear_early_stop, write_early_stop
from pfcluster.runs.folder import CHECKPOINTS_DIR, RESULT_FILE, metric_series, read_metrics, try_read_object
from pfcluster.sweep.space import MAE, applied
from pfcluster.sweep.spec import AT_END, Spec

TRIALS, FAILED = "trials.json", "failed.json"
JUDGE = "judge"


@dataclass(frozen=True)
class Stop:
    """Where a trial was stopped."""

    step: int
    reason: str


@dataclass(frozen=True)
class Trial:
    """One configuration of the exploration."""

    number: int
    values: dict[str, Any]
    parent: int | None = None
    """PBT: the trial whose checkpoints it goes on from."""
    until: int | None = None
    """PBT: where its generation ends; None at the run's own end."""
    stop: Stop | None = None

    @property
    def name(self) -> str:
        """Of its folder and of its runs."""
        return f"trial-{self.number:03d}"


@dataclass(frozen=True)
class TrialRun:
    """A run, what it goes on from, and where it ends early."""

    job: TrainRun
    start: Path | None = None
    until: int | None = None

    def prepare(self) -> None:
        """Put what it goes on from, and its end, into its folder."""
        if self.until is not None:
            write_early_stop(self.job.folder, EarlyStop(self.until, "the end of a generation"))
        checkpoints = self.job.folder / CHECKPOINTS_DIR
        if self.start is not None and not checkpoints.exists():
            copy = checkpoints.with_name(f".{CHECKPOINTS_DIR}.tmp")
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(self.start / CHECKPOINTS_DIR, copy)
            copy.rename(checkpoints)


@dataclass(frozen=True)
class Failed:
    """Why a run has no result."""

    kind: str
    error: str


class Runs:
    """Where a sweep's runs are, and the configs they have."""

    def __init__(self, spec: Spec, folder: Path) -> None:
        self.spec, self.folder = spec, folder
        self.shared = {
            name: TrainRun(config, folder / name / f"seed-{config.seed}") for name, config in spec.shared().items()
        }

    def folder_of(self, trial: Trial, seed: int) -> Path:
        """Folder of a trial's run."""
        return self.folder / "trials" / f"{trial.number:03d}" / f"seed-{seed}"

    def job(self, trial: Trial, seed: int, *, test: bool = False) -> TrainRun:
        """A trial's run with a seed; with `test` the same one, its test split measured too."""
        place = self.folder_of(trial, seed)
        config = applied(self.spec.config, self.spec.space, trial.values, None)
        config = replace(config, name=trial.name, seed=seed)
        if MAE in self.spec.before:
            start = self._own_mae(trial, seed).folder if self.spec.own_mae else self.shared[MAE].folder
            config = replace(config, model=replace(config.model, init=str(start)))
        judge = str(self.shared[JUDGE].folder) if JUDGE in self.shared else config.evaluate.judge
        evaluate = replace(config.evaluate, judge=judge, final_split="test" if test else "validation")
        return TrainRun(replace(config, evaluate=evaluate), place)

    def _own_mae(self, trial: Trial, seed: int) -> TrainRun:
        config = applied(self.spec.before[MAE], self.spec.space, trial.values, MAE)
        place = self.folder_of(trial, seed)
        return TrainRun(replace(config, name=f"{trial.name}-mae", seed=seed), place.with_name(f"mae-{place.name}"))

    def line(self, lineage: Sequence[Trial], seed: int) -> list[Path]:
        """Folders of a lineage's runs with one seed, of the exploration or a fresh one; the last trial's last."""
        last = self.folder_of(lineage[-1], seed)
        if seed in self.spec.seeds:
            return [self.folder_of(one, seed) for one in lineage]
        return [*(_generation(last, number) for number in range(len(lineage) - 1)), last]

    def explored(self, trial: Trial, seed: int) -> list[TrialRun]:
        """What a trial runs in the exploration, in order."""
        start = None if trial.parent is None else self.folder_of(self._number(trial.parent), seed)
        legs = [TrialRun(self._own_mae(trial, seed))] if self.spec.own_mae else []
        return [*legs, TrialRun(self.job(trial, seed), start, trial.until)]

    def confirmed(self, lineage: Sequence[Trial], seed: int) -> list[TrialRun]:
        """What the last trial of a lineage runs on a fresh seed: all generations again, in folders of its own."""
        trial = lineage[-1]
        legs = [TrialRun(self._own_mae(trial, seed))] if self.spec.own_mae else []
        place = self.folder_of(trial, seed)
        before: Path | None = None
        for number, one in enumerate(lineage):
            job = self.job(one, seed)
            last = one is trial
            folder = place if last else _generation(place, number)
            legs.append(
                TrialRun(TrainRun(replace(job.config, name=trial.name), folder), before, None if last else one.until)
            )
            before = folder
        return legs

    def _number(self, number: int) -> Trial:
        return Trial(number, {})


def _generation(place: Path, number: int) -> Path:
    """Where a generation of a run on a fresh seed is trained again."""
    return place.with_name(f"{place.name}-generation-{number}")


def read_trials(folder: Path) -> list[Trial]:
    """A sweep's trials, by number."""
    path = folder / TRIALS
    if not path.exists():
        return []
    return [
        Trial(**{**values, "stop": None if values["stop"] is None else Stop(**values["stop"])})
        for values in json.loads(path.read_text())
    ]


def write_trials(folder: Path, trials: Sequence[Trial]) -> None:
    """Keep all trials."""
    write_atomically(folder / TRIALS, json.dumps([asdict(trial) for trial in trials], indent=1) + "\n")


def stop_run(folder: Path, stop: Stop) -> None:
    """Have a run end early, wherever it is."""
    write_early_stop(folder, EarlyStop(stop.step, stop.reason))


def read_failed(folder: Path) -> Failed | None:
    """Why a run has no result, if it failed."""
    path = folder / FAILED
    return Failed(**json.loads(path.read_text())) if path.exists() else None


def write_failed(folder: Path, failed: Failed) -> None:
    """Keep why a run has no result."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FAILED, json.dumps(asdict(failed), indent=1) + "\n")


def forget_failures(folder: Path) -> int:
    """Have failed runs be tried again; how many."""
    found = list(folder.glob(f"trials/*/*/{FAILED}")) + list(folder.glob(f"*/*/{FAILED}"))
    for path in found:
        path.unlink()
        clear_early_stop(path.parent)
    return len(found)


def curve(folder: Path, metric: str) -> list[tuple[int, float]]:
    """A run's validation scores: (step, value), rising in steps."""
    return metric_series(read_metrics(folder, "validation"), "validation", metric)


def result_of(folder: Path) -> dict[str, Any] | None:
    """A run's result.json; None where there is none."""
    return try_read_object(folder / RESULT_FILE)


def poker_figure(result: dict[str, Any] | None, name: str) -> float | None:
    """A figure of the poker faces at a run's end, on validation."""
    found = result or {}
    if found.get("measured_on") == "test":
        found = found.get("on_validation") or {}
    rows = (found.get("poker") or {}).get("rows") or {}
    value = rows.get("poker face", {}).get(name)
    return None if value is None else float(value)


def value_of(folder: Path, metric: str, until: int | None = None) -> float | None:
    """The metric's value of a run, as it is: the best of its validation scores up to a step, or at its end. None where
    there is none.
    """
    if metric in AT_END:
        return poker_figure(result_of(folder), metric)
    values = [value for step, value in curve(folder, metric) if until is None or step <= until]
    return max(values, default=None)
