"""The commands of jobs/launch.py that do not train: report, evaluate, consolidate, doctor, and looking at jobs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pfcluster.launch.local import run_ranks
from pfcluster.runs.atomic_files import write_atomically


def report(arguments: list[str]) -> int:
    """Write the report of a study, print its main table and what it says."""
    from pfcluster.report.findings import findings
    from pfcluster.report.write import main_table, write_report

    parser = argparse.ArgumentParser(prog="jobs/launch.py report")
    parser.add_argument("study", type=Path, help="folder of runs, at any depth")
    parser.add_argument("--output", type=Path, default=None, help="default: STUDY/report")
    parser.add_argument("--baseline", default=None, help="run name that the others are tested against")
    options = parser.parse_args(arguments)
    files = write_report(options.study, options.output, baseline=options.baseline)
    console = Console()
    console.print(main_table(files))
    for sentence in findings(files.report):
        console.print(f"- {sentence}", highlight=False, markup=False)
    console.print(f"report: {files.html}", highlight=False, soft_wrap=True)
    return 0


def evaluate(arguments: list[str]) -> int:
    """Scores of a run's best checkpoint on a split."""
    from pfcluster.evaluate.evaluate_run import evaluate_run

    parser = argparse.ArgumentParser(prog="jobs/launch.py evaluate")
    parser.add_argument("run", type=Path, help="run folder, or a checkpoint's")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test")
    parser.add_argument("--shards", default=None, help="another shard folder; emotions are matched by name")
    options = parser.parse_args(arguments)
    found = evaluate_run(options.run, options.split, options.shards)
    table = Table(
        "class", "accuracy", title=f"{options.run} on {found['dataset']}, {options.split}: {found['n']} images"
    )
    for name, value in found["per_class"].items():
        table.add_row(name, f"{100 * value:.1f} %")
    table.add_section()
    table.add_row("all", f"{100 * found['accuracy']:.2f} %")
    table.add_row("mean class accuracy", f"{100 * found['mean_class_accuracy']:.2f} %")
    table.add_row("macro F1", f"{100 * found['macro_f1']:.2f} %")
    console = Console()
    console.print(table)
    if found["dropped"]:
        counts = ", ".join(f"{count} {name}" for name, count in found["dropped"].items())
        console.print(f"left out, as the run does not know them: {counts}", highlight=False)
    if found["missing_classes"]:
        names = ", ".join(found["missing_classes"])
        console.print(f"the data has no {names}: these answers were not open to the classifier", highlight=False)
    return 0


def pictures(arguments: list[str]) -> int:
    """Attention maps, features in the plane and failures of finished runs, on a page."""
    from pfcluster.report.gallery import write_pictures

    parser = argparse.ArgumentParser(prog="jobs/launch.py pictures")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "--output", type=Path, default=None, help="default: pictures/ in the folder that holds the runs"
    )
    parser.add_argument("--images", type=int, default=8, help="faces in each grid")
    parser.add_argument("--seed", type=int, default=0, help="draws the faces")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    options = parser.parse_args(arguments)
    files = write_pictures(options.runs, options.output, images=options.images, seed=options.seed, split=options.split)
    console = Console()
    for note in files.notes:
        console.print(f"- {note}", highlight=False, markup=False)
    console.print(f"pictures: {files.html}", highlight=False, soft_wrap=True)
    return 0


def costs(arguments: list[str]) -> int:
    """Parameters, FLOPs and speed of presets."""
    import torch

    from pfcluster.config import presets
    from pfcluster.profiling.model_cost import measure_model_cost

    parser = argparse.ArgumentParser(prog="jobs/launch.py costs")
    parser.add_argument("--preset", nargs="+", default=["demo"], choices=sorted(presets.PRESETS))
    parser.add_argument("--roles", nargs="+", default=["mae", "mae-vit", "pf-vit"], choices=presets.ROLES)
    parser.add_argument("--classes", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, default=None, help="write the figures there too")
    options = parser.parse_args(arguments)
    columns = (
        "M par.\ntrain",
        "M par.\ntest",
        "GFLOP\nstep",
        "GFLOP\ntest",
        "batch",
        "ms\ntest",
        "image/s\ntest",
        "image/s\nstep",
    )
    found: dict[str, dict[str, Any]] = {}
    for preset in options.preset:
        recipe = presets.recipe(preset)
        for role in options.roles:
            found[f"{preset} {role}"] = asdict(
                measure_model_cost(recipe[role], options.classes, torch.device(options.device))
            )
    table = Table("model", *columns, title=f"costs of an image, speed on {options.device}")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, cost in found.items():
        counts = (cost["train_parameters"] / 1e6, cost["test_parameters"] / 1e6, cost["step_gflop"], cost["test_gflop"])
        cells = [name, *(f"{count:,.2f}" for count in counts)]
        for speed in cost["speeds"]:
            rates = (1000 * speed["batch"] / speed[f"{turn}_ms"] for turn in ("forward", "step"))
            own = (str(speed["batch"]), f"{speed['forward_ms']:.1f}", *(f"{rate:,.0f}" for rate in rates))
            table.add_row(*cells, *own)
            cells = [""] * len(cells)
    Console().print(table)
    if options.json is not None:
        write_atomically(options.json, json.dumps(found, indent=1) + "\n")
    return 0


def measure(arguments: list[str]) -> int:
    """One measurement on the runs of a reproduction, into its folder `measured`."""
    from pfcluster.experiments.measure import MEASURES
    from pfcluster.experiments.measure import measure as write

    parser = argparse.ArgumentParser(prog="jobs/launch.py measure")
    parser.add_argument("what", choices=sorted(MEASURES))
    parser.add_argument("output", type=Path, help="OUTPUT of a reproduction")
    options = parser.parse_args(arguments)
    Console().print(f"{options.what}: {write(options.what, options.output)}", highlight=False, soft_wrap=True)
    return 0


def tables(arguments: list[str]) -> int:
    """The tables of a reproduction, as far as its runs are."""
    from pfcluster.experiments.write import write_tables

    parser = argparse.ArgumentParser(prog="jobs/launch.py tables")
    parser.add_argument("output", type=Path, help="OUTPUT of a reproduction")
    options = parser.parse_args(arguments)
    files, console = write_tables(options.output), Console()
    for sentence in files.sentences:
        console.print(f"- {sentence}", highlight=False, markup=False)
    console.print(f"tables: {files.html}", highlight=False, soft_wrap=True)
    return 0


def consolidate(arguments: list[str]) -> int:
    """One safetensors file from a checkpoint that many ranks wrote; needs no cluster."""
    from pfcluster.checkpoint import store

    parser = argparse.ArgumentParser(prog="jobs/launch.py consolidate")
    parser.add_argument("run", type=Path, help="run folder (its best checkpoint), or a checkpoint's")
    parser.add_argument("--output", type=Path, default=None, help="default: RUN/weights.safetensors")
    parser.add_argument("--everything", action="store_true", help="optimizers' tensors and the discriminator too")
    options = parser.parse_args(arguments)
    output = options.output or options.run / ("everything" if options.everything else "weights")
    output = output if output.suffix == ".safetensors" else output.with_name(output.name + ".safetensors")
    record = store.consolidate(options.run, output, everything=options.everything)
    size = output.stat().st_size / 2**20
    Console().print(f"step {record.step}: {output} ({size:,.1f} MiB)", highlight=False, soft_wrap=True)
    return 0


def doctor(arguments: list[str]) -> int:
    """The doctor in processes of this machine, or, with --executor slurm, on the nodes of a job."""
    from pfcluster.cli import doctor as examination

    parser = examination.parser("jobs/launch.py doctor")
    parser.add_argument("--processes", type=int, default=2, help="ranks on this machine")
    options = parser.parse_args(arguments)
    if options.processes < 1:
        raise ValueError(f"--processes must be at least 1, got {options.processes}")
    passed = ["--folder", str(options.folder), "--device", options.device, "--backends", *options.backends]
    passed += ["--json", str(options.json)] if options.json else []
    return run_ranks("pfcluster.cli.doctor", passed, options.processes)


def shards(arguments: list[str]) -> int:
    """shards/build.py, so that it can be handed to a cluster."""
    from pfcluster.cli.build import main

    return main(arguments)


def status(arguments: list[str]) -> int:
    """What runs, where, how far it is."""
    from pfcluster.cli import watch
    from pfcluster.launch import status as states

    parser = argparse.ArgumentParser(prog="jobs/launch.py status")
    parser.add_argument("name", nargs="?", default=None, help="as it was submitted, or its folder; default: all")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder under which names are looked for")
    parser.add_argument("--watch", action="store_true", help="until all has ended")
    options = parser.parse_args(arguments)
    console = Console()
    if options.name is None:
        places = [record.parent for record in states.records(options.output)]
        if not places:
            raise states.StatusError(f"nothing was submitted under {options.output}; --output names another folder")
    else:
        places = [states.find(options.name, options.output)]
    if options.watch:
        return 0 if watch.watch(places[-1], console).well else 1
    for place in places:
        console.print(watch.table(states.overview(place), console.width))
    return 0


def logs(arguments: list[str]) -> int:
    """The end of a rank's log."""
    from pfcluster.launch import status as states

    parser = argparse.ArgumentParser(prog="jobs/launch.py logs")
    parser.add_argument("name", help="as it was submitted, or its folder")
    parser.add_argument(
        "--task", default=None, help="stage or run, such as mae-vit or 'mae-vit seed 1'; default: what failed"
    )
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--lines", type=int, default=40)
    parser.add_argument("--follow", "-f", action="store_true", help="and what is written from now on")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder under which names are looked for")
    options = parser.parse_args(arguments)
    path = states.log_of(states.find(options.name, options.output), options.rank, options.task)
    Console(stderr=True).print(f"{path}", highlight=False, style="dim", soft_wrap=True)
    states.show_log(path, options.lines, options.follow)
    return 0


def cancel(arguments: list[str]) -> int:
    """End what was submitted; runs save themselves first, and the same command goes on from there."""
    from pfcluster.launch import status as states

    parser = argparse.ArgumentParser(prog="jobs/launch.py cancel")
    parser.add_argument("name", help="as it was submitted, or its folder")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder under which names are looked for")
    options = parser.parse_args(arguments)
    ended = states.cancel(states.find(options.name, options.output))
    words = f"cancelled: {', '.join(ended)}" if ended else "nothing was queued or running"
    Console().print(words, highlight=False, soft_wrap=True)
    return 0


TOOLS: dict[str, Callable[[list[str]], int]] = {
    "evaluate": evaluate,
    "report": report,
    "pictures": pictures,
    "consolidate": consolidate,
    "costs": costs,
    "measure": measure,
    "tables": tables,
    "doctor": doctor,
    "shards": shards,
}
"""Commands that can be handed to a cluster with --executor slurm."""
WATCHING: dict[str, Callable[[list[str]], int]] = {"status": status, "logs": logs, "cancel": cancel}
