"""FER2013 as a CSV of grey values (Goodfellow et al. 2013), and FERPlus's ten votes for each of its photos (Barsoum et
al. 2016, arXiv 1608.01041).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pfcluster.data.labels import CANONICAL, VOCABULARIES, name_of
from pfcluster.data.raw.base import (
    RawDataError,
    RawDataset,
    RawPhoto,
    ReadOptions,
    VotingMode,
    file_size,
    leads_out,
    split_named,
    text_of,
)

PIXEL_FILES = ("fer2013.csv", "icml_face_data.csv")
VOTES_FILE = "fer2013new.csv"
VOTED = tuple(VOCABULARIES["ferplus"].values())
"""What FERPlus's annotators could say, in the order of its columns; the last two are no emotions."""
NO_EMOTIONS = 2
PHOTO_FOLDERS = ("FER2013Train", "FER2013Valid", "FER2013Test")
"""Where FERPlus's own script puts the photos."""


def recognises_fer2013(source: Path) -> bool:
    """Whether a file's first line names emotion and pixels, or a folder holds such a file and no votes."""
    if source.is_dir():
        return not (source / VOTES_FILE).is_file() and any((source / name).is_file() for name in PIXEL_FILES)
    if not source.is_file() or source.suffix.lower() != ".csv":
        return False
    with open(source, "rb") as file:
        header = file.readline(200)
    return {b"emotion", b"pixels"} <= set(_cells(header))


def read_fer2013(source: Path, options: ReadOptions) -> RawDataset:
    """The photos of `fer2013.csv`, in the order of its rows. Raises RawDataError."""
    table = source
    if source.is_dir():
        found = [source / name for name in PIXEL_FILES if (source / name).is_file()]
        if not found:
            raise RawDataError(f"{source} is no FER2013: it has neither {' nor '.join(PIXEL_FILES)}")
        table = found[0]
    photos = tuple(_pixel_rows(table))
    return RawDataset("fer2013", "fer2013", photos, 0, str(table))


def _cells(line: bytes) -> list[bytes]:
    return [cell.strip().strip(b'"').lower() for cell in line.split(b",")]


def _pixel_rows(table: Path) -> Iterator[RawPhoto]:
    """A photo for each row; its bytes are the row's grey values."""
    with open(table, "rb") as file:
        header = _cells(file.readline())
        missing = {b"emotion", b"pixels"} - set(header)
        if missing:
            names = " and ".join(sorted(name.decode() for name in missing))
            raise RawDataError(f"{table} has no column {names}: it is no fer2013.csv")
        if len(set(header)) != len(header):
            raise RawDataError(f"{table} has two columns of one name: it is no fer2013.csv")
        place, at = {name: number for number, name in enumerate(header)}, file.tell()
        for number, line in enumerate(iter(file.readline, b"")):
            if line.strip():
                yield _pixel_row(table, place, number, at, line)
            at += len(line)


def _pixel_row(table: Path, place: dict[bytes, int], number: int, at: int, line: bytes) -> RawPhoto:
    cells = line.rstrip(b"\r\n").split(b",")
    if len(cells) != len(place):
        raise RawDataError(f"{table}, row {number + 1}: {len(cells)} cells, the header has {len(place)}; copy it again")

    def cell(name: bytes) -> str:
        return cells[place[name]].decode("ascii", "replace").strip().strip('"') if name in place else ""

    pixels = cells[place[b"pixels"]]
    start = at + sum(len(before) + 1 for before in cells[: place[b"pixels"]])
    start += pixels.startswith(b'"')
    size = len(pixels.strip(b'"'))
    label, split = name_of("fer2013", cell(b"emotion")), split_named(cell(b"usage"))
    return RawPhoto(f"fer{number:07d}.png", label, None, str(table), start, size, "pixels", split)


def recognises_ferplus(source: Path) -> bool:
    """Whether a folder holds FERPlus's votes."""
    return (source / VOTES_FILE).is_file()


def read_ferplus(source: Path, options: ReadOptions) -> RawDataset:
    """FER2013's photos with the labels that FERPlus's votes give under `options.votes`. Raises RawDataError."""
    table = source / VOTES_FILE
    try:
        rows = list(csv.reader(io.StringIO(text_of(table), newline=""), strict=True))
    except csv.Error as error:
        raise RawDataError(f"{table} is no readable CSV ({error}); fetch FERPlus again") from error
    if not rows or len(rows[0]) != len(VOTED) + 2:
        raise RawDataError(f"{table} must have the columns Usage, Image name and ten of votes; fetch FERPlus again")
    rows = [row for row in rows[1:] if row]
    photos = _photos(source, options.images, rows)
    pairs = zip(photos, rows, strict=True)
    voted = tuple(_voted(table, number, photo, row, options) for number, (photo, row) in enumerate(pairs))
    return RawDataset("ferplus", "ferplus", voted, 0, str(options.images or source), options.votes)


def _photos(source: Path, images: Path | None, rows: Sequence[Sequence[str]]) -> list[RawPhoto]:
    """FER2013's photo for each row of votes: of its CSV, which has the same rows, or of files."""
    table = next((source / name for name in PIXEL_FILES if (source / name).is_file()), None)
    if table is None or images is not None:
        folders = (images,) if images is not None else tuple(source / name for name in PHOTO_FOLDERS)
        if not any(folder.is_dir() for folder in folders):
            raise RawDataError(
                f"{source} has FERPlus's votes and no photos: put FER2013's fer2013.csv beside them, or name the folder"
                " of its PNGs with --images"
            )
        names = [row[1].strip() if len(row) > 1 else "" for row in rows]
        wrong = [name for name in names if "\0" in name or leads_out(name)]
        if wrong:
            raise RawDataError(f"{source / VOTES_FILE} names a photo {wrong[0]!r}, outside its folder; fetch it again")
        return [_photo_file(folders, name) for name in names]
    photos = list(_pixel_rows(table))
    if len(photos) != len(rows):
        raise RawDataError(
            f"{table} has {len(photos)} rows and {VOTES_FILE} {len(rows)}: they must be the same photos, row by row"
        )
    for number, (photo, row) in enumerate(zip(photos, rows, strict=True), start=1):
        if photo.split != split_named(row[0]):
            raise RawDataError(
                f"row {number} is {row[0]!r} in {VOTES_FILE} and another split in {table}: take the originals"
            )
    return photos


def _photo_file(folders: Sequence[Path], name: str) -> RawPhoto:
    if not name:
        return RawPhoto("", "", None, "")
    path = next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)
    return RawPhoto(name, "", None, str(path), 0, file_size(path))


def _voted(table: Path, number: int, photo: RawPhoto, row: Sequence[str], options: ReadOptions) -> RawPhoto:
    """The photo with its label. A row without an image name is FERPlus's mark for a photo that is none."""
    try:
        votes = [float(cell) for cell in row[2:]]
        if len(votes) != len(VOTED) or min(votes) < 0 or not sum(votes) < float("inf"):
            raise ValueError(f"{len(votes)} votes")
    except ValueError as error:
        raise RawDataError(f"{table}, row {number + 1}: it must end in ten numbers of votes ({error})") from error
    split = split_named(row[0])
    if split is None:
        raise RawDataError(f"{table}, row {number + 1}: {row[0]!r} names no split (Training, PublicTest, PrivateTest)")
    if not row[1].strip():
        return replace(photo, label="no image name", split=split)
    label, shares = vote(votes, options.votes)
    return replace(photo, label=label, votes=shares, split=split)


def vote(votes: Sequence[float], mode: VotingMode) -> tuple[str, tuple[float, ...]]:
    """What ten annotators' votes make of a photo: its label, and the share of each emotion in CANONICAL order.

    votes: in the order of VOTED, none below 0, of a finite sum. The label is "unknown" or "no-face", with no shares,
    where a mode drops the photo. As microsoft/FERPlus does it, but for "argmax", which takes the votes as they are.
    """
    if mode == "argmax":
        kept = list(votes)
    else:
        certain = [0.0 if count <= 1 else float(count) for count in votes]  # a single vote is an outlier
        kept = {"majority": _majority, "probability": _probable, "multi-target": _targets}[mode](certain)
    if not any(kept):
        return "unknown", ()
    best = kept.index(max(kept))
    if best >= len(VOTED) - NO_EMOTIONS:
        return VOTED[best], ()
    emotions = dict(zip(VOTED, kept[:-NO_EMOTIONS], strict=False))
    total = sum(emotions.values())
    return VOTED[best], tuple(emotions[name] / total for name in CANONICAL)


def _majority(votes: Sequence[float]) -> list[float]:
    """The first of the most frequent answers, if it has more than half of the votes."""
    best = max(votes)
    kept = [0.0] * len(votes)
    if best > 0.5 * sum(votes):
        kept[list(votes).index(best)] = best
    return kept


def _probable(votes: Sequence[float]) -> list[float]:
    """The most frequent answers until they have three quarters of the votes, at most three of them.

    Answers of equal frequency come together. One that is no emotion ends the list, and is struck off it where emotions
    stand before it. None remain where they have no more than half of the votes, or where ties make more than three.
    """
    total, left = sum(votes), list(votes)
    kept = [0.0] * len(left)
    integrated, count, emotion = 0.0, 0, True
    while integrated < 0.75 * total and count < 3 and emotion:
        best = max(left)
        for place, value in enumerate(left):
            if value != best:
                continue
            kept[place], left[place] = best, 0.0
            integrated += best
            count += 1
            if place >= len(left) - NO_EMOTIONS:
                emotion = False
                if sum(kept) > best:
                    kept[place] = 0.0
                    count -= 1
                break
    return kept if sum(kept) > 0.5 * total and count <= 3 else [0.0] * len(kept)


def _targets(votes: Sequence[float]) -> list[float]:
    """Every answer with 30 % of the votes or more, if together they have more than half."""
    total = sum(votes)
    kept = [value if value >= 0.3 * total else 0.0 for value in votes]
    return kept if sum(kept) > 0.5 * total else [0.0] * len(kept)
