"""Statistics over seeds: what may be said about a mean of few runs. Pure functions of plain numbers.

`n` is the number of seeds; every quantity has the unit of the values it is made of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WILCOXON_FROM = 6
"""Fewest pairs for Wilcoxon's test: with 5 its smallest two-sided p is 2 / 2^5 = 0.0625, never below 0.05."""


@dataclass(frozen=True)
class Summary:
    """Mean and spread of one figure over seeds."""

    n: int
    mean: float
    std: float | None
    """Standard deviation with n - 1 in the denominator; None for n = 1."""
    low: float | None
    """Lower end of the interval of the mean; None for n = 1."""
    high: float | None
    """Upper end of the interval of the mean; None for n = 1."""


@dataclass(frozen=True)
class Paired:
    """Differences `treated - reference` on the same seeds, and two tests of "no difference"."""

    difference: Summary
    t_p: float | None
    """Two-sided p of the paired t-test; None for n = 1 and for differences that do not vary."""
    wilcoxon_p: float | None
    """Two-sided p of Wilcoxon's signed-rank test; None with fewer than `WILCOXON_FROM` pairs that differ."""

    @property
    def resolvable(self) -> float | None:
        """Smallest |mean difference| whose interval leaves out 0, given this spread: half the interval's width."""
        if self.difference.low is None or self.difference.high is None:
            return None
        return (self.difference.high - self.difference.low) / 2

    @property
    def sign(self) -> int | None:
        """+1 or -1 where the interval of the mean difference lies on one side of 0, 0 where it holds 0, None for n =
        1.
        """
        low, high = self.difference.low, self.difference.high
        if low is None or high is None:
            return None
        return 1 if low > 0 else -1 if high < 0 else 0


def summarize(values: Sequence[float], confidence: float = 0.95) -> Summary:
    """Mean, standard deviation and Student's interval of the mean.

    std = sqrt(sum (x - mean)^2 / (n - 1)); interval = mean ± t(n - 1, (1 + confidence) / 2) std / sqrt(n)
    (Student 1908). It supposes seeds drawn independently from a distribution near the normal one.
    Raises ValueError without values, for a value that is not finite, or a confidence outside (0, 1).
    """
    if not values:
        raise ValueError("summarize needs at least one value")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"summarize needs finite values, got {list(values)}")
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Summary(1, mean, None, None, None)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(n - 1, confidence) * std / math.sqrt(n)
    return Summary(n, mean, std, mean - half, mean + half)


def t_quantile(degrees: int, confidence: float = 0.95) -> float:
    """The t that a Student variable of so many degrees of freedom exceeds in size with chance 1 - confidence."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    if degrees < 1:
        raise ValueError(f"degrees must be at least 1, got {degrees}")
    from scipy import stats

    return float(stats.t.ppf((1 + confidence) / 2, degrees))


def paired(treated: Sequence[float], reference: Sequence[float], confidence: float = 0.95) -> Paired:
    """Compare two settings seed by seed: `treated[i]` and `reference[i]` share a seed.

    t = mean(d) / (std(d) / sqrt(n)) with n - 1 degrees of freedom (Student 1908). Wilcoxon's signed-rank test (1945)
    leaves out pairs without difference. Raises ValueError for lists of unequal length or none.
    """
    if len(treated) != len(reference):
        raise ValueError(f"paired needs as many values on both sides, got {len(treated)} and {len(reference)}")
    differences = [a - b for a, b in zip(treated, reference, strict=True)]
    summary = summarize(differences, confidence)
    scale = max(abs(value) for value in (*treated, *reference))
    varies = summary.std is not None and summary.std > 1e-12 * max(scale, 1e-300)  # less is rounding
    return Paired(summary, _t_p(summary) if varies else None, _wilcoxon_p(differences))


def _t_p(summary: Summary) -> float:
    from scipy import stats

    assert summary.std
    t = summary.mean / (summary.std / math.sqrt(summary.n))
    return float(2 * stats.t.sf(abs(t), summary.n - 1))


def _wilcoxon_p(differences: Sequence[float]) -> float | None:
    changed = [value for value in differences if value != 0]
    if len(changed) < WILCOXON_FROM:
        return None
    from scipy import stats

    return float(stats.wilcoxon(changed).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979) of several tests, in the order given.

    The i-th smallest of m p-values is multiplied by m - i + 1; the results never fall and never pass 1.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def sum_matrices(matrices: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Cell by cell sum of square matrices of one size. Raises ValueError for different sizes or none."""
    if not matrices or len({len(matrix) for matrix in matrices}) != 1:
        raise ValueError("sum_matrices needs matrices of one size")
    size = range(len(matrices[0]))
    return [[sum(matrix[row][column] for matrix in matrices) for column in size] for row in size]


def row_shares(matrix: Sequence[Sequence[float]]) -> list[list[float | None]]:
    """Each row divided by its sum (shares of the true class); None in a row that sums to 0."""
    shares: list[list[float | None]] = []
    for row in matrix:
        total = sum(row)
        shares.append([cell / total if total else None for cell in row])
    return shares
