"""Pictures that are there already: those that runs wrote themselves, and those that `gallery.write_pictures` drew.

Apart from the gallery, so that a report needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pfcluster.report import figures
from pfcluster.report.errors import Notice, ReportError
from pfcluster.report.page import Picture
from pfcluster.report.results import Run
from pfcluster.runs.folder import PICTURES_DIR

LIST = "pictures.json"
"""The pictures of a folder; reports look for it in STUDY/pictures."""


@dataclass(frozen=True)
class Drawn:
    """A PNG in the output folder."""

    file: str
    section: str
    caption: str


def study_pictures(study: Path) -> tuple[list[Picture], list[Notice]]:
    """What `write_pictures` left in STUDY/pictures, inlined; nothing where there is no such folder."""
    folder = study / PICTURES_DIR
    try:
        listed = [Drawn(**one) for one in json.loads((folder / LIST).read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError, TypeError) as error:
        return [], [Notice("pictures left out", f"{folder / LIST} cannot be read: {error}; draw them again.")]
    found, notices = [], []
    for one in listed:
        try:
            found.append(Picture(figures.picture(folder, one.file), one.caption))
        except ReportError as error:
            notices.append(Notice("picture left out", str(error)))
    return found, notices


def own_pictures(runs: Sequence[Run]) -> tuple[list[Picture], list[str]]:
    """The grids that the runs themselves wrote when they ended, and why any is left out."""
    found, notes = [], []
    for run in runs:
        for kind, relative in (run.values.get("pictures") or {}).items():
            try:
                found.append(
                    Picture(figures.picture(run.folder, str(relative)), f"{run.name}, seed {run.seed}: {kind}")
                )
            except ReportError as error:
                notes.append(str(error))
    return found, notes
