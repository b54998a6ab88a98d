"""Tables of faces: CSV, JSON Lines or parquet, and the file that keeps an unfinished one.

While a prediction runs, its rows go to `OUTPUT.partial`, JSON Lines with a marker after each finished photo or batch of
frames. The same command continues after the last marker; the table itself is written in one piece at the end.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from pfcluster.config.json_files import JsonFileError, parse_json
from pfcluster.inference.errors import InferenceError
from pfcluster.inference.faces import PROBABILITY, Row, columns
from pfcluster.inference.pipeline import Position
from pfcluster.system.atomic_files import write_via_temporary
from pfcluster.system.csv_tables import csv_rows
from pfcluster.system.extras import install_command
from pfcluster.system.locks import FileLock

SUFFIXES = (".csv", ".jsonl", ".parquet")
CHUNK = 4096
"""Rows that are written together."""
TEXT = ("source", "label", "poker_face", "reason")
WHOLE_NUMBERS = ("frame", "face", "track")


def require_writable(output: Path) -> None:
    """Raises InferenceError for a table's name that has no known suffix or no folder, or needs a missing package."""
    if output.suffix not in SUFFIXES:
        raise InferenceError(f"--output must end in {', '.join(SUFFIXES)}, got {output}")
    if output.is_dir():
        raise InferenceError(f"--output {output} is a folder; pass the path of a file in it")
    if not output.parent.is_dir():
        raise InferenceError(f"--output {output}: there is no folder {output.parent}; create it first")
    if output.suffix == ".parquet":
        _pyarrow()


def partial_file(output: Path) -> Path:
    """Where the rows of an unfinished table are. The file exists only if there are any."""
    return output.with_name(f"{output.name}.partial")


FILES = "files"
"""Key of the state of the inputs' files, on which rows depend."""


class PartialTable:
    """The rows of an unfinished prediction."""

    def __init__(self, output: Path, command: Mapping[str, Any], *, whole_sources: bool = False) -> None:
        """Open or create `OUTPUT.partial`. `command`: what the rows depend on. `whole_sources`: continue at the start
        of a video, not within it. Raises InferenceError if the file has rows of another command, or another process is
        writing it; OSError.
        """
        self.output = output
        self.path = partial_file(output)
        self.start = Position()
        """Where to continue."""
        self.rows = 0
        """Rows of the earlier attempt that are kept."""
        self.frames = 0
        """Photos and frames that the earlier attempt could read."""
        header = json.dumps({"command": command}, sort_keys=True)
        self._lock = FileLock(self.path)
        if not self._lock.acquire(blocking=False, record=False):
            self._lock.__exit__(None, None, None)
            raise InferenceError(f"another process is writing {output}; wait for it, or use another --output")
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._lock.__exit__, None, None, None)
            end = self._resume(header, whole_sources)
            self._file = on_failure.enter_context(open(self.path, "r+b"))
            self._file.truncate(end)
            self._file.seek(end)
            if not end:
                self._write(header)
            self._is_empty = self.start == Position()
            on_failure.pop_all()

    def _resume(self, header: str, whole_sources: bool) -> int:
        """Read an existing file; -> the position behind its last valid marker, 0 if there is nothing to keep."""
        if self._has_only_header():
            return 0
        end = position = rows = frames = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break
                position += len(line)
                if number == 0:
                    self._require_same(line, header)
                    end = position
                    continue
                values = _line(line, self.path)
                rows += "row" in values
                if "after" in values:
                    after, is_readable = self._marker(values)
                    frames += is_readable
                    if after.frame == 0 or not whole_sources:
                        self.start, self.rows, self.frames, end = after, rows, frames, position
        return end

    def _marker(self, values: Mapping[str, Any]) -> tuple[Position, bool]:
        """The position of a marker, and whether there was an image before it."""
        try:
            return Position(**values["after"]), bool(values["readable"])
        except (KeyError, TypeError) as error:
            raise InferenceError(
                f"{self.path} has a marker without all of its fields; remove the file to start anew"
            ) from error

    def _has_only_header(self) -> bool:
        with open(self.path, "rb") as file:
            first, second = file.readline(), file.readline()
        return first.endswith(b"\n") and not second.endswith(b"\n") and "command" in _line(first, self.path)

    def _require_same(self, line: bytes, header: str) -> None:
        before, now = _line(line, self.path), json.loads(header)
        if before == now:
            return
        command = before.get("command")
        if (
            isinstance(command, dict)
            and FILES in command
            and command | {FILES: now["command"][FILES]} == now["command"]
        ):
            raise InferenceError(
                f"{self.path} has rows of an earlier attempt, and photos or videos have changed since; remove the file"
                " to predict all of them anew"
            )
        raise InferenceError(
            f"{self.path} belongs to a prediction with another model, other inputs or other options; run that"
            " command again to finish it, or remove the file to start anew"
        )

    def append(self, rows: Sequence[Row], after: Position, *, is_readable: bool = True) -> None:
        """Add the rows of a photo or frame, and a marker. `is_readable`: whether there was an image."""
        self._is_empty = False
        for row in rows:
            self._write(json.dumps({"row": row}))
        self._write(json.dumps({"after": asdict(after), "readable": is_readable}))

    def flush(self) -> None:
        """Flush the rows to the operating system, so that they are kept if this process dies."""
        self._file.flush()

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")

    def close(self) -> None:
        """Close the file, which stays if it has rows."""
        if self._is_empty:
            self.path.unlink(missing_ok=True)
        self._file.close()
        self._lock.__exit__(None, None, None)

    def finish(self, classes: Sequence[str]) -> None:
        """Write the table and remove the partial file. Raises OSError."""
        self.flush()
        write_table(self.output, self._read_rows(), classes)
        self.path.unlink()
        self._is_empty = False
        self.close()

    def _read_rows(self) -> Iterator[Row]:
        with open(self.path, "rb") as file:
            for line in file:
                values = _line(line, self.path)
                if "row" in values:
                    yield values["row"]


def _line(line: bytes, path: Path) -> dict[str, Any]:
    try:
        values = parse_json(line, str(path))
    except JsonFileError as error:
        raise InferenceError(f"{error}; remove the file to start anew") from error
    if not isinstance(values, dict):
        raise InferenceError(f"{path} has a line that is not an object; remove the file to start anew")
    return values


def write_table(output: Path, rows: Iterator[Row], classes: Sequence[str]) -> None:
    """Write a table in the format of its suffix. Raises OSError."""
    names = columns(classes)

    def fill(file: BinaryIO) -> None:
        if output.suffix == ".parquet":
            _write_parquet(file, rows, names)
            return
        if output.suffix == ".csv":
            file.write(csv_rows([names]).encode())
        while chunk := list(islice(rows, CHUNK)):
            if output.suffix == ".csv":
                file.write(csv_rows([row[name] for name in names] for row in chunk).encode())
            else:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chunk).encode())

    write_via_temporary(output, fill)


def _write_parquet(file: BinaryIO, rows: Iterator[Row], names: Sequence[str]) -> None:
    pyarrow = _pyarrow()
    kinds = {name: pyarrow.string() for name in TEXT} | {name: pyarrow.int64() for name in WHOLE_NUMBERS}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in names])
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while chunk := list(islice(rows, CHUNK)):
            writer.write_table(pyarrow.Table.from_pylist(chunk, schema))


def _pyarrow() -> ModuleType:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InferenceError(f"a parquet table needs pyarrow: {install_command('parquet')}") from error
    return pyarrow


def describe(row: Row) -> str:
    """A row as one line for a terminal."""
    where = str(row["source"])
    if row["frame"] is not None:
        where += f" frame {row['frame']}"
    if row["label"] is None:
        number = "" if row["face"] is None else f" face {row['face']}"
        return f"{where}{number}: {row['reason']}"
    values = {name.removeprefix(PROBABILITY): value for name, value in row.items() if name.startswith(PROBABILITY)}
    best = sorted(values.items(), key=lambda item: -float(item[1] or 0))[:3]
    return f"{where} face {row['face']}: " + ", ".join(
        f"{name} {100 * float(value or 0):.1f} %" for name, value in best
    )
