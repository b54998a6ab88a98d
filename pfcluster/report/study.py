"""Read a study and compute everything that its report shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pfcluster.report.budget import Budget, budgets, equal_budget_comparisons
from pfcluster.report.comparisons import Comparison, choose_baseline, compare
from pfcluster.report.errors import Notice
from pfcluster.report.groups import RunGroup, group_runs
from pfcluster.report.page_pictures import PictureFile
from pfcluster.report.results import Run, UnfinishedRun, read_runs
from pfcluster.report.saved_pictures import study_pictures


@dataclass(frozen=True)
class Report:
    """Content of a report."""

    title: str
    runs: tuple[Run, ...]
    unfinished: tuple[UnfinishedRun, ...]
    groups: tuple[RunGroup, ...]
    baseline: RunGroup | None
    comparisons: tuple[Comparison, ...]
    notices: tuple[Notice, ...]
    pictures: tuple[PictureFile, ...] = ()
    """Pictures that `gallery.write_pictures` wrote into the study's folder."""
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    """Training budgets of the groups by label."""
    on_budgets: tuple[Comparison, ...] = ()
    """PF-ViT against MAE-ViT and its controls."""

    @property
    def all_comparisons(self) -> tuple[Comparison, ...]:
        """Each compared pair once: those with the baseline, then those of `on_budgets` with other groups. A pair of
        both is corrected with the others of the baseline.
        """
        others = (one for one in self.on_budgets if one.baseline is not self.baseline)
        return (*self.comparisons, *others)


def read_report(study: Path, baseline: str | None = None) -> Report:
    """Read a study's runs, group them and compare the groups with the baseline.

    Raises ReportError for a study without finished runs, a malformed result.json or an unknown baseline.
    """
    runs, unfinished, notices = read_runs(study)
    groups, group_notices = group_runs(runs)
    reference = choose_baseline(groups, baseline)
    pictures, picture_notices = study_pictures(study)
    return Report(
        title=study.resolve().name,
        runs=tuple(runs),
        unfinished=tuple(unfinished),
        groups=tuple(groups),
        baseline=reference,
        comparisons=tuple(compare(groups, reference)),
        notices=(*group_notices, *notices, *picture_notices),
        pictures=tuple(pictures),
        budgets=budgets(groups),
        on_budgets=tuple(equal_budget_comparisons(groups)),
    )
