"""Landmarks that come with photos: 68 points to the five that align a face, and OpenFace's tables."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pfcluster.data.raw.base import Point, RawDataError, RawDataset, text_of

POINTS = 68
"""Of the iBUG 300-W markup, which AffectNet and OpenFace use."""
LEFT_EYE, RIGHT_EYE = slice(36, 42), slice(42, 48)
NOSE, LEFT_MOUTH, RIGHT_MOUTH = 30, 48, 54


def finite(cell: str) -> float:
    """The number that a text is. Raises ValueError where it is none, or not finite."""
    number = float(cell)
    if not math.isfinite(number):
        raise ValueError(f"{cell.strip()} is no finite number")
    return number


def five_points(points: Sequence[Point]) -> tuple[Point, ...]:
    """Both eyes' centres, the nose's tip and the mouth's corners of 68 points. Raises ValueError for another number."""
    if len(points) != POINTS:
        raise ValueError(f"{len(points)} points, not {POINTS}")

    def centre(some: Sequence[Point]) -> Point:
        return sum(x for x, _ in some) / len(some), sum(y for _, y in some) / len(some)

    return centre(points[LEFT_EYE]), centre(points[RIGHT_EYE]), points[NOSE], points[LEFT_MOUTH], points[RIGHT_MOUTH]


def with_openface(dataset: RawDataset, where: Path) -> RawDataset:
    """The dataset with the landmarks of OpenFace 2's FaceLandmarkImg, a CSV for each photo.

    `where`: their folder; a photo's table bears its path within the dataset, or else its name alone, with the ending
    .csv. Of several faces the most confident counts. Photos without a table keep what they have. Raises RawDataError.
    """
    if not where.is_dir():
        raise RawDataError(f"--landmarks {where} is no folder; give the one that FaceLandmarkImg -out_dir wrote")
    photos, met = [], 0
    try:
        for photo in dataset.photos:
            name = _table_name(PurePosixPath(photo.source))
            table = next((path for path in (where / name, where / name.name) if path.is_file()), None)
            met += table is not None
            photos.append(photo if table is None else dataclasses.replace(photo, landmarks=_best_face(table)))
    except OSError as error:
        raise RawDataError(f"--landmarks {where} cannot be read: {error.strerror or error}") from error
    if not met:
        raise RawDataError(f"--landmarks {where} has no table for any photo; the first would be {name.name}")
    return dataclasses.replace(dataset, photos=tuple(photos))


def _table_name(source: PurePosixPath) -> PurePosixPath:
    """The name of a photo's table; one that would lead out of the tables' folder counts without its folders."""
    if not source.name or source.name == "..":
        return PurePosixPath("none.csv")
    return PurePosixPath(source.name if ".." in source.parts else source).with_suffix(".csv")


def _best_face(table: Path) -> tuple[Point, ...]:
    """The five points of a table's most confident face; none where it lists no face."""
    try:
        rows = list(csv.DictReader(io.StringIO(text_of(table), newline=""), skipinitialspace=True, strict=True))
        faces = [{name.strip(): value for name, value in row.items() if name} for row in rows]
        if not faces:
            return ()
        best = max(faces, key=lambda face: finite(face.get("confidence") or "0"))
        return five_points([(finite(best[f"x_{i}"]), finite(best[f"y_{i}"])) for i in range(POINTS)])
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise RawDataError(f"{table} is no table of OpenFace with confidence, x_0 ... y_67 ({error!r})") from error
