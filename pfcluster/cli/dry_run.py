"""`--dry-run`: what would run and what it costs, on this machine or on any number of nodes, before anything starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from pfcluster.config import ConfigError, RunConfig
from pfcluster.data.dataset import open_dataset, require_labels
from pfcluster.data.in_memory import decoded_bytes
from pfcluster.launch.options import Options
from pfcluster.launch.plan import TrainRun
from pfcluster.models.from_runs import blank_identity_net
from pfcluster.models.identity_net import IdentityNet
from pfcluster.profiling.flops import Profile, profile
from pfcluster.profiling.memory_plan import BACKENDS, MemoryPlan, micro_batch_size, plans, with_backend
from pfcluster.training.trainer import total_steps

MIB = 2**20
COLUMNS = ("parameters", "gradients", "optimizer", "activations", "buffers", "peak")


def dry_run(stages: Sequence[Sequence[TrainRun]], options: Options, console: Console) -> None:
    """Print the runs, their cost, and the memory that each engine would take of a GPU. Raises ConfigError where a batch
    cannot be shared out over the processes.
    """
    jobs = [job for stage in stages for job in stage]
    runs = {name: [job.config for job in jobs if job.config.name == name] for name in _names(jobs)}
    images = {name: _micro_batch(same[0], options) for name, same in runs.items()}
    table = Table("run", "seeds", "steps", "batch", "parameters", "at test", "GFLOP")
    costs: dict[str, Profile] = {}
    for name, same in runs.items():
        config = same[0]
        dataset = open_dataset(config.data, config.seed)
        require_labels(dataset, config.objective)
        cost = costs[name] = profile(config, len(dataset.classes), identity_net=_recognition(config))
        table.add_row(
            name,
            " ".join(str(each.seed) for each in same),
            str(total_steps(config, len(dataset.train))),
            str(config.batch_size),
            f"{cost.train_parameters / 1e6:.2f} M",
            f"{cost.test_parameters / 1e6:.2f} M",
            f"{cost.flops / 1e9:.2f}",
        )
    counts = ", ".join(f"{name} {count}" for name, count in dataset.counts().items())
    console.print(f"data: {dataset.name}, {len(dataset.classes)} classes; {counts}", highlight=False)
    console.print(table)
    for name, same in runs.items():
        _print_memory(same[0], len(dataset.classes), images[name], options, console)
        _print_rate(same[0], costs[name], options, console)
    if any(same[0].data.cache_mode == "device" for same in runs.values()):
        held = _mib(decoded_bytes(dataset.train))
        console.print(f"besides, {held} MiB of each GPU for the images of data.cache_mode device", highlight=False)
    places = " ".join(str(job.folder) for job in jobs)
    console.print(f"folders: {places}", highlight=False)
    console.print(
        "GFLOP: forward + backward of a training step for one image, 2 a multiply-add. Memory: the most that is held"
        " at any moment of a step, of each kind and (peak) of all together; torch's and DeepSpeed's tensors only. Leave"
        " room for CUDA's context, the allocator's gaps, NCCL, and evaluation at evaluate.batch_size.",
        highlight=False,
        style="dim",
    )


def _names(jobs: Sequence[TrainRun]) -> list[str]:
    return list(dict.fromkeys(job.config.name for job in jobs))


def _micro_batch(config: RunConfig, options: Options) -> int:
    try:
        return micro_batch_size(config, options.cluster.size_of(config.name))
    except ConfigError as error:
        layout = "--nodes {} x {} processes".format(*options.cluster.layout_of(config.name))
        raise ConfigError(f"{config.name} on {layout}: {error}") from error


def _print_memory(config: RunConfig, classes: int, images: int, options: Options, console: Console) -> None:
    """A table of engines, and why the others are not in it."""
    able: list[str] = []
    others: list[str] = []
    for backend in BACKENDS:
        try:
            with_backend(config, backend)
            able.append(backend)
        except ConfigError as error:
            others.append(f"not {backend}: {error}")
    found = plans(config, classes, options.cluster.size_of(config.name), able, _recognition(config))
    layout = "{} x {} GPUs".format(*options.cluster.layout_of(config.name))
    step = (
        f"{config.engine.grad_accumulation_steps} x {images}"
        if config.engine.grad_accumulation_steps > 1
        else str(images)
    )
    console.print(_table(f"{config.name}: MiB a GPU; {layout}, {step} images a step each", found))
    hosts = [f"{backend} {_mib(each.host)}" for backend, each in found.items() if each.host]
    for line in [*others, *([f"besides, MiB of the host for each GPU: {', '.join(hosts)}"] if hosts else [])]:
        console.print(line, highlight=False, style="dim")


def _table(title: str, found: dict[str, MemoryPlan]) -> Table:
    table = Table("engine", title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for backend, each in found.items():
        table.add_row(backend, *(_mib(getattr(each, column)) for column in COLUMNS))
    return table


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f}" if size >= 100 * MIB else f"{size / MIB:.1f}"


def _print_rate(config: RunConfig, cost: Profile, options: Options, console: Console) -> None:
    gpus = options.cluster.size_of(config.name)
    rate = options.assumed_tflops * 1e12 * gpus / cost.flops
    slow = "; this config computes in fp32: fewer" if config.engine.precision == "fp32" else ""
    console.print(
        f"{config.name}: {rate:,.0f} images/s in all, if each of {gpus} GPUs sustains"
        f" {options.assumed_tflops:g} TFLOP/s (--assumed-tflops; 300 is assumed of an H100 in bf16{slow}) and scaling"
        f" loses nothing; {cost.flops / 1e9:,.1f} GFLOP an image",
        highlight=False,
    )


def _recognition(config: RunConfig) -> IdentityNet | None:
    """φ without its weights, on the meta device, where the config asks for it."""
    with torch.device("meta"):
        return blank_identity_net(config)
