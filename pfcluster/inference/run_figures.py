"""The figures of a run that a model card shows, from result.json. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfcluster.config.io import flatten
from pfcluster.config.json_files import try_read_object
from pfcluster.inference.model_info import Figures, OverSeeds
from pfcluster.runs.folder import CONFIG_FILE, RESULT_FILE, find_runs
from pfcluster.runs.seed_differences import config_differences, has_other_data, selection_split

POKER_ROW = "poker face"
"""Of result.json: the figures of the poker faces."""
PokerFigures = dict[str, float | int | str | None]


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """Figures of a checkpoint's quality for the model card."""

    figures: Figures | None = None
    no_figures: str | None = None
    """Why there are no figures although the run has been evaluated."""
    over_seeds: OverSeeds | None = None
    poker_faces: PokerFigures | None = None


def run_figures(folder: Path, result: Mapping[str, Any], classes: tuple[str, ...], step: int) -> RunFigures:
    """The figures of the checkpoint of a step. result.json has those of one checkpoint only; any other has none."""
    figures = _figures(result, classes)
    if figures is None:
        return RunFigures()
    evaluated = _evaluated_step(result)
    if step != evaluated:
        return RunFigures(no_figures=_no_figures(step, evaluated))
    return RunFigures(figures=figures, over_seeds=_over_seeds(folder), poker_faces=_poker_faces(result))


def _evaluated_step(result: Mapping[str, Any]) -> int | None:
    """Step of the checkpoint that result.json has the figures of; results that do not name it have those of the best,
    or of the last if none was selected. None if neither is known.
    """
    step = result.get("evaluated_step", (result.get("best") or {}).get("step", result.get("steps")))
    return None if step is None else int(step)


def _no_figures(step: int, evaluated: int | None) -> str:
    others = "a step that they do not name" if evaluated is None else f"step {evaluated}"
    return (
        f"No figures: these weights are the checkpoint of step {step}, and the figures of the run are those of its"
        f" checkpoint of {others}. `pfcluster evaluate CHECKPOINT` measures any checkpoint of a run."
    )


def _figures(result: Mapping[str, Any], classes: tuple[str, ...]) -> Figures | None:
    """Scores of the test split, else of the validation split."""
    for split in ("test", "validation"):
        scores = result.get(split)
        if scores:
            names = ("accuracy", "mean_class_accuracy", "macro_f1")
            n = scores.get("n") or (result.get("dataset") or {}).get(split, 0)
            per_class = {name: value for name, value in scores.get("per_class", {}).items() if name in classes}
            return Figures(
                split=split,
                n=n,
                per_class=per_class,
                warning=result.get("warning"),
                **{name: scores[name] for name in names},
            )
    return None


@dataclass(frozen=True)
class _Run:
    """A finished run with a test accuracy; a `RunRecord`."""

    values: Mapping[str, Any]
    config: Mapping[str, Any]
    seed: int
    accuracy: float


def _over_seeds(folder: Path) -> OverSeeds | None:
    """Test accuracy over this run and the finished runs beside it that differ from it only in their seed: the same
    name, objective, config, data and selection of the checkpoint. None with fewer than two.
    """
    own = _read(folder)
    if own is None:
        return None
    accuracies = {own.seed: own.accuracy}
    for other in map(_read, find_runs(folder.parent)):
        if other is not None and _differ_in_seed_only(own, other):
            accuracies.setdefault(other.seed, other.accuracy)
    if len(accuracies) < 2:
        return None
    values = list(accuracies.values())
    return OverSeeds(
        seeds=tuple(sorted(accuracies)),
        accuracy_mean=statistics.fmean(values),
        accuracy_std=statistics.stdev(values),
    )


def _read(folder: Path) -> _Run | None:
    """None for a run without config, that has not finished, or that has no test accuracy, and for damaged files."""
    values, recorded = (try_read_object(folder / name) for name in (RESULT_FILE, CONFIG_FILE))
    if not values or not recorded or values.get("status") != "finished":
        return None
    test = values.get("test")
    accuracy = test.get("accuracy") if isinstance(test, Mapping) else None
    config = flatten(recorded)
    seed = config.get("seed")
    if not isinstance(accuracy, float | int) or not math.isfinite(accuracy) or not isinstance(seed, int):
        return None
    return _Run(values, config, seed, float(accuracy))


def _differ_in_seed_only(own: _Run, other: _Run) -> bool:
    return (
        not config_differences(own, other)
        and not has_other_data(own, other)
        and selection_split(own) == selection_split(other)
    )


def _poker_faces(result: Mapping[str, Any]) -> PokerFigures | None:
    """The figures of the poker faces themselves, without those of the rows that they are compared with."""
    rows = (result.get("poker") or {}).get("rows") or {}
    row = rows.get(POKER_ROW, {})
    values: PokerFigures = {name: value for name, value in row.items() if isinstance(value, float | int)}
    return values or None
