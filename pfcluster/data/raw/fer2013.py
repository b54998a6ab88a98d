"""FER2013 as a CSV of grey values (Goodfellow et al. 2013), and FERPlus's ten votes per photo (Barsoum et al. 2016,
arXiv 1608.01041).
"""

from __future__ import annotations

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
    leaves_folder,
)
from pfcluster.data.raw.split_columns import splits_of_cells
from pfcluster.data.raw.split_names import column_splits, split_from_name
from pfcluster.data.raw.tables import (
    HEAD_BYTES,
    delimiter_of,
    encoding_of,
    header_names,
    read_table,
    separator_line,
    split_cells,
)

PIXEL_FILES = ("fer2013.csv", "icml_face_data.csv")
COLUMNS = {"emotion", "pixels"}
SPLIT_COLUMNS = ("usage", "split", "partition", "subset")
VOTES_FILE = "fer2013new.csv"
VOTE_COLUMNS = tuple(VOCABULARIES["ferplus"].values())
"""Answers of FERPlus's annotators, in column order; the last `NO_EMOTIONS` are not emotions."""
NO_EMOTIONS = 2
PHOTO_FOLDERS = ("FER2013Train", "FER2013Valid", "FER2013Test")
"""Output folders of FERPlus's script."""


def recognises_fer2013(source: Path) -> bool:
    """Whether a CSV has columns emotion and pixels, or a folder contains such a file and no votes."""
    if source.is_dir():
        return not (source / VOTES_FILE).is_file() and any((source / name).is_file() for name in PIXEL_FILES)
    if not source.is_file() or source.suffix.lower() not in (".csv", ".tsv"):
        return False
    with open(source, "rb") as file:
        head = file.read(HEAD_BYTES)
    encoding = encoding_of(head)
    lines = head[encoding.mark :].decode(encoding.name, "replace").splitlines()
    header = next((line for line in lines if line.strip() and separator_line(line) is None), "")
    names = header_names([cell for _, cell in split_cells(header, delimiter_of(header))])
    return COLUMNS.issubset(names)


def read_fer2013(source: Path, options: ReadOptions) -> RawDataset:
    """List the photos of `fer2013.csv` in row order. Raises RawDataError."""
    table = source
    if source.is_dir():
        tables = [source / name for name in PIXEL_FILES if (source / name).is_file()]
        if not tables:
            raise RawDataError(f"{source} is not FER2013: it has neither {' nor '.join(PIXEL_FILES)}")
        table = tables[0]
    rows = list(_pixel_rows(table))
    columns = {name: [cells[name] for _, cells in rows] for name in (rows[0][1] if rows else ())}
    usage = next((columns[name] for name in SPLIT_COLUMNS if any(columns.get(name, ()))), None)
    splits, note = (None, "") if usage is not None else splits_of_cells(columns, options.splits, table)
    if splits is None:
        splits = column_splits(usage or [""] * len(rows), options.splits, table)
    photos = tuple(replace(photo, split=split) for (photo, _), split in zip(rows, splits, strict=True))
    return RawDataset("fer2013", "fer2013", photos, {}, str(table), notes=(note,) if note else ())


def _lines(table: Path) -> Iterator[tuple[int, str, int]]:
    """Lines of a text file with their offset in bytes and the bytes of a character. Raises RawDataError.

    Lines of UTF-8 are decoded as Latin-1, so that positions of characters are those of bytes.
    """
    with open(table, "rb") as file:
        encoding = encoding_of(file.read(HEAD_BYTES))
        file.seek(encoding.mark)
        if encoding.width == 1:
            offset = encoding.mark
            for stored in iter(file.readline, b""):
                yield offset, stored.decode("latin-1"), 1
                offset += len(stored)
            return
        data = file.read()
    try:
        text = data.decode(encoding.name)
    except UnicodeDecodeError as error:
        raise RawDataError(f"{table} is not {encoding.name.upper()} text ({error}); save it as UTF-8") from error
    if len(text) * encoding.width != len(data):
        raise RawDataError(f"{table} holds characters that no FER2013 has; save it as UTF-8")
    place = 0
    for line in text.splitlines(keepends=True):
        yield encoding.mark + place * encoding.width, line, encoding.width
        place += len(line)


def _pixel_rows(table: Path) -> Iterator[tuple[RawPhoto, dict[str, str]]]:
    """A photo per row, whose bytes are the row's grey values, and its cells of the other columns, by name."""
    lines = ((offset, line, width) for offset, line, width in _lines(table) if line.strip())
    _, first, _ = next(lines, (0, "", 1))
    delimiter = separator_line(first)
    if delimiter is not None:
        _, first, _ = next(lines, (0, "", 1))
    delimiter = delimiter or delimiter_of(first)
    header = header_names([cell for _, cell in split_cells(first, delimiter)])
    missing = COLUMNS - set(header)
    if missing:
        raise RawDataError(
            f"{table} has no column {' and '.join(sorted(missing))}: its header is {', '.join(header)!r}; FER2013's is"
            " emotion,pixels,Usage"
        )
    if len(set(header)) != len(header):
        raise RawDataError(f"{table} has duplicate column names: it is not fer2013.csv")
    columns = {name: number for number, name in enumerate(header)}
    for number, (offset, line, width) in enumerate(lines):
        yield _pixel_row(table, columns, number, delimiter, (offset, line, width))


def _pixel_row(
    table: Path, columns: dict[str, int], number: int, delimiter: str, place: tuple[int, str, int]
) -> tuple[RawPhoto, dict[str, str]]:
    offset, line, width = place
    cells = split_cells(line.rstrip("\r\n"), delimiter)
    if len(cells) != len(columns):
        raise RawDataError(
            f"{table}, row {number + 1}: {len(cells)} cells, the header has {len(columns)}; copy the file again"
        )

    def cell(name: str) -> str:
        return cells[columns[name]][1].strip().strip('"').strip()

    position, pixels = cells[columns["pixels"]]
    start = offset + width * (position + (len(pixels) - len(pixels.lstrip('"'))))
    size = width * len(pixels.strip('"'))
    label = name_of("fer2013", cell("emotion"))
    photo = RawPhoto(f"fer{number:07d}.png", label, None, str(table), start, size, "pixels")
    return photo, {name: cell(name) for name in columns if name not in COLUMNS}


def recognises_ferplus(source: Path) -> bool:
    """Whether a folder contains FERPlus's votes."""
    return (source / VOTES_FILE).is_file()


def read_ferplus(source: Path, options: ReadOptions) -> RawDataset:
    """List FER2013's photos with labels from FERPlus's votes, by the rule `options.votes`. Raises RawDataError."""
    table = source / VOTES_FILE
    votes = read_table(table)
    if len(votes.header) != len(VOTE_COLUMNS) + 2:
        raise RawDataError(
            f"{table} must have the columns Usage, Image name and ten columns of votes; download FERPlus again"
        )
    rows = votes.rows
    photos = _photos(source, options.images, rows)
    pairs = enumerate(zip(photos, rows, strict=True))
    labelled = tuple(_labelled(table, number, photo, row, options) for number, (photo, row) in pairs)
    return RawDataset("ferplus", "ferplus", labelled, {}, str(options.images or source), options.votes)


def _photos(source: Path, images: Path | None, rows: Sequence[Sequence[str]]) -> list[RawPhoto]:
    """FER2013's photo for each row of votes: from its CSV, which has the same rows, or from image files."""
    table = next((source / name for name in PIXEL_FILES if (source / name).is_file()), None)
    if table is None or images is not None:
        folders = (images,) if images is not None else tuple(source / name for name in PHOTO_FOLDERS)
        if not any(folder.is_dir() for folder in folders):
            raise RawDataError(
                f"{source} has FERPlus's votes but no photos: put FER2013's fer2013.csv next to them, or pass the"
                " folder of its PNGs with --images"
            )
        names = [row[1].strip() if len(row) > 1 else "" for row in rows]
        invalid = [name for name in names if "\0" in name or leaves_folder(name)]
        if invalid:
            raise RawDataError(
                f"{source / VOTES_FILE} names a photo {invalid[0]!r} outside its folder; download FERPlus again"
            )
        return [_photo_file(folders, name) for name in names]
    photos = [replace(photo, split=split_from_name(cells.get("usage", ""))) for photo, cells in _pixel_rows(table)]
    if len(photos) != len(rows):
        raise RawDataError(
            f"{table} has {len(photos)} rows and {VOTES_FILE} {len(rows)}: they must list the same photos"
        )
    for number, (photo, row) in enumerate(zip(photos, rows, strict=True), start=1):
        if photo.split != split_from_name(row[0]):
            raise RawDataError(
                f"row {number} is {row[0]!r} in {VOTES_FILE} and another split in {table}: use the original files"
            )
    return photos


def _photo_file(folders: Sequence[Path], name: str) -> RawPhoto:
    if not name:
        return RawPhoto("", "", None, "")
    path = next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)
    return RawPhoto(name, "", None, str(path), 0, file_size(path))


def _labelled(table: Path, number: int, photo: RawPhoto, row: Sequence[str], options: ReadOptions) -> RawPhoto:
    """The photo with its label. FERPlus marks unusable photos by an empty image name."""
    try:
        votes = [float(cell) for cell in row[2:]]
        if len(votes) != len(VOTE_COLUMNS) or min(votes) < 0 or not sum(votes) < float("inf"):
            raise ValueError(f"{len(votes)} votes")
    except ValueError as error:
        raise RawDataError(f"{table}, row {number + 1}: it must end in ten vote counts ({error})") from error
    split = split_from_name(row[0])
    if split is None:
        raise RawDataError(f"{table}, row {number + 1}: {row[0]!r} is not a split (Training, PublicTest, PrivateTest)")
    if not row[1].strip():
        return replace(photo, label="no image name", split=split)
    label, shares = vote(votes, options.votes)
    return replace(photo, label=label, votes=shares, split=split)


def vote(votes: Sequence[float], mode: VotingMode) -> tuple[str, tuple[float, ...]]:
    """Label of a photo, and fraction of votes of each emotion in CANONICAL order, from the votes of ten annotators.

    `votes`: in the order of VOTE_COLUMNS, non-negative, with a finite sum. If a mode drops the photo, the label is
    "unknown" or "no-face" and the fractions are empty. Follows microsoft/FERPlus, except for "argmax", which uses the
    votes as they are.
    """
    if mode == "argmax":
        kept = list(votes)
    else:
        certain = [0.0 if count <= 1 else float(count) for count in votes]  # single votes count as outliers
        kept = {"majority": _majority, "probability": _probability, "multi-target": _multi_target}[mode](certain)
    if not any(kept):
        return "unknown", ()
    best = kept.index(max(kept))
    if best >= len(VOTE_COLUMNS) - NO_EMOTIONS:
        return VOTE_COLUMNS[best], ()
    emotions = dict(zip(VOTE_COLUMNS, kept[:-NO_EMOTIONS], strict=False))
    total = sum(emotions.values())
    return VOTE_COLUMNS[best], tuple(emotions[name] / total for name in CANONICAL)


def _majority(votes: Sequence[float]) -> list[float]:
    """The most frequent answer (the first of several) if it has more than half of the votes."""
    best = max(votes)
    kept = [0.0] * len(votes)
    if best > 0.5 * sum(votes):
        kept[list(votes).index(best)] = best
    return kept


def _probability(votes: Sequence[float]) -> list[float]:
    """The most frequent answers until they have three quarters of the votes; at most three.

    Answers with equal counts are added together. An answer that is not an emotion ends the list, and is removed from it
    if it follows emotions. The result is empty if the answers have at most half of the votes, or if ties make more than
    three.
    """
    total, remaining = sum(votes), list(votes)
    kept = [0.0] * len(remaining)
    integrated, count, only_emotions = 0.0, 0, True
    while integrated < 0.75 * total and count < 3 and only_emotions:
        best = max(remaining)
        for column, value in enumerate(remaining):
            if value != best:
                continue
            kept[column], remaining[column] = best, 0.0
            integrated += best
            count += 1
            if column >= len(remaining) - NO_EMOTIONS:
                only_emotions = False
                if sum(kept) > best:
                    kept[column] = 0.0
                    count -= 1
                break
    return kept if sum(kept) > 0.5 * total and count <= 3 else [0.0] * len(kept)


def _multi_target(votes: Sequence[float]) -> list[float]:
    """All answers with at least 30 % of the votes, if together they have more than half."""
    total = sum(votes)
    kept = [value if value >= 0.3 * total else 0.0 for value in votes]
    return kept if sum(kept) > 0.5 * total else [0.0] * len(kept)
