"""What a build of shards can be asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pfcluster.data.plan import BuildError


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Build a folder of shards from a raw dataset."""

    input: Path
    """Folder of class folders, CSV (image, label, optional identity) or tar of class folders."""
    output: Path
    """Folder to write into."""
    test_input: Path | None = None
    """The dataset's own test split, in any of the three forms. Copies of its photos in the input are left out."""
    images: Path | None = None
    """Folder of a CSV's photos; without it they are looked for beside the CSV and in its `images` folder."""
    size: int = 112
    """Side of the square crops in pixels."""
    align: Literal["mtcnn", "none"] = "mtcnn"
    """Detect faces and align them by five landmarks, or take photos as they are, resized."""
    val_share: float = 0.1
    """Share of the input held out for validation, by identity, stratified by label."""
    test_share: float = 0.0
    """Share of the input held out for the test split; for datasets without one of their own."""
    workers: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))
    """Processes; they change nothing in the result."""
    samples_per_shard: int = 512
    """Photos a shard; those left out later make it shorter."""
    quality: int = 95
    """Of the JPEGs written, 1 to 100."""
    seed: int = 0
    """Of the split and the order of photos."""
    name: str | None = None
    """The dataset's name; without it that of the input (of a CSV: its folder's)."""
    limit: int | None = None
    """Take only so many photos of each input, drawn by the seed."""

    def __post_init__(self) -> None:
        checks = (
            ("size", self.size, 8 <= self.size <= 1024, "lie in 8..1024 pixels"),
            ("val-share", self.val_share, 0 <= self.val_share < 1, "lie in [0, 1)"),
            ("test-share", self.test_share, 0 <= self.test_share < 1, "lie in [0, 1)"),
            (
                "val-share plus test-share",
                self.val_share + self.test_share,
                self.val_share + self.test_share < 1,
                "be < 1",
            ),
            ("workers", self.workers, 1 <= self.workers <= 1024, "lie in 1..1024"),
            ("samples-per-shard", self.samples_per_shard, self.samples_per_shard >= 1, "be at least 1"),
            ("quality", self.quality, 1 <= self.quality <= 100, "lie in 1..100"),
            ("limit", self.limit, self.limit is None or self.limit >= 1, "be at least 1"),
        )
        for name, value, holds, wanted in checks:
            if not holds:
                raise BuildError(f"--{name} must {wanted}, got {value}")
        if self.test_input and self.test_share:
            raise BuildError("--test-input and --test-share both make a test split: give one of them")

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        source = self.input.resolve()
        return self.name or (source.parent.name if source.suffix.lower() in (".csv", ".tsv") else source.stem)

    def lasting(self) -> dict[str, Any]:
        """The options that decide the result's bytes, without paths."""
        left = ("input", "output", "test_input", "images", "workers", "name")
        return {"name": self.dataset, **{key: value for key, value in vars(self).items() if key not in left}}
