"""Throughput of reading, resuming, face alignment and shard building, compared with common alternatives in one process.

    python -m benchmarks.data [--photos DIR] [--rounds 5] [--output benchmarks/results/data.md]

Images per second on one core (process CPU time, one thread), medians over rounds; ratios are medians of the ratio in
each round. Reading: 2,048 synthetic faces with camera noise at 224 px, in 4 shards; all variants return batches of 64
as uint8 tensors, except torchvision's, which returns floats. Alignment and building need raw photos: DIR/legend.csv and
DIR/images, 350 px.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.data_variants import (
    BATCH,
    SIDE,
    Read,
    decoders,
    image_folder,
    make_photos,
    make_shards,
    ours,
    real_crops,
    web_dataset,
)
from pfcluster.data.build.align import NO_HINT, Face, choose_face, overlap
from pfcluster.data.shards import ShardSplit


def rates(variants: dict[str, Read], rounds: int) -> dict[str, list[float]]:
    """Images per CPU second of each variant in each round, after a warm-up round."""
    by_variant: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, read in variants.items():
            started = time.process_time()
            images = read()
            if number:
                by_variant[name].append(images / (time.process_time() - started))
    return by_variant


def table(by_variant: dict[str, list[float]], base: str, title: str) -> Iterator[str]:
    """Markdown table of medians, and of the median over rounds of the ratio to `base`."""
    yield f"| {title} | images/s | over {base} |"
    yield "| --- | ---: | ---: |"
    for name, values in by_variant.items():
        ratio = statistics.median(rate / base_rate for rate, base_rate in zip(values, by_variant[base], strict=True))
        yield f"| {name} | {statistics.median(values):,.{0 if values[0] > 999 else 1}f} | {ratio:.2f} |"
    yield ""


def first_batch(shards: Path) -> Iterator[str]:
    """Wall-clock time from a fresh process to the first batch when resuming deep in an epoch."""
    programs = {
        "ours, at step 25 of 31": (
            "from pfcluster.data.dataset import open_dataset, sample_order\n"
            "from pfcluster.config import DataConfig\n"
            "began = time.perf_counter()\n"
            f"config = DataConfig(shards={str(shards)!r}, size={SIDE})\n"
            "data = open_dataset(config, 0)\n"
            f"data.train.batch(sample_order(config, data, 0).samples(25 * {BATCH}, {BATCH}))\n"
        ),
        "webdataset, read on to step 25": (
            "import webdataset, glob, simplejpeg\n"
            "began = time.perf_counter()\n"
            f"urls = sorted(glob.glob({str(shards)!r} + '/train-*.tar'))\n"
            "pipe = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(1000)\n"
            "pipe = pipe.to_tuple('jpg', 'json').map_tuple(simplejpeg.decode_jpeg, lambda x: x)\n"
            f"stream = iter(pipe.batched({BATCH}))\n"
            "for _ in range(26): next(stream)\n"
        ),
    }
    yield "| first batch after a resume | ms |"
    yield "| --- | ---: |"
    for name, body in programs.items():
        program = f"import time, torch\ntorch.set_num_threads(1)\n{body}print(time.perf_counter() - began)"
        times = []
        for _ in range(3):
            completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
            times.append(float(completed.stdout.split()[-1]))
        yield f"| {name} | {1000 * statistics.median(times):.0f} |"
    yield ""


def raw_photos(folder: Path, count: int) -> list[np.ndarray]:
    """Up to `count` photos of 350 x 350 px, spread over the dataset: h w 3 uint8 each."""
    paths = sorted((folder / "images").iterdir())
    photos: list[np.ndarray] = []
    for path in paths[:: max(1, len(paths) // (count * 2))]:
        with Image.open(path) as picture:
            if picture.size == (350, 350) and len(photos) < count:
                photos.append(np.array(picture.convert("RGB")))
    return photos


def aligning(folder: Path, rounds: int) -> Iterator[str]:
    """Alignment throughput on one core against facenet-pytorch, and the differences of boxes and landmarks."""
    from facenet_pytorch import MTCNN

    from pfcluster.data.build.detect import FaceAligner

    photos = raw_photos(folder, 96)
    mtcnn, aligner = MTCNN(keep_all=True).eval(), FaceAligner(112)
    reference_faces: list[Any] = []
    our_faces: list[list[Face]] = []

    def one_at_a_time() -> int:
        reference_faces[:] = [mtcnn.detect(Image.fromarray(photo), landmarks=True) for photo in photos]
        return len(photos)

    def ours_batched() -> int:
        our_faces[:] = aligner.detect_selected(photos, [NO_HINT] * len(photos))
        return len(photos)

    def ours_all_faces() -> int:
        aligner.detect(photos)
        return len(photos)

    variants = {
        "facenet-pytorch, one at a time": one_at_a_time,
        "ours, all faces of 40 px and more": ours_all_faces,
        "ours, as builds do it": ours_batched,
    }
    yield from table(rates(variants, rounds), "facenet-pytorch, one at a time", "aligning, 350 px")
    overlaps, distances = _alignment_differences(reference_faces, our_faces)
    yield (
        f"Both found a face in {len(overlaps)} of {len(photos)} photos. Intersection over union of the boxes: median"
        f" {np.median(overlaps):.2f}, 5th percentile {np.percentile(overlaps, 5):.2f}; mean distance of the five"
        f" landmarks over that of the eyes: median {np.median(distances):.3f}, 95th percentile"
        f" {np.percentile(distances, 95):.3f}."
    )
    yield ""


def _alignment_differences(reference_faces: list[Any], our_faces: list[list[Face]]) -> tuple[list[float], list[float]]:
    """Of photos in which both detect a face: intersection over union of the boxes, and the mean landmark distance over
    the distance between the eyes.
    """
    overlaps: list[float] = []
    distances: list[float] = []
    for (boxes, probabilities, points), faces in zip(reference_faces, our_faces, strict=True):
        if boxes is None or not faces:
            continue
        detections = zip(boxes, points, probabilities, strict=True)
        confident = [_face(*detection) for detection in detections if detection[2] >= 0.9]
        if confident:
            reference, face = choose_face(confident, 350, 350), choose_face(faces, 350, 350)
            eyes = np.linalg.norm(face.landmarks[0] - face.landmarks[1])
            overlaps.append(overlap(reference.box, face.box))
            distances.append(np.linalg.norm(reference.landmarks - face.landmarks, axis=1).mean() / eyes)
    return overlaps, distances


def _face(box: Any, points: Any, probability: Any) -> Face:
    left, top, right, bottom = map(float, box)
    return Face((left, top, right, bottom), np.asarray(points, dtype=np.float64), float(probability))


def building(folder: Path, scratch: Path) -> Iterator[str]:
    """Wall-clock time of builds with 1 and 2 workers, and whether a build that is killed twice gives the same bytes."""
    command = [sys.executable, "shards/build.py", "--input", str(folder / "legend.csv"), "--test-share", "0.15"]
    contents, seconds = {}, {}
    for name, workers in (("one worker", "1"), ("two workers", "2"), ("two workers, killed twice", "2")):
        output = scratch / name.replace(" ", "-")
        build_command = [*command, "--output", str(output), "--workers", workers]
        if "killed" in name:
            for pause in (8, 12):
                process = subprocess.Popen(build_command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                time.sleep(pause)
                process.kill()
                process.wait()
        started = time.perf_counter()
        subprocess.run(build_command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds[name] = time.perf_counter() - started
        contents[name] = {path.name: path.read_bytes() for path in sorted(output.glob("*.*"))}
        shutil.rmtree(output)
    photos = len((folder / "legend.csv").read_text().splitlines()) - 1
    yield f"| build of {photos:,} photos, 112 px | s | photos/s |"
    yield "| --- | ---: | ---: |"
    for name in ("one worker", "two workers"):
        yield f"| {name} | {seconds[name]:.0f} | {photos / seconds[name]:.1f} |"
    same = all(files == contents["one worker"] for files in contents.values())
    yield ""
    yield f"All three builds, one of them killed twice and resumed: {'the same bytes' if same else 'OTHER BYTES'}."
    yield ""


def headers(shards: Path) -> str:
    """Bytes per sample of a shard that are not JPEG data."""
    split = ShardSplit(shards, "train")
    tar_bytes = sum(path.stat().st_size for path in shards.glob("train-*.tar"))
    jpeg_bytes = sum(len(split.jpeg(index)) for index in range(len(split)))
    overhead = (tar_bytes - jpeg_bytes) / len(split)
    return f"Tar bytes per sample in addition to its JPEG (headers, padding, record): {overhead:,.0f}."


def main() -> None:
    """Measure, print, and write --output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=None, help="folder with legend.csv and images/")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        lines = list(report(Path(scratch), options.photos, options.rounds))
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text)


def report(scratch: Path, photos: Path | None, rounds: int) -> Iterator[str]:
    """Lines of the report."""
    yield "# Data: reading, resuming, aligning"
    yield ""
    yield f"`python -m benchmarks.data --photos DIR --rounds {rounds}`, {date.today()}, {processor()}, Python"
    yield f"{platform.python_version()}, torch {torch.__version__}; one thread, CPU time, medians of {rounds} rounds."
    yield ""
    folder = make_photos(scratch / "photos")
    shards = make_shards(folder, scratch / "shards")
    yield from reading("synthetic faces in colour", folder, shards, rounds)
    yield from first_batch(shards)
    if photos is None:
        yield "No --photos: reading real crops, aligning and building were not measured."
        return
    yield from reading("aligned crops of real photos, mostly grey", *real_crops(photos, scratch), rounds)
    yield from aligning(photos, max(1, rounds // 2))
    yield from building(photos, scratch)


def reading(title: str, folder: Path, shards: Path, rounds: int) -> Iterator[str]:
    """Throughput of an epoch of one dataset with every reader."""
    split = ShardSplit(shards, "train")
    jpegs = [split.jpeg(index) for index in range(len(split))]
    yield f"## Reading: {title}"
    yield ""
    mean = sum(map(len, jpegs)) / len(jpegs) / 1000
    yield f"{len(split)} JPEGs of {SIDE} px, {mean:.1f} kB on average. {headers(shards)}"
    yield ""
    yield from table(rates(decoders(jpegs), rounds), "pillow", "bare decoding")
    with tempfile.TemporaryDirectory() as cache:
        for augment in (False, True):
            variants = {
                "ImageFolder + DataLoader": image_folder(folder, augment=augment),
                "webdataset, pillow, torchvision": web_dataset(shards, augment=augment, fast=False),
                "webdataset, simplejpeg, cv2": web_dataset(shards, augment=augment, fast=True),
                "ours, stream": ours(shards, Path(cache), augment=augment, cache_mode="stream"),
                "ours, host (decoded once)": ours(shards, Path(cache), augment=augment, cache_mode="host"),
                "bare decoding, simplejpeg": decoders(jpegs)["simplejpeg"],
            }
            by_variant = rates(variants, rounds)
            title = "random resized crop, flip" if augment else "no augmentation"
            yield from table(by_variant, "ImageFolder + DataLoader", title)
            pairs = zip(by_variant["ours, stream"], by_variant["bare decoding, simplejpeg"], strict=True)
            ratio = statistics.median(ours_rate / decoding_rate for ours_rate, decoding_rate in pairs)
            yield f"Ours, stream, over bare decoding: {ratio:.2f}."
            yield ""


def processor() -> str:
    """The processor's name and the number of cores available to this process."""
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    main()
