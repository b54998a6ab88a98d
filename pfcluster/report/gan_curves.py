"""Section "Adversarial training" of the report: diagnostics that distinguish healthy from collapsed training.

The metrics are those of training/gan_diagnostics.py and evaluate/tracked_faces.py; docs/guides/pf-mag.md explains them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pfcluster.report.curves import Metric, curve_of
from pfcluster.report.errors import Notice, ReportError
from pfcluster.report.figures import Curve, plot_curves
from pfcluster.report.groups import RunGroup
from pfcluster.report.page_pictures import PagePictures
from pfcluster.report.results import Run
from pfcluster.runs.folder import GRIDS_DIR

MAX_GRIDS = 6
"""Number of grids in a timeline: the first, the last, and evenly spaced ones between them."""
PERCENT, GRADIENT_NORM, MASK_VALUE, MSE = "%", "gradient norm per image", "a", "mean squared error"


@dataclass(frozen=True)
class CurvePanel:
    """Metrics drawn in one figure, and what they look like in healthy training."""

    title: str
    healthy: str
    unit: str
    lines: Mapping[str, str]
    """Metric -> label in the legend."""
    split: str = "train"


@dataclass(frozen=True)
class PanelFigures:
    """A panel with its figure for each group that logged the metrics."""

    panel: CurvePanel
    figures: tuple[str, ...]


@dataclass(frozen=True)
class GridTimeline:
    """Image grids of one run over training, each as (URI, step)."""

    caption: str
    grids: tuple[tuple[str, int], ...]


TERMS = {"cls": "L_cls", "adv": "L_adv", "rec": "L_rec", "ort": "L_ort"}


def _gradient_panel(tensor: str, terms: Sequence[str], title: str, healthy: str) -> CurvePanel:
    lines = {f"grad_{tensor}_{term}": TERMS[term] for term in terms}
    return CurvePanel(f"Gradient norms at {title}", healthy, GRADIENT_NORM, lines)


def _mask_panel(tokens: str, title: str, healthy: str) -> CurvePanel:
    statistics = {"mean": "mean", "std": "standard deviation over channels", "saturated": "saturated share"}
    lines = {f"mask_{tokens}_{name}": label for name, label in statistics.items()}
    return CurvePanel(f"Separator mask a: {title}", healthy, MASK_VALUE, lines)


PANELS = (
    CurvePanel(
        "Discriminator: real/generated accuracy",
        "Healthy: all curves well above 50 %, real images not at 100 % for long. Real at 0 % and generated at 100 %, or"
        " the reverse: the discriminator's output is constant. All at 100 % permanently: it is too strong.",
        PERCENT,
        {
            "disc_real": "real classified as real",
            "disc_fake_rec": "reconstruction classified as generated",
            "disc_fake_poker": "poker face classified as generated",
        },
    ),
    CurvePanel(
        "Discriminator: emotion accuracy",
        "Healthy: on real images far above chance and rising; only then is its gradient on poker faces informative. The"
        " share of poker faces classified as neutral follows. At chance: the emotion part of L_adv is noise.",
        PERCENT,
        {
            "disc_emotion_real": "real, emotion correct",
            "disc_emotion_rec": "reconstruction, emotion correct",
            "disc_neutral_poker": "poker face classified as neutral",
        },
    ),
    _gradient_panel(
        "poker",
        ("adv", "rec", "ort"),
        "the poker face I_p",
        "Healthy: L_adv and L_rec within a factor of about ten. L_adv much larger: the generator optimises only what"
        " deceives the discriminator. L_adv much smaller: no term drives the poker face towards neutral.",
    ),
    _gradient_panel(
        "rec",
        ("adv", "rec"),
        "the reconstruction I_rec",
        "Healthy: L_rec is the largest or of equal size. If L_adv is much larger, the reconstruction degrades.",
    ),
    _gradient_panel(
        "face",
        ("adv", "rec", "ort"),
        "the identity tokens f_p",
        "Healthy: the same order as at I_p. A term with a gradient at I_p but none here vanishes in the generator.",
    ),
    _gradient_panel(
        "emotion",
        ("cls", "ort"),
        "the emotion tokens f_e",
        "Healthy: L_cls is the largest, and decreases as accuracy rises.",
    ),
    _mask_panel(
        "class",
        "class token",
        "Healthy: the standard deviation grows over hundreds of steps, as some channels go to f_e and others to f_p."
        " Near 0: the mask only rescales, nothing is separated. Saturated within the first steps: the mask froze before"
        " the discriminator had learned anything.",
    ),
    _mask_panel(
        "patch",
        "patch tokens",
        "Healthy: as for the class token. A mean near 0 leaves the expression in f_p, so that the poker face can only"
        " copy the input; a mean near 1 leaves f_p without content.",
    ),
    CurvePanel(
        "Error inside and outside the region of the expression",
        "Healthy: inside the region the error of the poker face stays far below that of a copy of the input, while the"
        " errors outside fall. Blurred faces have a low error early; if the error inside rises towards the copy's, the"
        " expression is returning.",
        MSE,
        {
            "copy_mse_inside": "copy of the input, inside",
            "poker_mse_inside": "poker face, inside",
            "poker_mse_outside": "poker face, outside",
            "rec_mse_inside": "reconstruction, inside",
            "rec_mse_outside": "reconstruction, outside",
        },
        "validation",
    ),
)


METRICS: tuple[Metric, ...] = tuple((panel.split, name) for panel in PANELS for name in panel.lines)
"""The metrics that the panels draw."""


def panel_figures(groups: Sequence[RunGroup], curves: Mapping[Path, Mapping[Metric, Curve]]) -> list[PanelFigures]:
    """Every panel with a figure for each group of PF-MAG runs that logged its metrics; panels without are omitted.
    curves: of `METRICS`, by run folder.
    """
    pf_mag = [group for group in groups if group.objective == "pf_mag"]
    panels = []
    for panel in PANELS:
        svgs = [svg for group in pf_mag if (svg := _draw(panel, group, curves))]
        if svgs:
            panels.append(PanelFigures(panel, tuple(svgs)))
    return panels


def _draw(panel: CurvePanel, group: RunGroup, curves: Mapping[Path, Mapping[Metric, Curve]]) -> str:
    """SVG of a panel for one group, "" if no run logged the metrics. curves: by run folder."""
    scale = 100 if panel.unit == PERCENT else 1
    by_label = {
        label: [curve_of(curves[run.folder], (panel.split, metric), scale) for run in group.runs]
        for metric, label in panel.lines.items()
    }
    limits = {PERCENT: (0, 100), MASK_VALUE: (0, 1)}.get(panel.unit)
    return plot_curves(group.label, panel.unit, by_label, limits=limits, logarithmic=panel.unit == GRADIENT_NORM)


def grid_timelines(groups: Sequence[RunGroup], page: PagePictures) -> tuple[list[GridTimeline], list[Notice]]:
    """Grids over training of each PF-MAG group's first seed that has any; a notice for each unreadable file."""
    timelines, notices = [], []
    for group in groups:
        run = next((run for run in group.runs if _grid_files(run)), None)
        if group.objective != "pf_mag" or run is None:
            continue
        grids = []
        for file in evenly_spaced(_grid_files(run)):
            try:
                uri = page.uri(run.folder, file.relative_to(run.folder).as_posix())
            except ReportError as error:
                notices.append(Notice("picture omitted", str(error)))
                continue
            grids.append((uri, int(file.stem)))
        timelines.append(GridTimeline(f"{group.label}, seed {run.seed}", tuple(grids)))
    return timelines, notices


def _grid_files(run: Run) -> list[Path]:
    """A run's grids, `STEP.jpg`, by step."""
    files = (run.folder / GRIDS_DIR).glob("*.jpg")
    return sorted((file for file in files if file.stem.isdigit()), key=lambda file: int(file.stem))


def evenly_spaced(files: Sequence[Path]) -> list[Path]:
    """At most `MAX_GRIDS` of the files, evenly spaced, including the first and the last."""
    if len(files) <= MAX_GRIDS:
        return list(files)
    return [files[round(index * (len(files) - 1) / (MAX_GRIDS - 1))] for index in range(MAX_GRIDS)]
