"""`pfcluster reproduce`: the paper's experiments as one plan that continues on failure."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pfcluster.cli.reproduce_plan import Reproduction
from pfcluster.cli.reproduce_settings import dataset_settings, downloads
from pfcluster.cli.train import execute, print_plan
from pfcluster.config import ConfigError, RunConfig
from pfcluster.config.starts import PfVitStart
from pfcluster.experiments.cells import CELLS, TABLES
from pfcluster.experiments.matrix import plan_runs
from pfcluster.experiments.miniature import miniature
from pfcluster.launch.command_line import parse_known
from pfcluster.launch.options import ClusterOptions, InlineCluster, resolve_cluster
from pfcluster.launch.overrides import SET_BY_STUDIES, apply_overrides, require_absent
from pfcluster.launch.training_options import Options, command_text, require_seeds
from pfcluster.system.terminal import plain_console

CELL_NAMES = tuple(cell.name for cell in CELLS)
OF_REAL_DATASETS = (
    "data_root",
    "faces",
    "preset",
    "ablated",
    "identity_net",
    "identity_net_weights",
    "resnet_weights",
    "sl_weights",
    "imagenet_mae",
    "released_mae",
    "identities",
    "fid",
)
"""Options that have no effect with --miniature."""
SET_BY_CELLS = {
    **SET_BY_STUDIES,
    "--data.shards": "each dataset is a folder of --data-root, named by --datasets",
    "--model.init": "the cells say what each run starts from",
    "--pf-mag.decoder-init": "the cells say what each run starts from",
    "--pf-mag.identity-net": "--identity-net names it, and cells compare it",
    "--pf-mag.identity-net-weights": "--identity-net-weights names them",
    "--evaluate.judge": "the judge is trained for each dataset",
    "--evaluate.fid": "--fid names the features",
    "--evaluate.identity-net": "--identities names the dataset that it is trained on",
    "--evaluate.n-probe-images": "the tables compare probes of equal size",
}
TIMM = "timm:vit_base_patch16_224.augreg_in1k"


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions:
    """Run the paper's experiments and write its tables. Fields of the config are options too, such as --epochs 30."""

    miniature: bool = False
    """Run everything at a small scale on synthetic faces."""
    datasets: tuple[str, ...] = ()
    """Datasets, such as rafdb affectnet7: folders of shards under --data-root."""
    data_root: Path = Path("data")
    """Folder that holds the shards of all datasets."""
    faces: str | None = None
    """Dataset for pre-training, without its labels; default: the largest."""
    preset: str = "vit"
    """vit: the paper's sizes vit-t, vit-s, vit-b; or one preset for all sizes."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each cell is trained with each seed."""
    pf_vit_start: PfVitStart | None = None
    """Weights that PF-ViT starts from: the MAE's, as in the paper, or those of the MAE-ViT with the same seed; default:
    the presets'."""
    tables: Annotated[tuple[str, ...], tyro.conf.arg(help=f"Only these tables: {', '.join(sorted(TABLES))}.")] = ()
    cells: Annotated[tuple[str, ...], tyro.conf.arg(help=f"Only these cells: {', '.join(CELL_NAMES)}.")] = ()
    ablated: tuple[str, ...] | None = None
    """Datasets on which more than the baselines is trained; default: all."""
    identity_net: Literal["face", "tokens"] = "face"
    """Identity net (φ) of PF-ViT: the paper's face recognition net, or the encoder's own tokens."""
    identity_net_weights: str | None = None
    """File of the face recognition net; default: the download of facenet-pytorch."""
    resnet_weights: str | None = None
    """File of timm's resnet50; default: timm's download."""
    sl_weights: str = TIMM
    """Supervised weights of SL-ViT: timm:NAME or a file."""
    imagenet_mae: str | None = None
    """Checkpoint of facebookresearch/mae, for the MAE-ViT of ImageNet."""
    released_mae: str | None = None
    """The authors' MAE of faces (a file with the key model or model_state_dict)."""
    identities: str | None = None
    """Dataset on which an identity classifier is trained, which measures whether identity is kept."""
    fid: str | None = None
    """Features of the Fréchet distance: "inception", or a file of its weights; default: the judge's."""
    max_parallel: int | None = None
    """Runs at the same time on this machine or on Ray; default: 1, with --miniature 2."""
    output: Path | None = None
    """Output folder; default: runs/reproduce, with --miniature runs/miniature."""
    job_name: str | None = None
    """Prefix of the job names in SLURM's queue; default: the folder's name."""
    dry_run: bool = False
    """Print the plan, and start nothing."""
    cluster: InlineCluster = field(default_factory=ClusterOptions)

    def __post_init__(self) -> None:
        require_seeds(self.seeds)
        for option, names, allowed in (
            ("--tables", self.tables, tuple(sorted(TABLES))),
            ("--cells", self.cells, CELL_NAMES),
        ):
            for name in names:
                if name not in allowed:
                    raise ConfigError(f"{option} must be one of {', '.join(allowed)}, got {name!r}")
        if self.max_parallel is not None and self.max_parallel < 1:
            raise ConfigError(f"--max-parallel must be at least 1, got {self.max_parallel}")
        if self.miniature == bool(self.datasets):
            raise ConfigError("reproduce needs either --datasets NAME ..., or --miniature for synthetic faces")
        for name in self.ablated or ():
            if not self.miniature and name not in self.datasets:
                raise ConfigError(f"--ablated must be among --datasets {' '.join(self.datasets)}, got {name!r}")


def main(arguments: list[str]) -> int:
    """Run the paper's experiments; returns the exit code. Raises ValueError, LaunchError."""
    reproduction, console = parse(arguments), plain_console()
    plan = reproduction.plan()
    reproduction.print_missing(console)
    if reproduction.options.dry_run:
        reproduction.print_downloads(console)
        print_plan(plan, reproduction.options.cluster, console)
        return 0
    return execute("reproduce", plan, reproduction.options, console, before=reproduction.record)


def parse(arguments: Sequence[str]) -> Reproduction:
    """The experiments that a command line describes. Raises ConfigError, DataError, IdentityNetError."""
    given, overrides = parse_known(ReproduceOptions, arguments, prog="pfcluster reproduce")
    require_absent(overrides, SET_BY_CELLS)
    if given.miniature:
        _require_no_real_data(arguments)

    @functools.cache
    def change(config: RunConfig) -> RunConfig:
        return apply_overrides(config, overrides)

    output = given.output or Path("runs") / ("miniature" if given.miniature else "reproduce")
    settings = (
        miniature(output, given.seeds, given.tables, given.cells, change)
        if given.miniature
        else dataset_settings(given, output, change)
    )
    settings = replace(settings, pf_vit_start=given.pf_vit_start)
    options = Options(
        command="reproduce",
        command_line=command_text("reproduce", arguments),
        preset=given.preset,
        seeds=settings.seeds,
        max_parallel=given.max_parallel or (2 if given.miniature else 1),
        output=output,
        name=given.job_name,
        input=None,
        build=(),
        dry_run=given.dry_run,
        assumed_tflops=300.0,
        cluster=resolve_cluster(given.cluster, dry_run=given.dry_run),
        overrides=tuple(overrides),
    )
    unchecked = () if given.miniature or not given.dry_run else tuple(downloads(given, settings))
    return Reproduction(settings, tuple(plan_runs(settings)), options, given.miniature, unchecked)


def _require_no_real_data(arguments: Sequence[str]) -> None:
    """Raises ConfigError if options of real datasets are given, be it with their default."""
    words = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in arguments if word[:2] == "--"}
    ignored = [f"--{name.replace('_', '-')}" for name in OF_REAL_DATASETS if name in words]
    if ignored:
        raise ConfigError(
            f"{', '.join(ignored)}: without effect with --miniature, whose faces, presets and nets are fixed; leave it"
            " out, or use --datasets"
        )
