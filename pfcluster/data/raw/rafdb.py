"""RAF-DB's basic emotions (Li et al. 2017): the authors' layout, and the common copies with folders 1 ... 7."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from pfcluster.data.labels import VOCABULARIES, name_of
from pfcluster.data.raw.base import (
    OfficialSplit,
    RawDataError,
    RawDataset,
    RawPhoto,
    ReadOptions,
    below,
    file_size,
    find_images,
)
from pfcluster.data.raw.tables import numbered_lines

LISTING = "EmoLabel/list_patition_label.txt"
NUMBERS = set(VOCABULARIES["rafdb"])
SPLITS: tuple[OfficialSplit, ...] = ("train", "test")
RAF_NAME = {split: re.compile(rf"{split}_\d{{4,5}}(_aligned)?\.\w+") for split in SPLITS}


def recognises(source: Path) -> bool:
    """Whether a folder contains RAF-DB, directly or in `basic/` or `DATASET/`. Numbered folders are RAF-DB's only if
    all seven are there and the photos have RAF-DB's names.
    """
    if _listed(source) is not None:
        return True
    numbered = _numbered(source)
    return numbered is not None and _has_raf_names(numbered)


def read(source: Path, options: ReadOptions) -> RawDataset:
    """List the photos with their official splits; RAF-DB names no identities. Raises RawDataError."""
    listed, numbered = _listed(source), _numbered(source)
    if listed is not None:
        return _read_listed(listed, options.originals)
    if numbered is None:
        raise RawDataError(f"{source} is not RAF-DB: it has neither {LISTING} nor train/1 ... train/7 and test/1 ...")
    photos: list[RawPhoto] = []
    skipped: Counter[str] = Counter()
    for split in SPLITS:
        for number in sorted(NUMBERS):
            images, others = find_images(numbered / split / number)
            skipped += below(f"{split}/{number}", others)
            for name, path in images:
                relative = f"{split}/{number}/{name}"
                label = name_of("rafdb", number)
                photos.append(RawPhoto(relative, label, None, str(path), 0, file_size(path), split=split))
    return RawDataset("rafdb", "rafdb", tuple(photos), skipped, str(numbered))


def _listed(source: Path) -> Path | None:
    return next((root for root in (source, source / "basic") if (root / LISTING).is_file()), None)


def _numbered(source: Path) -> Path | None:
    """The folder whose train/ and test/ contain only folders 1 ... 7."""
    for root in (source, source / "DATASET"):
        if all((root / split).is_dir() for split in SPLITS):
            names = {
                path.name
                for split in SPLITS
                for path in (root / split).iterdir()
                if path.is_dir() and path.name[0] != "."
            }
            if names and names <= NUMBERS:
                return root
    return None


def _has_raf_names(root: Path) -> bool:
    """Whether both splits have all seven folders, and all photos names such as `train_00001_aligned.jpg`."""
    for split in SPLITS:
        if any(not (root / split / number).is_dir() for number in NUMBERS):
            return False
        if not all(RAF_NAME[split].fullmatch(path.name) for _, path in find_images(root / split)[0]):
            return False
    return True


def _read_listed(root: Path, originals: bool) -> RawDataset:
    aligned = root / "Image" / "aligned"
    folder = root / "Image" / "original" if originals or not aligned.is_dir() else aligned
    if not folder.is_dir():
        raise RawDataError(f"{root} has labels but no photos: Image/aligned and Image/original are missing")
    photos = []
    for number, line in numbered_lines(root / LISTING):
        name, label = (*line.split(), "", "")[:2]
        split = next((split for split in SPLITS if name.startswith(f"{split}_")), None)
        if split is None or "/" in name or len(line.split()) != 2 or label not in NUMBERS:
            raise RawDataError(
                f"{root / LISTING}, line {number}: {line!r} is not a photo and a label 1 ... 7 ('train_00001.jpg 5')"
            )
        file = folder / (name if folder.name == "original" else f"{Path(name).stem}_aligned{Path(name).suffix}")
        photos.append(RawPhoto(name, name_of("rafdb", label), None, str(file), 0, file_size(file), split=split))
    return RawDataset("rafdb", "rafdb", tuple(photos), {}, str(folder))
