"""One sweep on every executor that is here, undisturbed and with its driver killed in the middle: the same trials and
scores, and what that costs.

    python -m benchmarks.sweeps [--executors local ray slurm] [--output sweeps.md]

A sweep of classifiers on the embedded faces, some ten seconds a run; two runs at once everywhere, one core each. For
slurm it takes the cluster that SLURM_CONF names, such as the one of docs/guides/slurm.md. Nothing else should run.
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
from pfcluster.sweep.confirm import Confirmation
from pfcluster.sweep.spec import load
from pfcluster.sweep.state import SweepState

ROOT = Path(__file__).resolve().parents[1]
SPEC = shlex.split(
    "--preset mini --role scratch --space optim.lr=loguniform:1e-4,1e-2 --search random --trials 8 --epochs 6"
    " --confirm 1 --fresh-seeds 1000 1001 --max-parallel 2 --cpus-per-task 1 --checkpoint.every-steps 50"
)


def command(folder: Path, executor: str) -> list[str]:
    """The sweep as a user gives it."""
    return [sys.executable, str(ROOT / "tune/sweep.py"), *SPEC, "--executor", executor, "--output", str(folder)]


def whole(folder: Path, executor: str) -> float:
    """Seconds of an undisturbed sweep."""
    began = time.monotonic()
    subprocess.run(command(folder, executor), check=True, cwd=folder.parent, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def killed(folder: Path, executor: str, after: float) -> tuple[float, int, int]:
    """Seconds of a sweep whose driver is killed after so many, and started again at once; finished trials that it had,
    and steps that were trained twice.
    """
    began = time.monotonic()
    driver = subprocess.Popen(command(folder, executor), cwd=folder.parent, stdout=subprocess.DEVNULL)
    time.sleep(after)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    kept = sum(1 for _ in folder.glob("trials/*/seed-*/result.json"))
    going = [run for run in folder.glob("trials/*/seed-*") if not (run / "result.json").exists()]
    before = {run: (_last_step(run), _starts(run)) for run in going}
    again = subprocess.Popen(command(folder, executor), cwd=folder.parent, stdout=subprocess.PIPE, text=True)
    again.communicate()
    seconds = time.monotonic() - began
    twice = sum(max(0, step - _resumed(run)) for run, (step, starts) in before.items() if _starts(run) > starts)
    return seconds, kept, twice


def _last_step(run: Path) -> int:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def _starts(run: Path) -> int:
    """How often a run was started."""
    path = run / "provenance.json"
    return len(json.loads(path.read_text())["started"]) if path.exists() else 0


def _resumed(run: Path) -> int:
    """Step from which a run went on when it was started last."""
    lines = (run / "logs/rank-0.log").read_text().splitlines()
    return [int(line.split("from step ")[1].split()[0]) for line in lines if "from step " in line][-1]


def outcome(folder: Path) -> dict[str, Any]:
    """Trials, stops, scores, confirmed scores, winner."""
    state = SweepState(load(folder), folder, evaluation_schedules())
    state.refresh(())
    confirmation = Confirmation(state)
    chosen = confirmation.selected() or []
    return {
        "trials": [(one.values, one.stop) for one in state.trials],
        "scores": [one.score for one in state.statuses],
        "confirmed": {number: confirmation.scores(number) for number in chosen},
        "winner": confirmation.winner(),
    }


def main() -> None:
    """Run all, print and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--executors", nargs="+", default=["local", "ray", "slurm"])
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    lines = [
        f"`python -m benchmarks.sweeps`, {date.today()}, {os.cpu_count()} cores, {platform.machine()}",
        "",
        "| executor | outcome | undisturbed | driver killed at | in all | finished runs kept | steps trained twice |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    reference: dict[str, Any] | None = None
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/tmp")) as place:
        for executor in options.executors:
            folder = Path(place) / executor
            undisturbed = whole(folder, executor)
            found = outcome(folder)
            reference = reference or found
            other = Path(place) / f"{executor}-killed"
            at = undisturbed * 0.5
            seconds, kept, twice = killed(other, executor, at)
            same = found == reference and outcome(other) == reference
            lines.append(
                f"| {executor} | {'the same, twice' if same else 'NOT THE SAME'} | {undisturbed:.0f} s | {at:.0f} s"
                f" | {seconds:.0f} s | {kept} | {twice} |"
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
