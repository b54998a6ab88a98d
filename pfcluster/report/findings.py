"""Findings of a study, in sentences."""

from __future__ import annotations

from pfcluster.report.comparisons import comparison_sentence
from pfcluster.report.formatting import count, mean_std, number
from pfcluster.report.groups import RunGroup
from pfcluster.report.poker_faces import poker_findings
from pfcluster.report.statistics import sum_matrices
from pfcluster.report.study import Report


def findings(report: Report) -> list[str]:
    """Test accuracies, comparisons with the baseline, poker faces, and cautions."""
    sentences = [_accuracy_sentence(group) for group in report.groups if group.classifies]
    sentences += map(comparison_sentence, report.all_comparisons)
    for group in report.groups:
        if group.has_poker_faces:
            sentences.append(f"{group.label}: {' '.join(poker_findings(group))}")
    return sentences + _cautions(report)


def _accuracy_sentence(group: RunGroup) -> str:
    accuracy = group.summary("test", "accuracy", scale=100)
    assert accuracy is not None
    if not group.comparable:
        return f"{group.label}: no mean accuracy, because its runs differ in more than their seed."
    seeds = f"{accuracy.n} seeds" if accuracy.n > 1 else "one seed: no standard deviation, no test"
    score = number(accuracy.mean, 2) if accuracy.n == 1 else mean_std(accuracy, 2)
    optimistic = "; checkpoint selected on the test split, optimistic" if group.selection_split == "test" else ""
    sizes = set(group.by_seed("test", "n").values())
    images = f"{count(sizes.pop())} test images" if len(sizes) == 1 else "test images"
    return f"{group.label}: {score} % accuracy on the {images} ({seeds}{optimistic})."


def _cautions(report: Report) -> list[str]:
    """Low statistical power with few seeds; accuracy of the majority class."""
    sentences = []
    few = [n for one in report.comparisons if one.accuracy and 1 < (n := one.accuracy.difference.n) < 5]
    if few:
        sentences.append(
            f"With n = {min(few)} seeds only large differences are detectable; a difference that is not significant "
            "is not evidence of equality."
        )
    majority = {}
    for group in report.groups:
        matrix = summed_confusion(group)
        total = sum(map(sum, matrix)) if matrix else 0
        if matrix and total:
            largest = max(range(len(matrix)), key=lambda index: sum(matrix[index]))
            dataset = group.runs[0].dataset or "the test split"
            majority[dataset] = (group.classes[largest], 100 * sum(matrix[largest]) / total)
    for dataset, (name, share) in majority.items():
        sentences.append(f"Always predicting the majority class “{name}” scores {number(share, 2)} % on {dataset}.")
    return sentences


def summed_confusion(group: RunGroup) -> list[list[float]] | None:
    """Confusion counts summed over the seeds of a group; None if no run has a matrix of the group's classes."""
    matrices = [(run.values.get("test") or {}).get("confusion") for run in group.runs if run.classes == group.classes]
    present = [matrix for matrix in matrices if matrix]
    return sum_matrices(present) if present else None
