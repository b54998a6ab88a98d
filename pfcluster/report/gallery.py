"""`write_pictures`: what several finished runs look at, how their features lie and where they fail, on one page."""

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
from pfcluster.report.figures import picture as figure
from pfcluster.report.groups import group_runs
from pfcluster.report.page import Picture
from pfcluster.report.results import Run, read_run
from pfcluster.report.saved_pictures import LIST, Drawn, own_pictures
from pfcluster.runs.atomic_files import write_atomically
from pfcluster.runs.folder import PICTURES_DIR


@dataclass(frozen=True)
class PictureFiles:
    """What was written."""

    html: Path
    pictures: tuple[Drawn, ...]
    notes: tuple[str, ...]
    """What is missing, and why."""


def write_pictures(
    folders: Sequence[Path], output: Path | None = None, *, images: int = 8, seed: int = 0, split: str = "test"
) -> PictureFiles:
    """Draw all pictures of finished runs into `output` (default: `pictures` in the folder that holds them all), with a
    page. MAE runs lend their own pictures and curves alone. Raises PicturesError, ConfigError, DataError,
    CheckpointError, ReportError.
    """
    if images < 1:
        raise PicturesError(f"--images must be at least 1, got {images}")
    folders = [Path(folder) for folder in dict.fromkeys(folders)]
    classifiers = [folder for folder in folders if finished_config(folder).objective != "mae"]
    output = common_folder(folders) / PICTURES_DIR if output is None else output
    with world() as here:
        runs = open_runs(classifiers, split, here.device)
        outputs = [classifier_outputs(run, here) for run in runs]
        drawn = [draw_attention(runs, output, images, seed, split)]
        features, notes = draw_embeddings(runs, outputs, output, seed, split)
        failures, more = draw_all_failures(runs, outputs, output, images, seed, split)
    drawn += [*features, *failures]
    notes += more
    read = [read_run(folder, folder.as_posix()) for folder in folders]
    write_atomically(output / LIST, json.dumps([asdict(one) for one in drawn], indent=1) + "\n")
    html = output / "index.html"
    write_atomically(html, _page(runs, read, drawn, notes, output, seed, split))
    return PictureFiles(html, tuple(drawn), tuple(notes))


def draw_attention(runs: Sequence[ComparedRun], output: Path, images: int, seed: int, split: str) -> Drawn:
    """attention.png: Grad-CAM++ of all runs for the same faces."""
    figures.attention_picture(output / "attention.png", runs, draw_faces(runs[0], images, seed))
    return Drawn(
        "attention.png", "attention", f"Grad-CAM++ of the predicted class, {_faces(split)} drawn by seed {seed}"
    )


def draw_embeddings(
    runs: Sequence[ComparedRun], outputs: Sequence[ClassifierOutputs], output: Path, seed: int, split: str
) -> tuple[list[Drawn], list[str]]:
    """tsne.png, and umap.png where umap-learn is installed; what is not shown, and why."""
    count = len(outputs[0].labels)
    if count < embedding.MIN_POINTS:
        return [], [f"Features are not shown: {count} faces are too few for neighbourhoods."]
    chosen = embedding.draw_points(count, seed)
    features = [one.features[chosen] for one in outputs]
    truth = [one.labels[chosen] for one in outputs]
    scores = [embedding.silhouette(*pair) for pair in zip(features, truth, strict=True)]
    titles = [figures.embedding_title(run, score, len(chosen)) for run, score in zip(runs, scores, strict=True)]
    ways = {"t-SNE": embedding.tsne} | ({"UMAP": embedding.umap} if embedding.has_umap() else {})
    drawn = []
    for name, place in ways.items():
        file = f"{name.lower().replace('-', '')}.png"
        points = [place(found, seed) for found in features]
        figures.embedding_picture(output / file, titles, points, truth, runs[0].classes)
        drawn.append(Drawn(file, "features", f"{name} of what each run's last layer reads, {_faces(split)}"))
    return drawn, [] if "UMAP" in ways else [embedding.UMAP_MISSING]


def draw_all_failures(
    runs: Sequence[ComparedRun], outputs: Sequence[ClassifierOutputs], output: Path, images: int, seed: int, split: str
) -> tuple[list[Drawn], list[str]]:
    """failures-N-NAME.png of each run; a note for a run without any."""
    drawn, notes = [], []
    for number, (run, found) in enumerate(zip(runs, outputs, strict=True), 1):
        failures = draw_failures(found.logits, found.labels, images, seed)
        if not failures:
            notes.append(f"{run.label} gets every one of {len(found.labels):,} {_faces(split)} right.")
            continue
        file = f"failures-{number}-{re.sub(r'[^A-Za-z0-9.]+', '-', run.label).strip('-.')}.png"
        figures.failures_picture(output / file, run, failures)
        caption = f"{run.label}: {len(failures)} of its failures, drawn by seed {seed} ({figures.correct_count(found)})"
        drawn.append(Drawn(file, "failures", caption))
    return drawn, notes


def _page(
    runs: Sequence[ComparedRun],
    read: Sequence[Run],
    drawn: Sequence[Drawn],
    notes: Sequence[str],
    output: Path,
    seed: int,
    split: str,
) -> str:
    groups, _ = group_runs(read)
    own, missing = own_pictures(read)
    sections = {
        name: [Picture(figure(output, one.file), one.caption) for one in drawn if one.section == name]
        for name in ("attention", "features", "failures")
    }
    context: dict[str, Any] = {
        **sections,
        "runs": read,
        "count": len(runs[0].split),
        "faces": _faces(split),
        "dataset": next(run.dataset for run in read if run.objective != "mae"),
        "classes": runs[0].classes,
        "seed": seed,
        "own": own,
        "curves": page.curve_figures([group for group in groups if group.objective != "mae"]),
        "mae_curves": page.curve_figures([group for group in groups if group.objective == "mae"]),
        "notes": [*notes, *missing],
    }
    return page.render_template("gallery.html.j2", context)


def _faces(split: str) -> str:
    return f"{split} faces"
