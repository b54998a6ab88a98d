"""`--dry-run`: what would run and what it costs, on this machine or on any number of nodes, before anything starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from pfcluster.config import ConfigError, RunConfig
from pfcluster.data.batch import require_fitting_micro_batch
from pfcluster.data.dataset import missing_test_split, open_dataset, require_labels
from pfcluster.data.in_memory import decoded_bytes
from pfcluster.launch.plan import TrainRun
from pfcluster.launch.preflight import check_local_starts
from pfcluster.launch.training_options import Options
from pfcluster.models.from_runs import build_identity_net
from pfcluster.models.identity_net import IdentityNet
from pfcluster.profiling.flops import Profile, profile
from pfcluster.profiling.memory_plan import BACKENDS, MemoryPlan, micro_batch_size, plans, with_backend
from pfcluster.system.terminal import print_warnings
from pfcluster.training.schedule import schedule_warnings, total_steps

MIB = 2**20
COLUMNS = ("parameters", "gradients", "optimizer", "activations", "buffers", "peak")
EXPLANATION = (
    "GFLOP: forward and backward of a training step per image; a multiply-add counts as 2. Memory: the largest amount"
    " held at any moment of a step, of each kind and (peak) of all together; tensors of torch and DeepSpeed only. Leave"
    " room for the CUDA context, allocator fragmentation, NCCL, and evaluation at evaluate.batch_size."
)


def dry_run(waves: Sequence[Sequence[TrainRun]], options: Options, console: Console) -> None:
    """Print the runs, their cost, and the memory that each engine needs per GPU.

    Raises ConfigError if a batch cannot be divided among the processes, WeightsError if initial weights on this machine
    cannot be loaded or do not fit.
    """
    runs = [run for wave in waves for run in wave]
    planned = {str(run.folder) for run in runs}
    configs: dict[str, list[RunConfig]] = {}
    for run in runs:
        configs.setdefault(run.config.name, []).append(run.config)
    micro_batches = {name: _micro_batch(same[0], options) for name, same in configs.items()}
    table = Table("run", "seeds", "steps", "batch", "parameters", "at test", "GFLOP")
    costs: dict[str, Profile] = {}
    steps_by_name: dict[str, int] = {}
    missing: dict[str, None] = {}
    for name, same in configs.items():
        config = same[0]
        dataset = open_dataset(config.data, config.seed)
        require_labels(dataset, config)
        if (sentence := missing_test_split(dataset, config)) is not None:
            missing[sentence] = None
        absent = check_local_starts(config, len(dataset.classes), planned)
        missing |= dict.fromkeys(f"{name}: {option} is not on this machine" for option in absent)
        cost = costs[name] = profile(config, len(dataset.classes), identity_net=_identity_net(config))
        steps_by_name[name] = total_steps(config, len(dataset.train))
        table.add_row(
            name,
            " ".join(str(each.seed) for each in same),
            str(steps_by_name[name]),
            str(config.batch_size),
            f"{cost.train_parameters / 1e6:.2f} M",
            f"{cost.test_parameters / 1e6:.2f} M",
            f"{cost.flops / 1e9:.2f}",
        )
    counts = ", ".join(f"{name} {count}" for name, count in dataset.counts().items())
    console.print(f"data: {dataset.name}, {len(dataset.classes)} classes; {counts}")
    console.print(table)
    for name, same in configs.items():
        _print_memory(same[0], len(dataset.classes), micro_batches[name], options, console)
        _print_rate(same[0], costs[name], options, console)
    if any(same[0].data.cache_mode == "device" for same in configs.values()):
        size = _mib(decoded_bytes(dataset.train))
        console.print(f"plus {size} MiB of each GPU for the images of data.cache_mode device")
    for name, steps in steps_by_name.items():
        print_warnings((f"{name}: {warning}" for warning in schedule_warnings(configs[name][0], steps)), console)
    print_warnings(missing, console)
    console.print(f"folders: {' '.join(str(run.folder) for run in runs)}")
    console.print(EXPLANATION, style="dim")


def _micro_batch(config: RunConfig, options: Options) -> int:
    """Images per micro-batch and process. Raises ConfigError that names the layout."""
    try:
        processes = options.cluster.size_of(config.name)
        images = micro_batch_size(config, processes)
        require_fitting_micro_batch(config, processes)
        return images
    except ConfigError as error:
        layout = "--nodes {} x {} processes".format(*options.cluster.layout_of(config.name))
        raise ConfigError(f"{config.name} on {layout}: {error}") from error


def _print_memory(config: RunConfig, classes: int, images: int, options: Options, console: Console) -> None:
    """Print the memory of each engine that can run the config, and why the others cannot."""
    backends: list[str] = []
    notes: list[str] = []
    for backend in BACKENDS:
        try:
            with_backend(config, backend)
            backends.append(backend)
        except ConfigError as error:
            notes.append(f"not {backend}: {error}")
    by_backend = plans(config, classes, options.cluster.size_of(config.name), backends, _identity_net(config))
    layout = "{} x {} GPUs".format(*options.cluster.layout_of(config.name))
    parts = config.engine.grad_accumulation_steps
    step = f"{parts} x {images}" if parts > 1 else str(images)
    console.print(_memory_table(f"{config.name}: MiB per GPU; {layout}, {step} images a step each", by_backend))
    host = [f"{backend} {_mib(plan.host)}" for backend, plan in by_backend.items() if plan.host]
    if host:
        notes.append(f"plus MiB of host memory per GPU: {', '.join(host)}")
    for note in notes:
        console.print(note, style="dim")


def _memory_table(title: str, by_backend: dict[str, MemoryPlan]) -> Table:
    table = Table("engine", title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for backend, plan in by_backend.items():
        table.add_row(backend, *(_mib(getattr(plan, column)) for column in COLUMNS))
    return table


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f}" if size >= 100 * MIB else f"{size / MIB:.1f}"


def _print_rate(config: RunConfig, cost: Profile, options: Options, console: Console) -> None:
    """Print the images/s that the assumed speed of a GPU amounts to."""
    gpus = options.cluster.size_of(config.name)
    rate = options.assumed_tflops * 1e12 * gpus / cost.flops
    slower = "; this config computes in fp32, which is slower" if config.engine.precision == "fp32" else ""
    console.print(
        f"{config.name}: {rate:,.0f} images/s in total, if each of {gpus} GPUs sustains"
        f" {options.assumed_tflops:g} TFLOP/s (--assumed-tflops; 300 is typical of an H100 in bf16{slower}) and scaling"
        f" is perfect; {cost.flops / 1e9:,.1f} GFLOP per image",
    )


def _identity_net(config: RunConfig) -> IdentityNet | None:
    """The identity net φ without weights, on the meta device; None if the config needs none."""
    with torch.device("meta"):
        return build_identity_net(config)
