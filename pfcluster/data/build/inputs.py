"""The listings of a build's inputs: `--input`, and `--test-input`, of which only test photos are used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

from pfcluster.data.build.errors import BuildError
from pfcluster.data.build.options import BuildOptions
from pfcluster.data.build.plan import require_training_photos
from pfcluster.data.raw.base import RawDataError, RawDataset
from pfcluster.data.raw.readers import read_raw
from pfcluster.data.raw.split_names import IGNORE, OTHER

INPUT_OPTIONS = {"input": "--input", "test_input": "--test-input"}
READ_BY: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "images": (("csv", "ferplus"), ("input",)),
    "test_images": (("csv", "ferplus"), ("test_input",)),
    "votes": (("ferplus",), ("input", "test_input")),
    "peak_frames": (("ckplus",), ("input", "test_input")),
    "originals": (("rafdb", "sfew"), ("input", "test_input")),
}
"""Option -> the layouts whose readers use it, and the inputs that it applies to."""


def list_photos(options: BuildOptions) -> dict[str, RawDataset]:
    """List the photos of each input. Raises BuildError, RawDataError."""
    dataset = read_raw(options.input, options.read_options(options.images), kind=options.kind)
    require_training_photos(dataset)
    datasets = {"input": dataset}
    if options.test_input is not None:
        datasets["test_input"] = _test_photos(_read_test_input(options, options.test_input))
    _require_options_read(options, {role: dataset.kind for role, dataset in datasets.items()})
    return datasets


def _require_options_read(options: BuildOptions, kinds: Mapping[str, str]) -> None:
    """Raises BuildError for an option that changes nothing, because no input has a layout whose reader uses it.
    `kinds`: the layout of each input.
    """
    defaults = {field.name: field.default for field in fields(options)}
    for name, (readers, roles) in READ_BY.items():
        if getattr(options, name) == defaults[name]:
            continue
        of_inputs = [kinds[role] for role in roles if role in kinds]
        if not set(of_inputs) & set(readers):
            flags = " and ".join(INPUT_OPTIONS[role] for role in roles if role in kinds)
            raise BuildError(
                f"--{name.replace('_', '-')} is for {' and '.join(readers)} only, and {flags} was read as"
                f" {' and '.join(dict.fromkeys(of_inputs))}: remove the option, or name the layout with --kind"
            )


def _read_test_input(options: BuildOptions, source: Path) -> RawDataset:
    """List the photos of --test-input with the splits that it has. Names of --classes and --splits need not occur in
    it: they may be those of --input.
    """
    read_options = replace(options.read_options(options.test_images), all_names_occur=False)
    splits = {name: meaning for name, meaning in read_options.splits.items() if name != OTHER}
    try:
        return read_raw(source, replace(read_options, splits=splits), kind=options.kind)
    except RawDataError:
        if not splits or IGNORE in splits:
            raise
        return read_raw(source, replace(read_options, splits={}), kind=options.kind)


def _test_photos(dataset: RawDataset) -> RawDataset:
    """The test split of a dataset, or all of it if it has no splits or is one split, such as FER2013's public_test.tar.
    Raises BuildError if it has several splits, and none of them is the test split.
    """
    splits = Counter(photo.split for photo in dataset.photos if photo.split is not None)
    if not splits:
        return dataset
    if set(splits.values()) == {len(dataset.photos)}:
        return replace(dataset, photos=tuple(replace(photo, split=None) for photo in dataset.photos))
    others = ", ".join(f"{split}: {count}" for split, count in sorted(splits.items()) if split != "test")
    if "test" not in splits:
        raise BuildError(
            f"--test-input {dataset.name} has splits of its own, and no test split ({others}): pass the folder or table"
            " of its test photos alone, or --splits ignore, which takes all of it, and splits --input anew"
        )
    photos = tuple(replace(photo, split=None) for photo in dataset.photos if photo.split == "test")
    if len(photos) == len(dataset.photos):
        return replace(dataset, photos=photos)
    rest = others or f"without a split: {len(dataset.photos) - len(photos)}"
    note = f"only the {splits['test']} photos of its test split are used, not its other photos ({rest})"
    return replace(dataset, photos=photos, notes=(*dataset.notes, note))
