"""Settings of `pfcluster reproduce` on real datasets: shards, presets and weights, and what is missing of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfcluster.config import ConfigError, DataConfig, RunConfig, presets
from pfcluster.config.validation import is_folder_name, require
from pfcluster.data.dataset import open_dataset
from pfcluster.data.labels import neutral_index
from pfcluster.data.manifest import MANIFEST
from pfcluster.data.types import Dataset
from pfcluster.experiments.cells import CELLS, DEFAULT_SIZE, SIZES
from pfcluster.experiments.matrix import PRETRAINING, Settings, selected_cells
from pfcluster.models import factory
from pfcluster.models.identity_net import IdentityNetError, find_weights
from pfcluster.models.pretrained import TIMM, WeightsError, external_sizes

if TYPE_CHECKING:
    from pfcluster.cli.reproduce import ReproduceOptions

Change = Callable[[RunConfig], RunConfig]
"""Applies the user's overrides to a config."""


def dataset_settings(options: ReproduceOptions, output: Path, change: Change) -> Settings:
    """The experiments on the given datasets. Raises ConfigError, DataError, IdentityNetError."""
    if PRETRAINING in options.datasets:
        raise ConfigError(
            f"--datasets must not name {PRETRAINING}, the folder of the shared pre-training runs; rename it"
        )
    datasets = {name: _open_shards("--datasets", options.data_root, name) for name in options.datasets}
    sizes = {name: len(dataset.train) for name, dataset in datasets.items()}
    faces = options.faces or max(sizes, key=lambda name: sizes[name])
    if faces not in datasets:
        _open_shards("--faces", options.data_root, faces)
    cells = [
        cell
        for cell in CELLS
        if (not options.cells or cell.name in options.cells) and (not options.tables or cell.table in options.tables)
    ]
    starts, missing = _starting_weights(options, {cell.init for cell in cells}, change)
    identity_nets = {
        options.identity_net if cell.identity_net == "default" else cell.identity_net
        for cell in cells
        if cell.role == "pf-vit"
    }
    missing |= _missing_identity_nets(options, identity_nets)
    with_neutral = [name for name, dataset in datasets.items() if neutral_index(dataset.classes) is not None]
    return Settings(
        output,
        options.seeds,
        datasets={name: {"data.shards": str(options.data_root / name)} for name in datasets},
        with_neutral=frozenset(with_neutral),
        pretraining_data={"data.shards": str(options.data_root / faces)},
        presets=_presets_by_size(options.preset),
        identity_net=options.identity_net,
        identity_net_weights=options.identity_net_weights,
        identity_data=None if options.identities is None else _identity_options(options.data_root, options.identities),
        init_weights=starts,
        resnet_weights=options.resnet_weights,
        fid=options.fid,
        ablated=options.ablated,
        tables=options.tables,
        cells=options.cells,
        unavailable=missing,
        change=change,
    )


def _starting_weights(
    options: ReproduceOptions, needed: set[str], change: Change
) -> tuple[dict[str, str], dict[str, str]]:
    """Weights that cells start from, and the reasons why needed ones are missing, by the name of the start."""
    starts: dict[str, str] = {}
    missing: dict[str, str] = {}
    sources = {"timm": options.sl_weights, "imagenet-mae": options.imagenet_mae, "released-mae": options.released_mae}
    preset = _presets_by_size(options.preset)[DEFAULT_SIZE]
    for start, source in sources.items():
        if start not in needed:
            if source is not None:
                starts[start] = source
        elif source is None:
            missing[start] = f"no weights were given: --{start} FILE"
        else:
            problem = (
                _name_problem(source) if _is_download(options, source) else _weights_problem(source, preset, change)
            )
            if problem is None:
                starts[start] = source
            else:
                missing[start] = problem
    return starts, missing


def downloads(options: ReproduceOptions, needed: Settings) -> list[str]:
    """Weights that only a real run downloads, so that --dry-run could not check them."""
    cells = [cell for dataset in needed.datasets for cell in selected_cells(needed, dataset)]
    nets = {
        options.identity_net if cell.identity_net == "default" else cell.identity_net
        for cell in cells
        if cell.role == "pf-vit"
    }
    names = [options.sl_weights] if any(cell.init == "timm" for cell in cells) else []
    names = [name for name in names if _is_download(options, name)]
    local = {"resnet": options.resnet_weights, "face": options.identity_net_weights}
    texts = {"resnet": "timm's resnet50", "face": "the face recognition net"}
    return [*names, *(texts[net] for net in local if net in nets and local[net] is None)]


def _is_download(options: ReproduceOptions, source: str) -> bool:
    """Whether weights would be fetched from the network, which --dry-run does not use."""
    return options.dry_run and source.startswith(TIMM)


def _name_problem(source: str) -> str | None:
    """Why timm has no net of this name; None if it has. Needs no network."""
    try:
        external_sizes(source)
    except WeightsError as error:
        return str(error)
    return None


def _weights_problem(source: str, preset: str, change: Change) -> str | None:
    """Why a classifier cannot start from these weights; None if it can."""
    config = change(presets.recipe(preset)["mae-vit"])
    try:
        factory.build(replace(config, model=replace(config.model, init=source)), 7)
    except WeightsError as error:
        return str(error)
    return None


def _missing_identity_nets(options: ReproduceOptions, needed: set[str]) -> dict[str, str]:
    """Reasons why needed identity nets are missing. Raises IdentityNetError if every PF-ViT needs the missing one. With
    --dry-run those that would be downloaded count as present.
    """
    missing = {}
    try:
        if "resnet" in needed and not (options.dry_run and options.resnet_weights is None):
            find_weights("resnet", options.resnet_weights)
    except IdentityNetError as error:
        missing["resnet"] = str(error)
    try:
        if "face" in needed and not (options.dry_run and options.identity_net_weights is None):
            find_weights("facenet", options.identity_net_weights)
    except IdentityNetError as error:
        if options.identity_net == "face":
            raise IdentityNetError(f"{error}; or use --identity-net tokens for every PF-ViT") from error
        missing["face"] = str(error)
    return missing


def _presets_by_size(name: str) -> dict[str, str]:
    """The presets NAME-t, NAME-s, ... of a family; a preset that is not a family stands for every size."""
    return {size: f"{name}-{size}" if f"{name}-{size}" in presets.PRESETS else name for size in SIZES}


def _open_shards(option: str, root: Path, name: str) -> Dataset:
    """A dataset by its name. Raises ConfigError that names `option` if there is none in the folder, DataError."""
    in_root = f"be the name of a folder in --data-root {root} (letters, digits, - _ . only): it names folders of runs"
    require(is_folder_name(name), option, name, in_root)
    if not (root / name / MANIFEST).is_file():
        raise ConfigError(
            f"{option} {name}: {root / name} holds no shards; build them with `pfcluster build --input PHOTOS"
            f" --output {root / name}`, or name another --data-root"
        )
    return open_dataset(DataConfig(shards=str(root / name)), 0)


def _identity_options(root: Path, name: str) -> dict[str, Any]:
    """Config fields of an identity classifier on a dataset. Raises ConfigError, DataError."""
    _open_shards("--identities", root, name)
    data = {"data.shards": str(root / name), "data.target": "identity"}
    open_dataset(DataConfig(shards=str(root / name), target="identity"), 0)
    return {**data, "augment.flip": 0.0}
