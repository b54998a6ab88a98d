"""Is this cluster fit to train on? Parity of every engine, bandwidth, and a folder that all ranks see, in two minutes.

python jobs/launch.py doctor --processes 2              processes on this machine
srun ... python -m pfcluster.cli.doctor              the ranks that a launcher started, on its own nodes
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import platform
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as torch_dist
from rich.console import Console
from rich.table import Table

from pfcluster.config import Backend, EngineConfig
from pfcluster.distributed.hosts import host_name
from pfcluster.distributed.process_group import World, ensure_group, world
from pfcluster.engine.factory import choose
from pfcluster.runs.atomic_files import write_atomically
from pfcluster.training.parity import compare

BACKENDS = tuple(name for name in get_args(Backend) if name != "auto")
TOLERANCE = {"cpu": 1e-6, "cuda": 1e-4}
"""Of weights after a few steps in fp32; a GPU's sums come in other orders."""
SIZES = (1 << 20, 1 << 24, 1 << 26)
"""Bytes of the tensors that are sent around."""
SECONDS = 3.0
"""Time for each row of the bandwidth table."""


def examine(here: World, folder: Path, backends: Sequence[str]) -> dict[str, Any]:
    """All checks on this process group. A collective; JSON values, the same on all ranks."""
    hosts = _everywhere(here, f"{host_name()} ({_device_name(here)})")
    engine = EngineConfig(device=here.device.type)  # type: ignore[arg-type]
    choice = choose(engine, here)
    return {
        "ranks": here.size,
        "hosts": {name: hosts.count(name) for name in dict.fromkeys(hosts)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "deepspeed": _deepspeed()},
        "auto": {"backend": choice.backend, "reason": choice.reason},
        "parity": [_parity(here, backend, parts) for backend in backends for parts in (1, 2)],
        "bandwidth": _bandwidth(here),
        "folder": _folder(here, folder),
    }


def healthy(found: dict[str, Any]) -> bool:
    """Whether what `auto` takes is right here and all ranks see the folder."""
    chosen = [row for row in found["parity"] if row["backend"] == found["auto"]["backend"]]
    return all(row["ok"] for row in chosen) and not found["folder"]["missing"]


def _parity(here: World, backend: str, parts: int) -> dict[str, Any]:
    """PF-MAG, the objective that goes wrong where anything does, against one process."""
    row: dict[str, Any] = {
        "backend": backend,
        "grad_accumulation_steps": parts,
        "ok": False,
        "weights": None,
        "problem": None,
    }
    lacking = backend.startswith("zero") and _deepspeed() is None
    if here.any(lacking):
        return row | {"problem": "deepspeed is not installed" + ("" if lacking else " on all nodes")}
    began = time.monotonic()
    try:
        options = EngineConfig(backend=backend, device=here.device.type, grad_accumulation_steps=parts)  # type: ignore[arg-type]
        batch_size = 2 * parts * here.size * max(1, 8 // (2 * here.size))
        difference = compare(backend, "pf_mag", here, engine=options, batch_size=batch_size)
        row |= {"weights": difference.weights, "metrics": difference.metrics}
        row["ok"] = max(difference.weights, difference.metrics) <= TOLERANCE[here.device.type]
    except Exception as error:  # backends, compilers and drivers raise anything
        row["problem"] = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[-1]}"
    return row | {"seconds": round(time.monotonic() - began, 1)}


def _bandwidth(here: World) -> list[dict[str, Any]]:
    """What the engines' collectives reach, as bus bandwidth (bytes each rank sends over time)."""
    if here.size == 1:
        return []
    rows = []
    ring = (here.size - 1) / here.size
    for size in SIZES:
        whole = torch.zeros(size // 4 // here.size * here.size, device=here.device)
        part = torch.zeros(len(whole) // here.size, device=here.device)
        collectives: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...], float]] = {
            "all-reduce": (torch_dist.all_reduce, (whole,), 2 * ring),
            "all-gather": (torch_dist.all_gather_into_tensor, (whole, part), ring),
            "reduce-scatter": (torch_dist.reduce_scatter_tensor, (part, whole), ring),
        }
        for name, (call, tensors, factor) in collectives.items():
            seconds = _timed(here, functools.partial(call, *tensors))
            sent = factor * 4 * len(whole)
            rows.append(
                {"collective": name, "bytes": size, "ms": 1e3 * seconds, "gigabytes_per_s": sent / seconds / 1e9}
            )
    return rows


def _timed(here: World, call: Callable[[], Any]) -> float:
    """Mean seconds of a collective on the slowest rank."""
    for _ in range(2):
        call()
    count = 0
    here.barrier()
    began = time.monotonic()
    while count < 3 or (count < 50 and not here.any(time.monotonic() - began > SECONDS / 10)):
        call()
        count += 1
    if here.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = torch.tensor((time.monotonic() - began) / count, device=here.device)
    torch_dist.all_reduce(seconds, torch_dist.ReduceOp.MAX)
    return seconds.item()


def _folder(here: World, folder: Path) -> dict[str, Any]:
    """Whether all ranks see what one writes: sharded checkpoints need it."""

    def leave() -> str:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f".doctor-{uuid.uuid4().hex}"
        path.write_text("seen")
        return str(path)

    path = Path(here.from_main(leave))
    seen = _everywhere(here, path.is_file())
    here.barrier()
    if here.is_main:
        path.unlink()
    return {"path": str(folder), "missing": [rank for rank, there in enumerate(seen) if not there]}


def _everywhere(here: World, value: Any) -> list[Any]:
    """A value of each rank, in their order."""
    if here.size == 1:
        return [value]
    values = [None] * here.size
    torch_dist.all_gather_object(values, value)
    return values


def _device_name(here: World) -> str:
    return torch.cuda.get_device_name(here.device) if here.device.type == "cuda" else "CPU"


def _deepspeed() -> str | None:
    if importlib.util.find_spec("deepspeed") is None:
        return None
    return importlib.metadata.version("deepspeed")


def show(found: dict[str, Any], console: Console) -> None:
    """The findings as tables."""
    hosts = ", ".join(f"{count} on {name}" for name, count in found["hosts"].items())
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in found["versions"].items())
    console.print(f"{found['ranks']} ranks: {hosts}; {versions}", highlight=False)
    table = Table(
        "engine", "micro-batches", "difference to one process", "", "seconds", title="PF-MAG, four steps, fp32"
    )
    for row in found["parity"]:
        mark = "[green]right[/]" if row["ok"] else f"[yellow]{row['problem']}[/]" if row["problem"] else "[red]wrong[/]"
        value = "" if row["weights"] is None else f"{max(row['weights'], row['metrics']):.1e}"
        table.add_row(row["backend"], str(row["grad_accumulation_steps"]), value, mark, str(row.get("seconds", "")))
    console.print(table)
    if found["bandwidth"]:
        table = Table("collective", "MiB", "ms", "GB/s a rank", title="bandwidth")
        for row in found["bandwidth"]:
            numbers = (str(row["bytes"] >> 20), f"{row['ms']:.2f}", f"{row['gigabytes_per_s']:.2f}")
            table.add_row(row["collective"], *numbers)
        console.print(table)
    missing = found["folder"]["missing"]
    console.print(
        f"{found['folder']['path']}: "
        + (
            f"ranks {missing} do not see what rank 0 writes; checkpoints need a shared folder"
            if missing
            else "seen by all"
        ),
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"engine auto takes {found['auto']['backend']}: {found['auto']['reason']}", highlight=False, soft_wrap=True
    )


def parser(prog: str) -> argparse.ArgumentParser:
    """The options that both front doors share."""
    options = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS), help="engines to try")
    options.add_argument("--folder", type=Path, default=Path("runs"), help="where runs will lie: all ranks must see it")
    options.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options.add_argument("--json", type=Path, default=None, help="write the findings here too")
    return options


def main(arguments: Sequence[str]) -> int:
    """One rank. Rank 0 prints; 0 where what auto takes is right and the folder is shared, else 1."""
    options = parser("python -m pfcluster.cli.doctor").parse_args(arguments)
    with world(options.device, timeout=120) as here:
        ensure_group(here, 120)
        found = examine(here, options.folder, options.backends)
        if here.is_main:
            show(found, Console())
            if options.json is not None:
                write_atomically(options.json, json.dumps(found, indent=2) + "\n")
    return 0 if healthy(found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
