"""The content of a sweep's folder, read for its report: the trials, their confirmation on fresh seeds, the test split.

Uses result files and curves only, so a folder that was moved or is still being filled can be reported. Scores are the
metric's values, not sign-adjusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pfcluster.launch.plan import TrainRun
from pfcluster.report.errors import ReportError
from pfcluster.report.statistics import Paired, Summary, holm_over_tests, paired, summarize
from pfcluster.runs.folder import RESULT_FILE
from pfcluster.sweep import search
from pfcluster.sweep.asha import EvalSchedule
from pfcluster.sweep.confirm import Confirmation
from pfcluster.sweep.report.rows import OPEN_STATES, Row, read_row
from pfcluster.sweep.spec import FINAL_METRICS, Spec, load
from pfcluster.sweep.state import SweepState
from pfcluster.sweep.trials import TRIALS, Failed, Trial, first_failure, result_of

COMMAND = "command.txt"


@dataclass(frozen=True)
class Confirmed:
    """A trial on fresh seeds."""

    row: Row
    scores: Mapping[int, float]
    """Seed -> metric on validation."""
    failed: Failed | None
    test: Mapping[str, Mapping[int, float]]
    """Metric -> seed -> value on the test split; only for the winner and the baseline."""
    difference: Paired | None = None
    """Difference from the baseline, on common seeds."""
    holm_p: float | None = None
    """p of the paired t-test, corrected for the number of trials compared."""

    @property
    def summary(self) -> Summary | None:
        """Over fresh seeds."""
        return summarize(list(self.scores.values())) if self.scores else None


@dataclass(frozen=True)
class SweepData:
    """The content of a sweep's report."""

    folder: Path
    spec: Spec
    rows: tuple[Row, ...]
    expected: int
    """Number of trials in the complete search."""
    confirmed: tuple[Confirmed, ...]
    """The baseline first; empty before the selection."""
    winner: Confirmed | None
    """Best on the fresh seeds; None before all of them are measured."""
    schedule: EvalSchedule | None
    """The baseline's; None before a run has reported the size of its data."""
    rungs: tuple[int, ...]
    """Steps of the baseline's."""
    first_rung: int | None
    """Number of the first rung that a trial has; None if there is none."""
    lineage: tuple[Trial, ...]
    """The best trial and, in a population, its ancestors, oldest first."""
    dataset: Mapping[str, Any]
    command: str

    @property
    def baseline(self) -> Confirmed | None:
        """The baseline on fresh seeds."""
        return self.confirmed[0] if self.confirmed else None

    @property
    def ranked(self) -> list[Row]:
        """Completed trials, best first; without the baseline."""
        rows = [row for row in self.rows if row.state == "completed" and row.score is not None and row.trial.number]
        return sorted(rows, key=lambda row: (-self.spec.sign * (row.score or 0), row.trial.number))

    @property
    def best(self) -> Row | None:
        """The winner, or the best trial of the search if nothing was confirmed."""
        if self.winner is not None:
            return self.winner.row
        return next(iter(self.ranked), None)

    @property
    def search_complete(self) -> bool:
        """Whether the search is complete."""
        return len(self.rows) >= self.expected and all(row.state not in OPEN_STATES for row in self.rows)

    @property
    def complete(self) -> bool:
        """Whether the sweep is complete, apart from failed runs."""
        seeds = len(self.spec.fresh_seeds)
        measured = all(one.failed is not None or len(one.scores) == seeds for one in self.confirmed)
        selected = not self.spec.confirm or bool(self.confirmed)
        return self.search_complete and selected and measured


def read_sweep(folder: Path) -> SweepData:
    """Read a sweep. Raises ConfigError for a folder without one, ReportError for one without trials."""
    spec = load(folder)
    dataset = _dataset(folder)
    state = SweepState(spec, folder, lambda run: schedule_of(run, dataset))
    if not state.trials:
        raise ReportError(f"{folder} holds no trial yet in {TRIALS}: run the sweep first")
    has_schedule = bool(dataset.get("train"))
    first_rung = state.first_rung() if has_schedule and spec.uses_asha else None
    rows = tuple(read_row(state, trial, first_rung=first_rung, has_schedule=has_schedule) for trial in state.trials)
    confirmation = Confirmation(state)
    confirmed = _compared([_confirmed(confirmation, rows[number]) for number in confirmation.selected() or []])
    number = confirmation.winner() if len(confirmed) > 1 else None
    data = SweepData(
        folder=folder,
        spec=spec,
        rows=rows,
        expected=spec.trials * spec.generations if spec.scheduler == "pbt" else search.trial_count(spec),
        confirmed=tuple(confirmed),
        winner=next((one for one in confirmed if one.row.trial.number == number), None),
        schedule=state.schedule_of(state.runs.run_of(state.trials[0], spec.seeds[0])) if has_schedule else None,
        rungs=() if first_rung is None else tuple(filter(None, state.rungs(state.trials[0]))),
        first_rung=first_rung,
        lineage=(),
        dataset=dataset,
        command=_command(folder),
    )
    best = data.best
    return data if best is None else replace(data, lineage=tuple(state.lineage(best.trial.number)))


def schedule_of(run: TrainRun, dataset: Mapping[str, Any]) -> EvalSchedule:
    """A run's evaluation schedule, from the size of its data in a result. Raises ReportError if that is unknown."""
    from pfcluster.training.schedule import evaluation_steps, total_steps

    if not dataset.get("train"):
        raise ReportError(
            f"{run.folder}: which evaluations select its checkpoint is unknown, because the first {RESULT_FILE} of"
            " trials/ has no dataset.train; repair that file, or remove it and continue the sweep"
        )
    samples = int(dataset["train"])
    return EvalSchedule(total_steps(run.config, samples), evaluation_steps(run.config, samples))


def _dataset(folder: Path) -> Mapping[str, Any]:
    """The dataset of the first result; empty if there is none."""
    for path in sorted(folder.glob(f"trials/*/seed-*/{RESULT_FILE}")):
        dataset = (result_of(path.parent) or {}).get("dataset")
        if dataset:
            return dict(dataset)
    return {}


def _command(folder: Path) -> str:
    """The command that repeats the sweep; "" if it was not recorded."""
    path = folder / COMMAND
    if path.exists():
        return path.read_text().strip()
    results = (result_of(path.parent) for path in sorted(folder.glob(f"trials/*/seed-*/{RESULT_FILE}")))
    return next((str(result["command"]) for result in results if result and result.get("command")), "")


def _confirmed(confirmation: Confirmation, row: Row) -> Confirmed:
    spec, number = confirmation.spec, row.trial.number
    lineage = confirmation.state.lineage(number)
    scores: dict[int, float] = {}
    test: dict[str, dict[int, float]] = {}
    for seed in spec.fresh_seeds:
        result = result_of(confirmation.folder(number, seed))
        if result is None or result["status"] != "finished":
            continue
        value = confirmation.state.value(lineage, seed)
        if value is not None:
            scores[seed] = value
        for metric, on_test in _test_metrics(result).items():
            test.setdefault(metric, {})[seed] = on_test
    runs = [one for seed in spec.fresh_seeds for one in confirmation.state.runs.confirmation_runs(lineage, seed)]
    return Confirmed(row, scores, first_failure(runs), test)


def _test_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    if result.get("measured_on") != "test":
        return {}
    values = {name: (result.get("test") or {}).get(name) for name in ("accuracy", "macro_f1")}
    poker_face = ((result.get("poker") or {}).get("rows") or {}).get("poker face", {})
    values |= {name: poker_face.get(name) for name in FINAL_METRICS}
    return {name: float(value) for name, value in values.items() if value is not None}


def _compared(confirmed: list[Confirmed]) -> list[Confirmed]:
    """Add differences from the baseline, which is the first, and Holm's correction over all of them."""
    for index, one in enumerate(confirmed[1:], 1):
        confirmed[index] = replace(one, difference=on_common_seeds(one.scores, confirmed[0].scores))
    p_values = holm_over_tests([one.difference for one in confirmed])
    return [replace(one, holm_p=p) for one, p in zip(confirmed, p_values, strict=True)]


def on_common_seeds(treated: Mapping[int, float], reference: Mapping[int, float]) -> Paired | None:
    """A paired comparison on common seeds; None if there are none."""
    common = sorted({*treated} & {*reference})
    return paired([treated[seed] for seed in common], [reference[seed] for seed in common]) if common else None
