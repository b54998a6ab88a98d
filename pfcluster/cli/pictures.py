"""`pfcluster pictures`: attention maps, features and misclassified images of finished runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pfcluster.cli.outputs import Output, write_output
from pfcluster.launch.command_line import parse
from pfcluster.runs.folder import RESULT_FILE


@dataclass(frozen=True, kw_only=True)
class PicturesOptions:
    """Write a page with attention maps, a projection of the features, and misclassified images of finished runs."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]]
    """Folders of finished runs."""
    output: Path | None = None
    """Folder of the page; default: pictures/ in the folder that holds the runs."""
    images: int = 8
    """Images in each grid."""
    seed: int = 0
    """Seed of the selection of images."""
    split: Literal["validation", "test"] = "test"
    """Split that the images are taken from."""


def main(arguments: list[str]) -> int:
    """Write the page of pictures of finished runs."""
    from pfcluster.report.gallery import write_pictures

    options = parse(PicturesOptions, arguments, prog="pfcluster pictures")
    if not options.runs:
        raise ValueError("missing: RUN; `pfcluster pictures --help` lists the options")

    def write() -> Output:
        files = write_pictures(
            options.runs, options.output, images=options.images, seed=options.seed, split=options.split
        )
        return Output(files.html, files.notes)

    write_output("pictures", (run / RESULT_FILE for run in options.runs), write)
    return 0
