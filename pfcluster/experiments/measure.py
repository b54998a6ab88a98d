"""Measurements on the finished runs of a reproduction: cross-dataset accuracy, and model costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from pfcluster.config import DataConfig, presets
from pfcluster.config.io import with_values
from pfcluster.data.types import UnfitDataError
from pfcluster.evaluate.evaluate_run import evaluate_run
from pfcluster.experiments.cells import DEFAULT_SIZE
from pfcluster.experiments.results import MEASURED_DIR, Results, read_results
from pfcluster.profiling.model_cost import measure_model_cost
from pfcluster.runs.folder import read_config
from pfcluster.system.atomic_files import write_atomically

CROSS_DATASET_CELLS = ("mae-vit", "pf-vit")
"""Cells whose runs are tested on every dataset."""
CROSS_KEY = ("cell", "seed", "trained", "tested")
"""Fields that identify a row of cross.json."""
MAX_FAILURES = 3
"""Number of failures that an error names."""


class MeasureError(ValueError):
    """Parts of a measurement could not be made: names them, the reasons and the remedy."""


def measure_cross(results: Results) -> tuple[list[dict[str, Any]], list[str]]:
    """Accuracy of each run on every other dataset's test split; classes are matched by name. Datasets without a test
    split and pairs without common classes have no rows. Where a run cannot be evaluated, its row of an earlier
    measurement is kept; also returns one reason for each of these.
    """
    rows, failures = [], []
    earlier = {tuple(row[key] for key in CROSS_KEY): row for row in results.cross}
    for (trained, name), group in results.groups.items():
        for tested in results.record.datasets:
            if name not in CROSS_DATASET_CELLS or tested == trained:
                continue
            for run in group.runs:
                config = read_config(run.folder)
                bare = replace(config, data=DataConfig(size=config.data.size, cache_mode=config.data.cache_mode))
                data = with_values(bare, results.record.data[tested])
                key = name, run.seed, trained, tested
                try:
                    scores = evaluate_run(run.folder, "test", data.data)
                except UnfitDataError:
                    continue
                except (ValueError, OSError) as error:
                    failures.append(f"{run.relative_path} on {tested}: {error}")
                    rows += [earlier[key]] if key in earlier else []
                    continue
                metrics = {metric: scores[metric] for metric in ("accuracy", "mean_class_accuracy", "n")}
                rows.append({**dict(zip(CROSS_KEY, key, strict=True)), **metrics})
    return rows, failures


def measure_costs(results: Results) -> tuple[dict[str, Any], list[str]]:
    """Costs in training and at test time of MAE-ViT and PF-ViT of every size, with the reproduction's identity net."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classes = max((len(group.classes) for group in results.groups.values()), default=7)
    record, costs = results.record, {}
    sizes = {preset: size for size, preset in record.presets.items()}  # one preset for all sizes: the default size
    for preset, size in sizes.items():
        recipe = presets.recipe(preset)
        for role in ("mae-vit", "pf-vit"):
            config = recipe[role]
            if role == "pf-vit":
                kind = record.face_net if record.identity_net == "face" else record.identity_net
                weights = "" if kind == "run" else None
                config = with_values(config, {"pf_mag.identity_net": kind, "pf_mag.identity_net_weights": weights})
            title = role if size == DEFAULT_SIZE else f"{role}-{size}"
            costs[f"{title} ({device.type})"] = asdict(measure_model_cost(config, classes, device))
    return costs, []


MEASURES: dict[str, Callable[[Results], tuple[Any, list[str]]]] = {"cross": measure_cross, "costs": measure_costs}
"""Content of each measurement's file, and why parts of it could not be measured."""


def measure(what: str, root: Path) -> Path:
    """Make one of `MEASURES` and write its file. Raises RecordError, ReportError, ConfigError; MeasureError if a part
    could not be measured, after writing the others.
    """
    folder = root / MEASURED_DIR
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{what}.json"
    content, failures = MEASURES[what](read_results(root))
    write_atomically(file, json.dumps(content, indent=1) + "\n")
    if failures:
        raise MeasureError(
            f"{file} lacks {len(failures)} of its measurements, or holds those of an earlier command:"
            f" {'; '.join(failures[:MAX_FAILURES])}{'; ...' if len(failures) > MAX_FAILURES else ''}. Make this data"
            " readable, and run the same command again"
        )
    return file
