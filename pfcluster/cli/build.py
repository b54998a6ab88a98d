"""`pfcluster build`: build shards, with a progress bar and a summary."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from pfcluster.cli.inspect import left_out_table, splits_table
from pfcluster.data.build.options import BuildOptions
from pfcluster.data.build.pipeline import BuildResult, Progress, build
from pfcluster.launch.command_line import parse
from pfcluster.system.terminal import labelled, plain_column, plain_console

STAGES = {"reading": "reading photos", "checking": "comparing photos", "faces": "making shards"}


class _Speed(ProgressColumn):
    """Photos per second of this process."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} photos/s" if task.speed else "", style="progress.data.speed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Build shards with the given arguments, by default those of `sys.argv`.

    Returns the exit code: 0, 2 for an error of the user, 130 if interrupted.
    """
    messages = plain_console(stderr=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job starts with SIGINT ignored
        signal.signal(number, _interrupt)
    try:
        options = parse(BuildOptions, sys.argv[1:] if arguments is None else arguments, prog="pfcluster build")
        result, seconds = _run(options, messages)
    except ValueError as error:
        messages.print(labelled("error", "red", str(error)), soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        messages.print("stopped; finished shards are kept, and the same command continues from them")
        return 130
    _print_result(options, result, seconds)
    return 0


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _run(options: BuildOptions, messages: Console) -> tuple[BuildResult, float]:
    """Build with a progress bar. Returns the result and the seconds that the shards took."""
    columns = (plain_column("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    with Bar(*columns, console=messages) as bar:
        started = time.perf_counter()

        def start(stage: str, total: int, done: int) -> None:
            nonlocal started
            started = time.perf_counter()
            for task in bar.tasks:
                bar.stop_task(task.id)
            bar.add_task(STAGES[stage], total=total, completed=done)

        result = build(options, Progress(start, lambda photos: bar.advance(bar.tasks[-1].id, photos)))
        return result, time.perf_counter() - started


def _print_result(options: BuildOptions, result: BuildResult, seconds: float) -> None:
    console, manifest = plain_console(), result.manifest
    if manifest is None:
        rate = f"{result.photos_now} photos in {seconds:.1f} s: {result.photos_now / seconds:.1f} photos/s"
        console.print(f"slice {options.slice} is built ({rate})", soft_wrap=True)
        console.print(f"{result.shards_left} shards of other slices are missing; the last slice writes the manifest")
        return
    samples = sum(split.samples for split in manifest.splits.values())
    console.print(splits_table(manifest))
    if manifest.left_out:
        console.print(left_out_table(manifest))
    read = manifest.source["input"]
    votes = f", its votes counted by {read['votes']}" if read["votes"] else ""
    console.print(f"{read['name']} was read as {read['kind']}{votes} (--kind overrides this)")
    for warning in (*result.left_out, *result.warnings):
        console.print(labelled("note", "yellow", warning), soft_wrap=True)
    if result.photos_now:
        rate = f"{result.photos_now} of them now, in {seconds:.1f} s: {result.photos_now / seconds:.1f} photos/s"
    else:
        rate = "finished before; nothing was done"
    console.print(f"{manifest.photos} photos in, {samples} faces out ({rate})", soft_wrap=True)
    console.print(f"written to {options.output}", soft_wrap=True)
