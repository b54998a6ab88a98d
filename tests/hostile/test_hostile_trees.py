"""Random trees and tables: refused with an error message, or every photo has its own label and its own split."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pfcluster.data.build.errors import BuildError
from pfcluster.data.build.plan import require_training_photos
from pfcluster.data.labels import canonical_name
from pfcluster.data.raw.base import RawDataError
from pfcluster.data.raw.readers import read_raw
from tests.hostile.conftest import TIMES
from tests.hostile.damage import assert_explains
from tests.hostile.test_hostile_labels import folder, put

CLASSES = ("angry", "Happy", "sad", "Fear", "neutral", "suprise")
SPLITS = {
    "train": ("train", "Training", "train_set", "TRAIN", "trainset", "fer_train", "01-train"),
    "validation": ("dev", "val", "Validation", "PublicTest", "public test", "val_set", "fer_val"),
    "test": ("test", "Testing", "PrivateTest", "holdout", "eval", "test_set", "fer_test", "more", "set 2"),
}
"""True split -> names; the last ones are not known."""
PERSONS = ("Ann", "Joy", "Bob", "Dev", "Normal", "calm", "Val", "test subject 1", "happy_feet")
WRAPPERS = ("", "archive", "test_data/faces", "joy", "images", "train_test_split")
STRAYS = ("preview.png", "extra/figure.png", "notes.txt", ".hidden/happy/x.jpg")


@st.composite
def layouts(draw: st.DrawFn) -> list[tuple[str, str, str]]:
    """Path, true label and true split of each photo."""
    chosen = draw(st.sampled_from((("train",), ("train", "test"), ("train", "validation"), tuple(SPLITS))))
    split_names = {split: draw(st.sampled_from(SPLITS[split])) for split in chosen}
    if len(chosen) == 1:
        split_names = {"train": ""}
    persons = draw(st.lists(st.sampled_from(PERSONS), max_size=4, unique=True)) or [""]
    classes = draw(st.lists(st.sampled_from(CLASSES), min_size=1, max_size=5, unique=True))
    parts = draw(st.permutations(("split", "label", "person")))
    wrapper = draw(st.sampled_from(WRAPPERS))
    photos = []
    for split, name in split_names.items():
        for label in classes:
            for person in persons:
                values = {"split": name, "label": label, "person": person}
                path = "/".join(filter(None, (wrapper, *(values[part] for part in parts))))
                photos.append((f"{path}/{label}-{split}-{len(photos)}.jpg", label, split))
    return photos


def true_label(label: str) -> str | None:
    return None if label == "suprise" else canonical_name(label)


def canonical(label: str) -> str | None:
    try:
        return canonical_name(label)
    except ValueError:
        return None


@settings(max_examples=150 * TIMES)
@given(photos=layouts(), strays=st.sets(st.sampled_from(STRAYS)), as_table=st.booleans(), seed=st.integers(0, 99))
def test_random_trees(photos: list[tuple[str, str, str]], strays: set[str], as_table: bool, seed: int) -> None:
    with folder() as root:
        for path in (*(path for path, _, _ in photos), *strays):
            put(root / path, path)
        source = root
        if as_table:
            rows = [f"{path},{label}" for path, label, _ in photos]
            random.Random(seed).shuffle(rows)
            source = put(root / "list.csv", "\n".join(["image,label", *rows]))
        try:
            dataset = read_raw(source)
            require_training_photos(dataset)
        except (RawDataError, BuildError) as error:
            assert_explains(error, "--splits" if "split" in str(error) else "--classes")
            return
        listed = {photo.source: photo for photo in dataset.photos}
        split = len({one for _, _, one in photos}) > 1
        for path, label, true_split in photos:
            photo = listed[path]
            if photo.left_out is not None:
                continue
            assert canonical(photo.label) in (true_label(label), None)
            if split and true_split != "train":
                assert photo.split in ("validation", "test")
            if not split:
                assert photo.split in ("train", None)


WORDS = (*(name for names in SPLITS.values() for name in names), "", "0", "val ", "Train;", "nan", "none")


@settings(max_examples=100 * TIMES)
@given(
    cells=st.lists(st.tuples(st.sampled_from(sorted(SPLITS)), st.integers(0, 8)), min_size=2, max_size=6),
    odd=st.sampled_from(WORDS),
    encoding=st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "utf-32")),
    delimiter=st.sampled_from((",", ";", "\t", "|")),
)
def test_random_split_columns(cells: list[tuple[str, int]], odd: str, encoding: str, delimiter: str) -> None:
    """No row of a test or validation split is taken for training, unless no cell names a split."""
    named = [(split, SPLITS[split][number % len(SPLITS[split])]) for split, number in cells]
    rows = [(f"{number}.jpg", "sad", word) for number, (_, word) in enumerate(named)]
    rows.append(("odd.jpg", "happy", odd))
    text = "\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in [("image", "label", "split"), *rows])
    with folder() as root:
        source = put(root / "t.csv", text.encode(encoding))
        try:
            dataset = read_raw(source)
        except RawDataError as error:
            assert_explains(error, "--splits")
            return
        for photo, (split, _) in zip(dataset.photos, named, strict=False):
            assert (photo.split == "train") == (split == "train")
            assert photo.split is not None


def test_damaged_link_trees(tmp_path: Path) -> None:
    """Trees of random links end, with every photo listed or an error message."""
    for seed in range(10 * TIMES):
        generator = random.Random(seed)
        root = tmp_path / str(seed)
        folders = [root / name for name in ("happy", "sad", "happy/a", "sad/b", "sad/b/c")]
        for number, place in enumerate(folders):
            put(place / f"{number}.jpg", str(number))
        for number in range(4):
            target = generator.choice([*folders, root, root / "gone"])
            link = generator.choice(folders) / f"link{number}"
            link.symlink_to(target, target_is_directory=True)
        try:
            names = {photo.source for photo in read_raw(root).photos}
        except RawDataError as error:
            assert_explains(error, str(root))
        else:
            assert {f"{place.relative_to(root)}/{number}.jpg" for number, place in enumerate(folders)} <= names
