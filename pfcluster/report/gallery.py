"""`write_pictures`: attention maps, feature embeddings and failures of several finished runs, on one page."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pfcluster.distributed.process_group import world
from pfcluster.evaluate import embedding, figures
from pfcluster.evaluate.failures import draw_failures
from pfcluster.evaluate.run_comparison import (
    ClassifierOutputs,
    ComparedRun,
    PicturesError,
    classifier_outputs,
    common_folder,
    draw_faces,
    finished_config,
    open_runs,
)
from pfcluster.report import page
from pfcluster.report.groups import group_runs
from pfcluster.report.page_pictures import PagePictures, PictureFile
from pfcluster.report.results import Run, read_run
from pfcluster.report.saved_pictures import INDEX_FILE, SavedPicture, run_pictures
from pfcluster.runs.folder import PICTURES_DIR
from pfcluster.system.atomic_files import write_atomically

HTML_FILE = "index.html"


@dataclass(frozen=True)
class PictureFiles:
    """The files of a gallery."""

    html: Path
    pictures: tuple[SavedPicture, ...]
    notes: tuple[str, ...]
    """What is missing, and the reason."""


@dataclass(frozen=True)
class _Gallery:
    """Classifiers with their outputs, and the options of `write_pictures`."""

    runs: Sequence[ComparedRun]
    outputs: Sequence[ClassifierOutputs]
    folder: Path
    images: int
    seed: int
    faces: str
    """ "test faces" or "validation faces", for captions."""


def write_pictures(
    folders: Sequence[Path], output: Path | None = None, *, images: int = 8, seed: int = 0, split: str = "test"
) -> PictureFiles:
    """Write the pictures of finished runs and a page that shows them into `output` (default: `pictures` in the common
    folder of the runs). MAE runs contribute only their image grids and loss curves.

    Raises PicturesError, ConfigError, DataError, CheckpointError, ReportError.
    """
    if images < 1:
        raise PicturesError(f"--images must be at least 1, got {images}")
    folders = [Path(folder) for folder in dict.fromkeys(folders)]
    classifiers = [folder for folder in folders if finished_config(folder).objective != "mae"]
    output = common_folder(folders) / PICTURES_DIR if output is None else output
    with world() as process_group:
        runs = open_runs(classifiers, split, process_group.device)
        outputs = [classifier_outputs(run, process_group) for run in runs]
        gallery = _Gallery(runs, outputs, output, images, seed, f"{split} faces")
        attention = _draw_attention(gallery)
        features, feature_notes = _draw_embeddings(gallery)
        failures, failure_notes = _draw_failures(gallery)
    pictures = [attention, *features, *failures]
    results = [read_run(folder, folder.as_posix()) for folder in folders]
    write_atomically(output / INDEX_FILE, json.dumps([asdict(one) for one in pictures], indent=1) + "\n")
    html = output / HTML_FILE
    notes = [*feature_notes, *failure_notes]
    write_atomically(html, _page(gallery, results, pictures, notes))
    return PictureFiles(html, tuple(pictures), tuple(notes))


def _draw_attention(gallery: _Gallery) -> SavedPicture:
    """attention.png: Grad-CAM++ of all runs for the same faces."""
    indices = draw_faces(gallery.runs[0], gallery.images, gallery.seed)
    figures.attention_picture(gallery.folder / "attention.png", gallery.runs, indices)
    caption = f"Grad-CAM++ of the predicted class; {gallery.faces} drawn with seed {gallery.seed}"
    return SavedPicture("attention.png", "attention", caption)


def _draw_embeddings(gallery: _Gallery) -> tuple[list[SavedPicture], list[str]]:
    """tsne.png, and umap.png if umap-learn is installed; and reasons for what is missing."""
    count = len(gallery.outputs[0].labels)
    if count < embedding.MIN_POINTS:
        return [], [f"Features are not shown: {count} faces are too few for an embedding."]
    indices = embedding.draw_points(count, gallery.seed)
    features = [one.features[indices] for one in gallery.outputs]
    labels = [one.labels[indices] for one in gallery.outputs]
    scores = [embedding.silhouette(*pair) for pair in zip(features, labels, strict=True)]
    titles = [
        figures.embedding_title(run, score, len(indices)) for run, score in zip(gallery.runs, scores, strict=True)
    ]
    methods = {"t-SNE": embedding.tsne} | ({"UMAP": embedding.umap} if embedding.has_umap() else {})
    pictures = []
    for name, project in methods.items():
        file = f"{name.lower().replace('-', '')}.png"
        points = [project(one, gallery.seed) for one in features]
        figures.embedding_picture(gallery.folder / file, titles, points, labels, gallery.runs[0].classes)
        caption = f"{name} of the inputs of each run's last layer; {gallery.faces}"
        pictures.append(SavedPicture(file, "features", caption))
    return pictures, [] if "UMAP" in methods else [embedding.UMAP_MISSING]


def _draw_failures(gallery: _Gallery) -> tuple[list[SavedPicture], list[str]]:
    """failures-N-NAME.png of each run; a note for each run without failures."""
    pictures, notes = [], []
    for number, (run, outputs) in enumerate(zip(gallery.runs, gallery.outputs, strict=True), 1):
        failures = draw_failures(outputs.logits, outputs.labels, gallery.images, gallery.seed)
        if not failures:
            notes.append(f"{run.label} classifies all {len(outputs.labels):,} {gallery.faces} correctly.")
            continue
        file = f"failures-{number}-{re.sub(r'[^A-Za-z0-9.]+', '-', run.label).strip('-.')}.png"
        figures.failures_picture(gallery.folder / file, run, failures)
        correct = figures.correct_count(outputs)
        caption = f"{run.label}: {len(failures)} misclassified faces, drawn with seed {gallery.seed} ({correct})"
        pictures.append(SavedPicture(file, "failures", caption))
    return pictures, notes


def _page(gallery: _Gallery, results: Sequence[Run], pictures: Sequence[SavedPicture], notes: Sequence[str]) -> str:
    groups, _ = group_runs(results)
    mae = [group for group in groups if group.objective == "mae"]
    others = [group for group in groups if group.objective != "mae"]
    shown = PagePictures(gallery.folder / HTML_FILE)
    sections = {
        name: [
            shown.picture(PictureFile(gallery.folder, one.file, one.caption)) for one in pictures if one.section == name
        ]
        for name in ("attention", "features", "failures")
    }
    generated, notices = run_pictures(results, shown)
    shown.remove_outdated()
    context: dict[str, Any] = {
        **sections,
        "runs": results,
        "count": len(gallery.runs[0].split),
        "faces": gallery.faces,
        "dataset": next(run.dataset for run in results if run.objective != "mae"),
        "classes": gallery.runs[0].classes,
        "seed": gallery.seed,
        "generated": generated,
        "curves": page.curve_figures(others, page.read_group_curves(others)),
        "mae_curves": page.curve_figures(mae, page.read_group_curves(mae)),
        "notes": [*notes, *(notice.text for notice in notices)],
    }
    return page.render_template("gallery.html.j2", context)
