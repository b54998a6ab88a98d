"""What large work costs, and how the costs grow: fabricated folders of several sizes, each measured in processes of its
own.

    python -m benchmarks.scale [index report run sweep reproduce] [--small] [--folder DIR]
        [--output benchmarks/results/scale]

index: several processes open a split at once, first without a converted index and then with it. report: `pfcluster
report` of many runs. run: the same of one run with many lines. sweep: a tick of the driver with all trials in progress.
reproduce: the plan of the paper's matrix, on a machine whose network is cut off. Memory of a machine is the sum over
processes of the proportional set size (PSS) that the work added; the growth law is the exponent k of cost ~ size^k
between the two largest sizes. Writes OUTPUT.md and OUTPUT.json; parts that are not measured keep their old figures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import scale_folders

RANKS = 4
"""Processes that open a split at once."""
LINES = 3200
"""Lines of metrics.jsonl of each run of a study."""
SIZES = {
    "index": (100_000, 1_000_000, 10_000_000),
    "report": (30, 300, 1000),
    "run": (10_000, 100_000, 1_000_000),
    "sweep": (30, 100, 300),
    "reproduce": (1, 3, 5),
}
SMALL = {"index": (30_000, 100_000), "report": (6, 30), "run": (3_000, 10_000), "sweep": (10, 30), "reproduce": (1, 2)}
UNITS = {"index": "samples", "report": "runs", "run": "lines", "sweep": "trials", "reproduce": "seeds"}
LIMITS = {
    "index": "10 s and 1 GB a machine for 10,000,000 samples",
    "report": "180 s, 1 GB and a page of 30 MB for 1,000 runs",
    "run": "300 MB for 1,000,000 lines",
    "sweep": "50 ms a tick for 300 trials",
    "reproduce": "60 s for the full matrix, without the network",
}

Figures = dict[str, float]


def measure_index(folder: Path, samples: int) -> Figures:
    """Several processes open the training split at once."""
    scale_folders.write_shards(folder / "shards", samples)
    figures: Figures = {}
    for state in ("first", "again"):
        command = _child("open", str(folder / "shards"), str(folder / "cache"))
        ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) for _ in range(RANKS)]
        for rank in ranks:
            assert rank.stdout is not None
            rank.stdout.readline()  # imports are done
        for rank in ranks:
            assert rank.stdin is not None
            rank.stdin.write(b"\n")
            rank.stdin.flush()
        results = [json.loads(rank.stdout.readline()) for rank in ranks if rank.stdout is not None]
        for rank in ranks:
            rank.communicate(b"\n")
        figures |= {
            f"{state}: seconds": max(one["seconds"] for one in results),
            f"{state}: MB a machine": sum(one["pss"] for one in results),
            f"{state}: peak MB of a process": max(one["peak"] for one in results),
            f"{state}: files opened by a process": max(one["opened"] for one in results),
        }
    return figures


def child_open(shards: str, cache: str) -> None:
    """Open a split when a line arrives on stdin; print what it cost, and stay until the next line."""
    from pfcluster.data.shards import ShardSplit

    opened = 0

    def count(event: str, _arguments: tuple[Any, ...]) -> None:
        nonlocal opened
        opened += event == "open"

    sys.addaudithook(count)
    print("ready", flush=True)
    sys.stdin.readline()
    before, pss, start = opened, _pss(), time.perf_counter()
    split = ShardSplit(shards, "train", cache=cache)
    assert len(split) == len(split.labels())
    seconds = time.perf_counter() - start
    result = {"seconds": seconds, "opened": opened - before, "pss": _pss() - pss, "peak": _peak()}
    print(json.dumps(result), flush=True)
    sys.stdin.readline()


def measure_report(folder: Path, runs: int) -> Figures:
    """The report of a study."""
    scale_folders.write_study(folder / "study", runs, LINES)
    return _measured("report", str(folder / "study"))


def measure_run(folder: Path, lines: int) -> Figures:
    """The report of one long run."""
    scale_folders.write_study(folder / "study", 1, lines)
    return _measured("report", str(folder / "study"))


def child_report(study: str) -> None:
    """Write a study's report and print what it cost."""
    start = time.perf_counter()
    from pfcluster.report.write import write_report

    files = write_report(Path(study))
    beside = sum(path.stat().st_size for path in files.html.parent.rglob("*") if path.is_file())
    page = files.html.stat().st_size
    _print(time.perf_counter() - start, {"MB of the page": page / 1e6, "MB of the report": beside / 1e6})


def measure_sweep(folder: Path, trials: int) -> Figures:
    """A tick of the driver with all trials in progress."""
    return _measured("sweep", str(folder / "sweep"), str(trials))


def child_sweep(folder: str, count: str) -> None:
    """Drive a fabricated sweep whose runs do nothing, and print the milliseconds of its ticks."""
    from pfcluster.runs.folder import write_config, write_result
    from pfcluster.runs.metrics_file import append_metrics
    from pfcluster.sweep.asha import EvalSchedule
    from pfcluster.sweep.driver import Sweep
    from pfcluster.sweep.state import SweepState
    from tests.sweep_folders import EVERY, TOTAL, write_sweep

    trials = int(count)
    spec = write_sweep(Path(folder), "--trials", count, failed=(), running=range(trials)).spec
    state = SweepState(spec, Path(folder), lambda _: EvalSchedule(TOTAL, EVERY))
    for run in state.runs.shared.values():
        run.folder.mkdir(parents=True)
        write_config(run.folder, run.config)
        write_result(run.folder, {"status": "finished"})
    driver = Sweep(state, _Idle(trials), lambda _: None)

    def tick() -> float:
        start = time.perf_counter()
        driver.tick()
        return 1000 * (time.perf_counter() - start)

    first = tick()
    nothing = [tick() for _ in range(20)]
    one = []
    for number in range(20):
        append_metrics(
            state.runs.folder_of(state.trials[number % trials], 0), "validation", TOTAL, 1.0, {"accuracy": 0.5}
        )
        one.append(tick())
    _print(first / 1000, {"ms a tick, nothing changed": median(nothing), "ms a tick, one run changed": median(one)})


class _Idle:
    """An executor whose runs never end."""

    name, poll_seconds = "idle", 0.0

    def __init__(self, max_parallel: int) -> None:
        self.max_parallel = max_parallel

    def start(self, runs: Sequence[Any]) -> None:
        pass

    def poll(self) -> list[Any]:
        return []

    def stop(self) -> None:
        pass


def measure_reproduce(folder: Path, seeds: int) -> Figures:
    """The plan of all tables on four datasets."""
    for name in ("rafdb", "affectnet7", "affectnet8", "ferplus"):
        scale_folders.write_shards(folder / "data" / name, 30_000)
    return _measured("reproduce", str(folder), str(seeds))


def child_reproduce(folder: str, seeds: str) -> None:
    """Plan the matrix with the network cut off, and print what that cost."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo"):
            raise AssertionError(f"the network was used: {event} {arguments}")

    sys.addaudithook(refuse)
    from pfcluster.cli.reproduce import main, parse

    arguments = ["--datasets", "rafdb", "affectnet7", "affectnet8", "ferplus", "--data-root", f"{folder}/data"]
    arguments += ["--dry-run", "--output", f"{folder}/out", "--seeds", *map(str, range(int(seeds)))]
    start = time.perf_counter()
    with open(os.devnull, "w") as null:
        stdout, sys.stdout = sys.stdout, null
        assert main(arguments) == 0
        sys.stdout = stdout
    _print(time.perf_counter() - start, {"runs planned": len(parse(arguments).runs)})


def _measured(name: str, *arguments: str) -> Figures:
    output = subprocess.run(_child(name, *arguments), stdout=subprocess.PIPE, check=True).stdout
    figures: Figures = json.loads(output.splitlines()[-1])
    return figures


def _child(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.scale", "--child", name, *arguments]


def _print(seconds: float, figures: Figures) -> None:
    print(json.dumps({"seconds": seconds, "peak MB of a process": _peak(), **figures}))


def _pss() -> float:
    """Proportional set size of this process in MB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000


def _peak() -> float:
    """Largest resident set of this process in MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


CHILDREN: dict[str, Callable[..., None]] = {
    "open": child_open,
    "report": child_report,
    "sweep": child_sweep,
    "reproduce": child_reproduce,
}
PARTS: dict[str, Callable[[Path, int], Figures]] = {
    "index": measure_index,
    "report": measure_report,
    "run": measure_run,
    "sweep": measure_sweep,
    "reproduce": measure_reproduce,
}


def growth(sizes: Sequence[int], values: Sequence[float]) -> str:
    """The exponent k of value ~ size^k between the two largest sizes."""
    if len(sizes) < 2 or min(values[-2:]) <= 0:
        return ""
    return f"{math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2]):.2f}"


def markdown(parts: dict[str, Any]) -> str:
    """Tables of all parts."""
    text = [
        "# Costs that grow with the work",
        "",
        "`python -m benchmarks.scale`; see its docstring for what is measured.",
        "",
    ]
    for name in (one for one in PARTS if one in parts):
        part = parts[name]
        sizes = [int(size) for size in part["figures"]]
        rows = {
            row: [figures[row] for figures in part["figures"].values()] for row in next(iter(part["figures"].values()))
        }
        text += [f"## {name}", "", f"Limit: {LIMITS[name]}. {part['date']}, {part['machine']}.", ""]
        text += ["| | " + " | ".join(f"{size:,} {UNITS[name]}" for size in sizes) + " | growth k |"]
        text += ["| --- |" + " ---: |" * (len(sizes) + 1)]
        text += [
            f"| {row} | " + " | ".join(f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in values)
            + f" | {growth(sizes, values)} |"
            for row, values in rows.items()
        ]  # fmt: skip
        text += [""]
    return "\n".join(text)


def main() -> None:
    """Measure the parts and write the tables."""
    parser = argparse.ArgumentParser(description="Costs of large folders.")
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the benchmark")
    parser.add_argument("--sizes", type=int, nargs="+", help="sizes of the parts; default: those of the limits")
    parser.add_argument("--folder", type=Path, help="keep the fabricated folders here; default: a temporary folder")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/scale"))
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        CHILDREN[options.child[0]](*options.child[1:])
        return
    results = options.output.with_suffix(".json")
    results.parent.mkdir(parents=True, exist_ok=True)
    parts = json.loads(results.read_text()) if results.exists() else {}
    for name in options.parts:
        figures = {}
        for size in options.sizes or (SMALL if options.small else SIZES)[name]:
            root = options.folder or Path(tempfile.mkdtemp(prefix="scale-"))
            figures[str(size)] = PARTS[name](root / f"{name}-{size}", size)
            print(name, size, figures[str(size)], flush=True)
            if options.folder is None:
                shutil.rmtree(root)
        machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
        machine += f", load average {os.getloadavg()[1]:.1f}"
        parts[name] = {"date": date.today().isoformat(), "machine": machine, "figures": figures}
        results.write_text(json.dumps(parts, indent=1) + "\n")
        options.output.with_suffix(".md").write_text(markdown(parts))


if __name__ == "__main__":
    main()
