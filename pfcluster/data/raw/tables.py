"""Text files as editors and spreadsheets save them: encodings, delimiters, and tables by column name.

UTF-8 with or without a byte order mark, UTF-16 and UTF-32 are read; columns are separated by commas, semicolons, tabs
or vertical bars, and Excel's first line `sep=;` is honoured. JSON Lines are tables too.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pfcluster.data.raw.base import RawDataError

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
JSON_SUFFIXES = (".jsonl", ".ndjson")
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
DELIMITERS = ",;\t|"
HEAD_BYTES = 4096
COLUMNS: dict[str, tuple[str, ...]] = {
    "image": (
        *("image", "images", "imagepath", "imagename", "imagefile", "filename", "file", "filepath"),
        *("path", "img", "imgpath", "imgname", "photo", "picture", "pic", "pth", "jpg"),
    ),
    "label": ("emotion", "emotions", "label", "labels", "expression", "class", "classname", "target"),
    "identity": ("identity", "identityid", "person", "personid", "subject", "subjectid", "celebrity", "actor"),
    "split": ("split", "usage", "partition", "subset"),
}
"""Accepted names of columns, by letters and digits only; of several, the first one is used if their cells are equal."""


@dataclass(frozen=True)
class Encoding:
    """How a text file is stored."""

    name: str
    mark: int
    """Bytes of the byte order mark."""

    @property
    def width(self) -> int:
        """Bytes of an ASCII character."""
        return {"utf-16": 2, "utf-32": 4}.get(self.name[:6], 1)


def encoding_of(head: bytes) -> Encoding:
    """The encoding of a file that begins with these bytes."""
    for mark, name in MARKS:
        if head.startswith(mark):
            return Encoding(name, len(mark))
    start = head[:64]
    if len(start) >= 4 and any(start):
        for name, low, high in (("utf-16-le", 0, 1), ("utf-16-be", 1, 0)):
            if not any(start[high::2]) and all(start[low : len(start) // 2 * 2 : 2]):
                return Encoding(name, 0)
    return Encoding("utf-8", 0)


def read_text(path: Path) -> str:
    """Content of a text file. Raises RawDataError."""
    data = path.read_bytes()
    encoding = encoding_of(data)
    try:
        return data[encoding.mark :].decode(encoding.name)
    except UnicodeDecodeError as error:
        name = encoding.name.upper()
        raise RawDataError(f"{path} is not {name} text ({error}); save it as UTF-8") from error


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Non-blank lines of a text file, stripped, with their line numbers from 1. Raises RawDataError."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def plain_name(name: str) -> str:
    """The letters and digits of a column's name, in lower case: by these columns are recognised."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def separator_line(line: str) -> str | None:
    """The delimiter that Excel's line `sep=;` declares; None for any other line."""
    match = re.fullmatch(r'"?sep=(.)"?\s*', line.rstrip("\r\n"), re.IGNORECASE | re.DOTALL)
    return match[1] if match else None


def delimiter_of(header: str) -> str:
    """The delimiter that is most frequent in a header, outside quotes."""
    unquoted = re.sub(r'"[^"]*"', "", header)
    return max(DELIMITERS, key=unquoted.count)


def columns_of(header: Sequence[str], column: str) -> list[int]:
    """Indices of the columns that COLUMNS accepts as this one, by its order."""
    plain = [plain_name(name) for name in header]
    return [index for name in COLUMNS[column] for index, other in enumerate(plain) if other == name]


def require_equal(source: object, column: str, columns: Sequence[tuple[str, Sequence[object]]]) -> None:
    """Raises RawDataError if columns of one meaning, as (name, cells), differ in any row."""
    first, cells = columns[0]
    for name, others in columns[1:]:
        rows = [row for row, (one, two) in enumerate(zip(cells, others, strict=True), start=1) if one != two]
        if rows:
            row = rows[0]
            raise RawDataError(
                f"{source}: columns {first!r} and {name!r} can both be the {column}, and differ in {len(rows)} rows,"
                f" e.g. row {row} ({cells[row - 1]!r} and {others[row - 1]!r}); remove or rename the wrong one"
            )


@dataclass(frozen=True)
class Table:
    """A table of text cells."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """Rows that are not blank; they may be shorter or longer than the header."""

    def find(self, column: str) -> int | None:
        """Index of a column of COLUMNS; None if there is none. Raises RawDataError if there are several, and their
        cells differ; empty columns do not count.
        """
        indices = columns_of(self.header, column)
        if len(indices) < 2:
            return indices[0] if indices else None
        cells = {index: self.cells(index) for index in indices}
        filled = [index for index in indices if any(cells[index])] or indices
        require_equal(self.path, column, [(self.header[index], cells[index]) for index in filled])
        return filled[0]

    def require(self, column: str) -> int:
        """Index of a column of COLUMNS. Raises RawDataError, also as `find`."""
        index = self.find(column)
        if index is None:
            raise RawDataError(
                f"{self.path} has no {column} column: its header is {', '.join(self.header)!r};"
                f" rename one of its columns to {' or '.join(COLUMNS[column])}"
            )
        return index

    def others(self) -> dict[str, list[str]]:
        """Cells of the columns that are not in COLUMNS, by name; a repeated name gets its column's number."""
        names = {name for names in COLUMNS.values() for name in names}
        columns: dict[str, list[str]] = {}
        for index, cell in enumerate(self.header):
            name = cell.strip()
            if plain_name(name) not in names:
                columns[f"{name} (column {index + 1})" if name in columns else name] = self.cells(index)
        return columns

    def cells(self, column: int | None) -> list[str]:
        """A column's cells, stripped; empty where a row is too short, or if the column is None."""
        if column is None:
            return [""] * len(self.rows)
        return [row[column].strip() if column < len(row) else "" for row in self.rows]


def read_table(path: Path) -> Table:
    """Read a table with a header. Raises RawDataError."""
    if path.suffix.lower() in JSON_SUFFIXES:
        return _read_json_lines(path)
    text = read_text(path)
    first = next(iter(text.splitlines()), "")
    delimiter = separator_line(first)
    if delimiter is not None:
        text = text[len(first) :].lstrip("\r\n")
        first = next(iter(text.splitlines()), "")
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter or delimiter_of(first), strict=True))
    except csv.Error as error:
        raise RawDataError(f"{path} is not a valid CSV ({error})") from error
    rows = [tuple(row) for row in lines if any(cell.strip() for cell in row)]
    if not rows:
        raise RawDataError(f"{path} is empty; its first row must name the columns, e.g. image,emotion,identity")
    return Table(path, rows[0], tuple(rows[1:]))


def _read_json_lines(path: Path) -> Table:
    """A table of JSON objects, one per line. Raises RawDataError."""
    records = []
    for number, line in numbered_lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RawDataError(f"{path}, line {number} is not JSON ({error}); each line must be an object") from error
        if not isinstance(record, dict):
            raise RawDataError(f"{path}, line {number} is not a JSON object with an image and a label")
        records.append(record)
    if not records:
        raise RawDataError(f"{path} is empty; each line must be a JSON object with an image and a label")
    header = tuple(dict.fromkeys(name for record in records for name in record))
    rows = tuple(tuple(_cell(record.get(name)) for name in header) for record in records)
    return Table(path, header, rows)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def split_cells(line: str, delimiter: str) -> list[tuple[int, str]]:
    """Position and text of each cell of a line, with its quotes; delimiters within quotes do not separate."""
    cells: list[tuple[int, str]] = []
    start, quoted = 0, False
    for match in re.finditer(rf'"|{re.escape(delimiter)}', line):
        if match[0] == '"':
            quoted = not quoted
        elif not quoted:
            cells.append((start, line[start : match.start()]))
            start = match.end()
    return [*cells, (start, line[start:])]


def header_names(cells: Sequence[str]) -> list[str]:
    """Names of columns without blanks and quotes, in lower case."""
    return [cell.strip().strip('"').strip().lower() for cell in cells]


def decode_short(data: bytes) -> str:
    """A short text, such as a label, stripped; bytes that are not text become replacement characters."""
    encoding = encoding_of(data)
    return data[encoding.mark :].decode(encoding.name, "replace").strip()
