"""One seed's PF-ViT and its judge in a file, and whether it still has the figures that are written beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.poker_aims import figures_of
from pfcluster.checkpoint import store
from pfcluster.config import RunConfig
from pfcluster.config.io import from_json, load, to_json
from pfcluster.data.dataset import open_dataset
from pfcluster.data.labels import neutral_index
from pfcluster.distributed.process_group import World
from pfcluster.evaluate import poker_faces
from pfcluster.evaluate.evaluators import Evaluators, Judge
from pfcluster.evaluate.final import evaluate_split
from pfcluster.evaluate.token_probes import probe_run
from pfcluster.models import factory
from pfcluster.models.pf_vit import PFViT

TOLERANCE = 0.01
"""Largest difference of a share or of a relative error that another machine's rounding excuses."""
PARTS = ("model", "judge")


def save(run: Path, judge: Path, file: Path) -> None:
    """Write the best checkpoint of a run and of its judge, with their configs."""
    tensors: dict[str, torch.Tensor] = {}
    configs = {}
    for part, folder in zip(PARTS, (run, judge), strict=True):
        tensors |= {f"{part}.{name}": value.contiguous() for name, value in store.load(folder).weights().items()}
        configs[part] = to_json(load(folder / "config.json"))
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(file), metadata=configs)


def restore(file: Path) -> tuple[dict[str, torch.nn.Module], dict[str, RunConfig]]:
    """The two nets of a file, ready to be asked, and their configs: "model" (PF-ViT) and "judge"."""
    nets, configs = {}, {}
    with safe_open(str(file), "pt") as opened:
        metadata, names = opened.metadata(), list(opened.keys())
        for part in PARTS:
            config = configs[part] = from_json(metadata[part], f"{file}: {part}")
            state = {name.partition(".")[2]: opened.get_tensor(name) for name in names if name.startswith(f"{part}.")}
            nets[part] = factory.build(config, len(_dataset(config).classes), load_init=False)["model"].eval()
            nets[part].load_state_dict(state)
    return nets, configs


def evaluate(file: Path) -> dict[str, float]:
    """The figures of a saved checkpoint on the test split."""
    nets, configs = restore(file)
    return figures_of(_measured(configs["model"], nets["model"], nets["judge"], configs["judge"].data.size))


def _dataset(config: RunConfig) -> Any:
    return open_dataset(config.data, config.seed)


def _measured(config: RunConfig, model: torch.nn.Module, judge: torch.nn.Module, size: int) -> dict[str, Any]:
    """As a run's result has it."""
    here, dataset = World(0, 1, torch.device("cpu")), _dataset(config)
    neutral = neutral_index(dataset.classes)
    assert isinstance(model, PFViT)
    assert neutral is not None
    scores, _ = evaluate_split(config, model, dataset.test, dataset.classes, here)
    model.eval()
    probes = probe_run(config, dataset, dataset.test, model, here)
    found = poker_faces.measure(
        model, dataset.test, size=config.data.size, count=config.evaluate.n_poker_faces,
        batch_size=config.evaluate.batch_size, evaluators=Evaluators(Judge(judge, size, neutral)), world=here,
    )  # fmt: skip
    return {"test": scores, "probes": probes, "poker": found}


def check(file: Path, results: Path) -> list[str]:
    """What of a checkpoint's figures differs from those written beside it; nothing where all are the same."""
    wanted: dict[str, float] = json.loads(results.read_text())["checkpoint"]["figures"]
    found = evaluate(file)
    wrong = [f"{name}: {wanted[name]} is written, nothing found" for name in wanted if name not in found]
    for name, value in found.items():
        if name not in wanted:
            wrong.append(f"{name}: {value:.5f} found, nothing is written")
        elif abs(value - wanted[name]) > TOLERANCE * (abs(wanted[name]) if name.endswith(("region", "outside")) else 1):
            wrong.append(f"{name}: {wanted[name]:.5f} is written, {value:.5f} found")
    return wrong
