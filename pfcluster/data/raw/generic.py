"""Readers of generic layouts: class folders, and tables of photos (CSV, TSV, JSON Lines).

Photos are listed by name, those of a table in row order. Splits that folders, file names or cells name are kept.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from pfcluster.data.raw.base import (
    OfficialSplit,
    RawDataError,
    RawDataset,
    RawPhoto,
    ReadOptions,
    file_size,
    find_images,
    skipped_as,
)
from pfcluster.data.raw.metadata import metadata_splits, metadata_tables, with_metadata
from pfcluster.data.raw.seen import other_content
from pfcluster.data.raw.split_columns import table_splits
from pfcluster.data.raw.split_names import IGNORE, OTHER, names_photo, photo_splits, require_used
from pfcluster.data.raw.tables import TABLE_SUFFIXES, Table, read_table
from pfcluster.data.raw.tree import Folder, TreeOptions, find_splits, folder_meanings


def read_folder(root: Path, options: ReadOptions) -> RawDataset:
    """List a folder of class folders at any depth, with Hugging Face's metadata tables if there are any."""
    images, skipped = find_images(root)
    tables = metadata_tables(root, images)
    for table in tables:
        skipped -= Counter((skipped_as(PurePosixPath(table.path.relative_to(root).as_posix())),))
    photos = [RawPhoto(name, "", None, str(path), 0, file_size(path)) for name, path in images]
    splits, note, options = metadata_splits(tables, photos, options, root)
    photos = list(with_tree(photos, options, root, file_names=splits is None))
    if tables:
        photos = list(with_metadata(photos, root, tables, splits))
    hint, notes = other_content(root, photos, skipped), (note,) if note else ()
    return RawDataset("folder", root.resolve().name, tuple(photos), skipped, str(root), hint=hint, notes=notes)


def with_tree(
    photos: Sequence[RawPhoto], options: ReadOptions, source: object, *, file_names: bool = True
) -> Iterator[RawPhoto]:
    """Photos with the labels and splits that the folders of their names give. Where no folder names a split and
    `file_names` is true, the names of the files may. Raises RawDataError.
    """
    folders = _folders(photos)
    options, of_photos = _explained(photos, folders, options)
    meanings = folder_meanings(Counter(folders), _tree_options(options), source)
    file_names = file_names and all(meaning.split is None for meaning in meanings.values())
    by_name = photo_splits([photo.source for photo in photos], of_photos, source) if file_names else None
    if by_name is None:
        require_used(of_photos, (), source)
    for number, (photo, folder) in enumerate(zip(photos, folders, strict=True)):
        meaning = meanings[folder]
        split = by_name[number] if by_name is not None else meaning.split
        yield dataclasses.replace(photo, label=meaning.label, split=split, left_out=meaning.left_out)


def _folders(photos: Sequence[RawPhoto]) -> list[Folder]:
    """The folders in the name of each photo."""
    parts: dict[str, Folder] = {}
    folders = []
    for photo in photos:
        folder = photo.source.rpartition("/")[0]
        if folder not in parts:
            parts[folder] = PurePosixPath(folder).parts
        folders.append(parts[folder])
    return folders


def _tree_options(options: ReadOptions) -> TreeOptions:
    return TreeOptions(options.classes, options.splits, options.labels_ignored)


def _explained(
    photos: Sequence[RawPhoto], folders: Sequence[Folder], options: ReadOptions
) -> tuple[ReadOptions, dict[str, str]]:
    """The options for the folders, and the entries of --splits that are names of photos instead of folders, or apply to
    all others.
    """
    paths = {folder[: end + 1] for folder in set(folders) for end in range(len(folder))}
    names = {name for path in paths for name in (path[-1], "/".join(path))} | {OTHER, IGNORE}
    sources = [photo.source for photo in photos] if set(options.splits) - names else []
    of_photos = {
        name: value for name, value in options.splits.items() if name not in names and names_photo(name, sources)
    }
    of_folders = {name: value for name, value in options.splits.items() if name not in of_photos}
    others = {name: value for name, value in options.splits.items() if name in (OTHER, IGNORE)}
    return dataclasses.replace(options, splits=of_folders), of_photos | others


def recognises_table(source: Path) -> bool:
    """Whether a file is a table by its name."""
    return source.is_file() and source.suffix.lower() in TABLE_SUFFIXES


def read_csv(source: Path, options: ReadOptions) -> RawDataset:
    """List a table with columns image and label, optionally identity and split. Photos are next to it, in `images/`, or
    in the folder of --images. Raises RawDataError.
    """
    table = read_table(source)
    folders = _image_folders(source, options.images)
    photos = list(_table_photos(table, folders))
    splits, note = table_splits([table], options.splits, table.path)
    if splits is None:
        splits = _splits_of_places(table, photos, options)
    photos = [dataclasses.replace(photo, split=split) for photo, split in zip(photos, splits, strict=True)]
    places, notes = " or ".join(str(folder) for folder in folders), (note,) if note else ()
    return RawDataset("csv", source.name, tuple(photos), {}, places, notes=notes)


def _image_folders(source: Path, images: Path | None) -> tuple[Path, ...]:
    if images is None:
        return source.parent, source.parent / "images"
    if not images.is_dir():
        raise RawDataError(f"--images {images} is not a folder")
    return (images,)


def _splits_of_places(table: Table, photos: Sequence[RawPhoto], options: ReadOptions) -> list[OfficialSplit | None]:
    """The split of each row by the folders or the file name of its photo. Raises RawDataError."""
    folders = _folders(photos)
    options, of_photos = _explained(photos, folders, options)
    tree = dataclasses.replace(_tree_options(options), labels_ignored=True)
    places = find_splits(Counter(folders), tree, table.path)
    splits: list[OfficialSplit | None] = []
    for folder in folders:
        place = places[folder]
        splits.append(place[1] if isinstance(place, tuple) else None)
    if None in splits and len(set(splits)) > 1:
        raise RawDataError(
            f"{table.path}: {splits.count(None)} photos are in no folder that names a split, while others are; add a"
            f" column split, or split all photos anew with --splits {IGNORE}"
        )
    by_name = None
    if set(splits) == {None}:
        by_name = photo_splits([photo.source for photo in photos], of_photos, table.path)
    if by_name is None:
        require_used(of_photos, (), table.path)
    return by_name or splits


def _table_photos(table: Table, folders: Sequence[Path]) -> Iterator[RawPhoto]:
    """The photo of each row. An identity that equals the photo's file name is ignored."""
    names = [image.replace("\\", "/") for image in table.cells(table.require("image"))]
    columns = [table.cells(column) for column in (table.require("label"), table.find("identity"))]
    base = _base(names, folders)
    for name, label, cell in zip(names, *columns, strict=True):
        if "\0" in name:
            raise RawDataError(
                f"{table.path} names an image with a zero byte, {name!r}; it is not a valid CSV of file names"
            )
        source = str(PurePosixPath(_normal(name)).relative_to(base)) if name.startswith("/") else name
        identity = None if cell in ("", name, PurePosixPath(name).name) else cell
        if not name:
            yield RawPhoto(source, label, identity, "")
            continue
        path = next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)
        yield RawPhoto(source, label, identity, str(path), 0, file_size(path))


def _base(names: Sequence[str], folders: Sequence[Path]) -> str:
    """The folder to which absolute names of photos become relative, so that those of folders with splits remain: one of
    `folders` that contains all of them, else the innermost one that does.
    """
    parents = {posixpath.dirname(_normal(name)) for name in names if name.startswith("/")}
    common = posixpath.commonpath(parents) if parents else "/"
    around = [str(path) for folder in folders for path in (folder.absolute(), folder.resolve())]
    return next((path for path in around if PurePosixPath(common).is_relative_to(path)), common)


def _normal(name: str) -> str:
    """An absolute name without `..` and repeated slashes."""
    return posixpath.normpath("/" + name.lstrip("/"))
