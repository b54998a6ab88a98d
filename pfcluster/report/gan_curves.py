"""GAN curves and pictures of PF-MAG runs for the report (docs/guides/pf-mag.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfcluster.report import figures
from pfcluster.report.errors import Notice, ReportError
from pfcluster.report.groups import RunGroup
from pfcluster.report.results import Run
from pfcluster.runs.folder import GRIDS_DIR, metric_series, read_metrics

SHOWN_GRIDS = 6
"""Grids of a strip: the first, the last, and those between at even distances."""


@dataclass(frozen=True)
class Question:
    """Curves that answer a question together, and what they look like in a healthy run."""

    title: str
    healthy: str
    unit: str
    lines: Mapping[str, str]
    """Metric -> its name in the legend."""
    split: str = "train"

    @property
    def shares(self) -> bool:
        return self.unit == "%"


@dataclass(frozen=True)
class Answer:
    """A question and its figure for each group that has the metrics."""

    question: Question
    figures: tuple[str, ...]


@dataclass(frozen=True)
class Strip:
    """Grids of one run over time, each as URI and step."""

    caption: str
    grids: tuple[tuple[str, int], ...]


TERMS = {"cls": "L_cls", "adv": "L_adv", "rec": "L_rec", "ort": "L_ort"}


def _pulls(place: str, terms: Sequence[str], title: str, healthy: str) -> Question:
    lines = {f"grad_{place}_{term}": TERMS[term] for term in terms}
    return Question(f"What pulls at {title}?", healthy, "gradient of one image", lines)


def _mask(part: str, title: str, healthy: str) -> Question:
    kinds = {"mean": "mean", "std": "spread over channels", "saturated": "share saturated"}
    lines = {f"mask_{part}_{kind}": label for kind, label in kinds.items()}
    return Question(f"The separator's mask a: {title}", healthy, "a", lines)


QUESTIONS = (
    Question(
        "Can Δ tell real from generated?",
        "Healthy: real and generated both well above 50 %, and real not yet at 100 %. Real at 0 % with generated at"
        " 100 %, or the other way round: one answer to all images: Δ is blind. All at 100 % to the end: it has won.",
        "%",
        {
            "disc_real": "real, called real",
            "disc_fake_rec": "reconstruction, called generated",
            "disc_fake_poker": "poker face, called generated",
        },
    ),
    Question(
        "What emotion does Δ see?",
        "Healthy: on real images it climbs far above chance, for only then does its word on a poker face count; the"
        " poker faces that it calls neutral follow.",
        "%",
        {
            "disc_emotion_real": "real, right emotion",
            "disc_emotion_rec": "reconstruction, right emotion",
            "disc_neutral_poker": "poker face, called neutral",
        },
    ),
    _pulls(
        "poker",
        ("adv", "rec", "ort"),
        "the poker face I_p",
        "Healthy: L_adv and L_rec within a factor of ten or so. L_adv far above: the generator paints whatever fools Δ."
        " Far below: nothing asks for calm.",
    ),
    _pulls(
        "rec",
        ("adv", "rec"),
        "the reconstruction I_rec",
        "Healthy: L_rec leads or is near. With L_adv far above, it stops being a reconstruction.",
    ),
    _pulls(
        "face",
        ("adv", "rec", "ort"),
        "the face tokens f_p",
        "Healthy: the order that they have at I_p. A term that lives there and vanishes here dies in the generator.",
    ),
    _pulls(
        "emotion",
        ("cls", "ort"),
        "the emotion tokens f_e",
        "Healthy: L_cls leads, and falls as faces are recognised.",
    ),
    _mask(
        "class",
        "the class token",
        "Healthy: the spread grows over hundreds of steps, some channels go to f_e and others to f_p. Spread near 0: a"
        " mere scale, nothing is separated. Most of it saturated within the first steps: frozen before Δ knew a thing.",
    ),
    _mask(
        "patch",
        "the patches",
        "Healthy: as for the class token. A mean near 0 leaves the expression in f_p, and the poker face can only be"
        " a copy; near 1 it leaves no face to paint.",
    ),
    Question(
        "Is the face calm where the expression was?",
        "Healthy: inside the expression's region the poker face stays far below a mere copy of the photo, while the"
        " errors outside fall. A blurred face scores well early: an error inside that rises towards the copy's is the"
        " expression coming back.",
        "mean squared error",
        {
            "copy_mse_inside": "a copy, inside",
            "poker_mse_inside": "poker face, inside",
            "poker_mse_outside": "poker face, outside",
            "rec_mse_inside": "reconstruction, inside",
            "rec_mse_outside": "reconstruction, outside",
        },
        "validation",
    ),
)


def answers(groups: Sequence[RunGroup]) -> list[Answer]:
    """Every question with a figure for each group of PF-MAG runs that logged its metrics; none where no run did."""
    playing = [group for group in groups if group.objective == "pf_mag"]
    read = {run.folder: read_metrics(run.folder) for group in playing for run in group.runs}
    found = []
    for question in QUESTIONS:
        drawn = [_draw(question, group, read) for group in playing]
        if any(drawn):
            found.append(Answer(question, tuple(figure for figure in drawn if figure)))
    return found


def _draw(question: Question, group: RunGroup, read: Mapping[Path, Sequence[Mapping[str, Any]]]) -> str:
    scale = 100 if question.shares else 1
    by_label = {
        label: [
            [(step, scale * value) for step, value in metric_series(read[run.folder], question.split, metric)]
            for run in group.runs
        ]
        for metric, label in question.lines.items()
    }
    limits = (0, 100) if question.shares else (0, 1) if question.unit == "a" else None
    logarithmic = question.unit.startswith("gradient")
    return figures.curves(group.label, question.unit, by_label, limits=limits, logarithmic=logarithmic)


def strips(groups: Sequence[RunGroup]) -> tuple[list[Strip], list[Notice]]:
    """The grids of each group's first seed that has any, over time; a notice for each that cannot be shown."""
    found, notices = [], []
    for group in groups:
        run = next((run for run in group.runs if grid_files(run)), None)
        if group.objective != "pf_mag" or run is None:
            continue
        grids = []
        for name in chosen(grid_files(run)):
            try:
                grids.append((figures.picture(run.folder, f"{GRIDS_DIR}/{name}.jpg"), int(name)))
            except ReportError as error:
                notices.append(Notice("picture left out", str(error)))
        found.append(Strip(f"{group.label}, seed {run.seed}", tuple(grids)))
    return found, notices


def grid_files(run: Run) -> list[str]:
    """Names of a run's grids, by step, without suffix."""
    return sorted((file.stem for file in (run.folder / GRIDS_DIR).glob("*.jpg") if file.stem.isdigit()), key=int)


def chosen(names: Sequence[str]) -> list[str]:
    """At most `SHOWN_GRIDS` of the names, evenly spaced, the first and the last among them."""
    if len(names) <= SHOWN_GRIDS:
        return list(names)
    return [names[round(turn * (len(names) - 1) / (SHOWN_GRIDS - 1))] for turn in range(SHOWN_GRIDS)]
