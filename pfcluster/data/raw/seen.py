"""What a folder holds besides photos, and which command reads it: hints for messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from pfcluster.data.raw.base import RawPhoto, is_build
from pfcluster.data.raw.split_names import split_from_name
from pfcluster.data.raw.tables import TABLE_SUFFIXES

SHOWN = 3


def other_content(root: Path, photos: Sequence[RawPhoto], skipped: Mapping[str, int]) -> str:
    """A sentence on the tables, annotations and archives of a folder; "" if there are none."""
    if (root / "manifest.json").is_file() and any(root.glob("*.index.json")):
        return "it is a finished build of pfcluster: train with --data.shards"
    suffixes = {PurePosixPath(name).suffix.lower() for name in skipped}
    if ".txt" in suffixes and any(_in_labels(name) for name in skipped):
        return (
            "labels/*.txt looks like YOLO's boxes, which are not read: list the photos in a CSV of image,label and pass"
            " it as --input"
        )
    tables = sorted(
        (path for path in _files(root) if path.suffix.lower() in TABLE_SUFFIXES),
        key=lambda path: (split_from_name(path.stem) != "train", path),
    )
    if tables:
        others = f" (also seen: {', '.join(path.name for path in tables[1:SHOWN])})" if len(tables) > 1 else ""
        images = f" --images {root}" if photos and tables[0].parent != root else ""
        return f"its table is read with --input {tables[0]}{images}{others}"
    archives = sorted(path for path in _files(root) if path.name.lower().endswith((".zip", ".tgz", ".tar.gz", ".rar")))
    if archives:
        return f"unpack {archives[0].name} first"
    xml = any(suffix in (".xml", ".json") for suffix in suffixes)
    return "annotations in .xml or .json are not read: list the photos in a CSV of image,label" if xml else ""


def _in_labels(name: str) -> bool:
    return "labels" in PurePosixPath(name).parts[:-1]


def _files(root: Path) -> list[Path]:
    """Files of a folder and of the folders in it, without builds."""
    folders = [root, *(path for path in root.glob("*") if path.is_dir() and not is_build(path))]
    return [path for folder in folders for path in folder.glob("*") if path.is_file()]
