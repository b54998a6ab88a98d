"""Names and decimals of the metrics in a sweep's report."""

from __future__ import annotations

from pfcluster.report.poker_faces import POKER_METRICS

TITLES = {
    "macro_f1": "macro F1",
    "neutralised_x_agreement": "neutralised rate × emotion agreement",
} | {metric.key: metric.title for metric in POKER_METRICS}
DIGITS = {metric.key: metric.digits for metric in POKER_METRICS}


def metric_title(metric: str) -> str:
    """A metric's name in a sentence or a table."""
    return TITLES.get(metric, metric.replace("_", " "))


def metric_digits(metric: str) -> int:
    """Number of decimals with which a metric is written."""
    return DIGITS.get(metric, 3)
