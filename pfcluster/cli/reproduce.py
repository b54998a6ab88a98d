"""`jobs/launch.py reproduce`: the paper's experiments as one tolerant plan."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from pfcluster.config import ConfigError, DataConfig, RunConfig, presets
from pfcluster.data.dataset import open_dataset
from pfcluster.data.labels import neutral_index
from pfcluster.data.manifest import MANIFEST
from pfcluster.data.types import Dataset
from pfcluster.experiments.cells import CELLS, DEFAULT_SIZE, SIZES, TABLES
from pfcluster.experiments.matrix import Run, Settings, by_group, matrix, wanted, why_not
from pfcluster.experiments.miniature import miniature
from pfcluster.experiments.record import make_record, write_record
from pfcluster.launch.options import Options, add_cluster_options, cluster_of, command_text
from pfcluster.launch.plan import Command, Plan, Stage, TrainRun
from pfcluster.launch.study_plan import REPORT, apply_overrides
from pfcluster.models import factory
from pfcluster.models.identity_net import IdentityNetError, find_weights
from pfcluster.models.pretrained import WeightsError
from pfcluster.runs.folder import PICTURES_DIR, RESULT_FILE

TIMM = "timm:vit_base_patch16_224.augreg_in1k"
TABLE_FILE = Path("tables") / "tables.html"
EVALUATIONS = ("cross", "costs")
PICTURED = ("sl-vit", "mae-vit", "pf-vit")


@dataclass(frozen=True)
class Reproduction:
    """What a call of `reproduce` asks for."""

    settings: Settings
    runs: tuple[Run, ...]
    options: Options
    miniature: bool

    def plan(self) -> Plan:
        """Pre-training and judges, all cells on top, then everything that is made of them, whatever failed."""
        groups = [
            Stage(
                f"{dataset}-{name}",
                tuple(TrainRun(run.config, run.folder, study=dataset) for run in runs),
                tuple(f"{other}-{its}" for other, its in runs[0].after),
            )
            for (dataset, name), runs in by_group(self.runs).items()
        ]
        output, names = self.settings.output, tuple(group.name for group in groups)
        results = tuple(run.folder / RESULT_FILE for run in self.runs)
        for dataset in self.settings.datasets:
            own = tuple(run.folder / RESULT_FILE for run in self.runs if run.dataset == dataset)
            study, shown = output / dataset, self.pictured(dataset)
            made = study / PICTURES_DIR / "index.html"
            words = ("pictures", *map(str, shown), "--output", str(made.parent))
            reads = tuple(folder / RESULT_FILE for folder in shown)
            call = Command(f"{dataset} pictures", study / PICTURES_DIR, words, produces=made, reads=reads)
            groups.append(Stage(f"{dataset}-pictures", (call,), names, single_process=True, always_run=True))
            made = study / REPORT / "report.html"
            call = Command(f"{dataset} {REPORT}", study / REPORT, (REPORT, str(study)), produces=made, reads=own)
            after = (*names, f"{dataset}-pictures")
            groups.append(Stage(f"{dataset}-{REPORT}", (call,), after, single_process=True, always_run=True))
        measured = []
        for what in EVALUATIONS:
            made = output / "measured" / f"{what}.json"
            call = Command(what, made.parent / what, ("measure", what, str(output)), produces=made, reads=results)
            measured.append(Stage(what, (call,), names, single_process=True, always_run=True))
        reads = (*results, *(output / "measured" / f"{what}.json" for what in EVALUATIONS))
        call = Command("tables", output / "tables", ("tables", str(output)), produces=output / TABLE_FILE, reads=reads)
        after = (*names, *EVALUATIONS)
        groups += [*measured, Stage("tables", (call,), after, single_process=True, always_run=True)]
        name = self.options.name or output.resolve().name
        return Plan(name, output, tuple(groups), command_text(), continue_on_failure=True)

    def pictured(self, dataset: str) -> list[Path]:
        """The runs whose pictures are shown beside each other: the first seed's, and its pre-training."""
        first = {(run.dataset, run.name): run.folder for run in reversed(self.runs)}
        keys = [("pretraining", f"mae-{DEFAULT_SIZE}"), *((dataset, name) for name in PICTURED)]
        return [first[key] for key in keys if key in first]

    def record(self) -> None:
        """Write down what was asked for, so that the tables know what is missing."""
        command = command_text()
        write_record(self.settings.output, make_record(self.settings, self.runs, command, miniature=self.miniature))

    def tell_missing(self, console: Console) -> None:
        """Say what cannot be run, and why."""
        reasons: dict[str, list[str]] = {}
        cells = {cell.name: cell for dataset in self.settings.datasets for cell in wanted(self.settings, dataset)}
        for cell in cells.values():
            why = why_not(self.settings, cell)
            if why is not None:
                reasons.setdefault(why, []).append(cell.name)
        for why, names in reasons.items():
            console.print(f"not run: {', '.join(names)}: {why}", style="yellow", highlight=False, soft_wrap=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which experiments, on which faces, with whose weights."""

    def option(name: str, default: object, help: str, **more: Any) -> None:
        parser.add_argument(f"--{name}", default=default, help=help, **more)

    parser.add_argument("--miniature", action="store_true", help="all of it on synthetic faces, on a laptop")
    option("datasets", [], "rafdb, affectnet7, ...: folders of shards under --data-root", nargs="+")
    option("data-root", Path("data"), "its folders are the datasets' shards", type=Path)
    option("faces", None, "dataset to pre-train on, without its labels; default: the largest")
    option("preset", "vit", "vit: the paper's sizes vit-t, vit-s, vit-b; or one preset for all sizes")
    option("seeds", [0, 1, 2], "a run of each cell for each", type=int, nargs="+")
    option("tables", [], "only these; default: all", nargs="+", choices=sorted(TABLES))
    names = [cell.name for cell in CELLS]
    option("cells", [], "only these: " + ", ".join(names), nargs="+", choices=names, metavar="CELL")
    option("ablated", None, "datasets on which more than the baselines is run; default: all", nargs="*")
    option("phi", "face", "φ of PF-ViT, if not the paper's face net", choices=("face", "tokens"))
    option("phi-weights", None, "the face net's file; default: facenet-pytorch's download")
    option("resnet-weights", None, "file of timm's resnet50; default: its download")
    option("sl-weights", TIMM, "supervised weights of SL-ViT: timm:NAME or a file")
    option("imagenet-mae", None, "a checkpoint of facebookresearch/mae, for MAE-ViT of ImageNet")
    option("released-mae", None, "the authors' own MAE of faces (keys model or model_state_dict)")
    option("people", None, "dataset whose people a net learns to tell apart, to measure identity")
    option("fid", None, '"inception", or a file of its weights; default: the judge\'s features')
    option("jobs", None, "runs at once, on this machine; default: 1, 2 in miniature", type=int)
    option("output", None, "default: runs/reproduce, runs/miniature", type=Path)
    option("job-name", None, "what the jobs are called in the queue")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, run nothing")


def parse(arguments: Sequence[str]) -> Reproduction:
    """The options of `reproduce`. Raises ConfigError, DataError, RecognitionError."""
    parser = argparse.ArgumentParser(
        prog="jobs/launch.py reproduce",
        description="The paper's experiments as one pipeline. Fields of the config are options too: --epochs 30.",
        allow_abbrev=False,
    )
    add_options(parser)
    add_cluster_options(parser, "auto")
    known, rest = parser.parse_known_args(arguments)
    if len(set(known.seeds)) < len(known.seeds):
        raise ConfigError(f"--seeds must differ from each other, got {' '.join(map(str, known.seeds))}")
    if known.miniature == bool(known.datasets):
        raise ConfigError("reproduce wants either --datasets NAME ..., or --miniature for synthetic faces")

    @functools.cache
    def change(config: RunConfig) -> RunConfig:
        return apply_overrides(config, rest)

    output = known.output or Path("runs") / ("miniature" if known.miniature else "reproduce")
    settings = (
        miniature(output, tuple(known.seeds), tuple(known.tables), tuple(known.cells), change)
        if known.miniature
        else _settings(known, output, change)
    )
    jobs = known.jobs or (2 if known.miniature else 1)
    options = Options(
        "reproduce",
        known.preset,
        settings.seeds,
        jobs,
        output,
        known.job_name,
        None,
        (),
        known.dry_run,
        300.0,
        cluster_of(known),
        tuple(rest),
    )
    return Reproduction(settings, tuple(matrix(settings)), options, known.miniature)


def _settings(known: argparse.Namespace, output: Path, change: Callable[[RunConfig], RunConfig]) -> Settings:
    """The matrix on datasets of one's own."""
    data = {name: _shards(known.data_root, name) for name in known.datasets}
    sizes = {name: len(dataset.train) for name, dataset in data.items()}
    faces = known.faces or max(sizes, key=lambda name: sizes[name])
    if faces not in data:
        _shards(known.data_root, faces)
    cells = [
        cell
        for cell in CELLS
        if (not known.cells or cell.name in known.cells) and (not known.tables or cell.table in known.tables)
    ]
    starts, missing = _starts(known, {cell.start for cell in cells}, change)
    missing |= _nets(
        known, {known.phi if cell.phi == "default" else cell.phi for cell in cells if cell.role == "pf-vit"}
    )
    return Settings(
        output,
        tuple(known.seeds),
        datasets={name: {"data.shards": str(known.data_root / name)} for name in data},
        with_neutral=frozenset(name for name, dataset in data.items() if neutral_index(dataset.classes) is not None),
        faces={"data.shards": str(known.data_root / faces)},
        presets=_presets(known.preset),
        phi=known.phi,
        phi_weights=known.phi_weights,
        people=None if known.people is None else _people(known.data_root, known.people),
        starts=starts,
        resnet_weights=known.resnet_weights,
        fid=known.fid,
        ablated=None if known.ablated is None else tuple(known.ablated),
        tables=tuple(known.tables),
        cells=tuple(known.cells),
        missing=missing,
        change=change,
    )


def _starts(
    known: argparse.Namespace, needed: set[str], change: Callable[[RunConfig], RunConfig]
) -> tuple[dict[str, str], dict[str, str]]:
    """Weights of those that are needed, and why others cannot be had."""
    starts, missing = {}, {}
    sources = {"timm": known.sl_weights, "imagenet-mae": known.imagenet_mae, "released-mae": known.released_mae}
    for start, source in sources.items():
        why = _cannot_start(start, source, _presets(known.preset)[DEFAULT_SIZE], change) if start in needed else None
        if why is not None:
            missing[start] = why
        else:
            starts[start] = source
    return starts, missing


def _nets(known: argparse.Namespace, needed: set[str]) -> dict[str, str]:
    """Why a φ that is needed cannot be had. Raises RecognitionError where all of PF-ViT would want it."""
    missing = {}
    try:
        if "resnet" in needed:
            find_weights("resnet", known.resnet_weights)
    except IdentityNetError as error:
        missing["resnet"] = str(error)
    try:
        if "face" in needed:
            find_weights("facenet", known.phi_weights)
    except IdentityNetError as error:
        if known.phi == "face":
            raise IdentityNetError(f"{error}; or take --phi tokens for all of PF-ViT") from error
        missing["face"] = str(error)
    return missing


def _presets(name: str) -> dict[str, str]:
    """Preset by size: of a family, or one preset thrice."""
    return {size: f"{name}-{size}" if f"{name}-{size}" in presets.PRESETS else name for size in SIZES}


def _shards(root: Path, name: str) -> Dataset:
    """A dataset by its name. Raises ConfigError that says where it was looked for, DataError."""
    if not (root / name / MANIFEST).is_file():
        raise ConfigError(
            f"--datasets {name}: {root / name} holds no shards; build them with `python shards/build.py --input PHOTOS"
            f" --output {root / name}`, or name another --data-root"
        )
    return open_dataset(DataConfig(shards=str(root / name)), 0)


def _people(root: Path, name: str) -> dict[str, Any]:
    """Options of a net that tells a dataset's people apart. Raises ConfigError, DataError."""
    _shards(root, name)
    data = {"data.shards": str(root / name), "data.target": "identity"}
    open_dataset(DataConfig(shards=str(root / name), target="identity"), 0)
    return {**data, "augment.flip": 0.0}


def _cannot_start(start: str, source: str | None, preset: str, change: Callable[[RunConfig], RunConfig]) -> str | None:
    """Why a cell cannot start from these weights; None where it can."""
    if source is None:
        return f"no weights were given: --{start} FILE"
    config = change(presets.recipe(preset)["mae-vit"])
    try:
        factory.build(replace(config, model=replace(config.model, init=source)), 7)
    except WeightsError as error:
        return str(error)
    return None
