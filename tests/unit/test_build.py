"""Builds: splits, photos that are left out, and resuming an interrupted build."""

from __future__ import annotations

import functools
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pfcluster.data.build.detect import FaceAligner
from pfcluster.data.build.errors import BuildError
from pfcluster.data.build.make_shard import ShardMaker
from pfcluster.data.build.pipeline import build
from pfcluster.data.build.plan import make_plan
from pfcluster.data.build.split import choose_groups, connected_groups
from pfcluster.data.build.workers import run_workers
from pfcluster.data.manifest import BUILD_FOLDER, MANIFEST, ShardError, load_manifest
from pfcluster.data.raw.base import RawDataset
from pfcluster.data.raw.readers import read_raw
from pfcluster.data.shards import ShardSplit
from tests.photos import (
    CANONICAL,
    ROOT,
    SIZE,
    contents,
    left_out,
    make_csv,
    make_folder,
    options,
    picture,
)


def test_splits_share_no_identity_and_rare_classes_reach_validation(tmp_path: Path) -> None:
    rows = [
        (f"{person}_{n}.png", label, f"person{person}") for person in range(20) for n, label in enumerate(CANONICAL)
    ]
    rows = [row for row in rows if row[1] != "fear" or row[2] in ("person3", "person11")]
    build(options(make_csv(tmp_path, rows), tmp_path / "out", val_share=0.2, test_share=0.2))
    splits = {name: ShardSplit(tmp_path / "out", name) for name in ("train", "validation", "test")}
    identities = {name: set(split.identities()) for name, split in splits.items()}
    assert not identities["train"] & identities["validation"]
    assert not identities["train"] & identities["test"]
    assert not identities["validation"] & identities["test"]
    assert len(set().union(*identities.values())) == 20
    manifest = load_manifest(tmp_path / "out")
    assert manifest.splits["validation"].per_class["fear"] == 1
    assert manifest.splits["train"].per_class["fear"] == 1
    assert 8 <= manifest.splits["test"].samples <= 16


def test_identities_with_a_common_photo_form_one_group() -> None:
    links = [("a", "x"), ("b", "y"), ("c", "y"), ("b", "x"), ("d", "z")]
    groups = connected_groups([(("person", person), ("content", content)) for person, content in links])
    assert groups == [0, 0, 0, 0, 1]


def test_choose_groups_keeps_the_last_group_of_a_class() -> None:
    members = {0: Counter(fear=1, sadness=3), 1: Counter(fear=1), 2: Counter(disgust=4), 3: Counter(sadness=3)}
    for seed in range(20):
        chosen = choose_groups(members, 0.5, seed)
        assert 2 not in chosen
        for label in ("fear", "sadness"):
            groups = {group for group, labels in members.items() if label in labels}
            assert chosen & groups
            assert groups - chosen


def test_left_out_photos_are_listed_with_their_reason(tmp_path: Path) -> None:
    rows = [(f"{n}.png", label, f"p{n}") for n, label in enumerate(["happy", "sad"] * 4)]
    rows += [
        ("gone.jpg", "happy", "q"),
        ("broken.jpg", "happy", "q"),
        ("empty.jpg", "sad", "q"),
        ("odd.png", "bored", "q"),
        ("0.png", "happy", "p0"),
        ("copy.bin", "sad", "p1"),
        ("twice.png", "happy", "r"),
        ("twice.png", "sad", "r"),
        ("", "sad", "r"),
    ]
    source = make_csv(tmp_path, rows)
    images = tmp_path / "images"
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
    (images / "broken.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (images / "empty.jpg").write_bytes(b"")
    picture("happy", 500).save(images / "odd.png")
    (images / "copy.bin").write_bytes((images / "1.png").read_bytes())
    build(options(source, tmp_path / "out", val_share=0, max_bad_share=0.2))
    assert left_out(tmp_path / "out") == {
        "input:gone.jpg:happy": "missing file",
        "input:broken.jpg:happy": "unreadable",
        "input:empty.jpg:sad": "unreadable",
        "input:odd.png:bored": "unknown label",
        "input:0.png:happy": "duplicate row",
        "input:copy.bin:sad": "duplicate photo",
        "input:twice.png:happy": "conflicting labels",
        "input:twice.png:sad": "conflicting labels",
        "input::sad": "no image named",
    }
    manifest = load_manifest(tmp_path / "out")
    assert manifest.left_out == Counter(left_out(tmp_path / "out").values())
    assert manifest.splits["train"].samples == 8


def test_photos_of_the_test_input_are_not_used_for_training(tmp_path: Path) -> None:
    train = make_folder(tmp_path / "train", 6, ("happy", "sad"))
    test = make_folder(tmp_path / "test", 3, ("happy", "sad"))  # the same first three of each class
    (test / "neutral").mkdir()
    picture("neutral", 9).save(test / "neutral" / "x.png")
    build(options(train, tmp_path / "out", test_input=test, val_share=0.34))
    manifest = load_manifest(tmp_path / "out")
    assert manifest.left_out == {"also in the test split": 6}
    assert manifest.splits["test"].samples == 7
    assert manifest.classes == ("neutral", "happiness", "sadness")
    assert manifest.splits["train"].samples + manifest.splits["validation"].samples == 6


def test_photos_without_faces_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("facenet_pytorch")
    with pytest.raises(BuildError, match=r"no face was found in any photo \(no face found: 4\); --align none"):
        build(options(make_folder(tmp_path / "raw", 2, ("happy", "sad")), tmp_path / "out", align="mtcnn"))
    assert not (tmp_path / "out" / MANIFEST).exists()


def maker_with_unfit_detector(output: Path, datasets: dict[str, RawDataset]) -> ShardMaker:
    """A ShardMaker whose detector has weights that do not fit."""
    aligner = FaceAligner(SIZE)
    aligner._detector.pnet.conv1 = torch.nn.Conv2d(4, 10, 3)
    return ShardMaker(output, "raw", datasets, SIZE, 95, aligner)


def test_a_detector_that_fails_ends_the_build_with_its_error(tmp_path: Path) -> None:
    pytest.importorskip("facenet_pytorch")
    build_options = options(make_folder(tmp_path / "raw", 2, ("happy", "sad")), tmp_path / "out", align="mtcnn")
    datasets = {"input": read_raw(build_options.input)}
    shards = make_plan(datasets, build_options.plan_options()).shards
    (tmp_path / "out" / BUILD_FOLDER).mkdir(parents=True)
    make_maker = functools.partial(maker_with_unfit_detector, tmp_path / "out", datasets)
    with pytest.raises(BuildError, match=r"a worker failed \(RuntimeError: .*channels.*finished shards are kept"):
        run_workers(make_maker, shards, 1, lambda photos: None)
    assert not list((tmp_path / "out" / BUILD_FOLDER).glob("*.done.json"))


@pytest.mark.skipif("PFCLUSTER_REAL_DATA" not in os.environ, reason="PFCLUSTER_REAL_DATA is not set")
def test_real_photos_become_aligned_shards(tmp_path: Path) -> None:
    source = Path(os.environ["PFCLUSTER_REAL_DATA"]) / "wild" / "legend.csv"
    result = build(options(source, tmp_path / "out", align="mtcnn", size=112, limit=24, val_share=0.2))
    manifest = result.manifest
    assert manifest.photos == 24
    assert sum(split.samples for split in manifest.splits.values()) >= 20
    with tarfile.open(tmp_path / "out" / "train-00000.tar") as archive:
        records = [json.load(archive.extractfile(m)) for m in archive if m.name.endswith(".json")]  # type: ignore[arg-type]
    assert all(np.shape(record["landmarks"]) == (5, 2) for record in records)


def test_result_does_not_depend_on_the_number_of_workers(raw: Path, built: Path, tmp_path: Path) -> None:
    build(options(raw, tmp_path / "two", val_share=0.25, workers=2))
    assert contents(tmp_path / "two") == contents(built)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def start_and_interrupt(
    command: list[str], output: Path, number: signal.Signals
) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a build, send it a signal once three shards are finished, and wait until it exits."""
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as in a shell's background job
    )
    while len(list((output / ".build").glob("*.done.json"))) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    workers = children(process.pid)
    process.send_signal(number)
    process.wait(timeout=300)
    return process, workers


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """450 photos, and the files of their build in 113 shards."""
    root = tmp_path_factory.mktemp("large")
    build(options(make_folder(root / "raw", 150), root / "built", samples_per_shard=4))
    return root / "raw", contents(root / "built")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_resumes_to_the_same_bytes(
    large: tuple[Path, dict[str, bytes]], tmp_path: Path, number: signal.Signals
) -> None:
    raw, uninterrupted = large
    output = tmp_path / "interrupted"
    command = [sys.executable, str(ROOT / "shards" / "build.py"), "--input", str(raw), "--output", str(output)]
    command += ["--size", str(SIZE), "--align", "none", "--samples-per-shard", "4", "--workers", "2"]
    process, workers = start_and_interrupt(command, output, number)
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "Traceback" not in process.communicate()[1]
    for _ in range(3000):  # all workers end
        if not any(Path(f"/proc/{worker}").exists() for worker in workers):
            break
        time.sleep(0.01)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert not (output / MANIFEST).exists()
    with pytest.raises(ShardError, match="build is unfinished"):
        load_manifest(output)
    finished = [output / (marker.name.split(".")[0] + ".tar") for marker in (output / ".build").glob("*.done.json")]
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in finished}
    assert 3 <= len(finished) < 113
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in finished} == before
    temporary = {name for name in contents(output) if ".tmp" in name}
    assert all(name.startswith(".") for name in temporary)
    files = {name: data for name, data in contents(output).items() if name not in temporary}
    assert files == uninterrupted


def test_a_finished_build_is_not_repeated(raw: Path, damaged: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in damaged.iterdir()}
    result = build(options(raw, damaged, val_share=0.25))
    assert result.photos_now == 0
    assert {path: path.stat().st_mtime_ns for path in damaged.iterdir()} == before


def test_a_build_with_other_options_is_refused(raw: Path, damaged: Path) -> None:
    with pytest.raises(BuildError, match=r"options.size was 24, now 32.*delete the folder"):
        build(options(raw, damaged, val_share=0.25, size=32))
    with pytest.raises(BuildError, match=r"options.seed was 0, now 5"):
        build(options(raw, damaged, val_share=0.25, seed=5))


def test_a_changed_input_is_refused(raw: Path, damaged: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = make_folder(tmp_path_factory.mktemp("other") / "faces", 12)
    picture("sad", 4000, 40).save(other / "sad" / "000.png")
    with pytest.raises(BuildError, match="photos, labels, splits or other fields have changed"):
        build(options(other, damaged, val_share=0.25))
