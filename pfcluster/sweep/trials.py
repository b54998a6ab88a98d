"""Trials and their runs on disk. A sweep's folder holds

sweep.json               the spec
trials.json              the trials: values, parents, where and why they were stopped
mae/ judge/              runs that all trials start from
mae-vit/seed-0/          the run that PF-ViT with this seed starts from, where the preset says so
trials/007/seed-0/       a run; mae-seed-0/ its pre-training if the space changes it, mae-vit-seed-0/ the MAE-ViT from
                         that; failed.json why it has no result
confirmed.json           the trials that are trained again on fresh seeds
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pfcluster.config.json_files import JsonFileError, read_record, try_read_object
from pfcluster.config.starts import MAE_VIT, from_mae_vit
from pfcluster.launch.plan import TrainRun
from pfcluster.report.errors import ReportError
from pfcluster.report.result_schema import check_fields
from pfcluster.runs.early_stop import EarlyStop, write_early_stop
from pfcluster.runs.folder import CHECKPOINTS_DIR, RESULT_FILE
from pfcluster.runs.metrics_file import metric_series, read_metrics
from pfcluster.sweep.space import MAE, applied
from pfcluster.sweep.spec import SPEC, Spec
from pfcluster.system.atomic_files import write_atomically

TRIALS, FAILED = "trials.json", "failed.json"
JUDGE = "judge"


@dataclass(frozen=True)
class Stop:
    """Where and why a trial was stopped."""

    step: int
    reason: str


@dataclass(frozen=True)
class Trial:
    """One configuration of the search."""

    number: int
    values: dict[str, Any]
    parent: int | None = None
    """PBT: the trial whose checkpoints it starts from."""
    until: int | None = None
    """PBT: step at which its generation ends; None for the end of the run."""
    stop: Stop | None = None

    @property
    def name(self) -> str:
        """Name of its runs."""
        return f"trial-{self.number:03d}"

    @property
    def ends_early(self) -> bool:
        """Whether it ends before the end of the run: stopped by ASHA, or with its generation."""
        return self.stop is not None or self.until is not None


@dataclass(frozen=True)
class TrialRun:
    """A run of a trial, the run whose checkpoints it starts from, and the step at which it ends early."""

    run: TrainRun
    start: Path | None = None
    until: int | None = None

    def prepare(self) -> None:
        """Write its early stop, and copy the checkpoints that it starts from, into its folder."""
        if self.until is not None:
            write_early_stop(self.run.folder, EarlyStop(self.until, "the end of a generation"))
        checkpoints = self.run.folder / CHECKPOINTS_DIR
        if self.start is not None and not checkpoints.exists():
            staging_dir = checkpoints.with_name(f".{CHECKPOINTS_DIR}.tmp")
            shutil.rmtree(staging_dir, ignore_errors=True)
            shutil.copytree(self.start / CHECKPOINTS_DIR, staging_dir)
            staging_dir.rename(checkpoints)


@dataclass(frozen=True)
class Failed:
    """Why a run has no result."""

    kind: str
    error: str


class Runs:
    """The folders and configs of a sweep's runs."""

    def __init__(self, spec: Spec, folder: Path) -> None:
        self.spec, self.folder = spec, folder
        self._made: dict[tuple[Any, ...], TrainRun] = {}
        self.shared = {
            name: TrainRun(config, folder / name / f"seed-{config.seed}") for name, config in spec.shared().items()
        }

    def folder_of(self, trial: Trial, seed: int) -> Path:
        """Folder of a trial's run."""
        return self.folder / "trials" / f"{trial.number:03d}" / f"seed-{seed}"

    def run_of(self, trial: Trial, seed: int, *, test: bool = False) -> TrainRun:
        """A trial's run with a seed; with `test` its final evaluation uses the test split."""
        return self._once(
            ("run", trial.number, *trial.values.items(), seed, test), lambda: self._run(trial, seed, test)
        )

    def _once(self, key: tuple[Any, ...], make: Callable[[], TrainRun]) -> TrainRun:
        """Make a run once: the driver requests the runs of all trials repeatedly."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _run(self, trial: Trial, seed: int, test: bool) -> TrainRun:
        config = applied(self.spec.config, self.spec.space, trial.values, None)
        config = replace(config, name=trial.name, seed=seed)
        if MAE in self.spec.before:
            pretraining = self._pretraining_of(trial, seed) if self.spec.pretrains_per_trial else self.shared[MAE]
            if MAE_VIT in self.spec.before:
                mae_vit = self._mae_vit_of(trial, seed)
                config = from_mae_vit(config, str(mae_vit.folder), str(pretraining.folder))
            else:
                config = replace(config, model=replace(config.model, init=str(pretraining.folder)))
        judge = str(self.shared[JUDGE].folder) if JUDGE in self.shared else config.evaluate.judge
        evaluate = replace(config.evaluate, judge=judge, final_split="test" if test else "validation")
        return TrainRun(replace(config, evaluate=evaluate), self.folder_of(trial, seed))

    def _pretraining_of(self, trial: Trial, seed: int) -> TrainRun:
        key = ("pretraining", trial.number, *trial.values.items(), seed)
        return self._once(key, lambda: self._pretraining(trial, seed))

    def _pretraining(self, trial: Trial, seed: int) -> TrainRun:
        config = applied(self.spec.before[MAE], self.spec.space, trial.values, MAE)
        folder = self.folder_of(trial, seed)
        return TrainRun(replace(config, name=f"{trial.name}-mae", seed=seed), folder.with_name(f"mae-{folder.name}"))

    def _mae_vit_of(self, trial: Trial, seed: int) -> TrainRun:
        if not self.spec.pretrains_per_trial:
            return self._once((MAE_VIT, seed), lambda: self._mae_vit(self.shared[MAE], self.folder / MAE_VIT, seed))
        key = (MAE_VIT, trial.number, *trial.values.items(), seed)
        folder = self.folder_of(trial, seed).parent
        return self._once(key, lambda: self._mae_vit(self._pretraining_of(trial, seed), folder, seed, trial))

    def _mae_vit(self, mae: TrainRun, folder: Path, seed: int, trial: Trial | None = None) -> TrainRun:
        """The MAE-ViT of a seed, of one trial or of all."""
        config = self.spec.before[MAE_VIT]
        config = replace(config, seed=seed, model=replace(config.model, init=str(mae.folder)))
        if trial is None:
            return TrainRun(config, folder / f"seed-{seed}")
        return TrainRun(replace(config, name=f"{trial.name}-{MAE_VIT}"), folder / f"{MAE_VIT}-seed-{seed}")

    def starts(self, trial: Trial, seed: int) -> list[TrainRun]:
        """What a trial's run with a seed starts from, in order, without what all runs start from."""
        runs = [self._pretraining_of(trial, seed)] if self.spec.pretrains_per_trial else []
        return [*runs, self._mae_vit_of(trial, seed)] if MAE_VIT in self.spec.before else runs

    def starts_all_trials(self, run: TrainRun) -> bool:
        """Whether no trial of the search can be trained without this run."""
        shared_mae_vit = MAE_VIT in self.spec.before and not self.spec.pretrains_per_trial
        seeds = self.spec.seeds if shared_mae_vit else ()
        return run in self.shared.values() or any(run == self._mae_vit_of(Trial(0, {}), seed) for seed in seeds)

    def lineage_folders(self, lineage: Sequence[Trial], seed: int) -> list[Path]:
        """Folders of a lineage's runs with one seed, of the search or a fresh one, in training order."""
        last = self.folder_of(lineage[-1], seed)
        if seed in self.spec.seeds:
            return [self.folder_of(trial, seed) for trial in lineage]
        return [*(_generation_folder(last, number) for number in range(len(lineage) - 1)), last]

    def search_runs(self, trial: Trial, seed: int) -> list[TrialRun]:
        """The runs of a trial in the search, in order."""
        start = None if trial.parent is None else self.folder_of(Trial(trial.parent, {}), seed)
        runs = [TrialRun(run) for run in self.starts(trial, seed)]
        return [*runs, TrialRun(self.run_of(trial, seed), start, trial.until)]

    def confirmation_runs(self, lineage: Sequence[Trial], seed: int) -> list[TrialRun]:
        """The runs of a lineage's last trial on a fresh seed: all its generations again, in folders of that trial."""
        trial = lineage[-1]
        runs = [TrialRun(run) for run in self.starts(trial, seed)]
        start: Path | None = None
        for ancestor, folder in zip(lineage, self.lineage_folders(lineage, seed), strict=True):
            config = replace(self.run_of(ancestor, seed).config, name=trial.name)
            runs.append(TrialRun(TrainRun(config, folder), start, None if ancestor is trial else ancestor.until))
            start = folder
        return runs


def _generation_folder(folder: Path, number: int) -> Path:
    """Where an earlier generation of a run on a fresh seed is trained again."""
    return folder.with_name(f"{folder.name}-generation-{number}")


def read_trials(folder: Path, runs: Runs | None = None) -> list[Trial]:
    """A sweep's trials, by number. Raises JsonFileError, also if their values do not fit the runs."""
    path = folder / TRIALS
    if not path.exists():
        return []
    trials = read_record(list[Trial], path)
    for number, trial in enumerate(trials):
        if trial.number != number or not (trial.parent is None or 0 <= trial.parent < number):
            raise JsonFileError(f"{path}: trial {number} has the number {trial.number} and the parent {trial.parent}")
        try:
            if runs is not None:
                runs.search_runs(trial, runs.spec.seeds[0])
                _require_values(trial, runs.spec)
        except (ValueError, TypeError, KeyError) as error:
            raise JsonFileError(f"{path}: the values of trial {number} do not fit {SPEC}: {error}") from error
    return trials


def _require_values(trial: Trial, spec: Spec) -> None:
    """Raises ValueError if a trial lacks the value of a field that is searched."""
    missing = [one.name for one in spec.space if one.name not in trial.values]
    if missing:
        raise ValueError(f"there is none of {missing[0]}")


def write_trials(folder: Path, trials: Sequence[Trial]) -> None:
    """Write all trials, one per line."""
    lines = [json.dumps({**vars(trial), "stop": trial.stop and asdict(trial.stop)}) for trial in trials]
    write_atomically(folder / TRIALS, "[\n" + ",\n".join(lines) + "\n]\n")


def stop_run(folder: Path, stop: Stop) -> None:
    """Have a run end early, wherever it runs."""
    write_early_stop(folder, EarlyStop(stop.step, stop.reason))


def read_failed(folder: Path) -> Failed | None:
    """Why a run failed; None if it did not. Raises JsonFileError."""
    path = folder / FAILED
    return read_record(Failed, path) if path.exists() else None


def write_failed(folder: Path, failed: Failed) -> None:
    """Record why a run failed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FAILED, json.dumps(asdict(failed), indent=1) + "\n")


def first_failure(runs: Sequence[TrialRun]) -> Failed | None:
    """Why the first failed run failed; None if none did."""
    return next((failed for one in runs if (failed := read_failed(one.run.folder)) is not None), None)


def clear_failures(folder: Path) -> int:
    """Let all failed runs of a sweep be tried again, each up to where its trial was stopped. -> their number."""
    paths = list(folder.glob(f"trials/*/*/{FAILED}")) + list(folder.glob(f"*/*/{FAILED}"))
    for path in paths:
        path.unlink()
    return len(paths)


def curve(folder: Path, metric: str) -> list[tuple[int, float]]:
    """A run's validation scores: (step, value) in ascending steps."""
    return metric_series(read_metrics(folder, "validation"), "validation", metric)


def result_of(folder: Path) -> dict[str, Any] | None:
    """A run's result.json; None if it is missing or damaged."""
    file = folder / RESULT_FILE
    result = try_read_object(file)
    try:
        check_fields(file, result or {})
    except ReportError:
        return None
    return result if result and isinstance(result.get("status"), str) else None


def poker_face_metric(result: dict[str, Any] | None, metric: str) -> float | None:
    """A metric of the poker faces at the end of a run, on validation; None if it was not measured."""
    values = result or {}
    if values.get("measured_on") == "test":
        values = values.get("on_validation") or {}
    rows = (values.get("poker") or {}).get("rows") or {}
    value = rows.get("poker face", {}).get(metric)
    return None if value is None else float(value)
