"""Parquet files as Hugging Face's datasets have them: a column of images' bytes and one of labels.

pyarrow is needed for these alone, so it is imported only here, when such a file is read.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pfcluster.data.raw.base import OwnSplit, RawDataError, RawDataset, RawPhoto, ReadOptions, split_named

IMAGE_COLUMNS = ("image", "img", "jpg", "picture")
LABEL_COLUMNS = ("label", "labels", "emotion", "expression")
BATCH = 512
"""Rows that are in memory at once."""


def recognises(source: Path) -> bool:
    """Whether a file is parquet by its name, or a folder or its `data` folder holds such files."""
    return bool(_files(source))


def read(source: Path, options: ReadOptions) -> RawDataset:
    """All rows of the files, sorted by the files' names. Raises RawDataError."""
    files = _files(source)
    if not files:
        raise RawDataError(f"{source} is no .parquet file, and neither it nor its data folder holds any")
    splits: list[OwnSplit | None] = [split_named(file.stem.split("-")[0]) for file in files]
    if None in splits or "train" not in splits or len(set(splits)) < 2:
        splits = [None] * len(files)
    photos = [photo for file, split in zip(files, splits, strict=True) for photo in _rows(file, split)]
    return RawDataset("parquet", source.resolve().name, tuple(photos), 0, str(source))


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix.lower() == ".parquet" else []
    for folder in (source, source / "data"):
        found = sorted(path for path in folder.glob("*.parquet") if path.is_file() and not path.name.startswith("."))
        if found:
            return found
    return []


def _rows(file: Path, split: OwnSplit | None) -> Iterator[RawPhoto]:
    opened = open_parquet(file)
    labels = _labels(file, opened)
    sizes = [-1 if data is None else len(data) for data in pictures(file)]
    if not len(labels) == len(sizes) == opened.metadata.num_rows:
        raise RawDataError(
            f"{file} has {len(labels)} labels and {len(sizes)} images, not {opened.metadata.num_rows}; fetch it again"
        )
    for row, (label, size) in enumerate(zip(labels, sizes, strict=True)):
        path = str(file) if size >= 0 else ""
        yield RawPhoto(f"{file.name}#{row}", label, None, path, row, size, "parquet", split)


def open_parquet(file: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile`. Raises RawDataError."""
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise RawDataError(f"{file} needs pyarrow to be read: pip install pyarrow") from error
    try:
        return parquet.ParquetFile(file, page_checksum_verification=True)  # of pages that have checksums
    except (arrow.ArrowException, OSError) as error:
        raise RawDataError(f"{file} is no parquet file that can be read ({error}); fetch it again") from error


def _column(file: Path, names: Sequence[str], wanted: Sequence[str], what: str) -> str:
    name = next((name for name in wanted if name in names), None)
    if name is None:
        raise RawDataError(
            f"{file} has no column of {what}: it has {', '.join(names)}; name one of them {' or '.join(wanted)}"
        )
    return name


def pictures(file: Path) -> Iterator[Any]:
    """Each row's image as a buffer, None where there is none; other columns stay unread. Raises RawDataError."""
    opened = open_parquet(file)
    name = _column(file, opened.schema_arrow.names, IMAGE_COLUMNS, "images")
    kind = opened.schema_arrow.field(name).type
    types = importlib.import_module("pyarrow.types")
    nested = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    held = kind.field("bytes").type if nested else kind
    if not (types.is_binary(held) or types.is_large_binary(held)):
        raise RawDataError(f"{file}: its column {name} is {kind}; it must be bytes of images, or bytes and path")
    for batch in _batches(file, opened, f"{name}.bytes" if nested else name):
        column = batch.column(0).field("bytes") if nested else batch.column(0)
        for value in column:
            yield value.as_buffer()


def _batches(file: Path, opened: Any, column: str) -> Iterator[Any]:
    """One column, row group by row group."""
    arrow = importlib.import_module("pyarrow")
    try:
        for group in range(opened.num_row_groups):
            yield from opened.iter_batches(BATCH, row_groups=[group], columns=[column])
    except (arrow.ArrowException, OSError) as error:
        raise RawDataError(f"{file} cannot be read to its end ({error}); fetch it again") from error


def _labels(file: Path, opened: Any) -> list[str]:
    """Each row's label; numbers by the names that the file's Hugging Face features give them, -1 and null as none."""
    schema, types = opened.schema_arrow, importlib.import_module("pyarrow.types")
    column = _column(file, schema.names, LABEL_COLUMNS, "labels")
    kind = schema.field(column).type
    values = [value for batch in _batches(file, opened, column) for value in batch.column(0).to_pylist()]
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind):
        return [value or "" for value in values]
    if not types.is_integer(kind):
        raise RawDataError(f"{file}: its column {column} is {kind}; labels must be text or whole numbers")
    names = _class_names(file, schema.metadata or {}, column)
    for row, value in enumerate(values):
        if value is not None and not -1 <= value < len(names):
            raise RawDataError(f"{file}, row {row}: {column} is {value}, but names are given for 0 to {len(names) - 1}")
    return ["" if value in (None, -1) else names[value] for value in values]


def _class_names(file: Path, metadata: dict[bytes, bytes], column: str) -> list[str]:
    """The ClassLabel names of a column of numbers."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
        if isinstance(names, list) and names:
            return [str(name) for name in names]
    except (KeyError, TypeError, ValueError):
        pass
    raise RawDataError(
        f"{file}: its column {column} holds numbers, and nothing in the file names them; write the emotions' names"
        " instead, or make the column a ClassLabel with its names"
    )
