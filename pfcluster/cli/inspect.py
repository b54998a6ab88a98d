"""The command line that shows a shard folder: tables, a contact sheet, checksums. `shards/inspect.py` runs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pfcluster.cli.inspect_quality import show_quality
from pfcluster.data.inspect.contact_sheet import contact_sheet
from pfcluster.data.manifest import Manifest, ShardError, check_shard, load_manifest
from pfcluster.data.shards import ShardSplit


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Show what a folder of shards holds."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder made by shards/build.py."""
    sheet: Path | None = None
    """Picture (.png, .jpg) to write a contact sheet to."""
    split: str = "train"
    """Split that the contact sheet shows."""
    per_class: int = 8
    """Faces of each class on the contact sheet."""
    verify: bool = False
    """Compare every file with its checksum."""
    quality: bool = True
    """Look at every face, and warn of what would spoil a result."""
    duplicates: Path | None = None
    """CSV to write all pairs of near-duplicates to."""

    def __post_init__(self) -> None:
        if not 1 <= self.per_class <= 100:
            raise ShardError(f"--per-class must lie in 1..100, got {self.per_class}")
        if self.duplicates and not self.quality:
            raise ShardError("--duplicates needs the quality check: leave --no-quality out")


def main() -> int:
    """Run the command of `sys.argv`. Returns the exit code: 0, or 2 for a folder or an option that is not well."""
    messages = Console(stderr=True)
    try:
        options = tyro.cli(InspectOptions, prog="shards/inspect.py")
        _show(options, Console())
    except (ValueError, OSError) as error:
        messages.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return 2
    return 0


def splits_table(manifest: Manifest) -> Table:
    """Samples by class and split; below them people, shards and megabytes."""
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
    """Photos left out, by reason."""
    table = Table(title="left out", title_justify="left")
    table.add_column("reason")
    table.add_column("photos", justify="right")
    for reason, count in sorted(manifest.left_out.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(reason, str(count))
    return table


def _values_table(title: str, values: dict[str, object]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in values.items():
        table.add_row(name, escape(str(value)))
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
    console.print(f"{manifest.photos} photos in, {samples} faces out", highlight=False)
    if options.verify:
        _verify(options.folder, manifest, console)
    if options.sheet:
        sheet = contact_sheet(ShardSplit(options.folder, options.split), options.per_class)
        sheet.save(options.sheet)
        console.print(f"contact sheet written to {escape(str(options.sheet))}", soft_wrap=True, highlight=False)
    if options.quality:
        show_quality(options.folder, manifest, console, options.duplicates)


def _verify(folder: Path, manifest: Manifest, console: Console) -> None:
    """Check every shard before complaining, so that all damage is named at once. Raises ShardError."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    damage = []
    for shard in shards:
        try:
            check_shard(folder, shard)
        except ShardError as error:
            damage.append(str(error))
    if damage:
        raise ShardError("\n".join(damage))
    console.print(f"{len(shards)} shards have the manifest's checksums", highlight=False)
