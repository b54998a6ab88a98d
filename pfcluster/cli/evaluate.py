"""`pfcluster evaluate`: scores of a run's best checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.table import Table

from pfcluster.cli.outputs import require_writable
from pfcluster.launch.command_line import parse
from pfcluster.system.atomic_files import write_atomically
from pfcluster.system.terminal import plain_console, print_warnings

Split = Literal["train", "validation", "test"]


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
    of pf-mag. It may differ from the judge that the run was trained with."""
    output: Path | None = None
    """Write the figures as JSON to this file, too."""


def main(arguments: list[str]) -> int:
    """Print accuracy and F1 of a run, and how a judge classifies its poker faces."""
    from pfcluster.data.splits import damaged_warning
    from pfcluster.evaluate.evaluate_run import evaluate_run, judge_run

    options = parse(EvaluateOptions, arguments, prog="pfcluster evaluate")
    if options.output is not None:
        require_writable("--output", options.output)
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
    print_warnings(filter(None, [scores["crop_warning"]]), console)
    if judged is not None:
        console.print(_judge_table(f"Classified by {options.judge}: {judged['n']} images", judged["rows"]))
    if options.output is not None:
        figures = {"run": str(options.run), "split": options.split, **scores}
        if judged is not None:
            figures |= {"judge": str(options.judge), "poker": judged}
        write_atomically(options.output, json.dumps(figures, indent=1) + "\n")
    return 0


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
