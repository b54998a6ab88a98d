"""Measurements of benchmarks/gpu_day.py: what one is, when it may run, and where its result is kept."""

from __future__ import annotations

import gc
import importlib
import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.steps import processor
from pfcluster.distributed.process_group import World
from pfcluster.system.atomic_files import write_atomically

RESULTS_FILE, REPORT_FILE = "results.json", "results.md"
MAX_STARTS = 2
"""A measurement that was started this often without an end comes after all others: it may be what hangs."""
RESERVE = 1.2
"""A measurement is begun if the slice has this many times its estimated seconds left."""


class Unavailable(RuntimeError):
    """A measurement cannot run here, for a reason that the message names."""


class Unfinished(RuntimeError):
    """A measurement needs another slice, and continues in it."""


@dataclass(frozen=True)
class GpuDayOptions:
    """What the measurements depend on."""

    output: Path
    miniature: bool = False
    device: str = "auto"
    shards: Path | None = None
    photos: Path | None = None
    fer: Path | None = None
    fer_preset: str = "small"
    fer_length: float = 4.0
    peak_tflops: float | None = None
    commit: str | None = None


@dataclass(frozen=True)
class Slice:
    """This call: its process, its options and its end."""

    options: GpuDayOptions
    world: World
    deadline: float
    """Of time.monotonic()."""

    @property
    def cuda(self) -> bool:
        return self.world.device.type == "cuda"

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def wait(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def release(self) -> None:
        """Free what a measurement left on the device."""
        if self.cuda:
            gc.collect()
            torch.compiler.reset()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


@dataclass(frozen=True)
class Measurement:
    """One result, measured within a slice or, if it raises Unfinished, over several."""

    name: str
    seconds: float
    """Estimate for an H100, without the miniature."""
    measure: Callable[[Slice], dict[str, Any]]
    needs: tuple[str, ...] = ()
    """Packages that may be missing."""
    continues: bool = False
    """Whether it stops at the end of the slice and continues in the next."""


@dataclass
class Results:
    """results.json: written after every measurement."""

    folder: Path
    machine: dict[str, Any]
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Measurement -> its values, date, commit and seconds."""
    problems: dict[str, str] = field(default_factory=dict)
    """Measurement -> why it has no result yet."""
    starts: dict[str, int] = field(default_factory=dict)
    """Measurement -> how often it was started without an end."""

    @classmethod
    def open(cls, folder: Path, machine: dict[str, Any]) -> Results:
        """Those of earlier calls. Raises ValueError if they are of another device or torch, or not of a miniature."""
        path = folder / RESULTS_FILE
        if not path.exists():
            return cls(folder, machine)
        values = json.loads(path.read_text())
        for name in ("device", "torch", "miniature"):
            if values["machine"][name] != machine[name]:
                raise ValueError(
                    f"{path} has results of {name} {values['machine'][name]!r}, this is {machine[name]!r}: give another"
                    " --output"
                )
        return cls(folder, machine, values["done"], values["problems"], values["starts"])

    def save(self) -> None:
        """Write results.json."""
        self.folder.mkdir(parents=True, exist_ok=True)
        values = {"machine": self.machine, "done": self.done, "problems": self.problems, "starts": self.starts}
        write_atomically(self.folder / RESULTS_FILE, json.dumps(values, indent=1) + "\n")


def describe_machine(device: torch.device, *, miniature: bool) -> dict[str, Any]:
    """Device, software and host."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else processor(),
        "memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1) if cuda else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "miniature": miniature,
    }


def run_all(measurements: Sequence[Measurement], here: Slice, results: Results, save: Callable[[], None]) -> bool:
    """Run those without a result while the slice lasts; -> whether all that can run here have one."""
    waiting = [each for each in measurements if each.name not in results.done]
    waiting.sort(key=lambda each: results.starts.get(each.name, 0) >= MAX_STARTS)
    complete = True
    for each in waiting:
        needed = 0.0 if here.options.miniature or each.continues else RESERVE * each.seconds
        if here.seconds_left <= needed:
            print(f"{each.name}: no time left in this slice, give the command again", flush=True)
            complete = False
            continue
        complete &= _run(each, here, results, save)
    return complete


def _run(measurement: Measurement, here: Slice, results: Results, save: Callable[[], None]) -> bool:
    """Run one and save its result, or why it has none; -> False if another slice should try again."""
    name, began = measurement.name, time.monotonic()
    results.starts[name] = results.starts.get(name, 0) + 1
    save()
    try:
        for package in measurement.needs:
            _require(package)
        values = measurement.measure(here)
    except Unavailable as error:
        results.problems[name], finished = str(error), True
    except Unfinished as error:
        results.problems[name], finished = str(error), False
    except Exception as error:  # whatever fails, the others are still measured
        traceback.print_exc()
        results.problems[name], finished = f"failed: {type(error).__name__}: {error}", False
    else:
        results.problems.pop(name, None)
        results.done[name] = {
            "values": values,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": here.options.commit,
            "seconds": round(time.monotonic() - began, 1),
        }
        finished = True
    results.starts[name] = 0
    save()
    here.release()
    print(f"{name}: {results.done[name]['values'] if name in results.done else results.problems[name]}", flush=True)
    return finished


def _require(package: str) -> None:
    """Raises Unavailable if a package cannot be imported."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise Unavailable(f"needs {package}, which is not installed ({error})") from error
