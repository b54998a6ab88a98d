"""Options of a build of shards (`pfcluster build`)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pfcluster.data.build.align import FaceRule
from pfcluster.data.build.errors import BuildError
from pfcluster.data.build.plan import DEFAULT_VAL_SHARE, PlanOptions
from pfcluster.data.labels import CANONICAL
from pfcluster.data.raw.base import ReadOptions, VotingMode
from pfcluster.data.raw.name_options import class_options, split_options

Kind = Literal[
    "auto",
    "rafdb",
    "affectnet",
    "ferplus",
    "fer2013",
    "expw",
    "ckplus",
    "jaffe",
    "sfew",
    "parquet",
    "csv",
    "tar",
    "folder",
]


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Build a folder of shards from a raw dataset."""

    input: Path
    """A dataset in its authors' layout (docs/guides/data.md), class folders, a tar of class folders, or a CSV of image,
    label and optionally identity and split."""
    output: Path
    """Output folder."""
    test_input: Path | None = None
    """The dataset's test split, if it is separate; of data with splits of its own, their test split is used. Copies of
    its photos in the input are left out."""
    kind: Kind = "auto"
    """Layout of the input; "auto" recognises it by file names."""
    images: Path | None = None
    """Folder of the input's photos if it is a CSV; default: next to the CSV, or `images/` there."""
    test_images: Path | None = None
    """The same for --test-input."""
    votes: VotingMode = "majority"
    """FERPlus: how annotators' votes are turned into a label. Accuracies under different modes are not comparable."""
    peak_frames: int = 1
    """CK+: number of last frames of a sequence that get its label."""
    originals: bool = False
    """RAF-DB, SFEW: use the original photos instead of the aligned crops of the dataset's authors."""
    labels: Literal["required", "ignored"] = "required"
    """"ignored" uses all photos and stores no labels, for pre-training."""
    classes: tuple[str, ...] = ()
    """Emotions of labels that are not names of emotions: `--classes 1=happiness 2=sadness suprise=surprise`, or
    `NAME=none` for folders that are not labels."""
    splits: tuple[str, ...] = ()
    """Splits of names that are not recognised: `--splits extra=train holdout=test other=train`, or `NAME=none` for a
    name that is not a split; `--splits ignore` splits all photos anew."""
    exclude_classes: tuple[str, ...] = ()
    """Emotions to leave out: `--exclude-classes contempt` turns AffectNet-8 into AffectNet-7."""
    duplicates: Literal["leave-out", "keep"] = "leave-out"
    """"keep" keeps copies of a photo, also across splits, as published sample counts do."""
    landmarks: Path | None = None
    """Folder of OpenFace's CSV files, one per photo; for --align landmarks."""
    size: int = 112
    """Side of the square crops, in pixels."""
    align: Literal["mtcnn", "landmarks", "none"] = "mtcnn"
    """mtcnn: detect faces and align them by five landmarks. landmarks: align by landmarks of the dataset or of
    --landmarks. none: resize photos without alignment; of ExpW, the listed boxes."""
    face: FaceRule = "largest-central"
    """Which of several faces to use if the dataset gives no box: largest area weighted by closeness to the photo's
    centre, largest area, or closest to the centre."""
    multiple_faces: Literal["take", "leave-out"] = "take"
    """Photos with more than one face: use the one selected by --face, or leave the photo out."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the face detector; "auto" uses a GPU if there is one. Workers are spread over a machine's GPUs."""
    val_share: float | None = None
    """Fraction of the training photos held out for validation, by identity and stratified by label; default 0.1 unless
    the dataset has a validation split."""
    test_share: float = 0.0
    """Fraction of the input held out as test split, for datasets without one."""
    max_bad_share: float = 0.05
    """The build fails if more than this fraction of the photos is missing or unreadable."""
    slice: str | None = None
    """Build only slice I of N, e.g. 3/16 (I from 0), so that several machines share a build of one folder; `auto` takes
    both from a SLURM array task. The last slice to finish writes the manifest."""
    workers: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))
    """Worker processes; the result does not depend on their number."""
    samples_per_shard: int = 512
    """Planned photos per shard; fewer if some of them yield no face."""
    quality: int = 95
    """JPEG quality, 1 to 100."""
    seed: int = 0
    """Seed of the split and of the order of photos."""
    name: str | None = None
    """Name of the dataset; default: that of a recognised dataset, else of the input (for a CSV: of its folder)."""
    limit: int | None = None
    """Use only this many photos of each input, drawn by the seed."""

    def __post_init__(self) -> None:
        val_share = DEFAULT_VAL_SHARE if self.val_share is None else self.val_share
        unknown = [name for name in self.exclude_classes if name not in CANONICAL]
        checks = (
            ("exclude-classes", unknown, not unknown, f"name emotions of {', '.join(CANONICAL)}"),
            ("peak-frames", self.peak_frames, self.peak_frames >= 1, "be at least 1"),
            ("size", self.size, 8 <= self.size <= 1024, "lie in 8..1024 pixels"),
            ("val-share", self.val_share, 0 <= val_share < 1, "lie in [0, 1)"),
            ("test-share", self.test_share, 0 <= self.test_share < 1, "lie in [0, 1)"),
            (
                "val-share plus test-share",
                val_share + self.test_share,
                val_share + self.test_share < 1,
                "be < 1",
            ),
            ("max-bad-share", self.max_bad_share, 0 <= self.max_bad_share <= 1, "lie in [0, 1]"),
            ("workers", self.workers, 1 <= self.workers <= 1024, "lie in 1..1024"),
            ("samples-per-shard", self.samples_per_shard, self.samples_per_shard >= 1, "be at least 1"),
            ("quality", self.quality, 1 <= self.quality <= 100, "lie in 1..100"),
            ("limit", self.limit, self.limit is None or self.limit >= 1, "be at least 1"),
        )
        for name, value, holds, rule in checks:
            if not holds:
                raise BuildError(f"--{name} must {rule}, got {value}")
        self.slice_of_build()
        self.read_options(self.images)
        if self.test_images is not None and self.test_input is None:
            raise BuildError("--test-images is the folder of the photos of --test-input, which is missing")
        if self.landmarks is not None and self.align != "landmarks":
            raise BuildError(f"--landmarks requires --align landmarks, got --align {self.align}")
        if self.multiple_faces != "take" and self.align != "mtcnn":
            raise BuildError(
                f"--multiple-faces {self.multiple_faces} requires --align mtcnn, which counts the faces of a photo;"
                f" --align {self.align} detects none"
            )
        if self.test_input and self.test_share:
            raise BuildError("--test-input and --test-share both define a test split: use only one of them")

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        source = self.input.resolve()
        return self.name or (source.parent.name if source.suffix.lower() in (".csv", ".tsv") else source.stem)

    def slice_of_build(self) -> tuple[int, int]:
        """(I, N): build slice I of N; (0, 1) is everything. Raises BuildError."""
        if self.slice is None:
            return 0, 1
        text = self.slice
        if text == "auto":
            names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
            if any(name not in os.environ for name in names):
                raise BuildError(
                    "--slice auto requires a SLURM array (sbatch --array=0-15); outside of one use e.g. 3/16"
                )
            task, first, count = (os.environ[name] for name in names)
            text = f"{int(task) - int(first)}/{count}" if task.isdecimal() and first.isdecimal() else f"{task}/{count}"
        number_text, _, count_text = text.partition("/")
        if not (number_text.isdecimal() and count_text.isdecimal() and int(number_text) < int(count_text)):
            raise BuildError(f"--slice must be I/N with 0 <= I < N, e.g. 3/16, got {text!r}")
        return int(number_text), int(count_text)

    def detector_device(self) -> str:
        """Device of this process's face detector. Raises BuildError."""
        import torch

        if self.device == "cpu" or not torch.cuda.is_available():
            if self.device == "cuda":
                raise BuildError("--device is cuda, but torch sees no CUDA device here; use cpu or auto")
            return "cpu"
        return f"cuda:{os.getpid() % torch.cuda.device_count()}"

    def read_options(self, images: Path | None) -> ReadOptions:
        """Options of the readers of one input. `images`: folder of its photos. Raises RawDataError."""
        names = ("votes", "peak_frames", "originals")
        return ReadOptions(
            images=images,
            classes=class_options(self.classes),
            splits=split_options(self.splits),
            labels_ignored=self.labels == "ignored",
            **{name: getattr(self, name) for name in names},
        )

    def plan_options(self) -> PlanOptions:
        """Options that determine the plan."""
        names = ("val_share", "test_share", "samples_per_shard", "seed", "labels", "exclude_classes", "duplicates")
        return PlanOptions(**{name: getattr(self, name) for name in names})

    def content_options(self) -> dict[str, Any]:
        """Options that determine the content of the shards, without paths."""
        excluded = (
            "input",
            "output",
            "test_input",
            "images",
            "test_images",
            "landmarks",
            "kind",
            "workers",
            "device",
            "name",
            "slice",
            "max_bad_share",
        )
        values = {key: value for key, value in vars(self).items() if key not in excluded}
        lists = {name: list(values[name]) for name in ("classes", "splits", "exclude_classes")}
        return {"name": self.dataset, **values, **lists}
