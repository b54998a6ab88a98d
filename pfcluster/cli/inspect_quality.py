"""The quality check that `pfcluster inspect` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pfcluster.data.inspect.quality import DuplicatePair, Percentiles, Quality, measure_quality, read_enlargements
from pfcluster.data.inspect.quality_warnings import quality_warnings
from pfcluster.data.manifest import Manifest
from pfcluster.data.shards import ShardSplit
from pfcluster.system.atomic_files import write_atomically
from pfcluster.system.csv_tables import csv_table
from pfcluster.system.terminal import print_warnings

EXAMPLES = 5


def show_quality(folder: Path, manifest: Manifest, console: Console) -> Sequence[DuplicatePair]:
    """Measure and print the quality. Returns the near-duplicates. Raises ShardError."""
    splits = {name: ShardSplit(folder, name) for name in manifest.splits}
    enlargements = {
        name: read_enlargements(folder, split.shards, manifest.size) for name, split in manifest.splits.items()
    }
    quality = measure_quality(splits, enlargements)
    console.print(quality_table(quality))
    _print_count(console, "near-duplicates" + ("" if quality.pairs_complete else ", at least"), len(quality.pairs), [])
    between = quality.pairs_between_splits
    _print_count(console, "  between splits", len(between), _examples(between))
    _print_count(
        console,
        "  within a split, labels differ",
        len(quality.conflicting_labels),
        _examples(quality.conflicting_labels),
    )
    leaks = [f"{leak.identity}: {' '.join(leak.keys.values())}" for leak in quality.leaks[:EXAMPLES]]
    _print_count(console, "identities in several splits", len(quality.leaks), leaks)
    print_warnings(quality_warnings(quality), console)
    return quality.pairs


def quality_table(quality: Quality) -> Table:
    """Spread of brightness, contrast and enlargement in every split (5th, 50th, 95th percentile), and fractions."""
    table = Table(title="spread (5 / 50 / 95 %)", title_justify="left")
    table.add_column("")
    for name in quality.splits:
        table.add_column(name, justify="right")
    splits = list(quality.splits.values())
    table.add_row("brightness", *(_numbers(split.brightness, 0) for split in splits))
    table.add_row("contrast", *(_numbers(split.contrast, 0) for split in splits))
    table.add_row("nearly black / white", *(f"{split.black:.1%} / {split.white:.1%}" for split in splits))
    table.add_row("enlargement", *(_numbers(split.enlargement, 2) for split in splits))
    table.add_row("smaller than crop", *(f"{split.small:.1%}" if split.enlargement else "-" for split in splits))
    return table


def write_pairs(path: Path, pairs: Sequence[DuplicatePair]) -> None:
    """Write one row per pair of near-duplicates."""
    write_atomically(path, csv_table(DuplicatePair._fields, pairs))


def _numbers(spread: Percentiles | None, digits: int) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in spread) if spread else "-"


def _examples(pairs: Sequence[DuplicatePair]) -> list[str]:
    return [f"{pair.key_a} {pair.key_b}" for pair in pairs[:EXAMPLES]]


def _print_count(console: Console, what: str, count: int, examples: Sequence[str]) -> None:
    suffix = f" ({', '.join(examples)})" if examples else ""
    console.print(f"{what}: {count}{suffix}", soft_wrap=True)
