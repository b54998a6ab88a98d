"""ExpW, Expression in the Wild (Zhang et al. 2016): a list of faces; a photo may contain several."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path

from pfcluster.data.labels import name_of
from pfcluster.data.raw.base import (
    RawDataError,
    RawDataset,
    RawPhoto,
    ReadOptions,
    file_size,
    leaves_folder,
)
from pfcluster.data.raw.tables import numbered_lines

FIELDS = (
    *("image_name", "face_id_in_image", "face_box_top", "face_box_left"),
    *("face_box_right", "face_box_bottom", "face_box_confidence", "expression_label"),
)
"""Fields of a line of the list."""


def recognises(source: Path) -> bool:
    """Whether a folder contains `label/label.lst` or `label.lst`."""
    return _listing(source) is not None


def read(source: Path, _options: ReadOptions) -> RawDataset:
    """List the faces in file order, each with its box. Raises RawDataError."""
    listing = _listing(source)
    if listing is None:
        raise RawDataError(f"{source} is not ExpW: it has no label/label.lst; pass the folder that contains it")
    folder = next((source / name for name in ("image", "origin") if (source / name).is_dir()), source / "image")
    faces = [_face(f"{listing}, line {number}", line, folder) for number, line in numbered_lines(listing)]
    faces_per_photo = Counter(photo.source for _, photo in faces)
    photos = [
        dataclasses.replace(photo, source=f"{photo.source}#{face}") if faces_per_photo[photo.source] > 1 else photo
        for face, photo in faces
    ]
    return RawDataset("expw", "expw", tuple(photos), {}, str(folder), several_faces=True)


def _listing(source: Path) -> Path | None:
    candidates = (source / "label" / "label.lst", source / "label.lst")
    return next((path for path in candidates if path.is_file()), None)


def _face(location: str, line: str, folder: Path) -> tuple[str, RawPhoto]:
    """Index of a line's face within its photo, and the photo. Raises RawDataError."""
    parts = line.rsplit(maxsplit=len(FIELDS) - 1)
    try:
        name, face, *numbers, label = parts
        top, left, right, bottom, _ = map(float, numbers)
        int(face), int(label)
        if "\0" in name or leaves_folder(name) or not all(map(math.isfinite, (top, left, right, bottom))):
            raise ValueError
        if not (left < right and top < bottom):
            raise ValueError
    except ValueError as error:
        raise RawDataError(
            f"{location}: {line!r} is not {' '.join(FIELDS)}; correct the line or download the list again"
        ) from error
    path = folder / name
    box = (left, top, right, bottom)
    return face, RawPhoto(name, name_of("expw", label), None, str(path), 0, file_size(path), box=box)
