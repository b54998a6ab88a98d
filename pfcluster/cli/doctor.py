"""`pfcluster doctor`: test every engine, the network and the shared folder of a cluster, in two minutes.

pfcluster doctor --processes 2              processes on this machine
srun ... python -m pfcluster.cli.doctor     the ranks that a launcher started, on its own nodes
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import platform
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.distributed as torch_dist
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pfcluster.cli.outputs import require_writable
from pfcluster.config import Backend, ConfigError, EngineConfig
from pfcluster.distributed.hosts import host_name
from pfcluster.distributed.process_group import World, ensure_group, world
from pfcluster.engine.factory import choose_backend
from pfcluster.launch.command_line import parse
from pfcluster.launch.local import run_ranks
from pfcluster.system.atomic_files import write_atomically
from pfcluster.system.terminal import plain_console
from pfcluster.training.parity import compare

BACKENDS = tuple(name for name in get_args(Backend) if name != "auto")
TOLERANCE = {"cpu": 1e-6, "cuda": 1e-4}
"""Largest difference of weights after a few steps in fp32; a GPU sums in another order."""
SIZES = (1 << 20, 1 << 24, 1 << 26)
"""Bytes of the tensors in the bandwidth test."""
SECONDS = 3.0
"""Time for each row of the bandwidth table."""


@dataclass(frozen=True, kw_only=True)
class RankOptions:
    """Test every engine, the bandwidth between ranks, and the folder for runs."""

    backends: tuple[str, ...] = BACKENDS
    """Engines to test."""
    folder: Path = Path("runs")
    """Folder for runs; all ranks must see it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the ranks."""
    json: Path | None = None
    """File to write the results to."""

    def __post_init__(self) -> None:
        for backend in self.backends:
            if backend not in BACKENDS:
                raise ConfigError(f"--backends must be one of {', '.join(BACKENDS)}, got {backend!r}")


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(RankOptions):
    """Test every engine, the bandwidth between ranks, and the folder for runs, on this machine or with --executor slurm
    on the nodes of a job."""

    processes: int = 2
    """Ranks on this machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.processes < 1:
            raise ConfigError(f"--processes must be at least 1, got {self.processes}")


def examine(group: World, folder: Path, backends: Sequence[str]) -> dict[str, Any]:
    """Run all tests on this process group. Collective; returns JSON values, the same on all ranks."""
    hosts = _gather(group, f"{host_name()} ({_device_name(group)})")
    engine = EngineConfig(device=group.device.type)  # type: ignore[arg-type]
    choice = choose_backend(engine, group)
    return {
        "ranks": group.size,
        "hosts": {name: hosts.count(name) for name in dict.fromkeys(hosts)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "deepspeed": _deepspeed()},
        "auto": {"backend": choice.backend, "reason": choice.reason},
        "parity": [_parity(group, backend, parts) for backend in backends for parts in (1, 2)],
        "bandwidth": _bandwidth(group),
        "folder": _folder(group, folder),
    }


def healthy(results: dict[str, Any]) -> bool:
    """Whether the engine that `auto` chooses passed and all ranks see the folder."""
    chosen = [row for row in results["parity"] if row["backend"] == results["auto"]["backend"]]
    return all(row["ok"] for row in chosen) and not results["folder"]["missing"]


def _parity(group: World, backend: str, parts: int) -> dict[str, Any]:
    """Train PF-MAG for a few steps and compare with one process; it uses every feature of an engine."""
    row: dict[str, Any] = {
        "backend": backend,
        "grad_accumulation_steps": parts,
        "ok": False,
        "weights": None,
        "problem": None,
    }
    no_deepspeed = backend.startswith("zero") and _deepspeed() is None
    if group.any(no_deepspeed):
        return row | {"problem": "deepspeed is not installed" + ("" if no_deepspeed else " on all nodes")}
    start = time.monotonic()
    try:
        options = EngineConfig(backend=backend, device=group.device.type, grad_accumulation_steps=parts)  # type: ignore[arg-type]
        batch_size = 2 * parts * group.size * max(1, 8 // (2 * group.size))
        difference = compare(backend, "pf_mag", group, engine=options, batch_size=batch_size)
        row |= {"weights": difference.weights, "metrics": difference.metrics}
        row["ok"] = max(difference.weights, difference.metrics) <= TOLERANCE[group.device.type]
    except Exception as error:  # backends, compilers and drivers raise anything
        row["problem"] = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[-1]}"
    return row | {"seconds": round(time.monotonic() - start, 1)}


def _bandwidth(group: World) -> list[dict[str, Any]]:
    """Bus bandwidth of the engines' collectives: bytes that each rank sends, per second."""
    if group.size == 1:
        return []
    rows = []
    ring = (group.size - 1) / group.size
    for size in SIZES:
        full = torch.zeros(size // 4 // group.size * group.size, device=group.device)
        part = torch.zeros(len(full) // group.size, device=group.device)
        collectives: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...], float]] = {
            "all-reduce": (torch_dist.all_reduce, (full,), 2 * ring),
            "all-gather": (torch_dist.all_gather_into_tensor, (full, part), ring),
            "reduce-scatter": (torch_dist.reduce_scatter_tensor, (part, full), ring),
        }
        for name, (collective, tensors, factor) in collectives.items():
            seconds = _timed(group, functools.partial(collective, *tensors))
            sent = factor * 4 * len(full)
            rows.append(
                {"collective": name, "bytes": size, "ms": 1e3 * seconds, "gigabytes_per_s": sent / seconds / 1e9}
            )
    return rows


def _timed(group: World, collective: Callable[[], Any]) -> float:
    """Mean seconds of a collective, on the slowest rank."""
    for _ in range(2):
        collective()
    count = 0
    group.barrier()
    start = time.monotonic()
    while count < 3 or (count < 50 and not group.any(time.monotonic() - start > SECONDS / 10)):
        collective()
        count += 1
    if group.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = torch.tensor((time.monotonic() - start) / count, device=group.device)
    torch_dist.all_reduce(seconds, torch_dist.ReduceOp.MAX)
    return seconds.item()


def _folder(group: World, folder: Path) -> dict[str, Any]:
    """Whether all ranks see a file that rank 0 writes, as sharded checkpoints require."""

    def write_file() -> str:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f".doctor-{uuid.uuid4().hex}"
        path.write_text("seen")
        return str(path)

    path = Path(group.from_main(write_file))
    visible = _gather(group, path.is_file())
    group.barrier()
    if group.is_main:
        path.unlink()
    return {"path": str(folder), "missing": [rank for rank, sees in enumerate(visible) if not sees]}


def _gather(group: World, value: Any) -> list[Any]:
    """The values of all ranks, in rank order."""
    if group.size == 1:
        return [value]
    values = [None] * group.size
    torch_dist.all_gather_object(values, value)
    return values


def _device_name(group: World) -> str:
    return torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else "CPU"


def _deepspeed() -> str | None:
    if importlib.util.find_spec("deepspeed") is None:
        return None
    return importlib.metadata.version("deepspeed")


def show(results: dict[str, Any], console: Console) -> None:
    """Print the results as tables."""
    hosts = ", ".join(f"{count} on {name}" for name, count in results["hosts"].items())
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in results["versions"].items())
    console.print(f"{results['ranks']} ranks: {hosts}; {versions}")
    table = Table(
        "engine", "micro-batches", "difference to one process", "", "seconds", title="PF-MAG, four steps, fp32"
    )
    for row in results["parity"]:
        right_or_wrong = Text("right", "green") if row["ok"] else Text("wrong", "red")
        mark = Text(row["problem"], "yellow") if row["problem"] else right_or_wrong
        value = "" if row["weights"] is None else f"{max(row['weights'], row['metrics']):.1e}"
        table.add_row(row["backend"], str(row["grad_accumulation_steps"]), value, mark, str(row.get("seconds", "")))
    console.print(table)
    if results["bandwidth"]:
        table = Table("collective", "MiB", "ms", "GB/s a rank", title="bandwidth")
        for row in results["bandwidth"]:
            numbers = (str(row["bytes"] >> 20), f"{row['ms']:.2f}", f"{row['gigabytes_per_s']:.2f}")
            table.add_row(row["collective"], *numbers)
        console.print(table)
    missing = results["folder"]["missing"]
    console.print(
        f"{results['folder']['path']}: "
        + (
            f"ranks {missing} do not see the file that rank 0 wrote; checkpoints need a shared folder"
            if missing
            else "seen by all"
        ),
        soft_wrap=True,
    )
    console.print(f"engine auto takes {results['auto']['backend']}: {results['auto']['reason']}", soft_wrap=True)


def launch(arguments: list[str]) -> int:
    """Start the ranks on this machine; returns 0 if the cluster is healthy."""
    options = parse(DoctorOptions, arguments, prog="pfcluster doctor")
    if options.json is not None:
        require_writable("--json", options.json)
    passed = ["--folder", str(options.folder), "--device", options.device, "--backends", *options.backends]
    passed += ["--json", str(options.json)] if options.json else []
    return run_ranks("pfcluster.cli.doctor", passed, options.processes)


def main(arguments: Sequence[str]) -> int:
    """Run one rank; rank 0 prints the results. Returns 0 if the cluster is healthy, else 1."""
    options = parse(RankOptions, arguments, prog="python -m pfcluster.cli.doctor")
    with world(options.device, timeout=120) as group:
        ensure_group(group, 120)
        results = examine(group, options.folder, options.backends)
        if group.is_main:
            show(results, plain_console())
            if options.json is not None:
                write_atomically(options.json, json.dumps(results, indent=2) + "\n")
    return 0 if healthy(results) else 1


if __name__ == "__main__":
    from pfcluster.cli.main import report_errors

    sys.exit(report_errors(lambda: main(sys.argv[1:])))
