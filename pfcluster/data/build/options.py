"""What a build of shards can be asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pfcluster.data.build.align import FaceRule
from pfcluster.data.build.plan import DEFAULT_VAL_SHARE, BuildError, PlanOptions
from pfcluster.data.labels import CANONICAL
from pfcluster.data.raw.base import ReadOptions, VotingMode

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
    """A dataset in its own layout (docs/guides/data.md), or class folders, a tar of them, or a CSV of image, label and
    optionally identity and split."""
    output: Path
    """Folder to write into."""
    test_input: Path | None = None
    """The dataset's own test split, in any of the three forms. Copies of its photos in the input are left out."""
    kind: Kind = "auto"
    """The input's layout; "auto" finds it out by the names of its files."""
    images: Path | None = None
    """Folder of a CSV's photos; without it they are looked for beside the CSV and in its `images` folder."""
    votes: VotingMode = "majority"
    """FERPlus: how the annotators' votes become a label. Accuracies under different modes do not compare."""
    peak_frames: int = 1
    """CK+: last frames of a sequence that bear its label."""
    originals: bool = False
    """RAF-DB, SFEW: the original photos instead of the crops that the dataset's authors aligned."""
    labels: Literal["required", "ignored"] = "required"
    """"ignored" takes every photo and stores no label: faces for pre-training."""
    without: tuple[str, ...] = ()
    """Emotions to leave out: `--without contempt` makes AffectNet-7 of AffectNet-8."""
    duplicates: Literal["leave-out", "keep"] = "leave-out"
    """"keep" takes copies of a photo as they come, also across splits: published counts need it."""
    landmarks: Path | None = None
    """Folder of OpenFace's CSVs, one a photo; for --align landmarks."""
    size: int = 112
    """Side of the square crops in pixels."""
    align: Literal["mtcnn", "landmarks", "none"] = "mtcnn"
    """Detect faces and align them by five landmarks, align by landmarks that the dataset or --landmarks gives, or take
    photos as they are, resized."""
    face: FaceRule = "largest-central"
    """Which of several faces is taken, where the dataset gives no box: the one of the largest area times nearness to
    the photo's centre, of the largest area, or the nearest."""
    several: Literal["take", "leave-out"] = "take"
    """Photos with more than one face: take one by the rule, or leave the photo out."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where faces are detected; "auto" takes the GPU where there is one. Workers share a machine's GPUs in turn."""
    val_share: float | None = None
    """Share of the training photos held out for validation, by identity, stratified by label; 0.1 unless the dataset
    has a validation split of its own."""
    test_share: float = 0.0
    """Share of the input held out for the test split; for datasets without one of their own."""
    max_bad_share: float = 0.05
    """The build stops where more than this share of the photos is missing or unreadable."""
    slice: str | None = None
    """Make only part I of N, such as 3/16 (I from 0), so that many machines share a build of one folder; `auto` takes
    both from a SLURM array's task. The last part to end writes the manifest."""
    workers: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))
    """Processes; they change nothing in the result."""
    samples_per_shard: int = 512
    """Photos a shard; those left out later make it shorter."""
    quality: int = 95
    """Of the JPEGs written, 1 to 100."""
    seed: int = 0
    """Of the split and the order of photos."""
    name: str | None = None
    """The dataset's name; without it a known dataset's own, or that of the input (of a CSV: its folder's)."""
    limit: int | None = None
    """Take only so many photos of each input, drawn by the seed."""

    def __post_init__(self) -> None:
        held = DEFAULT_VAL_SHARE if self.val_share is None else self.val_share
        unknown = [name for name in self.without if name not in CANONICAL]
        checks = (
            ("without", unknown, not unknown, f"name emotions of {', '.join(CANONICAL)}"),
            ("peak-frames", self.peak_frames, self.peak_frames >= 1, "be at least 1"),
            ("size", self.size, 8 <= self.size <= 1024, "lie in 8..1024 pixels"),
            ("val-share", self.val_share, 0 <= held < 1, "lie in [0, 1)"),
            ("test-share", self.test_share, 0 <= self.test_share < 1, "lie in [0, 1)"),
            (
                "val-share plus test-share",
                held + self.test_share,
                held + self.test_share < 1,
                "be < 1",
            ),
            ("max-bad-share", self.max_bad_share, 0 <= self.max_bad_share <= 1, "lie in [0, 1]"),
            ("workers", self.workers, 1 <= self.workers <= 1024, "lie in 1..1024"),
            ("samples-per-shard", self.samples_per_shard, self.samples_per_shard >= 1, "be at least 1"),
            ("quality", self.quality, 1 <= self.quality <= 100, "lie in 1..100"),
            ("limit", self.limit, self.limit is None or self.limit >= 1, "be at least 1"),
        )
        for name, value, holds, wanted in checks:
            if not holds:
                raise BuildError(f"--{name} must {wanted}, got {value}")
        self.part()
        if self.landmarks is not None and self.align != "landmarks":
            raise BuildError(f"--landmarks is for --align landmarks, got --align {self.align}")
        if self.test_input and self.test_share:
            raise BuildError("--test-input and --test-share both make a test split: give one of them")

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        source = self.input.resolve()
        return self.name or (source.parent.name if source.suffix.lower() in (".csv", ".tsv") else source.stem)

    def part(self) -> tuple[int, int]:
        """Which part of how many is to be made; (0, 1) is all. Raises BuildError."""
        if self.slice is None:
            return 0, 1
        text = self.slice
        if text == "auto":
            names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
            if any(name not in os.environ for name in names):
                raise BuildError("--slice auto needs a SLURM array (sbatch --array=0-15); else say which, such as 3/16")
            task, first, count = (os.environ[name] for name in names)
            text = f"{int(task) - int(first)}/{count}" if task.isdecimal() and first.isdecimal() else f"{task}/{count}"
        number_text, _, count_text = text.partition("/")
        if not (number_text.isdecimal() and count_text.isdecimal() and int(number_text) < int(count_text)):
            raise BuildError(f"--slice must be I/N with 0 <= I < N, such as 3/16, got {text!r}")
        return int(number_text), int(count_text)

    def detector_device(self) -> str:
        """The device of this process's detector."""
        import torch

        if self.device == "cpu" or not torch.cuda.is_available():
            if self.device == "cuda":
                raise BuildError("--device is cuda, but torch sees no CUDA device here; use cpu or auto")
            return "cpu"
        return f"cuda:{os.getpid() % torch.cuda.device_count()}"

    def reading(self) -> ReadOptions:
        """What the readers are asked for."""
        names = ("images", "votes", "peak_frames", "originals")
        return ReadOptions(**{name: getattr(self, name) for name in names})

    def plan(self) -> PlanOptions:
        """What decides the plan."""
        names = ("val_share", "test_share", "samples_per_shard", "seed", "labels", "without", "duplicates")
        return PlanOptions(**{name: getattr(self, name) for name in names})

    def lasting(self) -> dict[str, Any]:
        """The options that decide the result's bytes, without paths."""
        left = (
            "input",
            "output",
            "test_input",
            "images",
            "landmarks",
            "kind",
            "workers",
            "device",
            "name",
            "slice",
            "max_bad_share",
        )
        values = {key: value for key, value in vars(self).items() if key not in left}
        return {"name": self.dataset, **values, "without": list(self.without)}
