"""What a sweep's folder holds, read for its report: each trial, its confirmation on fresh seeds, the test split.

Read only, and from result files and curves alone, so that a folder that was moved or is still being filled can be
reported, too. Scores are the metric's own values, not turned to "higher is better".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pfcluster.launch.plan import TrainRun
from pfcluster.report.errors import ReportError
from pfcluster.report.statistics import Paired, Summary, holm, paired, summarize
from pfcluster.runs.folder import RESULT_FILE
from pfcluster.sweep import search
from pfcluster.sweep.asha import EvalSchedule
from pfcluster.sweep.confirm import Confirmation
from pfcluster.sweep.report.rows import Row, failure_of, halved, read_row
from pfcluster.sweep.spec import FINAL_METRICS, Spec, load
from pfcluster.sweep.state import SweepState
from pfcluster.sweep.trials import Failed, Trial, result_of

COMMAND = "command.txt"


@dataclass(frozen=True)
class Confirmed:
    """A trial on fresh seeds."""

    row: Row
    scores: Mapping[int, float]
    """Seed -> metric on validation."""
    failed: Failed | None
    test: Mapping[str, Mapping[int, float]]
    """Figure -> seed -> value on the test split; the winner and the baseline have it alone."""
    difference: Paired | None = None
    """From the baseline, on the seeds that both have."""
    holm_p: float | None = None
    """p of the paired t-test, corrected for the number of trials compared."""

    @property
    def summary(self) -> Summary | None:
        """Over fresh seeds."""
        return summarize(list(self.scores.values())) if self.scores else None


@dataclass(frozen=True)
class SweepData:
    """All that a sweep's report is made from."""

    folder: Path
    spec: Spec
    rows: tuple[Row, ...]
    expected: int
    """Trials that the search will have had at its end."""
    confirmed: tuple[Confirmed, ...]
    """The baseline first; empty before the choice."""
    winner: Confirmed | None
    """Best on the fresh seeds; None before all of them are known."""
    course: EvalSchedule | None
    """The baseline's; None before any run has told the size of its data."""
    rungs: tuple[int, ...]
    lineage: tuple[Trial, ...]
    """Of the best trial: itself, and in a population those it goes on from, oldest first."""
    dataset: Mapping[str, Any]
    command: str

    @property
    def baseline(self) -> Confirmed | None:
        """The baseline on fresh seeds."""
        return self.confirmed[0] if self.confirmed else None

    @property
    def ranked(self) -> list[Row]:
        """Trials that were trained whole, best first; without the baseline."""
        whole = [row for row in self.rows if row.state == "whole" and row.score is not None and row.trial.number]
        return sorted(whole, key=lambda row: (-self.spec.sign * (row.score or 0), row.trial.number))

    @property
    def best(self) -> Row | None:
        """The winner; the search's best where nothing was confirmed."""
        if self.winner is not None:
            return self.winner.row
        return next(iter(self.ranked), None)

    @property
    def explored(self) -> bool:
        """Whether the search is over."""
        return len(self.rows) >= self.expected and all(row.state != "running" for row in self.rows)

    @property
    def whole(self) -> bool:
        """Whether the sweep is over, but for what failed."""
        wanted = len(self.spec.fresh_seeds)
        known = all(one.failed is not None or len(one.scores) == wanted for one in self.confirmed)
        alone = not self.spec.confirm or bool(self.confirmed)
        return self.explored and alone and known


def read_sweep(folder: Path) -> SweepData:
    """Read a sweep. Raises ConfigError for a folder without one, ReportError for one without trials."""
    spec = load(folder)
    dataset = _dataset(folder)
    state = SweepState(spec, folder, lambda job: course_of(job, dataset))
    if not state.trials:
        raise ReportError(f"{folder} holds no trial yet: run the sweep first")
    rows = tuple(read_row(state, trial, known=bool(dataset.get("train"))) for trial in state.trials)
    confirmation = Confirmation(state)
    confirmed = _compared([_confirmed(confirmation, rows[number]) for number in confirmation.selected() or []])
    number = confirmation.winner() if len(confirmed) > 1 else None
    known = bool(dataset.get("train"))
    data = SweepData(
        folder=folder,
        spec=spec,
        rows=rows,
        expected=spec.trials * spec.generations if spec.scheduler == "pbt" else search.trial_count(spec),
        confirmed=tuple(confirmed),
        winner=next((one for one in confirmed if one.row.trial.number == number), None),
        course=state.schedule_of(state.runs.run_of(state.trials[0], spec.seeds[0])) if known else None,
        rungs=tuple(state.rungs(state.trials[0])) if known and halved(spec) else (),
        lineage=(),
        dataset=dataset,
        command=_command(folder),
    )
    best = data.best
    return data if best is None else replace(data, lineage=tuple(state.lineage(best.trial.number)))


def course_of(job: TrainRun, dataset: Mapping[str, Any]) -> EvalSchedule:
    """When a run is evaluated, from the size of its data as a result tells it."""
    from pfcluster.training.schedule import evaluation_steps, total_steps

    count = int(dataset["train"])
    return EvalSchedule(total_steps(job.config, count), evaluation_steps(job.config, count))


def _dataset(folder: Path) -> Mapping[str, Any]:
    """What the first result says of its data; empty where there is no result."""
    for path in sorted(folder.glob(f"trials/*/seed-*/{RESULT_FILE}")):
        found = (result_of(path.parent) or {}).get("dataset")
        if found:
            return dict(found)
    return {}


def _command(folder: Path) -> str:
    """The command that repeats the sweep; "" where it was not kept."""
    kept = folder / COMMAND
    if kept.exists():
        return kept.read_text().strip()
    results = (result_of(path.parent) for path in sorted(folder.glob(f"trials/*/seed-*/{RESULT_FILE}")))
    return next((str(result["command"]) for result in results if result and result.get("command")), "")


def _confirmed(confirmation: Confirmation, row: Row) -> Confirmed:
    spec, number = confirmation.spec, row.trial.number
    scores: dict[int, float] = {}
    test: dict[str, dict[int, float]] = {}
    for seed in spec.fresh_seeds:
        folder = confirmation.folder(number, seed)
        result = result_of(folder)
        if result is None or result["status"] != "finished":
            continue
        value = confirmation.state.value(confirmation.state.lineage(number), seed)
        if value is not None:
            scores[seed] = value
        for name, figure in _test_figures(result).items():
            test.setdefault(name, {})[seed] = figure
    lineage = confirmation.state.lineage(number)
    legs = [leg for seed in spec.fresh_seeds for leg in confirmation.state.runs.confirmation_runs(lineage, seed)]
    return Confirmed(row, scores, failure_of(legs), test)


def _test_figures(result: Mapping[str, Any]) -> dict[str, float]:
    if result.get("measured_on") != "test":
        return {}
    figures = {name: (result.get("test") or {}).get(name) for name in ("accuracy", "macro_f1")}
    face = ((result.get("poker") or {}).get("rows") or {}).get("poker face", {})
    figures |= {name: face.get(name) for name in FINAL_METRICS}
    return {name: float(value) for name, value in figures.items() if value is not None}


def _compared(confirmed: list[Confirmed]) -> list[Confirmed]:
    """With differences from the baseline, the first, and Holm's correction over all of them."""
    for index, one in enumerate(confirmed[1:], 1):
        confirmed[index] = replace(one, difference=on_common_seeds(one.scores, confirmed[0].scores))
    tests = [(index, one.difference.t_p) for index, one in enumerate(confirmed) if one.difference is not None]
    corrected = holm([1.0 if p is None else p for _, p in tests])  # what cannot be tested counts in the number, too
    for (index, p), new in zip(tests, corrected, strict=True):
        confirmed[index] = replace(confirmed[index], holm_p=None if p is None else new)
    return confirmed


def on_common_seeds(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Paired | None:
    """A paired comparison on the seeds that both have; None where there is none."""
    common = sorted({*ours} & {*theirs})
    return paired([ours[seed] for seed in common], [theirs[seed] for seed in common]) if common else None
