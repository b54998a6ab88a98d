"""Train, evaluate and report on this machine.

    python jobs/launch.py demo                                  the whole method on embedded synthetic faces
    python jobs/launch.py study --data.shards DIR               the same on your own photos
    python jobs/launch.py judge | pretrain | finetune | pf-mag  one stage of it
    python jobs/launch.py evaluate RUN [--split test]           scores of a run's best checkpoint
    python jobs/launch.py report STUDY [--baseline NAME]        mean ± std over seeds, tables and pictures
    python jobs/launch.py consolidate RUN [--output FILE]       a run's weights as one safetensors file
    python jobs/launch.py doctor [--processes N]                does every engine train right here

`python jobs/launch.py COMMAND --help` lists the options. Stopped runs go on where they were: give the same command
again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))

from pfcluster.launch import commands  # noqa: E402
from pfcluster.launch.local import LaunchError, run_jobs, run_ranks  # noqa: E402

COMMANDS = ("demo", "study", *commands.TRAINING, "evaluate", "report", "consolidate", "doctor")
INTERRUPTED = 130


def main(arguments: Sequence[str]) -> int:
    """Run one command; the process's exit code: 0 done, 1 a run failed, 2 the call was wrong, 130 stopped by a
    signal.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    command, rest = arguments[0], list(arguments[1:])
    try:
        if command not in COMMANDS:
            raise ValueError(f"no command {command!r}; there are {', '.join(COMMANDS)}")
        if command == "report":
            return report(rest)
        if command == "evaluate":
            return evaluate(rest)
        if command == "consolidate":
            return consolidate(rest)
        if command == "doctor":
            return doctor(rest)
        return train(command, rest)
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def train(command: str, arguments: list[str]) -> int:
    """demo, study and the single stages."""
    options = commands.parse_training(command, arguments)
    whole = command in ("demo", "study")
    stages = commands.study_jobs(options) if whole else commands.single_jobs(options)
    console = Console()
    if options.dry_run:
        from pfcluster.launch.dry_run import dry_run

        dry_run(stages, options, console)
        return 0
    commands.preflight(stages, options.processes)
    for number, stage in enumerate(stages, start=1):
        title = f"[{number}/{len(stages)}] " if len(stages) > 1 else ""
        done = run_jobs(stage, processes=options.processes, at_once=options.jobs, command=options.text(), title=title)
        if not done:
            return INTERRUPTED
    if whole:
        return report([str(options.output)])
    for job in stages[-1]:
        console.print(f"{job.label}: {job.folder / 'result.json'}", highlight=False, soft_wrap=True)
    return 0


def report(arguments: list[str]) -> int:
    """Write the report of a study, print its main table and what it says."""
    from pfcluster.report.page import findings
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
    from pfcluster.evaluate.saved import evaluate_run

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
    table.add_row("macro F1", f"{100 * found['macro_f1']:.2f} %")
    console = Console()
    console.print(table)
    if found["dropped"]:
        counts = ", ".join(f"{count} {name}" for name, count in found["dropped"].items())
        console.print(f"left out, as the run does not know them: {counts}", highlight=False)
    if found["unanswered"]:
        names = ", ".join(found["unanswered"])
        console.print(f"the data has no {names}: these answers were not open to the classifier", highlight=False)
    return 0


def consolidate(arguments: list[str]) -> int:
    """One safetensors file from a checkpoint that many ranks wrote; needs no cluster."""
    from pfcluster import checkpoint

    parser = argparse.ArgumentParser(prog="jobs/launch.py consolidate")
    parser.add_argument("run", type=Path, help="run folder (its best checkpoint), or a checkpoint's")
    parser.add_argument("--output", type=Path, default=None, help="default: RUN/weights.safetensors")
    parser.add_argument("--everything", action="store_true", help="optimizers' tensors and the discriminator too")
    options = parser.parse_args(arguments)
    output = options.output or options.run / ("everything" if options.everything else "weights")
    output = output if output.suffix == ".safetensors" else output.with_name(output.name + ".safetensors")
    record = checkpoint.consolidate(options.run, output, everything=options.everything)
    size = output.stat().st_size / 2**20
    Console().print(f"step {record.step}: {output} ({size:,.1f} MiB)", highlight=False, soft_wrap=True)
    return 0


def doctor(arguments: list[str]) -> int:
    """The doctor in processes of this machine; on a cluster its launcher starts `python -m pfcluster.launch.doctor`."""
    from pfcluster.launch import doctor as examination

    parser = examination.parser("jobs/launch.py doctor")
    parser.add_argument("--processes", type=int, default=2, help="ranks on this machine")
    options = parser.parse_args(arguments)
    if options.processes < 1:
        raise ValueError(f"--processes must be at least 1, got {options.processes}")
    passed = ["--folder", str(options.folder), "--device", options.device, "--backends", *options.backends]
    passed += ["--json", str(options.json)] if options.json else []
    return run_ranks("pfcluster.launch.doctor", passed, options.processes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
