"""Parquet files in the layout of Hugging Face datasets: columns of image bytes and labels, optionally of identities and
splits.

pyarrow is an optional dependency, imported when a parquet file is read.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from pfcluster.data.raw.base import RawDataError, RawDataset, RawPhoto, ReadOptions, is_hidden
from pfcluster.data.raw.split_columns import MAX_CELLS, splits_of_cells
from pfcluster.data.raw.split_names import IGNORE, column_splits, named_splits
from pfcluster.data.raw.tables import COLUMNS, columns_of, plain_name, require_equal
from pfcluster.system.extras import install_command

NESTED = ("*/*.parquet", "*/*/*.parquet")
"""Places of files such as `default/train/0000.parquet`."""
METADATA = "metadata.parquet"
BATCH = 512
"""Rows in memory at a time."""


def recognises(source: Path) -> bool:
    """Whether a file has the suffix .parquet, or a folder or its `data` folder contains such files, or folders in it
    do (`default/train/0000.parquet`).
    """
    return bool(_files(source))


def read(source: Path, options: ReadOptions) -> RawDataset:
    """List all rows of the files, sorted by file name. Raises RawDataError."""
    files = _files(source)
    if not files:
        raise RawDataError(f"{source} is not a .parquet file, and neither it nor its data folder contains any")
    listed = [list(_rows(file, options)) for file in files]
    photos = [photo for rows in listed for photo, _ in rows]
    cells = [cell for rows in listed for _, cell in rows]
    splits, note = None, ""
    if any(cells):
        splits = column_splits(cells, options.splits, source)
    elif IGNORE not in options.splits:
        columns = _other_columns(files, [len(rows) for rows in listed])
        splits, note = splits_of_cells(columns, options.splits, source)
    if splits is None:
        names = [_name(file, source) for file in files]
        by_file = named_splits(names, options.splits, source)
        splits = [split for split, rows in zip(by_file, listed, strict=True) for _ in rows]
    photos = [replace(photo, split=split) for photo, split in zip(photos, splits, strict=True)]
    notes = (note,) if note else ()
    return RawDataset("parquet", source.resolve().name, tuple(photos), {}, str(source), notes=notes)


def _name(file: Path, source: Path) -> str:
    """A file's path in the dataset without its suffix: `default/train/0000`."""
    return (file.relative_to(source) if source.is_dir() else Path(file.name)).with_suffix("").as_posix()


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix.lower() == ".parquet" else []
    for folder in (source, source / "data"):
        files = sorted(path for path in folder.glob("*.parquet") if path.is_file() and not path.name.startswith("."))
        if files:
            return files
    nested = {path for pattern in NESTED for path in source.glob(pattern) if path.name != METADATA}
    return sorted(path for path in nested if path.is_file() and not is_hidden(PurePosixPath(path.relative_to(source))))


def _rows(file: Path, options: ReadOptions) -> Iterator[tuple[RawPhoto, str]]:
    """The photos of a file, each with its cell of the split column."""
    parquet = open_parquet(file)
    names = parquet.schema_arrow.names
    for column in ("label", "identity") if IGNORE in options.splits else ("label", "identity", "split"):
        _require_equal(file, parquet, column)
    labels = _texts(file, parquet, _column(file, names, "label"), options.classes)
    others = {column: _optional(file, parquet, _find(names, column)) for column in ("identity", "split")}
    sizes = [-1 if data is None else len(data) for data in read_images(file)]
    if not len(labels) == len(sizes) == parquet.metadata.num_rows:
        raise RawDataError(
            f"{file} has {len(labels)} labels and {len(sizes)} images for {parquet.metadata.num_rows} rows;"
            " download it again"
        )
    for row, (label, size) in enumerate(zip(labels, sizes, strict=True)):
        path = str(file) if size >= 0 else ""
        identity, split = (others[column][row] if others[column] else "" for column in ("identity", "split"))
        yield RawPhoto(f"{file.name}#{row}", label, identity or None, path, row, size, "parquet"), split


def open_parquet(file: Path) -> Any:
    """Open a `pyarrow.parquet.ParquetFile`. Raises RawDataError."""
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise RawDataError(f"{file} requires pyarrow: {install_command('parquet')}") from error
    try:
        return parquet.ParquetFile(file, page_checksum_verification=True)  # if the pages have checksums
    except (arrow.ArrowException, OSError, ValueError) as error:  # ValueError: names that are not UTF-8
        raise RawDataError(f"{file} is not a valid parquet file ({error}); download it again") from error


def _find(names: Sequence[str], column: str) -> str | None:
    """The name of a column of COLUMNS; None if there is none."""
    return next((names[index] for index in columns_of(names, column)), None)


def _require_equal(file: Path, parquet: Any, column: str) -> None:
    """Raises RawDataError if several columns can be this one, and differ in any row."""
    names = [parquet.schema_arrow.names[index] for index in columns_of(parquet.schema_arrow.names, column)]
    if len(names) > 1:
        values = [
            [value for batch in _batches(file, parquet, name) for value in batch.column(0).to_pylist()]
            for name in names
        ]
        require_equal(file, column, list(zip(names, values, strict=True)))


def _column(file: Path, names: Sequence[str], column: str) -> str:
    name = _find(names, column)
    if name is None:
        raise RawDataError(
            f"{file} has no column of {column}s: it has {', '.join(names)};"
            f" rename one to {' or '.join(COLUMNS[column])}"
        )
    return name


def read_images(file: Path) -> Iterator[Any]:
    """Image of each row as a buffer, None if there is none; reads no other column. Raises RawDataError."""
    parquet = open_parquet(file)
    name = _column(file, parquet.schema_arrow.names, "image")
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


def _other_columns(files: Sequence[Path], counts: Sequence[int]) -> dict[str, list[str | None]]:
    """Cells of the columns that are not in COLUMNS, by name; None for files without the column. Only columns of text
    with few distinct values in each file, which may be splits. `counts`: rows of each file.
    """
    known = {name for names in COLUMNS.values() for name in names}
    columns: dict[str, list[str | None]] = {}
    before = 0
    for file, count in zip(files, counts, strict=True):
        parquet = open_parquet(file)
        for name in parquet.schema_arrow.names:
            cells = None if plain_name(name) in known else _few_texts(file, parquet, name)
            if cells is not None:
                columns.setdefault(name, [None] * before).extend(cells)
        before += count
        for column in columns.values():
            column += [None] * (before - len(column))
    return columns


def _few_texts(file: Path, parquet: Any, column: str) -> list[str] | None:
    """Text of each row of a column; None if it is not text, or has more distinct values than a split column."""
    types = importlib.import_module("pyarrow.types")
    kind = parquet.schema_arrow.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    names = _named(parquet.schema_arrow.metadata or {}, column) if types.is_integer(kind) else []
    if not (names or types.is_string(kind) or types.is_large_string(kind)):
        return None
    values: list[Any] = []
    distinct: set[Any] = set()
    for batch in _batches(file, parquet, column):
        values += batch.column(0).to_pylist()
        distinct.update(values[-batch.num_rows :])
        if len(distinct) > MAX_CELLS:
            return None
    if names:
        return [names[value] if value in range(len(names)) else "" for value in values]
    return [(value or "").strip() for value in values]


def _optional(file: Path, parquet: Any, column: str | None) -> list[str]:
    """Text of each row of a column; empty if there is no such column. Numbers without names stay numbers."""
    if column is None:
        return []
    kind = parquet.schema_arrow.field(column).type
    metadata = parquet.schema_arrow.metadata or {}
    numbers = importlib.import_module("pyarrow.types").is_integer(kind) and not _named(metadata, column)
    return _texts(file, parquet, column, {"": ""} if numbers else {})


def _texts(file: Path, parquet: Any, column: str, classes: Mapping[str, str]) -> list[str]:
    """Text of each row. Numbers become the names in the file's Hugging Face metadata; -1 and null become "". Without
    names, numbers stay as they are if `classes` says what they mean. Raises RawDataError.
    """
    schema, types = parquet.schema_arrow, importlib.import_module("pyarrow.types")
    kind = schema.field(column).type
    values = [value for batch in _batches(file, parquet, column) for value in batch.column(0).to_pylist()]
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind):
        return [(value or "").strip() for value in values]
    if not types.is_integer(kind):
        raise RawDataError(f"{file}: column {column} has type {kind}; it must hold strings or integers")
    names = _named(schema.metadata or {}, column)
    if not names and classes:
        return ["" if value is None else str(value) for value in values]
    if not names:
        raise RawDataError(
            f"{file}: column {column} holds numbers, and the metadata do not name them; name them with --classes, e.g."
            " --classes 0=anger 1=disgust"
        )
    for row, value in enumerate(values):
        if value is not None and not -1 <= value < len(names):
            raise RawDataError(
                f"{file}, row {row}: {column} is {value}, but the metadata names classes 0 to {len(names) - 1}"
            )
    return ["" if value in (None, -1) else names[value] for value in values]


def _named(metadata: Mapping[bytes, bytes], column: str) -> list[str]:
    """The ClassLabel names of an integer column in Hugging Face's metadata; empty if there are none."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
        return [str(name) for name in names] if isinstance(names, list) else []
    except (KeyError, TypeError, ValueError):
        return []
