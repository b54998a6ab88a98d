"""Training budget of each row, with the runs that it started from, and PF-ViT against MAE-ViT on these budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from pfcluster.config.io import load
from pfcluster.config.starts import EQUAL_EPOCHS, EQUAL_FLOPS, MAE_VIT
from pfcluster.report.comparisons import Comparison, compare_with_each
from pfcluster.report.formatting import MISSING, count, interval, p_value, signed
from pfcluster.report.groups import RunGroup
from pfcluster.report.rendering import Table
from pfcluster.report.results import Run
from pfcluster.runs.folder import CONFIG_FILE

if TYPE_CHECKING:
    from pfcluster.profiling.training_cost import TrainingCost

CONTROLS = (MAE_VIT, EQUAL_EPOCHS, EQUAL_FLOPS)
"""Names of the rows that PF-ViT is compared with on a budget (launch/budget_controls.py)."""


@dataclass(frozen=True)
class Budget:
    """Training budget of a row's runs, from its first seed."""

    own: TrainingCost
    total: TrainingCost
    """With the classifiers that the run started from; without the MAE's pre-training."""
    start: str
    """Name of the run that it started from; empty for random weights."""


def budgets(groups: Sequence[RunGroup]) -> dict[str, Budget]:
    """Budget of each group by its label; empty for studies without PF-ViT, which need no such comparison: counting
    FLOPs needs torch. Groups whose config or data size is unknown are left out.
    """
    if not any(group.objective == "pf_mag" for group in groups):
        return {}
    by_folder = {run.folder.resolve(): run for group in groups for run in group.runs}
    costs: dict[tuple[str, str], TrainingCost | None] = {}

    def cost_of(run: Run) -> TrainingCost | None:
        if (run.name, run.objective) not in costs:
            costs[run.name, run.objective] = _cost(run)
        return costs[run.name, run.objective]

    def start_of(run: Run) -> tuple[str, Run | None]:
        init = run.config.get("model.init")
        if init is None:
            return "", None
        start = _start(Path(str(init)), {folder: one for folder, one in by_folder.items() if one is not run})
        return (str(init) if start is None else start.name), start

    found = {}
    for group in groups:
        own = cost_of(group.runs[0])
        if own is None:
            continue
        name, start = start_of(group.runs[0])
        total: TrainingCost | None = own
        before, counted = start, {group.runs[0].folder}
        while before is not None and before.objective != "mae" and total is not None:
            cost = cost_of(before)
            circular = before.folder in counted  # as wrongly found in a study that was moved
            total = None if cost is None or circular else total + cost
            counted.add(before.folder)
            before = start_of(before)[1]
        if total is not None:
            found[group.label] = Budget(own, total, name)
    return found


def _start(place: Path, by_folder: Mapping[Path, Run]) -> Run | None:
    """The run in this folder. If it does not exist, the study was moved: the run whose path shares the most last parts
    with the folder's, at least two. None if there is no such run, or more than one.
    """
    try:
        present = place.exists()
    except OSError:  # a folder of others
        present = True
    if present or place.resolve() in by_folder:
        return by_folder.get(place.resolve())
    alike: dict[int, list[Run]] = {}
    for folder, run in by_folder.items():
        pairs = zip(reversed(folder.parts), reversed(place.parts), strict=False)
        alike.setdefault(len(list(takewhile(lambda pair: pair[0] == pair[1], pairs))), []).append(run)
    most = max(alike, default=0)
    return alike[most][0] if most >= 2 and len(alike[most]) == 1 else None


def _cost(run: Run) -> TrainingCost | None:
    """The budget of a run; None if its config or the size of its data is unknown."""
    samples, steps = run.number("dataset", "train"), run.number("steps")
    if not samples or steps is None or not run.classes:
        return None
    try:
        config = load(run.folder / CONFIG_FILE)
        from pfcluster.profiling.training_cost import training_cost

        return training_cost(config, len(run.classes), int(samples), int(steps))
    except ValueError:  # a config that is not read, or an identity net whose package is missing
        return None


def budget_table(groups: Sequence[RunGroup], by_label: Mapping[str, Budget]) -> Table | None:
    """Epochs, steps, images and training FLOPs of each row, alone and with the classifiers that it started from."""
    rows = []
    for group in groups:
        budget = by_label.get(group.label)
        if budget is not None:
            own, total = budget.own, budget.total
            with_start = total is not own
            totals = (_epochs(total.epochs), count(total.images), _tera(total.flops))
            rows.append(
                (
                    group.title,
                    budget.start or "random weights",
                    _epochs(own.epochs),
                    count(own.steps),
                    count(own.images),
                    _tera(own.flops),
                    *(totals if with_start else (MISSING,) * 3),
                )
            )
    columns = (
        "run",
        "starts from",
        "epochs",
        "steps",
        "images",
        "TFLOP",
        "epochs in all",
        "images in all",
        "TFLOP in all",
    )
    note = (
        "Of one run. FLOPs: forward and backward passes of all training steps, counted from the config; a multiply-add "
        "is 2 FLOPs; evaluations are left out. In all: with the classifier that the run started from, if that is in "
        "this study, without the pre-training of the MAE."
    )
    return Table("Training budget", columns, tuple(rows), note, labels=2) if rows else None


def equal_budget_comparisons(groups: Sequence[RunGroup]) -> list[Comparison]:
    """Each PF-ViT against MAE-ViT and its controls of equal epochs and FLOPs; none in a study without such controls."""
    controls = [group for name in CONTROLS for group in groups if group.name == name and group.classifies]
    if not any(group.name != CONTROLS[0] for group in controls):
        return []
    treated = [group for group in groups if group.objective == "pf_mag" and group.classifies]
    return [one for group in treated for one in compare_with_each(group, controls)]


def equal_budget_table(comparisons: Sequence[Comparison], by_label: Mapping[str, Budget]) -> Table | None:
    """Accuracy differences from MAE-ViT on known budgets, paired by seed."""
    rows = []
    for one in comparisons:
        test = one.accuracy
        cells = (
            (MISSING,) * 5
            if test is None
            else (
                str(test.difference.n),
                signed(test.difference.mean, 2),
                interval(test.difference, 2, sign=True),
                p_value(test.t_p),
                p_value(one.holm_p),
            )
        )
        rows.append((one.group.title, one.baseline.title, *_ratios(one, by_label), *cells))
    columns = (
        "run", "against", "epochs, ratio", "TFLOP, ratio", "seeds", "accuracy", "95 % CI (seeds)", "t-test p", "Holm p"
    )  # fmt: skip
    note = (
        "Difference of test accuracy in percentage points, paired by seed. Ratio: budget of the run in all, with what "
        "it started from, over that of the row that it is compared with. Two-sided paired t-test; Holm p is corrected "
        "for the rows of one run."
    )
    return Table("PF-ViT against MAE-ViT on equal budgets", columns, tuple(rows), note, labels=2) if rows else None


def _ratios(one: Comparison, by_label: Mapping[str, Budget]) -> tuple[str, str]:
    budget, reference = by_label.get(one.group.label), by_label.get(one.baseline.label)
    if budget is None or reference is None:
        return MISSING, MISSING
    pairs = ((budget.total.epochs, reference.total.epochs), (budget.total.flops, reference.total.flops))
    return f"{pairs[0][0] / pairs[0][1]:.2f}", f"{pairs[1][0] / pairs[1][1]:.2f}"


def _epochs(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.3g}" if flops < 1e14 else count(flops / 1e12)
