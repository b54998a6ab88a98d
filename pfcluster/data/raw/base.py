"""Types and helpers that all readers of raw datasets share. A reader lists photos without opening them.

A `RawPhoto` holds the location of one photo's bytes, so any process can read them later. Labels are kept as written;
numeric labels become the names of the dataset's vocabulary in `data/labels.py`. Listings have the same order on every
machine.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from pfcluster.data.manifest import BUILD_FOLDER, BUILD_LOCK, MANIFEST, index_name
from pfcluster.system.walk import walk_through_links

OfficialSplit = Literal["train", "validation", "test"]
Form = Literal["file", "pixels", "parquet"]
VotingMode = Literal["majority", "probability", "multi-target", "argmax"]
Point = tuple[float, float]

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)
"""File name suffixes of images; decoding decides what a file really contains."""
MAX_FILE_BYTES = 256 * 2**20
"""Larger image files are refused without reading them."""


HIDDEN = "hidden files"
NOT_A_LABEL = "none"
"""In --classes: a name that is not a label."""


class RawDataError(ValueError):
    """A raw dataset cannot be read: names the file, the reason and the remedy."""


@dataclass(frozen=True)
class RawPhoto:
    """One photo of a raw dataset, as listed."""

    source: str
    """Name within the dataset, with forward slashes: path below the folder or in the tar, or the CSV's cell."""
    label: str
    """As written, or the name of a numeric label; empty if there is none."""
    identity: str | None
    """Identity, if the listing names one."""
    path: str
    """File that contains the bytes; empty if a CSV row names no image."""
    offset: int = 0
    """Position of the photo in that file, in bytes; for "parquet" its row."""
    size: int = -1
    """Bytes of the photo; -1 if the file is missing."""
    form: Form = "file"
    """"pixels": grey values as text, as in FER2013's CSV. "parquet": a row of a parquet file (see spool.py)."""
    split: OfficialSplit | None = None
    """The dataset's official split, if it has one."""
    votes: tuple[float, ...] = ()
    """Fraction of the annotators' votes for each emotion of `labels.CANONICAL`; empty if there are none."""
    box: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom of the labelled face in pixels of the photo, if listed."""
    left_out: tuple[str, str] | None = None
    """Reason and detail if the listing itself shows that the photo cannot be used."""
    landmarks: tuple[Point, ...] = ()
    """Both eyes, nose and both mouth corners as (x, y) in pixels of the photo, if listed."""


@dataclass(frozen=True)
class RawDataset:
    """The listing of a raw dataset."""

    kind: str
    """Name of its reader in `readers.READERS`."""
    name: str
    """Base name of the folder, CSV or tar."""
    photos: tuple[RawPhoto, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Files that are not listed, as `skipped_as` names them, with their number."""
    folder: str = ""
    """Folder of its photos, for messages."""
    votes: VotingMode | None = None
    """How annotators' votes were turned into labels. Accuracies under different modes are not comparable."""
    several_faces: bool = False
    """Whether it may list several faces of a photo, which only their boxes distinguish."""
    hint: str = ""
    """What else the source holds and how that is read, for messages."""
    notes: tuple[str, ...] = ()
    """Findings and decisions of the reader that users should know, as sentences."""

    @property
    def other_files(self) -> int:
        """Number of files that are not listed."""
        return sum(self.skipped.values())


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Options of the readers; the docstring of each field names the readers that use it."""

    images: Path | None = None
    """csv, ferplus: folder of the photos, if it is not next to the listing."""
    votes: VotingMode = "majority"
    """ferplus: how votes are turned into a label."""
    peak_frames: int = 1
    """ckplus: number of last frames of a sequence that get its label; the first frame is neutral."""
    classes: Mapping[str, str] = field(default_factory=dict)
    """Emotion of a label as written; NOT_A_LABEL if a name is not a label."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """folder, tar, csv, parquet, fer2013: what names of splits mean; see `name_options.split_options`."""
    all_names_occur: bool = True
    """Whether a name of `classes` that does not occur is an error."""
    labels_ignored: bool = False
    """folder, tar: folders need not name emotions."""
    originals: bool = False
    """rafdb, sfew: original photos instead of the aligned crops of the dataset's authors."""


def read_bytes(photo: RawPhoto) -> bytes:
    """The bytes of a photo's file; grey values as text become a PGM file.

    Raises OSError if the file is missing, larger than MAX_FILE_BYTES, not as long as listed, or holds no valid grey
    values.
    """
    assert photo.form != "parquet", "spool.py extracts parquet rows first"
    if photo.size > MAX_FILE_BYTES:
        raise OSError(f"{photo.size / 2**20:.0f} MiB; the limit of an image file is {MAX_FILE_BYTES // 2**20} MiB")
    with open(photo.path, "rb") as file:
        file.seek(photo.offset)
        data = file.read(photo.size if photo.size >= 0 else MAX_FILE_BYTES)
    if photo.size >= 0 and len(data) != photo.size:
        raise OSError(f"expected {photo.size} bytes as listed, got {len(data)}")
    return _pgm_from_text(data) if photo.form == "pixels" else data


def _pgm_from_text(text: bytes) -> bytes:
    """A PGM file from grey values 0..255 as text, which must form a square."""
    try:
        values = bytes(map(int, text.replace(b"\0", b"").split()))  # zero bytes: ASCII as UTF-16 or UTF-32
    except ValueError as error:
        raise OSError("the pixels are not integers in 0..255") from error
    side = round(len(values) ** 0.5)
    if not values or side * side != len(values):
        raise OSError(f"{len(values)} pixels do not form a square")
    return b"P5 %d %d 255\n" % (side, side) + values


def file_size(path: Path) -> int:
    """Bytes of a file; -1 if there is none."""
    return path.stat().st_size if path.is_file() else -1


def is_hidden(name: PurePosixPath) -> bool:
    """Whether any part of the path starts with a dot, e.g. `__MACOSX/._x.jpg`."""
    return any(part.startswith(".") for part in name.parts)


def is_build(folder: Path) -> bool:
    """Whether a folder holds a build of pfcluster, unfinished or finished. Readers skip it, so that a build whose
    output is inside its input can be continued and repeated.
    """
    if (folder / BUILD_FOLDER / BUILD_LOCK).is_file():
        return True
    return (folder / MANIFEST).is_file() and any(folder.glob(index_name("*.tar")))


def find_images(root: Path) -> tuple[list[tuple[str, Path]], Counter[str]]:
    """All images below a folder as (relative name, path), sorted by name; and what was skipped, with its count.

    Links are followed. A link to one of its own parent folders is skipped, and so is the output of a build. Raises
    RawDataError for a broken link that may have been a folder of photos, and OSError for a folder that cannot be
    listed.
    """
    images: list[tuple[str, Path]] = []
    skipped: Counter[str] = Counter()
    if not root.exists():
        return images, skipped

    def skip_loop(link: Path) -> None:
        skipped[f"{_below(link, root)} (a link to a folder that contains it)"] += 1

    for folder, below, files in walk_through_links(root, _raise, skip_loop):
        below[:] = sorted(name for name in below if not is_build(folder / name))
        for file in files:
            path = folder / file
            name = PurePosixPath(path.relative_to(root).as_posix())
            if not is_hidden(name) and name.suffix.lower() in IMAGE_SUFFIXES:
                images.append((str(name), path))
                continue
            if path.is_symlink() and not path.exists():
                raise RawDataError(f"{path} is a link to {os.readlink(path)}, which does not exist; fix or remove it")
            skipped[skipped_as(name)] += 1
    return sorted(images), skipped


def _raise(error: OSError) -> None:
    raise error


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def below(folder: str, skipped: Mapping[str, int]) -> Counter[str]:
    """Counts of a subfolder's skipped files, by their names in the dataset."""
    counts = {name if name == HIDDEN else f"{folder}/{name}": count for name, count in skipped.items()}
    return Counter(counts)


def skipped_as(name: PurePosixPath) -> str:
    """What a skipped file is counted as: `sad/*.heic`."""
    if is_hidden(name):
        return HIDDEN
    return str(name.parent / f"*{name.suffix}") if name.suffix else f"{name.parent / '*'} without a suffix"


def leaves_folder(name: str) -> bool:
    """Whether a relative name is absolute or contains `..`, and so may point outside its folder."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts
