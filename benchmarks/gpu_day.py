"""Everything that is measured on a GPU, in parts and slices of at most nine minutes that can be given one by one.

    python -m benchmarks.gpu_day --list                             parts, measurements and what is done
    python -m benchmarks.gpu_day --part 1 --output runs/gpu-day     one slice of part 1; again until it says "complete"
    python -m benchmarks.gpu_day --miniature --output runs/tiny     all of it on a CPU in a minute, figures meaningless

Writes DIR/results.json and DIR/results.md after every measurement. A call skips what is done, tries again what failed
and goes on with what did not fit; a call that is killed loses the measurement in progress only. Exit code 0 if the
parts are complete, 75 if another call is needed. How to carry packages to a machine without them:
docs/reference/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_parts.exactness import exactness_measurements
from benchmarks.gpu_parts.faces import alignment_measurements, inference_measurements
from benchmarks.gpu_parts.long_runs import fer_measurements, poker_measurements
from benchmarks.gpu_parts.measurements import (
    REPORT_FILE,
    GpuDayOptions,
    Measurement,
    Results,
    Slice,
    describe_machine,
    run_all,
)
from benchmarks.gpu_parts.reading import reading_measurements
from benchmarks.gpu_parts.report import markdown
from benchmarks.gpu_parts.steps import peak_measurement, step_measurements
from pfcluster.distributed.process_group import world
from pfcluster.runs.provenance import git_commit
from pfcluster.system.atomic_files import write_atomically

LIMIT = 530.0
COMPLETE, CONTINUES = 0, 75
CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""Required by torch's deterministic algorithms before the first matrix product."""


@dataclass(frozen=True)
class Part:
    """Measurements of one subject."""

    title: str
    measurements: Sequence[Measurement]


def parts(options: GpuDayOptions) -> list[Part]:
    """All parts, in the order of their numbers."""
    return [
        Part("MAE steps, eager", [peak_measurement(), *step_measurements(options, "mae", compiled=False)]),
        Part("MAE steps, compiled", step_measurements(options, "mae", compiled=True)),
        Part("PF-MAG steps, eager", step_measurements(options, "pf-mag", compiled=False)),
        Part("PF-MAG steps, compiled", step_measurements(options, "pf-mag", compiled=True)),
        Part("Real data against synthetic data", reading_measurements()),
        Part("Alignment and inference", [*alignment_measurements(), *inference_measurements(options)]),
        Part("Parity and resume", exactness_measurements(options)),
        Part("FER2013 at length", fer_measurements(options)),
        Part("Recipe poker-face at length", poker_measurements(options)),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """List or measure; -> exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    options = GpuDayOptions(**{field.name: getattr(given, field.name) for field in fields(GpuDayOptions)})
    all_parts = parts(options)
    numbers = given.part or list(range(1, len(all_parts) + 1))
    if not all(1 <= number <= len(all_parts) for number in numbers):
        parser.error(f"--part must lie in 1..{len(all_parts)}, got {numbers}")
    stance: Any = torch.compiler.set_stance("force_eager" if options.miniature else "default")  # else minutes
    with stance, world(options.device, timeout=120) as group:
        if group.device.type == "cuda":
            os.environ.setdefault(*CUBLAS)
        try:
            machine = describe_machine(group.device, miniature=options.miniature)
            results = Results.open(options.output, machine)
        except ValueError as error:
            parser.error(str(error))
        if given.list:
            _print_list(all_parts, results)
            return COMPLETE
        chosen = [measurement for number in numbers for measurement in all_parts[number - 1].measurements]

        def save() -> None:
            results.save()
            sections = [(part.title, [each.name for each in part.measurements]) for part in all_parts]
            write_atomically(options.output / REPORT_FILE, markdown(results, sections))

        complete = run_all(chosen, Slice(options, group, time.monotonic() + given.limit), results, save)
    print(f"{options.output / REPORT_FILE}: {'complete' if complete else 'give the command again'}")
    return COMPLETE if complete else CONTINUES


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the parts and what is done")
    parser.add_argument("--part", type=int, action="append", help="number of a part; several may be given; all without")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of this slice")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu-day"))
    parser.add_argument("--miniature", action="store_true", help="tiny nets and few steps, also without a GPU")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--shards", type=Path, help="shards of faces at 224 px; rendered faces without")
    parser.add_argument("--photos", type=Path, help="folder of photos to align; rendered faces without")
    parser.add_argument("--fer", type=Path, help="shards of FER2013 at 48 px")
    parser.add_argument("--fer-preset", default="small", help="preset of the runs on FER2013")
    parser.add_argument("--fer-length", type=float, default=4.0, help="epochs of these runs over the preset's")
    parser.add_argument("--peak-tflops", type=float, help="peak for the MFU; the data sheet's without")
    parser.add_argument("--commit", default=git_commit(), help="commit to record where git does not know it")
    return parser


def _print_list(all_parts: Sequence[Part], results: Results) -> None:
    for number, part in enumerate(all_parts, 1):
        minutes = sum(each.seconds for each in part.measurements if each.name not in results.done) / 60
        print(f"{number}  {part.title}  (about {minutes:.0f} minutes of an H100 left)")
        for each in part.measurements:
            state = "done" if each.name in results.done else results.problems.get(each.name, "")
            print(f"     {each.name}  {state}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
