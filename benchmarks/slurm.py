"""Time from launch command to first training step, compared with a hand-written batch script (`sbatch`, `torchrun`).

    python -m benchmarks.slurm [--repeats 5]

Uses the cluster of SLURM_CONF, for example the temporary one of docs/guides/slurm.md. Both methods train the same
config on two nodes and alternate, so that caches favour neither. Time runs from the command until metrics.jsonl has a
line.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pfcluster.config import presets
from pfcluster.config.io import to_json
from pfcluster.launch import slurm_client
from pfcluster.launch.overrides import apply_overrides
from pfcluster.runs.folder import REQUESTED_CONFIG_FILE
from tests.cluster.work import TINY

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("until the command returns", "then until the first step", "total")
SCRIPT = """#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=1 --exclusive --output={folder}/log.out
srun {python} -m torch.distributed.run --nnodes=2 --nproc-per-node=1 --rdzv-backend=c10d \\
  --rdzv-id=$SLURM_JOB_ID --rdzv-endpoint=127.0.0.1:{port} --no-python \\
  {python} -m pfcluster.launch.worker {folder}/requested_config.json {folder} --threads 1
"""


def ours(folder: Path) -> list[float]:
    """Seconds until the command returns, from there to the first step, and in total, with jobs/launch.py."""
    (folder / "pfcluster.toml").write_text("cpus_per_task = 1\n[sbatch]\nexclusive = true\n")
    command = [sys.executable, str(ROOT / "jobs/launch.py"), "finetune", "--preset", "demo", *TINY, "--nodes", "2"]
    return _timed(command, folder, folder / "runs/scratch/seed-0")


def plain(folder: Path) -> list[float]:
    """The same with sbatch and torchrun."""
    config = apply_overrides(presets.recipe("demo")["scratch"], TINY)
    (folder / REQUESTED_CONFIG_FILE).write_text(to_json(config))
    script = folder / "job.sh"
    script.write_text(SCRIPT.format(folder=folder, python=sys.executable, port=29000 + os.getpid() % 1000))
    return _timed(["sbatch", str(script)], folder, folder)


def _timed(command: list[str], folder: Path, run: Path) -> list[float]:
    started = time.monotonic()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    returned = time.monotonic()
    path = run / "metrics.jsonl"
    while not (path.exists() and path.stat().st_size):
        if time.monotonic() > returned + 120:
            raise TimeoutError(f"no step in {run}")
        time.sleep(0.02)
    stepped = time.monotonic()
    return [returned - started, stepped - returned, stepped - started]


def measure(repeats: int) -> dict[str, list[list[float]]]:
    """Seconds of each stage by method, one list per round; methods alternate."""
    methods: dict[str, Callable[[Path], list[float]]] = {"jobs/launch.py": ours, "sbatch + torchrun": plain}
    rounds: dict[str, list[list[float]]] = {name: [] for name in methods}
    for _ in range(repeats + 1):
        for name, method in methods.items():
            folder = Path(tempfile.mkdtemp(prefix="pfcluster-launch-"))
            try:
                rounds[name].append(method(folder))
            finally:
                while slurm_client.run_command("squeue", "--noheader").strip():
                    time.sleep(0.2)
                shutil.rmtree(folder)
    return {name: rows[1:] for name, rows in rounds.items()}  # without the first round, which warms the disk cache


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rounds = measure(options.repeats)
    print(f"median of {options.repeats} alternating rounds, seconds; range in parentheses\n")
    print("| | " + " | ".join(STAGES) + " |")
    print("| --- |" + " ---: |" * len(STAGES))
    for name, rows in rounds.items():
        cells = [
            f"{statistics.median(column):.1f} ({min(column):.1f} to {max(column):.1f})"
            for column in zip(*rows, strict=True)
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
