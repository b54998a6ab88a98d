"""Pictures that already exist: image grids written by the runs, and those written by `gallery.write_pictures`.

Separate from gallery.py so that a report does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pfcluster.config.json_files import JsonFileError, read_record
from pfcluster.report.errors import Notice, ReportError
from pfcluster.report.page_pictures import PagePictures, Picture, PictureFile
from pfcluster.report.results import Run

INDEX_FILE = "pictures.json"
"""List of the pictures in a folder; reports read STUDY/pictures/pictures.json."""


@dataclass(frozen=True)
class SavedPicture:
    """A PNG in the output folder of `write_pictures`."""

    file: str
    section: str
    caption: str


def study_pictures(study: Path) -> tuple[list[PictureFile], list[Notice]]:
    """Pictures in STUDY/pictures; empty if there is no such folder."""
    folder = study / "pictures"
    try:
        saved = read_record(list[SavedPicture], folder / INDEX_FILE)
    except FileNotFoundError:
        return [], []
    except JsonFileError as error:
        text = f"{error}; run `pfcluster pictures` again."
        return [], [Notice("pictures omitted", text)]
    return [PictureFile(folder, one.file, one.caption) for one in saved], []


def run_pictures(runs: Sequence[Run], page: PagePictures) -> tuple[list[Picture], list[Notice]]:
    """Image grids that the runs wrote when they finished; a notice for each that cannot be read."""
    pictures, notices = [], []
    for run in runs:
        for kind, relative_path in (run.values.get("pictures") or {}).items():
            try:
                uri = page.uri(run.folder, str(relative_path))
            except ReportError as error:
                notices.append(Notice("picture omitted", str(error)))
                continue
            pictures.append(Picture(uri, f"{run.name}, seed {run.seed}: {kind}"))
    return pictures, notices
