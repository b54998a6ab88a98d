"""Readers of CK+ (Lucey et al. 2010), JAFFE (Lyons et al. 1998) and SFEW 2.0 (Dhall et al. 2015)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from pfcluster.data.labels import NEUTRAL, name_of
from pfcluster.data.raw.base import (
    IMAGE_SUFFIXES,
    OfficialSplit,
    RawDataError,
    RawDataset,
    RawPhoto,
    ReadOptions,
    below,
    file_size,
    find_images,
    is_build,
    skipped_as,
)
from pfcluster.data.raw.tables import numbered_lines

CKPLUS_FRAMES = "cohn-kanade-images"
CKPLUS_LABELS = ("Emotion", "Emotion_labels/Emotion", "Emotion_labels")
JAFFE_NAME = re.compile(r"([A-Z]{2})\.([A-Z]{2})\d+\.\d+\.(tiff?|jpe?g|png|bmp)", re.IGNORECASE)
"""`KA.AN1.39.tiff`: identity, emotion and take, number."""
JAFFE_CODES = ("AN", "DI", "FE", "HA", "NE", "SA", "SU")
SFEW_NAME = re.compile(r".+_\d{9}_\d{8}\.\w+")
"""`AirForceOne_000519240_00000005.png`: film, time, frame."""
SFEW_CLASSES = frozenset(("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"))
SFEW_ALIGNED: dict[OfficialSplit, tuple[str, ...]] = {
    "train": ("Train_Aligned_Faces",),
    "test": ("Val_Aligned_Faces_new", "Val_Aligned_Faces"),
}
SFEW_ORIGINALS: dict[OfficialSplit, tuple[str, ...]] = {"train": ("Train",), "test": ("Val",)}
"""SFEW's folders. Its test labels are not public, so its validation set is used as the test split."""


def ckplus_recognises(source: Path) -> bool:
    """Whether a folder contains CK+'s frames and its emotion files."""
    return (source / CKPLUS_FRAMES).is_dir() and _ckplus_labels(source) is not None


def ckplus_read(source: Path, options: ReadOptions) -> RawDataset:
    """List the first and the last frames of every sequence that has an emotion file. Raises RawDataError."""
    labels = _ckplus_labels(source)
    if labels is None or not (source / CKPLUS_FRAMES).is_dir():
        raise RawDataError(f"{source} is not CK+: it needs the folders {CKPLUS_FRAMES} and {CKPLUS_LABELS[0]}")
    if options.peak_frames < 1:
        raise RawDataError(f"--peak-frames must be at least 1, got {options.peak_frames}")
    photos: list[RawPhoto] = []
    for file in sorted(labels.glob("*/*/*_emotion.txt")):
        if not file.name.startswith("."):
            sequence = source / CKPLUS_FRAMES / file.parent.relative_to(labels)
            photos += _ckplus_sequence(source, sequence, _ckplus_label(file), options.peak_frames)
    return RawDataset("ckplus", source.resolve().name, tuple(photos), {}, str(source))


def _ckplus_labels(source: Path) -> Path | None:
    return next((source / name for name in CKPLUS_LABELS if any((source / name).glob("S*/*/"))), None)


def _ckplus_label(file: Path) -> str:
    """Name of the emotion in an emotion file, which holds a number such as `3.0000000e+00`."""
    lines = list(numbered_lines(file))
    text = lines[0][1] if len(lines) == 1 else ""
    try:
        value = float(text)
        if value != int(value):
            raise ValueError("not an integer")
    except (ValueError, OverflowError) as error:
        line = lines[-1][0] if lines else 1
        raise RawDataError(
            f"{file}, line {line}: expected a single emotion number such as 3.0000000e+00; copy it again"
        ) from error
    return name_of("ckplus", str(int(value)))


def _ckplus_sequence(source: Path, sequence: Path, label: str, peaks: int) -> Iterator[RawPhoto]:
    """The first frame of a sequence as neutral, and its last `peaks` frames, without the first, with its label."""
    frames = find_images(sequence)[0]
    if len(frames) < 2:
        raise RawDataError(f"{sequence} has an emotion file but {len(frames)} frames; copy its frames again")
    peak = frames[1:][-peaks:]
    for path, name in [(frames[0][1], NEUTRAL), *((path, label) for _, path in peak)]:
        listed = path.relative_to(source).as_posix()
        yield RawPhoto(listed, name, sequence.parent.name, str(path), 0, file_size(path))


def jaffe_recognises(source: Path) -> bool:
    """Whether a folder directly contains photos with JAFFE's naming scheme."""
    return source.is_dir() and any(_jaffe_parts(path.name) for path in source.iterdir())


def jaffe_read(source: Path, _options: ReadOptions) -> RawDataset:
    """List the photos of a flat folder, with identity and emotion from their names. Raises RawDataError."""
    photos: list[RawPhoto] = []
    skipped: Counter[str] = Counter()
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
            if path.is_dir() and is_build(path):
                continue
            name = PurePosixPath(path.name)
            skipped[skipped_as(name) if path.is_file() else f"folder {name}"] += 1
            continue
        parts = _jaffe_parts(path.name)
        if parts is None:
            raise RawDataError(
                f"{path} does not follow JAFFE's naming scheme (KA.AN1.39.tiff: identity, emotion, number);"
                " move it away"
            )
        identity, code = parts
        photos.append(RawPhoto(path.name, name_of("jaffe", code), identity, str(path), 0, file_size(path)))
    return RawDataset("jaffe", source.resolve().name, tuple(photos), skipped, str(source))


def _jaffe_parts(name: str) -> tuple[str, str] | None:
    """Identity and emotion code in a photo's name; None if it does not follow the scheme."""
    match = JAFFE_NAME.fullmatch(name)
    if match is None or match[2].upper() not in JAFFE_CODES:
        return None
    return match[1].upper(), match[2].upper()


def sfew_recognises(source: Path) -> bool:
    """Whether a folder contains SFEW's folders of aligned faces, or Train and Val with photos that have SFEW's names.

    Train and Val with seven class folders alone may be any dataset.
    """
    if not source.is_dir() or _sfew_folder(source, ("Test",)) is not None:
        return False
    folders = _sfew_folders(source, originals=False)
    if folders is None:
        return False
    if {folder.name for folder in folders.values()} <= {name for names in SFEW_ALIGNED.values() for name in names}:
        return True
    images = [path for folder in folders.values() for _, path in find_images(folder)[0]]
    return bool(images) and all(SFEW_NAME.fullmatch(path.name) for path in images)


def sfew_read(source: Path, options: ReadOptions) -> RawDataset:
    """List the labelled photos: Train as the train split, Val as the test split. Raises RawDataError."""
    folders = _sfew_folders(source, options.originals)
    if folders is None:
        raise RawDataError(
            f"{source} is not SFEW: it needs Train and Val, or Train_Aligned_Faces and Val_Aligned_Faces, each with the"
            f" folders {', '.join(sorted(SFEW_CLASSES))}"
        )
    photos: list[RawPhoto] = []
    skipped: Counter[str] = Counter()
    for split, folder in folders.items():
        for label in sorted(SFEW_CLASSES):
            images, others = find_images(folder / label)
            skipped += below(f"{folder.relative_to(source).as_posix()}/{label}", others)
            for _, path in images:
                name = path.relative_to(source).as_posix()
                photos.append(RawPhoto(name, label, None, str(path), 0, file_size(path), split=split))
    return RawDataset("sfew", source.resolve().name, tuple(photos), skipped, str(source))


def _sfew_folders(source: Path, originals: bool) -> dict[OfficialSplit, Path] | None:
    """Folders of both splits, both aligned or both original; the other version if the requested one is missing."""
    versions = (SFEW_ORIGINALS, SFEW_ALIGNED) if originals else (SFEW_ALIGNED, SFEW_ORIGINALS)
    for version in versions:
        candidates = {split: _sfew_folder(source, names) for split, names in version.items()}
        folders = {split: folder for split, folder in candidates.items() if folder is not None}
        if len(folders) == len(version):
            return folders
    return None


def _sfew_folder(source: Path, names: Sequence[str]) -> Path | None:
    """The folder with one of these names that has the seven class folders, at the top level or one level deeper."""
    for name in names:
        nested = (path for pattern in (f"{name}/*/", f"*/{name}/") for path in sorted(source.glob(pattern)))
        for folder in (source / name, *nested):
            if all((folder / label).is_dir() for label in SFEW_CLASSES):
                return folder
    return None
