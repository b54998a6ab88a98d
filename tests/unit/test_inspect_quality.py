"""Quality check of shard folders: near-duplicates, leaks, and a warning for each problem."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pfcluster.data.inspect import quality as quality_module
from pfcluster.data.inspect.near_duplicates import (
    MAX_HASH_DISTANCE,
    MAX_PAIRS,
    MIN_CORRELATION,
    correlation,
    distances,
    grey,
    hashes,
    near_pairs,
    thumbnails,
)
from pfcluster.data.inspect.quality import Quality, SplitQuality, measure_quality, read_enlargements
from pfcluster.data.inspect.quality_warnings import quality_warnings
from pfcluster.data.manifest import load_manifest
from tests.photos import SIZE, run

CLASSES = ("happiness", "sadness")


@dataclass
class Split:
    """A split in memory, as `measure_quality` needs it."""

    pixels: np.ndarray
    names: list[str]
    numbers: Tensor
    classes: tuple[str, ...] = CLASSES

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, index: int) -> np.ndarray:
        return self.pixels[index]

    def labels(self) -> Tensor:
        return self.numbers

    def identities(self) -> list[str]:
        return self.names

    def key(self, index: int) -> str:
        return f"key-{index}"


def smooth(count: int, seed: int, side: int = 48) -> np.ndarray:
    """Random images without sharp edges: uint8 n s s 3."""
    coarse = np.random.default_rng(seed).integers(40, 200, (count, 9, 9, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in coarse])


def split(seed: int, count: int = 40) -> Split:
    return Split(smooth(count, seed), [f"{seed}-{number}" for number in range(count)], torch.arange(count) % 2)


def hash_of(images: np.ndarray) -> np.ndarray:
    return hashes(grey(images))[0]


def reencoded(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=70)
    return np.asarray(Image.open(file))


def test_copies_have_near_hashes_and_other_images_do_not() -> None:
    images = smooth(50, 1)
    expected = hash_of(images)
    assert (distances(expected, hash_of(images)) == 0).all()
    assert (distances(expected, hash_of(images + np.uint8(20))) <= MAX_HASH_DISTANCE).all()
    assert (
        distances(expected, hash_of(np.stack([reencoded(image) for image in images]))) <= MAX_HASH_DISTANCE
    ).mean() > 0.9
    assert (distances(expected, np.roll(expected, 1)) > MAX_HASH_DISTANCE).all()


def test_flat_images_have_no_usable_hash() -> None:
    flat = np.full((2, 24, 24, 3), 128, np.uint8)
    flat[1, :12] = 129
    ramp = np.broadcast_to(np.arange(24, dtype=np.uint8)[:, None] * 9, (2, 24, 24, 3))
    assert not hashes(grey(np.concatenate([flat, ramp.transpose(0, 2, 1, 3), ramp])))[1].any()
    assert hashes(grey(smooth(9, 2)))[1].all()


@pytest.mark.parametrize("seed", range(5))
def test_near_pairs_equal_a_brute_force_search(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 2**64, 60, dtype=np.uint64)
    flips = generator.integers(0, 64, (60, 6)).astype(np.uint64)
    flipped = np.arange(6) < generator.integers(0, 7, (60, 1))
    copies = values ^ np.bitwise_or.reduce(np.where(flipped, np.uint64(1) << flips, np.uint64(0)), axis=1)
    values = np.concatenate([values, copies, values[:5]])
    one, other = np.triu_indices(len(values), 1)
    apart = distances(values[one], values[other])
    pairs, pair_distances, complete = near_pairs(values)
    assert complete
    assert apart.tolist() == [bin(int(a ^ b)).count("1") for a, b in zip(values[one], values[other], strict=True)]
    assert pairs.tolist() == np.stack([one, other], axis=1)[apart <= MAX_HASH_DISTANCE].tolist()
    assert pair_distances.tolist() == apart[apart <= MAX_HASH_DISTANCE].tolist()
    assert near_pairs(values, max_pairs=len(pairs)).complete
    assert near_pairs(values, lambda new: values[new[:, 0]] == values[new[:, 1]]).distances.max() == 0
    cut = near_pairs(values, max_pairs=3)
    assert (len(cut.pairs), cut.complete) == (3, False)
    assert not near_pairs(values, max_candidates=3).complete


def test_clean_splits_give_no_warnings() -> None:
    quality = measure_quality({"train": split(3), "test": split(4)}, {"train": np.full(40, 0.5)})
    assert quality_warnings(quality) == ()
    assert quality.splits["train"].enlargement == (0.5, 0.5, 0.5)
    assert quality.splits["test"].enlargement is None


def test_copies_between_and_within_splits_are_found() -> None:
    train, test = split(3), split(4)
    test.pixels[7] = reencoded(train.pixels[2])
    train.pixels[11] = train.pixels[20]
    quality = measure_quality({"train": train, "test": test})
    (between,), (conflicting_labels,) = quality.pairs_between_splits, quality.conflicting_labels
    assert between[:6] == ("train", "key-2", "happiness", "test", "key-7", "sadness")
    assert conflicting_labels == ("train", "key-11", "sadness", "train", "key-20", "happiness", 0)
    first, second = quality_warnings(quality)
    assert first.startswith("1 pairs of near-duplicates lie in two splits")
    assert second.startswith("1 pairs of near-duplicates within a split have different labels")


def test_a_search_that_was_cut_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where fewer pairs remain than the limit, as most candidates were no duplicates."""
    train = split(3)
    train.pixels[:20] = train.pixels[0]
    assert measure_quality({"train": train}).pairs_complete
    monkeypatch.setattr(quality_module, "near_pairs", partial(near_pairs, max_candidates=100))
    quality = measure_quality({"train": train})
    assert not quality.pairs_complete
    assert any(
        warning.startswith("the search for near-duplicates stopped after") for warning in quality_warnings(quality)
    )


@pytest.mark.slow
def test_100_000_faces_are_searched_in_one_gigabyte() -> None:
    """Each face stands 50 times in the split, so that the search goes on to its limit of pairs."""
    code = """
import re, numpy as np, torch
from pathlib import Path
from pfcluster.data.inspect.quality import measure_quality
generator = np.random.default_rng(0)
faces = generator.integers(0, 255, (500, 48, 48, 3), dtype=np.uint8)
class Split:
    classes = ("happiness",)
    def __len__(self): return 100_000
    def image(self, index): return np.roll(faces[index % 500], index // 25_000, axis=1)
    def labels(self): return torch.zeros(100_000, dtype=torch.long)
    def identities(self): return ["photo-x"] * 100_000
    def key(self, index): return f"train-{index:07d}"
quality = measure_quality({"train": Split()})
peak = re.search("VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]  # ru_maxrss includes the parent's
print(len(quality.pairs), quality.pairs_complete, peak)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pairs, complete, kilobytes = done.stdout.split()
    assert (pairs, complete) == (str(MAX_PAIRS), "False")
    assert int(kilobytes) < 950_000, kilobytes


def test_identities_and_photos_in_two_splits_are_found() -> None:
    train, test = split(3), split(4)
    train.names[5] = test.names[6] = "anna"
    train.names[7] = test.names[8] = "photo-0123"
    quality = measure_quality({"train": train, "test": test})
    assert [(leak.identity, leak.keys) for leak in quality.leaks] == [
        ("anna", {"train": "key-5", "test": "key-6"}),
        ("photo-0123", {"train": "key-7", "test": "key-8"}),
    ]
    identities, photos = quality_warnings(quality)
    assert identities.startswith("1 identities are in more than one split")
    assert photos.startswith("1 photos are in more than one split")


GOOD = SplitQuality(
    1000, {"happiness": 500, "sadness": 500}, (80, 120, 160), (30, 40, 50), 0.0, 0.0, (0.4, 0.8, 1.2), 0.1
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_class": {"happiness": 1000, "sadness": 0}}, "test has 0 faces of sadness"),
        ({"per_class": {"happiness": 991, "sadness": 9}}, "fewer than 10 faces of sadness (9)"),
        ({"per_class": {"happiness": 620, "sadness": 380}}, "happiness is 50% of train but 62% of test"),
        ({"brightness": (20, 60, 90)}, "median brightness is 120 in train but 60 in test"),
        ({"black": 0.02}, "2.0% of test is nearly black"),
        ({"small": 0.7}, "70% of test's faces are smaller than their crop"),
    ],
)
def test_each_problem_gives_a_warning(changes: dict[str, object], message: str) -> None:
    assert quality_warnings(Quality({"train": GOOD, "test": GOOD}, (), ())) == ()
    bad = replace(GOOD, **changes)  # type: ignore[arg-type]
    assert any(message in warning for warning in quality_warnings(Quality({"train": GOOD, "test": bad}, (), ())))


def test_imbalanced_training_split_gives_a_warning() -> None:
    rare = replace(GOOD, per_class={"happiness": 970, "sadness": 30})
    assert "970 faces of happiness but 30 of sadness" in quality_warnings(Quality({"train": rare}, (), ()))[0]


def test_unlabelled_and_empty_splits_are_measured() -> None:
    unlabelled = replace(split(3), numbers=torch.full((40,), -1), classes=())
    empty = Split(np.zeros((0, 48, 48, 3), np.uint8), [], torch.zeros(0, dtype=torch.long), ())
    quality = measure_quality({"train": unlabelled, "test": empty})
    assert quality_warnings(quality) == ()
    assert quality.splits["train"].per_class == {}


def test_enlargements_are_read_from_the_json_records(built: Path) -> None:
    train = load_manifest(built).splits["train"]
    enlargements = read_enlargements(built, train.shards, SIZE)
    assert enlargements.tolist() == [SIZE / 32] * train.samples


@pytest.mark.slow
def test_inspect_command_writes_pairs_and_can_skip_the_quality_check(built: Path, tmp_path: Path) -> None:
    done = run("inspect.py", built, "--duplicates", tmp_path / "pairs.csv")
    assert done.returncode == 0, done.stderr
    assert "spread" in done.stdout
    with open(tmp_path / "pairs.csv", newline="") as file:
        header = next(csv.reader(file))
    assert header == ["split_a", "key_a", "label_a", "split_b", "key_b", "label_b", "distance"]
    assert "spread" not in run("inspect.py", built, "--no-quality").stdout
    assert run("inspect.py", built, "--no-quality", "--duplicates", tmp_path / "x.csv").returncode == 2


def test_different_images_with_near_hashes_are_no_duplicates() -> None:
    """Two ramps, one linear, one steep at its end, have differences of the same signs and therefore the same hash."""
    ramp = np.linspace(0, 1, 48)
    linear, steep = (np.tile(200 * share * ramp + 200 * (1 - share) * ramp**9, (48, 1)) for share in (1.0, 0.2))
    images = np.repeat(np.stack([linear, steep])[..., None], 3, axis=3).round().astype(np.uint8)
    assert distances(hash_of(images[:1]), hash_of(images[1:]))[0] <= MAX_HASH_DISTANCE
    both = thumbnails(grey(images))
    assert correlation(both[:1], both[1:])[0] < MIN_CORRELATION
    quality = measure_quality({"train": Split(images, ["a", "b"], torch.tensor([0, 1]))})
    assert not quality.pairs
    brighter = thumbnails(grey((images * 0.7 + 20).astype(np.uint8)))
    assert correlation(both, brighter).min() > 0.99
