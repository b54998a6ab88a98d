"""What is measured once the runs are there: accuracies across datasets, and costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from pfcluster.config import DataConfig, presets
from pfcluster.config.io import with_values
from pfcluster.data.types import DataError
from pfcluster.evaluate.evaluate_run import evaluate_run
from pfcluster.experiments.cells import DEFAULT_SIZE
from pfcluster.experiments.results import MEASURED, Found, collect
from pfcluster.profiling.model_cost import measure_model_cost
from pfcluster.runs.atomic_files import write_atomically
from pfcluster.runs.folder import read_config

CROSSED = ("mae-vit", "pf-vit")
"""Cells whose runs are tested on every dataset."""


def measure_cross(found: Found) -> list[dict[str, Any]]:
    """Accuracy of each run on each other dataset's test split, emotions matched by name."""
    results = []
    for (trained, name), group in found.groups.items():
        for tested in found.record.datasets:
            if name not in CROSSED or tested == trained:
                continue
            for run in group.runs:
                config = read_config(run.folder)
                bare = replace(config, data=DataConfig(size=config.data.size, cache_mode=config.data.cache_mode))
                data = with_values(bare, found.record.data[tested])
                try:
                    scores = evaluate_run(run.folder, "test", data.data)
                except DataError:  # no test split, or nothing in common
                    continue
                case = {"cell": name, "seed": run.seed, "trained": trained, "tested": tested}
                results.append({**case, **{key: scores[key] for key in ("accuracy", "mean_class_accuracy", "n")}})
    return results


def measure_costs(found: Found) -> dict[str, Any]:
    """Costs of what remains at test time and of what trains, for every size; φ as the reproduction's."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classes = max((len(group.classes) for group in found.groups.values()), default=7)
    results = {}
    sizes = {preset: size for size, preset in found.record.presets.items()}  # one preset for all: the default size
    for preset, size in sizes.items():
        recipe = presets.recipe(preset)
        for role in ("mae-vit", "pf-vit"):
            config = recipe[role]
            if role == "pf-vit":
                kind = found.record.face_phi if found.record.phi == "face" else found.record.phi
                weights = "" if kind == "run" else None
                config = with_values(config, {"pf_mag.identity_net": kind, "pf_mag.identity_net_weights": weights})
            title = role if size == DEFAULT_SIZE else f"{role}-{size}"
            results[f"{title} ({device.type})"] = asdict(measure_model_cost(config, classes, device))
    return results


MEASURES: dict[str, Callable[[Found], Any]] = {"cross": measure_cross, "costs": measure_costs}


def measure(what: str, root: Path) -> Path:
    """Measure one of `MEASURES` and write its file. Raises RecordError, ReportError, DataError, ConfigError."""
    folder = root / MEASURED
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{what}.json"
    write_atomically(file, json.dumps(MEASURES[what](collect(root)), indent=1) + "\n")
    return file
