"""Run one sweep on every available executor, once without interruption and once with its driver killed half-way: are
trials and scores the same, and what does the interruption cost?

    python -m benchmarks.sweeps [--executors local ray slurm] [--output sweeps.md]

The sweep trains classifiers on synthetic faces, about ten seconds per run, two runs in parallel with one core each. The
slurm executor uses the cluster of SLURM_CONF, for example the temporary one of docs/guides/slurm.md. No other load
should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from pfcluster.cli.sweep import evaluation_schedules
from pfcluster.runs.folder import PROVENANCE_FILE, RESULT_FILE, log_path
from pfcluster.runs.metrics_file import last_trained_step
from pfcluster.sweep.confirm import Confirmation
from pfcluster.sweep.spec import load
from pfcluster.sweep.state import SweepState

ROOT = Path(__file__).resolve().parents[1]
SPEC = shlex.split(
    "--preset mini --role scratch --space optim.lr=loguniform:1e-4,1e-2 --search random --trials 8 --epochs 6"
    " --confirm 1 --fresh-seeds 1000 1001 --max-parallel 2 --cpus-per-task 1 --checkpoint.every-steps 50"
)


def command(folder: Path, executor: str) -> list[str]:
    """The command line of the sweep."""
    return [sys.executable, str(ROOT / "tune/sweep.py"), *SPEC, "--executor", executor, "--output", str(folder)]


def run_sweep(folder: Path, executor: str) -> float:
    """Seconds of a sweep without interruption."""
    started = time.monotonic()
    subprocess.run(command(folder, executor), check=True, cwd=folder.parent, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def run_interrupted_sweep(folder: Path, executor: str, kill_after: float) -> tuple[float, int, int]:
    """Seconds of a sweep whose driver is killed after `kill_after` seconds and restarted at once; number of runs that
    had finished by then; number of steps trained twice.
    """
    started = time.monotonic()
    driver = subprocess.Popen(command(folder, executor), cwd=folder.parent, stdout=subprocess.DEVNULL)
    time.sleep(kill_after)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    finished = sum(1 for _ in folder.glob(f"trials/*/seed-*/{RESULT_FILE}"))
    unfinished = [run for run in folder.glob("trials/*/seed-*") if not (run / RESULT_FILE).exists()]
    before = {run: (last_trained_step(run), _starts(run)) for run in unfinished}
    restarted = subprocess.Popen(command(folder, executor), cwd=folder.parent, stdout=subprocess.PIPE, text=True)
    restarted.communicate()
    seconds = time.monotonic() - started
    repeated = sum(max(0, step - _resume_step(run)) for run, (step, starts) in before.items() if _starts(run) > starts)
    return seconds, finished, repeated


def _starts(run: Path) -> int:
    """Number of times that a run was started."""
    path = run / PROVENANCE_FILE
    return len(json.loads(path.read_text())["started"]) if path.exists() else 0


def _resume_step(run: Path) -> int:
    """Step at which a run last resumed, from rank 0's log."""
    lines = log_path(run, 0).read_text().splitlines()
    return [int(line.split("from step ")[1].split()[0]) for line in lines if "from step " in line][-1]


def outcome(folder: Path) -> dict[str, Any]:
    """Trials with their stop decisions, scores, confirmed scores and winner."""
    state = SweepState(load(folder), folder, evaluation_schedules())
    state.refresh(())
    confirmation = Confirmation(state)
    selected = confirmation.selected() or []
    return {
        "trials": [(trial.values, trial.stop) for trial in state.trials],
        "scores": [status.score for status in state.statuses],
        "confirmed": {number: confirmation.scores(number) for number in selected},
        "winner": confirmation.winner(),
    }


def main() -> None:
    """Run all sweeps; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--executors", nargs="+", default=["local", "ray", "slurm"])
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    lines = [
        f"`python -m benchmarks.sweeps`, {date.today()}, {os.cpu_count()} cores, {platform.machine()}",
        "",
        "| executor | outcome | uninterrupted | driver killed at | total | finished runs kept | steps trained twice |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    reference: dict[str, Any] | None = None
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/tmp")) as scratch:
        for executor in options.executors:
            folder = Path(scratch) / executor
            uninterrupted = run_sweep(folder, executor)
            first = outcome(folder)
            reference = reference or first
            interrupted = Path(scratch) / f"{executor}-killed"
            kill_after = uninterrupted * 0.5
            seconds, finished, repeated = run_interrupted_sweep(interrupted, executor, kill_after)
            same = first == reference and outcome(interrupted) == reference
            lines.append(
                f"| {executor} | {'same in both' if same else 'DIFFERENT'} | {uninterrupted:.0f} s | {kill_after:.0f} s"
                f" | {seconds:.0f} s | {finished} | {repeated} |"
            )
            print(lines[-1], flush=True)
    assert reference is not None
    stopped = sum(stop is not None for _, stop in reference["trials"])
    lines += ["", f"{len(reference['trials'])} trials, {stopped} stopped early; scores {reference['scores']}"]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output is not None:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
