"""Every run of the paper's experiments: its config, folder and dependencies, from the settings of a reproduction.

Runs of one seed share sample order, augmentation, masks and, where modules are equal, initial weights. All cells of a
size start from one MAE, so the variance over seeds excludes that of pre-training; where a preset's PF-ViT starts from
MAE-ViT, from the one with its own seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pfcluster.config import ConfigError, RunConfig, presets
from pfcluster.config.io import flatten, with_values
from pfcluster.config.preset_parts import Recipe
from pfcluster.config.starts import PfVitStart, require_classifier_start, starts_from_mae_vit, with_start
from pfcluster.experiments.cells import CELLS, DEFAULT_SIZE, Cell, cell_by_name, mae_vit_name
from pfcluster.training.schedule import total_steps

PRETRAINING, JUDGE, IDENTITY_NET = "pretraining", "judge", "identity-net"
"""Folder of the runs that all datasets share, and names of the auxiliary runs."""


@dataclass(frozen=True)
class Settings:
    """Settings of a reproduction."""

    output: Path
    seeds: tuple[int, ...]
    datasets: Mapping[str, Mapping[str, Any]]
    """Data options by dataset, such as its shards."""
    with_neutral: frozenset[str]
    """Datasets with a neutral class; the others have no judge."""
    pretraining_data: Mapping[str, Any]
    """Data options of pre-training."""
    presets: Mapping[str, str]
    """Preset by encoder size."""
    identity_net: str = "face"
    """Identity net φ of PF-ViT: face or tokens."""
    face_net: str = "facenet"
    """The face net: "facenet", or "run" for an identity classifier trained here on `identity_data`."""
    identity_net_weights: str | None = None
    identity_data: Mapping[str, Any] | None = None
    """Data options of an identity classifier, which measures the identity cosine; None trains none."""
    init_weights: Mapping[str, str] = field(default_factory=dict)
    """Weights by `Cell.init`: "timm", "imagenet-mae", "released-mae"."""
    resnet_weights: str | None = None
    pf_vit_start: PfVitStart | None = None
    """What PF-ViT starts from; None for what the presets say."""
    fid: str | None = None
    """"inception", a file with its weights, or None for the judge's features."""
    n_probe_images: int = 2000
    ablated: tuple[str, ...] | None = None
    """Datasets on which more than the baselines is run; None selects all."""
    cells: tuple[str, ...] = ()
    """Cells to run; empty selects those of `tables`."""
    tables: tuple[str, ...] = ()
    """Tables whose cells are run; empty selects all."""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    """Reason why cells of an `init` ("timm", ...) or an identity net ("resnet", "face") cannot be run."""
    change: Callable[[RunConfig], RunConfig] = lambda config: config
    """Applies the user's overrides; a cell's changes are applied after them."""


@dataclass(frozen=True)
class PlannedRun:
    """A run of the matrix."""

    dataset: str
    name: str
    config: RunConfig
    folder: Path
    dependencies: tuple[tuple[str, str], ...] = ()
    """Runs that must finish first, by dataset (or "pretraining") and name."""
    same_seed: tuple[tuple[str, str], ...] = ()
    """Runs of which only the one with the same seed must finish first."""
    cell: Cell | None = None


def unavailable_reason(settings: Settings, cell: Cell) -> str | None:
    """Why a cell cannot be run; None if it can."""
    by_identity_net = settings.unavailable.get(_identity_net(settings, cell)) if cell.role == "pf-vit" else None
    return settings.unavailable.get(cell.init) or by_identity_net


def selected_cells(settings: Settings, dataset: str) -> list[Cell]:
    """The selected cells, or the cells of the selected tables with their references. Cells that the preset makes the
    same as another are left out; raises ConfigError if one of them was selected by its name.
    """
    if settings.cells:
        named = dict.fromkeys(cell_by_name(name).canonical_name(settings.identity_net) for name in settings.cells)
        chosen = [cell for cell in CELLS if cell.name in named]
        for cell in chosen:
            if _repeats_another(settings, cell):
                shared = "mae-vit, as PF-ViT starts from the MAE" if cell.equal_epochs else cell.role
                raise ConfigError(f"--cells: {cell.name} would be the same runs as {shared}, with these options")
        return chosen
    cells = [
        cell
        for cell in CELLS
        if cell.canonical_name(settings.identity_net) == cell.name and not _repeats_another(settings, cell)
    ]
    ablated = settings.ablated is None or dataset in settings.ablated

    def selected(cell: Cell) -> bool:
        in_table = not settings.tables or cell.table in settings.tables
        return cell.name in ("mae-vit", "pf-vit") or (in_table and (ablated or cell.table == "baselines"))

    return [cell for cell in cells if selected(cell)]


def plan_runs(settings: Settings) -> list[PlannedRun]:
    """All runs; dependencies come first. Raises ConfigError, and DataError where a length depends on the data."""
    cells = {
        dataset: [cell for cell in selected_cells(settings, dataset) if unavailable_reason(settings, cell) is None]
        for dataset in settings.datasets
    }
    sizes = dict.fromkeys(cell.size for selected in cells.values() for cell in selected if cell.init == "mae")
    runs = [_pretraining(settings, size) for size in sizes]
    if settings.identity_data is not None:
        runs.append(_auxiliary(settings, PRETRAINING, IDENTITY_NET, settings.identity_data))
    for dataset in settings.datasets:
        if dataset in settings.with_neutral:
            runs.append(_auxiliary(settings, dataset, JUDGE, settings.datasets[dataset]))
        for cell in _with_starts(settings, cells[dataset]):
            runs += [_cell_run(settings, cell, dataset, seed) for seed in settings.seeds]
    return runs


def _recipe(settings: Settings, size: str) -> Recipe:
    return with_start(presets.recipe(settings.presets[size]), settings.pf_vit_start)


def _preset(settings: Settings, size: str, role: str, data: Mapping[str, Any]) -> RunConfig:
    return settings.change(with_values(_recipe(settings, size)[role], data))


def _repeats_another(settings: Settings, cell: Cell) -> bool:
    """Whether preset and overrides already have a cell's changes, or train MAE-ViT for as many epochs as PF-ViT."""
    recipe = _recipe(settings, cell.size)
    if cell.equal_epochs:
        return not starts_from_mae_vit(recipe)
    values = flatten(asdict(settings.change(recipe[cell.role])))
    return bool(cell.changes) and all(values[name] == value for name, value in cell.changes.items())


def _with_starts(settings: Settings, cells: Sequence[Cell]) -> list[Cell]:
    """The cells, each PF-ViT after the MAE-ViT that it starts from, which is added where it was not selected."""
    ordered: dict[str, Cell] = {}
    for cell in cells:
        if _starts_from_mae_vit(settings, cell):
            start = cell_by_name(mae_vit_name(cell.size))
            ordered[start.name] = start
        ordered[cell.name] = cell
    return list(ordered.values())


def _starts_from_mae_vit(settings: Settings, cell: Cell) -> bool:
    in_question = cell.role == "pf-vit" and cell.init == "mae"
    return in_question and starts_from_mae_vit(_recipe(settings, cell.size))


def _pretraining(settings: Settings, size: str) -> PlannedRun:
    config = _preset(settings, size, "mae", settings.pretraining_data)
    return _single_run(settings, PRETRAINING, replace(config, name=f"mae-{size}"))


def _auxiliary(settings: Settings, dataset: str, name: str, data: Mapping[str, Any]) -> PlannedRun:
    """A classifier of the judge's architecture: the judge of a dataset, or the identity net."""
    config = _preset(settings, DEFAULT_SIZE, "judge", data)
    return _single_run(settings, dataset, replace(config, name=name))


def _single_run(settings: Settings, dataset: str, config: RunConfig) -> PlannedRun:
    """A run with the first seed only."""
    seeded = replace(config, seed=settings.seeds[0])
    return PlannedRun(dataset, config.name, seeded, _folder(settings, dataset, config.name, seeded.seed))


def _folder(settings: Settings, dataset: str, name: str, seed: int) -> Path:
    return settings.output / dataset / name / f"seed-{seed}"


def _cell_run(settings: Settings, cell: Cell, dataset: str, seed: int) -> PlannedRun:
    first_seed = settings.seeds[0]
    dependencies: list[tuple[str, str]] = []

    def weights_of(dataset: str, name: str) -> str:
        dependencies.append((dataset, name))
        return str(_folder(settings, dataset, name, first_seed))

    config = _preset(settings, cell.size, cell.role, settings.datasets[dataset])
    start: tuple[tuple[str, str], ...] = ()
    values: dict[str, Any] = {"name": cell.name, "seed": seed}
    if cell.equal_epochs:
        pf_vit = _preset(settings, cell.size, "pf-vit", settings.datasets[dataset])
        values |= _length_of_both(replace(config, seed=seed), pf_vit)
    if cell.init == "mae":
        values["model.init"] = weights_of(PRETRAINING, f"mae-{cell.size}")
        if _starts_from_mae_vit(settings, cell):
            start = ((dataset, mae_vit_name(cell.size)),)
            folder = _folder(settings, *start[0], seed)
            values |= {"model.init": str(folder), "pf_mag.decoder_init": values["model.init"]}
        elif cell.role == "pf-vit":
            require_classifier_start(config, "--pf-vit-start")
    elif cell.init != "nothing":
        values["model.init"] = settings.init_weights[cell.init]
    if cell.role != "scratch":
        values["evaluate.n_probe_images"] = settings.n_probe_images
    if cell.role == "pf-vit":
        values["evaluate.fid"] = settings.fid
        if dataset in settings.with_neutral:
            judge = weights_of(dataset, JUDGE)
            values |= {"evaluate.judge": judge, "evaluate.fid": settings.fid or judge}
        if settings.identity_data is not None:
            values["evaluate.identity_net"] = weights_of(PRETRAINING, IDENTITY_NET)
        values |= _identity_net_options(settings, cell)
    values |= cell.changes
    folder = _folder(settings, dataset, cell.name, seed)
    return PlannedRun(dataset, cell.name, with_values(config, values), folder, tuple(dependencies), start, cell)


def _length_of_both(mae_vit: RunConfig, pf_vit: RunConfig) -> dict[str, Any]:
    """Epochs of MAE-ViT with as many as both have together; also its steps if `max_steps` may end one of them earlier,
    which depends on the number of training images. Raises DataError.
    """
    length: dict[str, Any] = {"epochs": mae_vit.epochs + pf_vit.epochs}
    if mae_vit.max_steps is None and pf_vit.max_steps is None:
        return length
    from pfcluster.data.dataset import open_dataset

    samples = len(open_dataset(mae_vit.data, mae_vit.seed).train)
    images = sum(total_steps(config, samples) * config.batch_size for config in (mae_vit, pf_vit))
    return length | {"max_steps": max(1, round(images / mae_vit.batch_size))}


def _identity_net(settings: Settings, cell: Cell) -> str:
    return settings.identity_net if cell.identity_net == "default" else cell.identity_net


def _identity_net_options(settings: Settings, cell: Cell) -> dict[str, Any]:
    kind = _identity_net(settings, cell)
    kind = settings.face_net if kind == "face" else kind
    weights = {
        "run": str(_folder(settings, PRETRAINING, IDENTITY_NET, settings.seeds[0])),
        "facenet": settings.identity_net_weights,
        "resnet": settings.resnet_weights,
    }
    return {"pf_mag.identity_net": kind, "pf_mag.identity_net_weights": weights.get(kind)}


def runs_by_cell(runs: Sequence[PlannedRun]) -> dict[tuple[str, str], list[PlannedRun]]:
    """Runs that differ only in their seed, by dataset and name, in their order."""
    by_cell: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in runs:
        by_cell.setdefault((run.dataset, run.name), []).append(run)
    return by_cell
