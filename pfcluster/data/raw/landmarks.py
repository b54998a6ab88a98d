"""Landmarks from files: reduction of 68 points to the five used for alignment, and OpenFace's CSV files."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from pfcluster.data.raw.base import Point, RawDataError, RawDataset, RawPhoto
from pfcluster.data.raw.tables import read_text

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the photo."""

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


def with_openface(datasets: Mapping[str, RawDataset], folder: Path) -> dict[str, RawDataset]:
    """Add the landmarks of OpenFace 2's FaceLandmarkImg, which writes one CSV per photo into `folder`, to each dataset.

    A photo's CSV has its path within the dataset, or only its name, with the suffix .csv. Of several faces, the one
    with the highest confidence is used, among those in the photo's box if one is listed. Photos without a CSV are
    unchanged. Raises RawDataError, also if several photos have the same CSV.
    """
    if not folder.is_dir():
        raise RawDataError(f"--landmarks {folder} is not a folder; pass the -out_dir of FaceLandmarkImg")
    owners: dict[Path, tuple[RawPhoto, str]] = {}
    results = {}
    try:
        for role, dataset in datasets.items():
            tables = [_table_of(photo, folder) for photo in dataset.photos]
            for photo, table in zip(dataset.photos, tables, strict=True):
                if table is not None:
                    _require_one_photo(table, folder, owners, photo, f"{dataset.name}/{photo.source}")
            if not any(tables):
                name = _table_name(PurePosixPath(dataset.photos[-1].source)).name if dataset.photos else "photo.csv"
                raise RawDataError(f"--landmarks {folder} has no CSV for any photo; expected e.g. {name}")
            photos = [
                photo if table is None else dataclasses.replace(photo, landmarks=_best_face(table, photo.box))
                for photo, table in zip(dataset.photos, tables, strict=True)
            ]
            results[role] = dataclasses.replace(dataset, photos=tuple(photos))
    except OSError as error:
        raise RawDataError(f"--landmarks {folder} cannot be read: {error.strerror or error}") from error
    return results


def _table_of(photo: RawPhoto, folder: Path) -> Path | None:
    """A photo's CSV; None if there is none."""
    name = _table_name(PurePosixPath(photo.source))
    return next((path for path in (folder / name, folder / name.name) if path.is_file()), None)


def _require_one_photo(
    table: Path, folder: Path, owners: dict[Path, tuple[RawPhoto, str]], photo: RawPhoto, name: str
) -> None:
    """Record the owner of a CSV; the rows of one photo share it. Raises RawDataError if another photo owns it."""
    owner, owner_name = owners.setdefault(table, (photo, name))
    if (owner.path, owner.offset) != (photo.path, photo.offset):
        raise RawDataError(
            f"--landmarks {folder}: {table.relative_to(folder)} can be the CSV of {owner_name} and of {name}; write"
            " one CSV for each photo, in subfolders as those of the photos (FaceLandmarkImg once for each folder, with"
            " its own -out_dir), or rename the photos"
        )


def _table_name(source: PurePosixPath) -> PurePosixPath:
    """Relative path of a photo's CSV; only its name if the photo's path contains `..`."""
    if not source.name or source.name == "..":
        return PurePosixPath("none.csv")
    return PurePosixPath(source.name if ".." in source.parts else source).with_suffix(".csv")


def _best_face(table: Path, box: Box | None) -> tuple[Point, ...]:
    """Five points of the face with the highest confidence in a CSV, among those in the box if there is one; empty if
    there is no such face.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(table), newline=""), skipinitialspace=True, strict=True))
        faces = [{name.strip(): value for name, value in row.items() if name} for row in rows]
        for face in sorted(faces, key=lambda face: -finite(face.get("confidence") or "0")):
            points = five_points([(finite(face[f"x_{i}"]), finite(face[f"y_{i}"])) for i in range(POINTS)])
            if box is None or _is_in(points, box):
                return points
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise RawDataError(f"{table} is not an OpenFace CSV with confidence, x_0 ... y_67 ({error!r})") from error
    return ()


def _is_in(points: Sequence[Point], box: Box) -> bool:
    """Whether the mean of some points is in a box."""
    x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
    left, top, right, bottom = box
    return left <= x <= right and top <= y <= bottom
