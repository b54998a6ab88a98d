"""Every run of the paper's experiments, from the settings of a reproduction: which config, in which folder.

Runs of one seed share the order of samples, augmentation, masks and, where their nets agree, initial weights; all start
from one MAE of their size, so that the spread over seeds is that of what comes after pre-training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pfcluster.config import RunConfig, presets
from pfcluster.config.io import with_values
from pfcluster.experiments.cells import CELLS, DEFAULT_SIZE, Cell

PRETRAINING, JUDGE, PEOPLE = "pretraining", "judge", "people"


@dataclass(frozen=True)
class Settings:
    """What a reproduction is made of."""

    output: Path
    seeds: tuple[int, ...]
    datasets: Mapping[str, Mapping[str, Any]]
    """Options of the data by dataset, such as its shards."""
    with_neutral: frozenset[str]
    """Datasets that have a neutral class: elsewhere nobody judges."""
    faces: Mapping[str, Any]
    """Options of the data of pre-training."""
    presets: Mapping[str, str]
    """Preset by size of the encoder."""
    phi: str = "face"
    """φ of PF-ViT: face or tokens."""
    face_phi: str = "facenet"
    """The face net: facenet, or run: a net trained here to tell the people of `people` apart."""
    phi_weights: str | None = None
    people: Mapping[str, Any] | None = None
    """Options of the data of a net that tells people apart, which measures the identity that poker faces keep."""
    starts: Mapping[str, str] = field(default_factory=dict)
    """Weights by what a cell starts from: "timm", "imagenet-mae", "released-mae"."""
    resnet_weights: str | None = None
    fid: str | None = None
    """"inception", a file of it, or None: the judge's features."""
    probes: int = 2000
    ablated: tuple[str, ...] | None = None
    """Datasets on which more than the baselines is run; None takes all."""
    cells: tuple[str, ...] = ()
    """Cells that are run; none runs those of the tables."""
    tables: tuple[str, ...] = ()
    """Tables whose cells are run; none runs all."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Why cells of a start ("timm", "imagenet-mae", "released-mae") or a φ ("resnet", "face") cannot be run."""
    change: Callable[[RunConfig], RunConfig] = lambda config: config
    """The user's own options, applied before a cell's."""


@dataclass(frozen=True)
class Run:
    """A run of the matrix. `after`: what it waits for, by dataset (or "pretraining") and name."""

    dataset: str
    name: str
    config: RunConfig
    folder: Path
    after: tuple[tuple[str, str], ...] = ()
    cell: Cell | None = None


def why_not(settings: Settings, cell: Cell) -> str | None:
    """Why a cell cannot be run here; None where it can."""
    phi = settings.phi if cell.phi == "default" else cell.phi
    return settings.missing.get(cell.start) or (settings.missing.get(phi) if cell.role == "pf-vit" else None)


def wanted(settings: Settings, dataset: str) -> list[Cell]:
    """The cells of the tables asked for, with those that the tables' rows are compared with."""
    if settings.cells:
        return [cell for cell in CELLS if cell.name in settings.cells and cell.same_as(settings.phi) == cell.name]
    ablated = settings.ablated is None or dataset in settings.ablated
    return [
        cell
        for cell in CELLS
        if cell.name in ("mae-vit", "pf-vit")
        or (
            (cell.same_as(settings.phi) == cell.name)
            and ((not settings.tables or cell.table in settings.tables) and (ablated or cell.table == "baselines"))
        )
    ]


def matrix(settings: Settings) -> list[Run]:
    """All runs, in an order in which they can be run. Raises ConfigError."""
    cells = {
        dataset: [cell for cell in wanted(settings, dataset) if why_not(settings, cell) is None]
        for dataset in settings.datasets
    }
    sizes = dict.fromkeys(cell.size for each in cells.values() for cell in each if cell.start == "mae")
    runs = [_pretraining(settings, size) for size in sizes]
    if settings.people is not None:
        runs.append(_people(settings))
    for dataset in settings.datasets:
        if dataset in settings.with_neutral:
            runs.append(_judge(settings, dataset))
        for cell in cells[dataset]:
            runs += [_run(settings, cell, dataset, seed) for seed in settings.seeds]
    return runs


def _preset(settings: Settings, size: str, role: str, data: Mapping[str, Any]) -> RunConfig:
    return settings.change(with_values(presets.recipe(settings.presets[size])[role], data))


def _pretraining(settings: Settings, size: str) -> Run:
    name = f"mae-{size}"
    config = _preset(settings, size, "mae", settings.faces)
    return _once(settings, PRETRAINING, replace(config, name=name))


def _judge(settings: Settings, dataset: str) -> Run:
    config = _preset(settings, DEFAULT_SIZE, "judge", settings.datasets[dataset])
    return _once(settings, dataset, replace(config, name=JUDGE))


def _people(settings: Settings) -> Run:
    assert settings.people is not None
    config = _preset(settings, DEFAULT_SIZE, "judge", settings.people)
    return _once(settings, PRETRAINING, replace(config, name=PEOPLE))


def _once(settings: Settings, dataset: str, config: RunConfig) -> Run:
    seeded = replace(config, seed=settings.seeds[0])
    return Run(dataset, config.name, seeded, _folder(settings, dataset, config.name, seeded.seed))


def _folder(settings: Settings, dataset: str, name: str, seed: int) -> Path:
    return settings.output / dataset / name / f"seed-{seed}"


def _run(settings: Settings, cell: Cell, dataset: str, seed: int) -> Run:
    first = settings.seeds[0]
    after: list[tuple[str, str]] = []
    config = _preset(settings, cell.size, cell.role, settings.datasets[dataset])
    values: dict[str, Any] = {"name": cell.name, "seed": seed}
    if cell.start == "mae":
        after.append((PRETRAINING, f"mae-{cell.size}"))
        values["model.init"] = str(_folder(settings, *after[-1], first))
    elif cell.start != "nothing":
        values["model.init"] = settings.starts[cell.start]
    if cell.role != "scratch":
        values["evaluate.n_probe_images"] = settings.probes
    if cell.role == "pf-vit":
        if dataset in settings.with_neutral:
            after.append((dataset, JUDGE))
            judge = str(_folder(settings, dataset, JUDGE, first))
            values |= {"evaluate.judge": judge, "evaluate.fid": settings.fid or judge}
        else:
            values["evaluate.fid"] = settings.fid
        if settings.people is not None:
            after.append((PRETRAINING, PEOPLE))
            values["evaluate.identity_net"] = str(_folder(settings, PRETRAINING, PEOPLE, first))
        values |= _phi(settings, cell)
    values |= cell.changes
    folder = _folder(settings, dataset, cell.name, seed)
    return Run(dataset, cell.name, with_values(config, values), folder, tuple(after), cell)


def _phi(settings: Settings, cell: Cell) -> dict[str, Any]:
    kind = settings.phi if cell.phi == "default" else cell.phi
    kind = settings.face_phi if kind == "face" else kind
    weights: str | None = None
    if kind == "run":
        weights = str(_folder(settings, PRETRAINING, PEOPLE, settings.seeds[0]))
    elif kind == "facenet":
        weights = settings.phi_weights
    elif kind == "resnet":
        weights = settings.resnet_weights
    return {"pf_mag.identity_net": kind, "pf_mag.identity_net_weights": weights}


def by_group(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """Runs that differ in their seed only, by dataset and name, in their order."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.dataset, run.name), []).append(run)
    return groups
