"""`pfcluster costs`: parameters, FLOPs and speed of presets."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from pfcluster.cli.outputs import require_writable
from pfcluster.config import presets
from pfcluster.launch.command_line import parse
from pfcluster.profiling.model_cost import measure_model_cost
from pfcluster.system.atomic_files import write_atomically
from pfcluster.system.terminal import plain_console

COLUMNS = (
    "M par.\ntrain",
    "M par.\ntest",
    "GFLOP\nstep",
    "GFLOP\ntest",
    "batch",
    "ms\ntest",
    "image/s\ntest",
    "image/s\nstep",
)


@dataclass(frozen=True, kw_only=True)
class CostsOptions:
    """Print parameters and FLOPs of presets, and measure their speed on a device."""

    preset: tuple[str, ...] = ("demo",)
    """Presets, such as vit-b."""
    roles: tuple[str, ...] = ("mae", "mae-vit", "pf-vit")
    """Runs of the presets."""
    classes: int = 7
    """Number of classes of the classifiers."""
    device: str | None = None
    """Device of the speed measurement; default: cuda if there is one, else cpu."""
    json: Path | None = None
    """File to write the figures to."""

    def __post_init__(self) -> None:
        for option, names, allowed in (
            ("--preset", self.preset, sorted(presets.PRESETS)),
            ("--roles", self.roles, presets.ROLES),
        ):
            for name in names:
                if name not in allowed:
                    raise ValueError(f"{option} must be one of {', '.join(allowed)}, got {name!r}")


def main(arguments: list[str]) -> int:
    """Measure and print the costs of presets."""
    options = parse(CostsOptions, arguments, prog="pfcluster costs")
    if options.json is not None:
        require_writable("--json", options.json)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    models: dict[str, dict[str, Any]] = {}
    for preset in options.preset:
        recipe = presets.recipe(preset)
        for role in options.roles:
            models[f"{preset} {role}"] = asdict(measure_model_cost(recipe[role], options.classes, torch.device(device)))
    plain_console().print(costs_table(models, device))
    if options.json is not None:
        write_atomically(options.json, json.dumps(models, indent=1) + "\n")
    return 0


def costs_table(models: dict[str, dict[str, Any]], device: str) -> Table:
    """A row for each model and batch size."""
    table = Table("model", *COLUMNS, title=f"costs per image, speed on {device}")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, cost in models.items():
        counts = (cost["train_parameters"] / 1e6, cost["test_parameters"] / 1e6, cost["step_gflop"], cost["test_gflop"])
        model_cells = [name, *(f"{count:,.2f}" for count in counts)]
        for speed in cost["speeds"]:
            rates = (1000 * speed["batch"] / speed[f"{kind}_ms"] for kind in ("forward", "step"))
            cells = (str(speed["batch"]), f"{speed['forward_ms']:.1f}", *(f"{rate:,.0f}" for rate in rates))
            table.add_row(*model_cells, *cells)
            model_cells = [""] * len(model_cells)
    return table
