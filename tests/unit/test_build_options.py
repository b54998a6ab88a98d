"""Build options: slices, official splits, builds without labels, limits, excluded classes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pfcluster.data.build.errors import BuildError
from pfcluster.data.build.folder import build_lock
from pfcluster.data.build.pipeline import build
from pfcluster.data.manifest import BUILD_FOLDER, MANIFEST
from pfcluster.data.shards import ShardSplit
from pfcluster.runs.locks import exclusive_lock
from tests.photos import ROOT, SIZE, contents, make_folder, options, picture


@pytest.mark.slow
def test_slices_in_any_order_give_the_same_bytes(raw: Path, built: Path, tmp_path: Path) -> None:
    slices = ("2/3", "0/3", "0/3", "1/3")
    results = [build(options(raw, tmp_path / "out", val_share=0.25, slice=part)) for part in slices]
    assert results[0].shards_left > results[1].shards_left > results[-1].shards_left == 0
    assert [result.manifest is None for result in results] == [True, True, True, False]
    assert results[2].photos_now == 0
    assert contents(tmp_path / "out") == contents(built)
    assert build(options(raw, tmp_path / "out", val_share=0.25, slice="1/3")).photos_now == 0


@pytest.mark.slow
def test_concurrent_slices_write_one_manifest(tmp_path: Path) -> None:
    raw = make_folder(tmp_path / "raw", 40)
    build(options(raw, tmp_path / "plain"))
    command = [
        sys.executable,
        str(ROOT / "shards" / "build.py"),
        "--input",
        str(raw),
        "--output",
        str(tmp_path / "out"),
    ]
    command += ["--size", str(SIZE), "--align", "none", "--samples-per-shard", "8", "--workers", "1", "--slice", "auto"]
    array = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "4"}
    processes = [
        subprocess.Popen(
            command, env={**os.environ, **array, "SLURM_ARRAY_TASK_ID": str(number)}, stdout=subprocess.PIPE
        )
        for number in (1, 2, 3, 4)
    ]
    output = [process.communicate(timeout=300)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, output
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


@pytest.mark.parametrize("part", ["3", "3/3", "-1/2", "a/b", "auto"])
def test_invalid_slices_are_refused(raw: Path, tmp_path: Path, part: str) -> None:
    with pytest.raises(BuildError, match="--slice"):
        options(raw, tmp_path / "out", slice=part)


@pytest.mark.slow
def test_too_many_bad_photos_fail_the_build_and_finished_shards_are_kept(tmp_path: Path) -> None:
    raw = make_folder(tmp_path / "raw", 10, ("happy", "sad"))
    (raw / "sad" / "009.png").write_bytes(b"not an image")
    for limit in (0.0, 0.04):
        with pytest.raises(BuildError, match=r"1 of 20 photos cannot be read \(unreadable: 1; .*009\.png\), more than"):
            build(options(raw, tmp_path / "out", max_bad_share=limit))
    (tmp_path / "out" / ".train-00000.tar.4711.tmp").write_bytes(b"of a process that was killed")
    result = build(options(raw, tmp_path / "out", max_bad_share=0.05))
    assert not list((tmp_path / "out").glob(".*"))
    assert result.photos_now == 0
    assert result.manifest is not None
    assert result.manifest.left_out == {"unreadable": 1}


@pytest.mark.slow
def test_official_splits_are_kept(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for index, (split, count) in enumerate((("train", 6), ("val", 3), ("test", 2))):
        for label in ("happy", "sad"):
            (raw / split / label).mkdir(parents=True)
            for number in range(count):
                picture(label, 100 * index + number + 50 * (label == "sad")).save(raw / split / label / f"{number}.png")
    (raw / "train" / "sad" / "copy.png").write_bytes((raw / "test" / "sad" / "0.png").read_bytes())
    (raw / "train" / "sad" / "again.png").write_bytes((raw / "val" / "sad" / "0.png").read_bytes())
    manifest = build(options(raw, tmp_path / "out")).manifest
    assert manifest is not None
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 12, "validation": 6, "test": 4}
    assert manifest.left_out == {"also in the test split": 1, "duplicate photo": 1}
    kept = build(options(raw, tmp_path / "all", duplicates="keep")).manifest
    assert kept is not None
    assert kept.splits["train"].samples == 14
    for change, message in (({"val_share": 0.2}, "--val-share"), ({"test_share": 0.2}, "--test-share")):
        with pytest.raises(BuildError, match=f"official .* split; remove {message}"):
            build(options(raw, tmp_path / "no", **change))


def test_build_without_labels(tmp_path: Path) -> None:
    raw = make_folder(tmp_path / "raw", 8)
    (raw / "bored").mkdir()
    picture("happy", 5000).save(raw / "bored" / "x.png")
    manifest = build(options(raw, tmp_path / "out", labels="ignored")).manifest
    assert manifest is not None
    assert (manifest.classes, manifest.left_out) == ((), {})
    assert sum(split.samples for split in manifest.splits.values()) == 25
    assert set(ShardSplit(tmp_path / "out", "train").labels().tolist()) == {-1}


def test_excluded_classes_are_left_out(tmp_path: Path) -> None:
    raw = make_folder(tmp_path / "raw", 8)
    manifest = build(options(raw, tmp_path / "out", exclude_classes=("sadness",))).manifest
    assert manifest is not None
    assert (manifest.classes, manifest.left_out) == (("neutral", "happiness"), {"excluded class": 8})


def test_the_last_slice_removes_the_build_folder(tmp_path: Path) -> None:
    """A slice that completes the build must not remove the folder while another slice still uses it."""
    output = tmp_path / "shards"
    with build_lock(output, shared=True):
        with build_lock(output, shared=True):
            (output / MANIFEST).touch()
        with exclusive_lock(output / BUILD_FOLDER / "merge.lock"):
            pass
    assert [path.name for path in output.iterdir()] == [MANIFEST]
