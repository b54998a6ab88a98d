"""Save one seed's PF-ViT and its judge in one file, and check that the file still gives the committed figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.poker_aims import run_figures
from pfcluster.checkpoint import store
from pfcluster.config import RunConfig
from pfcluster.config.io import from_json, to_json, with_values
from pfcluster.data.dataset import open_dataset
from pfcluster.data.labels import neutral_index
from pfcluster.distributed.process_group import World
from pfcluster.evaluate import poker_faces
from pfcluster.evaluate.evaluators import Evaluators, Judge
from pfcluster.evaluate.final import evaluate_split
from pfcluster.evaluate.token_probes import probe_run
from pfcluster.models import factory
from pfcluster.models.identity_net import ClassifierFeatures
from pfcluster.models.pf_vit import PFViT
from pfcluster.runs.folder import read_config

TOLERANCE = 0.01
"""Difference that rounding on another machine may cause: absolute for shares, relative for squared errors and, above 1,
for Fréchet distances."""
ERRORS, DISTANCES = ("mse_inside", "mse_outside"), ("fid", "fid_neutral")
PARTS = ("model", "judge")


def save(run: Path, judge: Path, file: Path) -> None:
    """Write the best checkpoints of a run and of its judge, with their configs as metadata."""
    tensors: dict[str, torch.Tensor] = {}
    configs = {}
    for part, folder in zip(PARTS, (run, judge), strict=True):
        tensors |= {f"{part}.{name}": value.contiguous() for name, value in store.load(folder).weights().items()}
        configs[part] = to_json(read_config(folder))
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(file), metadata=configs)


def restore(file: Path) -> tuple[dict[str, torch.nn.Module], dict[str, RunConfig]]:
    """The two networks in evaluation mode and their configs, by "model" (PF-ViT) and "judge"."""
    nets, configs = {}, {}
    with safe_open(str(file), "pt") as opened:
        metadata, names = opened.metadata(), list(opened.keys())
        for part in PARTS:
            config = configs[part] = from_json(metadata[part], f"{file}: {part}")
            state = {name.partition(".")[2]: opened.get_tensor(name) for name in names if name.startswith(f"{part}.")}
            classes = open_dataset(config.data, config.seed).classes
            nets[part] = factory.build(config, len(classes), load_init=False)["model"].eval()
            nets[part].load_state_dict(state)
    return nets, configs


def evaluate(file: Path, faces: int | None = None) -> dict[str, float]:
    """The figures of a saved checkpoint on the test split; with `faces`, a `data.synthetic.seed`, on the test split of
    those faces and without probes.
    """
    nets, configs = restore(file)
    model, config = nets["model"], configs["model"]
    if faces is not None:
        config = with_values(config, {"data.synthetic.seed": faces, "evaluate.n_probe_images": 0})
    assert isinstance(model, PFViT)
    world, dataset = World(0, 1, torch.device("cpu")), open_dataset(config.data, config.seed)
    neutral = neutral_index(dataset.classes)
    assert neutral is not None
    assert dataset.test is not None
    scores, _ = evaluate_split(config, model, dataset.test, dataset.classes, world)
    model.eval()
    judge, size = nets["judge"], configs["judge"].data.size
    features = ClassifierFeatures(judge, size, "embedding") if config.evaluate.fid is not None else None
    evaluators = Evaluators(Judge(judge, size, neutral), fid=features)
    result: dict[str, Any] = {
        "test": scores,
        "probes": probe_run(config, dataset, dataset.test, model, world),
        "poker": poker_faces.measure(config, model, dataset.test, evaluators, world),
    }
    return run_figures(result)


def check(file: Path, results: Path) -> list[str]:
    """Differences between a checkpoint's figures and the committed ones."""
    return differences(evaluate(file), results)


def differences(measured: Mapping[str, float], results: Path) -> list[str]:
    """Differences between figures and the committed ones; empty if they agree within `TOLERANCE`."""
    committed: dict[str, float] = json.loads(results.read_text())["figures"]
    problems = [
        f"{name}: {value:.5f} committed, not measured" for name, value in committed.items() if name not in measured
    ]
    for name, value in measured.items():
        if name not in committed:
            problems.append(f"{name}: {value:.5f} measured, not committed")
        elif abs(value - committed[name]) > TOLERANCE * _scale(name, committed[name]):
            problems.append(f"{name}: {committed[name]:.5f} committed, {value:.5f} measured")
    return problems


def _scale(name: str, committed: float) -> float:
    """What `TOLERANCE` of a figure is multiplied by."""
    if name.endswith(ERRORS):
        return abs(committed)
    return max(1.0, committed) if name.endswith(DISTANCES) else 1.0
