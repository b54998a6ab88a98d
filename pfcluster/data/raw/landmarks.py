"""Landmarks from files: reduction of 68 points to the five used for alignment, and OpenFace's CSV files."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pfcluster.data.raw.base import Point, RawDataError, RawDataset
from pfcluster.data.raw.tables import read_text

POINTS = 68
"""Number of landmarks of the iBUG 300-W markup, which AffectNet and OpenFace use."""
LEFT_EYE, RIGHT_EYE = slice(36, 42), slice(42, 48)
NOSE, LEFT_MOUTH, RIGHT_MOUTH = 30, 48, 54


def finite(cell: str) -> float:
    """Parse a finite number. Raises ValueError."""
    number = float(cell)
    if not math.isfinite(number):
        raise ValueError(f"{cell.strip()} is not a finite number")
    return number


def five_points(points: Sequence[Point]) -> tuple[Point, ...]:
    """Eye centres, nose tip and mouth corners from 68 points. Raises ValueError for any other number of points."""
    if len(points) != POINTS:
        raise ValueError(f"expected {POINTS} points, got {len(points)} points")

    def centre(group: Sequence[Point]) -> Point:
        return sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)

    return centre(points[LEFT_EYE]), centre(points[RIGHT_EYE]), points[NOSE], points[LEFT_MOUTH], points[RIGHT_MOUTH]


def with_openface(dataset: RawDataset, folder: Path) -> RawDataset:
    """Add the landmarks of OpenFace 2's FaceLandmarkImg, which writes one CSV per photo into `folder`.

    A photo's CSV has its path within the dataset, or only its name, with the suffix .csv. Of several faces, the one
    with the highest confidence is used. Photos without a CSV are unchanged. Raises RawDataError.
    """
    if not folder.is_dir():
        raise RawDataError(f"--landmarks {folder} is not a folder; give the -out_dir of FaceLandmarkImg")
    photos, matched = [], 0
    try:
        for photo in dataset.photos:
            name = _table_name(PurePosixPath(photo.source))
            table = next((path for path in (folder / name, folder / name.name) if path.is_file()), None)
            matched += table is not None
            photos.append(photo if table is None else dataclasses.replace(photo, landmarks=_best_face(table)))
    except OSError as error:
        raise RawDataError(f"--landmarks {folder} cannot be read: {error.strerror or error}") from error
    if not matched:
        raise RawDataError(f"--landmarks {folder} has no CSV for any photo; expected e.g. {name.name}")
    return dataclasses.replace(dataset, photos=tuple(photos))


def _table_name(source: PurePosixPath) -> PurePosixPath:
    """Relative path of a photo's CSV; only its name if the photo's path contains `..`."""
    if not source.name or source.name == "..":
        return PurePosixPath("none.csv")
    return PurePosixPath(source.name if ".." in source.parts else source).with_suffix(".csv")


def _best_face(table: Path) -> tuple[Point, ...]:
    """Five points of the face with the highest confidence in a CSV; empty if it lists no face."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(table), newline=""), skipinitialspace=True, strict=True))
        faces = [{name.strip(): value for name, value in row.items() if name} for row in rows]
        if not faces:
            return ()
        best = max(faces, key=lambda face: finite(face.get("confidence") or "0"))
        return five_points([(finite(best[f"x_{i}"]), finite(best[f"y_{i}"])) for i in range(POINTS)])
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise RawDataError(f"{table} is not an OpenFace CSV with confidence, x_0 ... y_67 ({error!r})") from error
