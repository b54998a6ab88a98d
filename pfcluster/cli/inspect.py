"""`pfcluster inspect`: tables, quality, a contact sheet and checksums of a folder of shards."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from pfcluster.cli.inspect_quality import show_quality, write_pairs
from pfcluster.data.inspect.contact_sheet import contact_sheet
from pfcluster.data.manifest import Manifest, ShardError, check_shard, load_manifest, require_files
from pfcluster.data.shards import ShardSplit
from pfcluster.launch.command_line import parse
from pfcluster.system.atomic_files import write_via_temporary
from pfcluster.system.os_errors import describe
from pfcluster.system.terminal import labelled, plain_console

SHEET_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Pillow's name of the format, by suffix of the contact sheet."""


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Show and check a folder of shards."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder written by `pfcluster build`."""
    sheet: Path | None = None
    """Image file (.png, .jpg) to write a contact sheet to."""
    split: str = "train"
    """Split of the contact sheet."""
    per_class: int = 8
    """Images of each class on the contact sheet."""
    verify: bool = False
    """Compare every file with its checksum."""
    quality: bool = True
    """Read every image, and warn of duplicates, leaks between splits and unusable images."""
    duplicates: Path | None = None
    """CSV file to write all pairs of near-duplicates to."""

    def __post_init__(self) -> None:
        if not 1 <= self.per_class <= 100:
            raise ShardError(f"--per-class must lie in 1..100, got {self.per_class}")
        if self.duplicates and not self.quality:
            raise ShardError("--duplicates needs the quality check: remove --no-quality")

    def require_writable(self) -> None:
        """Raises ShardError if a file cannot be written. Not at creation, since the parser breaks long paths there."""
        if self.sheet:
            _require_writable("--sheet", self.sheet, tuple(SHEET_FORMATS))
        if self.duplicates:
            _require_writable("--duplicates", self.duplicates, (".csv",))


def _require_writable(option: str, path: Path, suffixes: Sequence[str]) -> None:
    """Raises ShardError if a file cannot be written there, or has another suffix."""
    if path.suffix.lower() not in suffixes:
        raise ShardError(f"{option} {path} must be a file that ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ShardError(f"{option} {path} is a folder; pass the path of a file in it")
    if not path.parent.is_dir():
        raise ShardError(f"{option} {path}: {path.parent} is not a folder; create it first, or use another")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ShardError(f"{option} {path}: {path.parent} cannot be written; check its permissions, or use another")


def main(arguments: Sequence[str] | None = None) -> int:
    """Inspect shards with the given arguments, by default those of `sys.argv`.

    Returns the exit code: 0, or 2 for an error of the user or a damaged folder.
    """
    messages = plain_console(stderr=True)
    try:
        options = parse(InspectOptions, sys.argv[1:] if arguments is None else arguments, prog="pfcluster inspect")
        options.require_writable()
        _show(options, plain_console())
    except (ValueError, OSError) as error:
        reason = describe(error) if isinstance(error, OSError) else str(error)
        messages.print(labelled("error", "red", reason), soft_wrap=True)
        return 2
    return 0


def splits_table(manifest: Manifest) -> Table:
    """Samples of each class and split; below them identities, shards and megabytes."""
    table = Table(title=f"{manifest.name}, {manifest.size}x{manifest.size} px", title_justify="left")
    table.add_column("")
    splits = list(manifest.splits.values())
    for name in manifest.splits:
        table.add_column(name, justify="right")
    for label in manifest.classes:
        table.add_row(label, *(str(split.per_class[label]) for split in splits))
    table.add_section()
    table.add_row("samples", *(str(split.samples) for split in splits))
    table.add_row("identities", *(str(split.identities) for split in splits))
    table.add_row("shards", *(str(len(split.shards)) for split in splits))
    table.add_row("MB", *(f"{sum(shard.bytes for shard in split.shards) / 1e6:.1f}" for split in splits))
    return table


def left_out_table(manifest: Manifest) -> Table:
    """Number of excluded photos, by reason."""
    table = Table(title="left out", title_justify="left")
    table.add_column("reason")
    table.add_column("photos", justify="right")
    for reason, count in sorted(manifest.left_out.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(reason, str(count))
    return table


def _values_table(title: str, values: dict[str, object]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in values.items():
        table.add_row(name, str(value))
    return table


def _show(options: InspectOptions, console: Console) -> None:
    manifest = load_manifest(options.folder)
    samples = sum(split.samples for split in manifest.splits.values())
    console.print(splits_table(manifest))
    if manifest.left_out:
        console.print(left_out_table(manifest))
    console.print(_values_table("source", manifest.source))
    console.print(_values_table("options", manifest.options))
    console.print(_values_table("versions", dict(manifest.versions)))
    console.print(f"{manifest.photos} photos in, {samples} faces out")
    if options.verify:
        _verify(options.folder, manifest, console)
    else:
        require_files(options.folder, manifest)
    if options.sheet:
        sheet = contact_sheet(ShardSplit(options.folder, options.split), options.per_class)
        image_format = SHEET_FORMATS[options.sheet.suffix.lower()]
        _write(options.sheet, lambda path: write_via_temporary(path, lambda file: sheet.save(file, image_format)))
        console.print(f"contact sheet written to {options.sheet}", soft_wrap=True)
    if options.quality:
        pairs = show_quality(options.folder, manifest, console)
        if options.duplicates:
            _write(options.duplicates, lambda path: write_pairs(path, pairs))
            console.print(f"near-duplicates written to {options.duplicates}", soft_wrap=True)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file. Raises OSError that names it, not its temporary file."""
    try:
        write(path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _verify(folder: Path, manifest: Manifest, console: Console) -> None:
    """Compare all shards with their checksums. Raises ShardError that names every one that is damaged or unreadable."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    damaged = []
    for shard in shards:
        try:
            check_shard(folder, shard)
        except ShardError as error:
            damaged.append(str(error))
        except OSError as error:
            damaged.append(describe(error))
    if damaged:
        raise ShardError("\n".join(damaged))
    console.print(f"{len(shards)} shards have the manifest's checksums")
