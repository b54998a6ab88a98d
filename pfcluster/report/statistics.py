"""Statistics over seeds: means, intervals and paired tests for few runs. Pure functions of plain numbers.

`n` is the number of seeds; results have the unit of the input values.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

WILCOXON_MIN_PAIRS = 6
"""Minimum number of pairs for Wilcoxon's test: with 5 the smallest two-sided p is 2 / 2^5 = 0.0625, above 0.05."""


DIGITS = 12
"""Significant digits of a difference, relative to the values that it is of."""


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation and confidence interval of one metric over seeds."""

    n: int
    mean: float
    std: float | None
    """Standard deviation with n - 1 in the denominator; None for n = 1."""
    low: float | None
    """Lower end of the interval of the mean; None for n = 1 and for equal values, whose variance is unknown."""
    high: float | None
    """Upper end of the interval of the mean; None as for `low`."""


@dataclass(frozen=True)
class Paired:
    """Differences `treated - reference` on common seeds, and two tests of the null hypothesis of no difference."""

    difference: Summary
    t_p: float | None
    """Two-sided p of the paired t-test; None for n = 1 and for equal differences."""
    wilcoxon_p: float | None
    """Two-sided p of Wilcoxon's signed-rank test; None with fewer than `WILCOXON_MIN_PAIRS` unequal pairs."""

    @property
    def no_t_test(self) -> str:
        """Why there is no t-test and no interval, as the end of a sentence; empty if there are."""
        if self.difference.n == 1:
            return "a single seed does not allow a test"
        return "all differences are equal: no test" if self.t_p is None else ""

    @property
    def min_detectable(self) -> float | None:
        """Smallest |mean difference| whose interval would exclude 0 at this standard deviation: the half-width."""
        if self.difference.low is None or self.difference.high is None:
            return None
        return (self.difference.high - self.difference.low) / 2

    @property
    def sign(self) -> int | None:
        """+1 or -1 if the interval of the mean difference excludes 0, 0 if it contains 0, None without an interval."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None:
            return None
        return 1 if low > 0 else -1 if high < 0 else 0


def summarize(values: Sequence[float], confidence: float = 0.95) -> Summary:
    """Mean, standard deviation and Student's t interval of the mean.

    std = sqrt(sum (x - mean)^2 / (n - 1)); interval = mean ± t(n - 1, (1 + confidence) / 2) std / sqrt(n)
    (Student 1908), for seeds drawn independently from an approximately normal distribution. Equal values have no
    interval: few seeds that agree to the last sample do not show that others would. Raises ValueError for an empty
    list, a non-finite value, or a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    if not values:
        raise ValueError("summarize needs at least one value")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"summarize needs finite values, got {list(values)}")
    n, mean = len(values), fmean(values)
    if n == 1:
        return Summary(1, mean, None, None, None)
    std = stdev(values)
    if std == 0:
        return Summary(n, mean, std, None, None)
    from scipy import stats

    low, high = stats.t.interval(confidence, n - 1, loc=mean, scale=std / math.sqrt(n))
    return Summary(n, mean, std, float(low), float(high))


def paired(treated: Sequence[float], reference: Sequence[float], confidence: float = 0.95) -> Paired:
    """Paired t-test and Wilcoxon's signed-rank test (1945); `treated[i]` and `reference[i]` share a seed.

    Differences are rounded (see `_differences`). Wilcoxon's p is exact for the given ranks: pairs with equal values are
    dropped, and differences of equal size share the mean of their ranks. Raises ValueError for lists of unequal length
    or empty lists, and as `summarize`.
    """
    if len(treated) != len(reference):
        raise ValueError(f"paired needs as many values on both sides, got {len(treated)} and {len(reference)}")
    differences = _differences(treated, reference)
    summary = summarize(differences, confidence)
    return Paired(summary, _t_test_p(differences, summary.std), _wilcoxon_p(differences))


def _differences(treated: Sequence[float], reference: Sequence[float]) -> list[float]:
    """treated - reference, rounded to `DIGITS` digits of the largest value, so that equal differences stay equal: by
    rounding errors, 100 * 0.91 - 100 * 0.90 differs from 100 * 0.92 - 100 * 0.91.
    """
    scale = max((abs(value) for value in (*treated, *reference)), default=0.0)
    differences = [a - b for a, b in zip(treated, reference, strict=True)]
    if scale == 0 or not math.isfinite(scale):
        return differences
    decimals = DIGITS - 1 - math.floor(math.log10(scale))
    return [round(value, decimals) for value in differences]


def _t_test_p(differences: Sequence[float], std: float | None) -> float | None:
    if not std:
        return None
    from scipy import stats

    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _wilcoxon_p(differences: Sequence[float]) -> float | None:
    """Twice the smaller tail of the sum of positive ranks over all 2^n equally likely signs (no normal approximation,
    which scipy falls back to for ties), at most 1.
    """
    nonzero = [value for value in differences if value != 0]
    if len(nonzero) < WILCOXON_MIN_PAIRS:
        return None
    sizes = sorted(map(abs, nonzero))
    doubled = [bisect_left(sizes, abs(value)) + bisect_right(sizes, abs(value)) + 1 for value in nonzero]  # integers
    ways = [1] + [0] * sum(doubled)  # by sum of doubled ranks: choices of signs
    for rank in doubled:
        ways = [here + (ways[total - rank] if total >= rank else 0) for total, here in enumerate(ways)]
    positive = sum(rank for rank, value in zip(doubled, nonzero, strict=True) if value > 0)
    tail = min(sum(ways[: positive + 1]), sum(ways[positive:]))
    return min(1.0, 2 * tail / 2 ** len(nonzero))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979); the results are in the order of the input.

    The i-th smallest of m p-values is multiplied by m - i + 1; results are made non-decreasing and capped at 1.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def holm_over_tests(tests: Sequence[Paired | None]) -> list[float | None]:
    """Corrected p of the t-tests of a table; None where there is no test, or no comparison.

    Equal differences count as p = 1: whether they are equal depends on the results. A single seed does not count.
    """
    counted = {index: test.t_p for index, test in enumerate(tests) if test is not None and test.difference.n > 1}
    corrected = dict(zip(counted, holm([1.0 if p is None else p for p in counted.values()]), strict=True))
    return [None if counted.get(index) is None else corrected[index] for index in range(len(tests))]


def sum_matrices(matrices: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Element-wise sum of square matrices. Raises ValueError for different sizes or an empty sequence."""
    if not matrices or len({len(matrix) for matrix in matrices}) != 1:
        raise ValueError("sum_matrices needs matrices of one size")
    size = range(len(matrices[0]))
    return [[sum(matrix[row][column] for matrix in matrices) for column in size] for row in size]


def row_shares(matrix: Sequence[Sequence[float]]) -> list[list[float | None]]:
    """Each row divided by its sum (row normalisation of a confusion matrix); None in a row that sums to 0."""
    shares: list[list[float | None]] = []
    for row in matrix:
        total = sum(row)
        shares.append([cell / total if total else None for cell in row])
    return shares
