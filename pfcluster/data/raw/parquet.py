"""Parquet files in the layout of Hugging Face datasets: a column of image bytes and a column of labels.

pyarrow is an optional dependency, imported when a parquet file is read.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pfcluster.data.raw.base import OfficialSplit, RawDataError, RawDataset, RawPhoto, ReadOptions, split_from_name

IMAGE_COLUMNS = ("image", "img", "jpg", "picture")
LABEL_COLUMNS = ("label", "labels", "emotion", "expression")
BATCH = 512
"""Rows in memory at a time."""


def recognises(source: Path) -> bool:
    """Whether a file has the suffix .parquet, or a folder or its `data` folder contains such files."""
    return bool(_files(source))


def read(source: Path, options: ReadOptions) -> RawDataset:
    """List all rows of the files, sorted by file name. Raises RawDataError."""
    files = _files(source)
    if not files:
        raise RawDataError(f"{source} is not a .parquet file, and neither it nor its data folder contains any")
    splits: list[OfficialSplit | None] = [split_from_name(file.stem.split("-")[0]) for file in files]
    if None in splits or "train" not in splits or len(set(splits)) < 2:
        splits = [None] * len(files)
    photos = [photo for file, split in zip(files, splits, strict=True) for photo in _rows(file, split)]
    return RawDataset("parquet", source.resolve().name, tuple(photos), 0, str(source))


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix.lower() == ".parquet" else []
    for folder in (source, source / "data"):
        files = sorted(path for path in folder.glob("*.parquet") if path.is_file() and not path.name.startswith("."))
        if files:
            return files
    return []


def _rows(file: Path, split: OfficialSplit | None) -> Iterator[RawPhoto]:
    parquet = open_parquet(file)
    labels = _labels(file, parquet)
    sizes = [-1 if data is None else len(data) for data in read_images(file)]
    if not len(labels) == len(sizes) == parquet.metadata.num_rows:
        raise RawDataError(
            f"{file} has {len(labels)} labels and {len(sizes)} images for {parquet.metadata.num_rows} rows;"
            " download it again"
        )
    for row, (label, size) in enumerate(zip(labels, sizes, strict=True)):
        path = str(file) if size >= 0 else ""
        yield RawPhoto(f"{file.name}#{row}", label, None, path, row, size, "parquet", split)


def open_parquet(file: Path) -> Any:
    """Open a `pyarrow.parquet.ParquetFile`. Raises RawDataError."""
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise RawDataError(f"{file} requires pyarrow: pip install pyarrow") from error
    try:
        return parquet.ParquetFile(file, page_checksum_verification=True)  # if the pages have checksums
    except (arrow.ArrowException, OSError, ValueError) as error:  # ValueError: names that are not UTF-8
        raise RawDataError(f"{file} is not a valid parquet file ({error}); download it again") from error


def _column(file: Path, names: Sequence[str], accepted: Sequence[str], content: str) -> str:
    name = next((name for name in accepted if name in names), None)
    if name is None:
        raise RawDataError(
            f"{file} has no column of {content}: it has {', '.join(names)}; rename one to {' or '.join(accepted)}"
        )
    return name


def read_images(file: Path) -> Iterator[Any]:
    """Image of each row as a buffer, None if there is none; reads no other column. Raises RawDataError."""
    parquet = open_parquet(file)
    name = _column(file, parquet.schema_arrow.names, IMAGE_COLUMNS, "images")
    kind = parquet.schema_arrow.field(name).type
    types = importlib.import_module("pyarrow.types")
    nested = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    value_type = kind.field("bytes").type if nested else kind
    if not (types.is_binary(value_type) or types.is_large_binary(value_type)):
        raise RawDataError(f"{file}: column {name} has type {kind}; it must be binary, or a struct of bytes and path")
    for batch in _batches(file, parquet, f"{name}.bytes" if nested else name):
        column = batch.column(0).field("bytes") if nested else batch.column(0)
        for value in column:
            yield value.as_buffer()


def _batches(file: Path, parquet: Any, column: str) -> Iterator[Any]:
    """Read one column, row group by row group. Raises RawDataError."""
    arrow = importlib.import_module("pyarrow")
    try:
        for group in range(parquet.num_row_groups):
            yield from parquet.iter_batches(BATCH, row_groups=[group], columns=[column])
    except (arrow.ArrowException, OSError, ValueError) as error:  # ValueError: names that are not UTF-8
        raise RawDataError(f"{file} cannot be read completely ({error}); download it again") from error


def _labels(file: Path, parquet: Any) -> list[str]:
    """Label of each row. Numbers become the names in the file's Hugging Face metadata; -1 and null become ""."""
    schema, types = parquet.schema_arrow, importlib.import_module("pyarrow.types")
    column = _column(file, schema.names, LABEL_COLUMNS, "labels")
    kind = schema.field(column).type
    values = [value for batch in _batches(file, parquet, column) for value in batch.column(0).to_pylist()]
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind):
        return [value or "" for value in values]
    if not types.is_integer(kind):
        raise RawDataError(f"{file}: column {column} has type {kind}; labels must be strings or integers")
    names = _class_names(file, schema.metadata or {}, column)
    for row, value in enumerate(values):
        if value is not None and not -1 <= value < len(names):
            raise RawDataError(
                f"{file}, row {row}: {column} is {value}, but the metadata names classes 0 to {len(names) - 1}"
            )
    return ["" if value in (None, -1) else names[value] for value in values]


def _class_names(file: Path, metadata: dict[bytes, bytes], column: str) -> list[str]:
    """The ClassLabel names of an integer column. Raises RawDataError if the metadata have none."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
        if isinstance(names, list) and names:
            return [str(name) for name in names]
    except (KeyError, TypeError, ValueError):
        pass
    raise RawDataError(
        f"{file}: column {column} holds numbers, and the metadata do not name them; store the emotions' names instead,"
        " or make the column a ClassLabel with names"
    )
