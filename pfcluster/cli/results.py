"""`pfcluster evaluate | report | pictures | tables | measure | consolidate`: commands that read finished runs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table

from pfcluster.launch.command_line import parse
from pfcluster.runs.folder import RESULT_FILE, find_runs
from pfcluster.runs.output_inputs import input_states, record_inputs
from pfcluster.system.atomic_files import write_atomically
from pfcluster.system.terminal import plain_console, print_warnings

Split = Literal["train", "validation", "test"]


def _results_below(folder: Path) -> list[Path]:
    """The result files of all runs below a folder."""
    return [run / RESULT_FILE for run in find_runs(folder)]


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write the report of a study, and print its main table and findings."""

    study: tyro.conf.Positional[Path]
    """Folder of runs, at any depth."""
    output: Path | None = None
    """Folder of the report; default: STUDY/report."""
    baseline: str | None = None
    """Name of the runs that the others are tested against."""


def report(arguments: list[str]) -> int:
    """Write the report of a study."""
    from pfcluster.report.findings import findings
    from pfcluster.report.terminal import main_table
    from pfcluster.report.write import write_report
    from pfcluster.tracking.trackers import send_report

    options = parse(ReportOptions, arguments, prog="pfcluster report")
    inputs = input_states(_results_below(options.study))
    files = write_report(options.study, options.output, baseline=options.baseline)
    record_inputs(files.html, inputs)
    send_report(options.study, files.html)
    console = plain_console()
    console.print(main_table(files.report))
    for sentence in findings(files.report):
        console.print(f"- {sentence}")
    console.print(f"report: {files.html}", soft_wrap=True)
    return 0


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Evaluate the best checkpoint of a run on a split."""

    run: tyro.conf.Positional[Path]
    """Run folder, or the folder of a checkpoint."""
    split: Split = "test"
    """Split to evaluate on."""
    shards: str | None = None
    """Other shards to evaluate on; classes are matched by name. Default: those of the run."""
    judge: Path | None = None
    """Folder of the run of a classifier: print how it classifies the photos, reconstructions and poker faces of a run
    of pf-mag. It may be another one than the judge that the run was trained with."""
    output: Path | None = None
    """Write the figures as JSON to this file, too."""


def evaluate(arguments: list[str]) -> int:
    """Print accuracy and F1 of a run, and what a judge says of its poker faces."""
    from pfcluster.data.splits import damaged_warning
    from pfcluster.evaluate.evaluate_run import evaluate_run, judge_run

    options = parse(EvaluateOptions, arguments, prog="pfcluster evaluate")
    if options.output is not None:
        _require_writable(options.output)
    judged = None if options.judge is None else judge_run(options.run, options.judge, options.split, options.shards)
    scores = evaluate_run(options.run, options.split, options.shards)
    console = plain_console()
    console.print(_score_table(f"{options.run} on {scores['dataset']}, {options.split}", scores))
    if scores["dropped"]:
        counts = ", ".join(f"{count} {name}" for name, count in scores["dropped"].items())
        console.print(f"left out, because the run has no such class: {counts}")
    if scores["missing_classes"]:
        names = ", ".join(scores["missing_classes"])
        console.print(f"the data has no {names}: these classes were excluded from the predictions")
    damaged = scores["damaged_samples"] if judged is None else judged["damaged_samples"]
    print_warnings((damaged_warning(split, record) for split, record in damaged.items()), console)
    if judged is not None:
        console.print(_judge_table(f"Classified by {options.judge}: {judged['n']} images", judged["rows"]))
    if options.output is not None:
        figures = {"run": str(options.run), "split": options.split, **scores}
        if judged is not None:
            figures |= {"judge": str(options.judge), "poker": judged}
        write_atomically(options.output, json.dumps(figures, indent=1) + "\n")
    return 0


def _require_writable(output: Path) -> None:
    """Creates the folder of a file. Raises ValueError if the file cannot be written there; OSError."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder; give the name of a file in it")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise ValueError(
            f"--output {output}: {output.parent} cannot be written; check its permissions, or give another"
        )


def _judge_table(title: str, rows: dict[str, dict[str, float | None]]) -> Table:
    columns = {
        "neutral, of faces with an expression": "neutralised_rate",
        "neutral, of all": "neutral_rate",
        "emotion of its source": "emotion_agreement",
    }
    table = Table("image", *columns, title=title)
    for name, figures in rows.items():
        values = [figures[column] for column in columns.values()]
        table.add_row(name, *("" if value is None else f"{100 * value:.1f} %" for value in values))
    return table


def _score_table(title: str, scores: dict[str, Any]) -> Table:
    table = Table("class", "accuracy", title=f"{title}: {scores['n']} images")
    for name, accuracy in scores["per_class"].items():
        table.add_row(name, f"{100 * accuracy:.1f} %")
    table.add_section()
    table.add_row("all", f"{100 * scores['accuracy']:.2f} %")
    table.add_row("mean class accuracy", f"{100 * scores['mean_class_accuracy']:.2f} %")
    table.add_row("macro F1", f"{100 * scores['macro_f1']:.2f} %")
    return table


@dataclass(frozen=True, kw_only=True)
class PicturesOptions:
    """Write a page with attention maps, a projection of the features, and misclassified images of finished runs."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]]
    """Folders of finished runs."""
    output: Path | None = None
    """Folder of the page; default: pictures/ in the folder that holds the runs."""
    images: int = 8
    """Images in each grid."""
    seed: int = 0
    """Seed of the selection of images."""
    split: Literal["validation", "test"] = "test"
    """Split that the images are taken from."""


def pictures(arguments: list[str]) -> int:
    """Write the page of pictures of finished runs."""
    from pfcluster.report.gallery import write_pictures

    options = parse(PicturesOptions, arguments, prog="pfcluster pictures")
    if not options.runs:
        raise ValueError("missing: RUN; `pfcluster pictures --help` lists the options")
    inputs = input_states(run / RESULT_FILE for run in options.runs)
    files = write_pictures(options.runs, options.output, images=options.images, seed=options.seed, split=options.split)
    record_inputs(files.html, inputs)
    console = plain_console()
    for note in files.notes:
        console.print(f"- {note}")
    console.print(f"pictures: {files.html}", soft_wrap=True)
    return 0


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """Make one measurement on the runs of a reproduction, into its folder `measured`."""

    what: tyro.conf.Positional[str]
    """Name of the measurement: cross, costs."""
    output: tyro.conf.Positional[Path]
    """Output folder of `pfcluster reproduce`."""


def measure(arguments: list[str]) -> int:
    """Write one measurement of a reproduction."""
    from pfcluster.experiments.measure import MEASURES
    from pfcluster.experiments.measure import measure as write_measurement

    options = parse(MeasureOptions, arguments, prog="pfcluster measure")
    if options.what not in MEASURES:
        raise ValueError(f"no measurement {options.what!r}; there are {', '.join(sorted(MEASURES))}")
    inputs = input_states(_results_below(options.output))
    path = write_measurement(options.what, options.output)
    record_inputs(path, inputs)
    plain_console().print(f"{options.what}: {path}", soft_wrap=True)
    return 0


@dataclass(frozen=True, kw_only=True)
class TablesOptions:
    """Write the paper's tables of a reproduction, with the runs that have finished so far."""

    output: tyro.conf.Positional[Path]
    """Output folder of `pfcluster reproduce`."""


def tables(arguments: list[str]) -> int:
    """Write the tables of a reproduction."""
    from pfcluster.experiments.results import MEASURED_DIR
    from pfcluster.experiments.write import write_tables

    options = parse(TablesOptions, arguments, prog="pfcluster tables")
    measured = (options.output / MEASURED_DIR).glob("*.json")
    inputs = input_states([*_results_below(options.output), *measured])
    files, console = write_tables(options.output), plain_console()
    record_inputs(files.html, inputs)
    for sentence in files.sentences:
        console.print(f"- {sentence}")
    console.print(f"tables: {files.html}", soft_wrap=True)
    return 0


@dataclass(frozen=True, kw_only=True)
class ConsolidateOptions:
    """Write a checkpoint of any number of ranks as one safetensors file."""

    run: tyro.conf.Positional[Path]
    """Run folder (its best checkpoint is taken), or the folder of a checkpoint."""
    output: Path | None = None
    """File to write; default: RUN/weights.safetensors."""
    everything: bool = False
    """Include the optimizers' tensors and the discriminator."""


def consolidate(arguments: list[str]) -> int:
    """Write the weights of a run as one file."""
    from pfcluster.checkpoint import store

    options = parse(ConsolidateOptions, arguments, prog="pfcluster consolidate")
    output = options.output or options.run / ("everything" if options.everything else "weights")
    output = output if output.suffix == ".safetensors" else output.with_name(output.name + ".safetensors")
    record = store.consolidate(options.run, output, everything=options.everything)
    size = output.stat().st_size / 2**20
    plain_console().print(f"step {record.step}: {output} ({size:,.1f} MiB)", soft_wrap=True)
    return 0
