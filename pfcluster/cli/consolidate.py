"""`pfcluster consolidate`: the weights of a run as one safetensors file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from pfcluster.launch.command_line import parse
from pfcluster.system.terminal import plain_console


@dataclass(frozen=True, kw_only=True)
class ConsolidateOptions:
    """Write a checkpoint of any number of ranks as one safetensors file."""

    run: tyro.conf.Positional[Path]
    """Run folder (its best checkpoint is taken), or the folder of a checkpoint."""
    output: Path | None = None
    """File to write; default: RUN/weights.safetensors."""
    everything: bool = False
    """Include the optimizers' tensors and the discriminator."""


def main(arguments: list[str]) -> int:
    """Write the weights of a run as one file."""
    from pfcluster.checkpoint import store

    options = parse(ConsolidateOptions, arguments, prog="pfcluster consolidate")
    output = options.output or options.run / ("everything" if options.everything else "weights")
    output = output if output.suffix == ".safetensors" else output.with_name(output.name + ".safetensors")
    record = store.consolidate(options.run, output, everything=options.everything)
    size = output.stat().st_size / 2**20
    plain_console().print(f"step {record.step}: {output} ({size:,.1f} MiB)", soft_wrap=True)
    return 0
