"""The plan of `pfcluster reproduce`: all runs of the experiments, then reports, measurements and tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pfcluster.experiments.cells import DEFAULT_SIZE
from pfcluster.experiments.matrix import PlannedRun, Settings, runs_by_cell, selected_cells, unavailable_reason
from pfcluster.experiments.record import make_record, write_record
from pfcluster.launch.plan import Command, Plan, Stage, TrainRun
from pfcluster.launch.study_plan import REPORT
from pfcluster.launch.training_options import Options
from pfcluster.runs.folder import RESULT_FILE

TABLE_FILE = Path("tables") / "tables.html"
MEASUREMENTS = ("cross", "costs")
PICTURED = ("sl-vit", "mae-vit", "pf-vit")


@dataclass(frozen=True)
class Reproduction:
    """The experiments that a call of `pfcluster reproduce` runs."""

    settings: Settings
    runs: tuple[PlannedRun, ...]
    options: Options
    miniature: bool
    unchecked: tuple[str, ...] = ()
    """Weights that --dry-run did not look for, because that would use the network."""

    def plan(self) -> Plan:
        """Pre-training and judges, the cells of all tables, then what is computed from them even if runs failed."""
        stages = [
            Stage(
                f"{dataset}-{name}",
                tuple(TrainRun(run.config, run.folder, study=dataset) for run in runs),
                tuple(f"{other}-{its}" for other, its in runs[0].dependencies),
                tuple(f"{other}-{its}" for other, its in runs[0].same_seed),
            )
            for (dataset, name), runs in runs_by_cell(self.runs).items()
        ]
        after = tuple(stage.name for stage in stages)
        for dataset in self.settings.datasets:
            stages += self._study_stages(dataset, after)
        stages += self._table_stages(after)
        output = self.settings.output
        name = self.options.name or output.resolve().name
        return Plan(name, output, tuple(stages), self.options.command_line, continue_on_failure=True)

    def _study_stages(self, dataset: str, after: tuple[str, ...]) -> list[Stage]:
        """Pictures and report of one dataset."""
        study, pictured = self.settings.output / dataset, self.pictured(dataset)
        page = study / "pictures" / "index.html"
        pictures = Command(
            f"{dataset} pictures",
            page.parent,
            ("pictures", *map(str, pictured), "--output", str(page.parent)),
            produces=page,
            reads=tuple(folder / RESULT_FILE for folder in pictured),
        )
        report = Command(
            f"{dataset} {REPORT}",
            study / REPORT,
            (REPORT, str(study)),
            produces=study / REPORT / "report.html",
            reads=tuple(run.folder / RESULT_FILE for run in self.runs if run.dataset == dataset),
        )
        first, second = f"{dataset}-pictures", f"{dataset}-{REPORT}"
        return [
            Stage(first, (pictures,), after, single_process=True, always_run=True),
            Stage(second, (report,), (*after, first), single_process=True, always_run=True),
        ]

    def _table_stages(self, after: tuple[str, ...]) -> list[Stage]:
        """The measurements on all runs, and the tables."""
        output = self.settings.output
        results = tuple(run.folder / RESULT_FILE for run in self.runs)
        files = {name: output / "measured" / f"{name}.json" for name in MEASUREMENTS}
        stages = []
        for name, path in files.items():
            command = Command(name, path.parent / name, ("measure", name, str(output)), produces=path, reads=results)
            stages.append(Stage(name, (command,), after, single_process=True, always_run=True))
        tables = Command(
            "tables",
            output / "tables",
            ("tables", str(output)),
            produces=output / TABLE_FILE,
            reads=(*results, *files.values()),
        )
        stages.append(Stage("tables", (tables,), (*after, *files), single_process=True, always_run=True))
        return stages

    def pictured(self, dataset: str) -> list[Path]:
        """Folders of the runs on the page of pictures: those of the first seed, and its pre-training."""
        first = {(run.dataset, run.name): run.folder for run in reversed(self.runs)}
        keys = [("pretraining", f"mae-{DEFAULT_SIZE}"), *((dataset, name) for name in PICTURED)]
        return [first[key] for key in keys if key in first]

    def record(self) -> None:
        """Write which cells were planned, so that the tables can name those that are missing."""
        record = make_record(self.settings, self.runs, self.options.command_line, miniature=self.miniature)
        write_record(self.settings.output, record)

    def print_downloads(self, console: Console) -> None:
        """Print which weights a real run would download."""
        if self.unchecked:
            text = f"not checked without the network: {', '.join(self.unchecked)}"
            console.print(text, style="yellow", soft_wrap=True)

    def print_missing(self, console: Console) -> None:
        """Print which cells cannot be trained, and why."""
        reasons: dict[str, list[str]] = {}
        cells = {
            cell.name: cell for dataset in self.settings.datasets for cell in selected_cells(self.settings, dataset)
        }
        for cell in cells.values():
            reason = unavailable_reason(self.settings, cell)
            if reason is not None:
                reasons.setdefault(reason, []).append(cell.name)
        for reason, names in reasons.items():
            console.print(f"not run: {', '.join(names)}: {reason}", style="yellow", soft_wrap=True)
