"""Statistics over seeds against hand-computed values, t tables and scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pfcluster.report.statistics import (
    WILCOXON_MIN_PAIRS,
    holm,
    holm_over_tests,
    paired,
    row_shares,
    sum_matrices,
    summarize,
)


def test_mean_std_and_interval_by_hand() -> None:
    # 70, 72, 77: mean 73; squares 9 + 1 + 16 = 26, over n - 1 = 2: std = sqrt 13.
    summary = summarize([70.0, 72.0, 77.0])
    assert (summary.n, summary.mean) == (3, 73.0)
    assert summary.std == pytest.approx(math.sqrt(13))
    half = 4.302653 * math.sqrt(13) / math.sqrt(3)  # t of 2 degrees, 97.5 %: 4.303 in every table
    assert summary.low == pytest.approx(73 - half, abs=1e-5)
    assert summary.high == pytest.approx(73 + half, abs=1e-5)


@pytest.mark.parametrize(("degrees", "t"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042)])
def test_interval_half_width_matches_t_table(degrees: int, t: float) -> None:
    summary = summarize([float(value) for value in range(degrees + 1)])
    assert summary.std is not None
    assert summary.high is not None
    assert (summary.high - summary.mean) * math.sqrt(summary.n) / summary.std == pytest.approx(t, abs=5e-4)


def test_one_value_has_no_std_or_interval() -> None:
    summary = summarize([0.7])
    assert summary.mean == 0.7
    assert (summary.std, summary.low, summary.high) == (None, None, None)


def test_summarize_rejects_empty_nan_and_bad_confidence() -> None:
    with pytest.raises(ValueError, match="at least one"):
        summarize([])
    with pytest.raises(ValueError, match="finite"):
        summarize([1.0, math.nan])
    with pytest.raises(ValueError, match="confidence"):
        summarize([1.0, 2.0], 1.0)


def test_equal_values_have_no_interval() -> None:
    summary = summarize([0.7, 0.7, 0.7])
    assert (summary.mean, summary.std, summary.low, summary.high) == (pytest.approx(0.7), 0, None, None)


def test_paired_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, std 1, t = 2 sqrt 3 = 3.4641; with 2 degrees p = 1 - t / sqrt(t^2 + 2).
    test = paired([71.0, 74.0, 78.0], [70.0, 72.0, 75.0])
    t = 2 * math.sqrt(3)
    assert test.difference.mean == 2
    assert test.difference.std == pytest.approx(1)
    assert test.t_p == pytest.approx(1 - t / math.sqrt(t * t + 2))
    assert test.min_detectable == pytest.approx(4.302653 / math.sqrt(3), abs=1e-5)
    assert test.sign == 0
    assert test.wilcoxon_p is None


def test_paired_agrees_with_scipy() -> None:
    treated = [0.71, 0.74, 0.69, 0.755, 0.73, 0.72, 0.76]
    reference = [0.70, 0.71, 0.695, 0.72, 0.70, 0.68, 0.71]
    test, expected = paired(treated, reference), stats.ttest_rel(treated, reference)
    assert test.t_p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (test.difference.low, test.difference.high) == pytest.approx((interval.low, interval.high))
    assert test.wilcoxon_p == pytest.approx(stats.wilcoxon(treated, reference).pvalue)
    assert test.sign == 1


def test_wilcoxon_by_hand() -> None:
    # Six pairs, all positive: the sum of negative ranks is 0, and p = 2 / 2^6.
    assert paired([1, 2, 3, 4, 5, 6.5], [0] * 6).wilcoxon_p == pytest.approx(2 / 64)
    assert paired([1, 2, 3, 4, 5, 0], [0] * 6).wilcoxon_p is None  # a tie leaves five pairs


def test_wilcoxon_with_ties_by_hand() -> None:
    # Sizes 1 1 1 2 2 3: ranks 2 2 2 4.5 4.5 6, of which only a 2 is negative. The negative ranks sum to at most 2 for
    # the signs of no and of one of the three 2s: 4 of 2^6. Twice that: 0.125.
    treated, reference = [0.704, 0.706, 0.711, 0.702, 0.703, 0.701], [0.703, 0.705, 0.712, 0.700, 0.701, 0.698]
    p = paired([100 * value for value in treated], [100 * value for value in reference]).wilcoxon_p
    assert p == pytest.approx(0.125)
    # The same size six times, one negative: sums of at most one rank are 1 + 6 of 64.
    assert paired([1, 1, 1, 1, 1, -1], [0] * 6).wilcoxon_p == pytest.approx(14 / 64)
    assert paired([1, 1, 1, -1, -1, -1], [0] * 6).wilcoxon_p == 1


@pytest.mark.parametrize("seed", range(20))
def test_wilcoxon_of_counts_is_that_of_all_signs(seed: int) -> None:
    """Accuracies of 8 seeds on 1000 samples, in %: ties and zeros of the counts decide, not rounding errors."""
    random = np.random.default_rng(seed)
    treated, reference = random.integers(700, 712, 8), random.integers(698, 708, 8)
    counts = (treated - reference)[treated != reference]
    p = paired(*([100 * (count / 1000) for count in counts.tolist()] for counts in (treated, reference))).wilcoxon_p
    if len(counts) < WILCOXON_MIN_PAIRS:
        assert p is None
        return
    ranks = stats.rankdata(abs(counts))
    sums = np.array([(ranks * signs).sum() for signs in itertools.product((0, 1), repeat=len(counts))])
    observed = ranks[counts > 0].sum()
    assert p == pytest.approx(min(1, 2 * min((sums <= observed).mean(), (sums >= observed).mean())))


def test_sign_is_that_of_an_interval_excluding_zero() -> None:
    assert paired([1.0, 1.1, 1.05], [2.0, 2.1, 2.0]).sign == -1
    assert paired([1.0], [2.0]).sign is None
    assert paired([1.0], [2.0]).min_detectable is None


@pytest.mark.parametrize(
    ("treated", "reference"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
        ([1.1, 2.1, 3.1], [1.0, 2.0, 3.0]),  # differences of 0.1 with rounding errors
        ([91.0, 92.0], [90.0, 91.0]),
        ([100 * 0.704, 100 * 0.706, 100 * 0.701], [100 * 0.701, 100 * 0.703, 100 * 0.698]),
        ([3e-9, 4e-9], [2e-9, 3e-9]),
        ([0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_equal_differences_have_no_interval_no_test_and_no_sign(treated: list[float], reference: list[float]) -> None:
    test = paired(treated, reference)
    assert (test.difference.std, test.difference.low, test.difference.high) == (0, None, None)
    assert (test.t_p, test.sign, test.min_detectable) == (None, None, None)
    assert test.no_t_test == "all differences are equal: no test"


def test_small_differences_of_small_values_have_a_test() -> None:
    small = paired([1e-11 * value for value in (71.0, 74.0, 78.0)], [1e-11 * value for value in (70.0, 72.0, 75.0)])
    assert small.t_p == pytest.approx(paired([71.0, 74.0, 78.0], [70.0, 72.0, 75.0]).t_p)
    assert small.no_t_test == ""
    assert paired([1.0], [2.0]).no_t_test == "a single seed does not allow a test"


def test_paired_rejects_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="3 and 2"):
        paired([1, 2, 3], [1, 2])


def test_comparisons_without_a_test_count_in_the_correction() -> None:
    tests = [paired(values, [0.0] * len(values)) for values in ([1, 2, 3], [4, 5, 7], [1, 1, 1], [5])]
    first, second, equal, one_seed, absent = holm_over_tests([*tests, None])
    assert (equal, one_seed, absent) == (None, None, None)
    assert second == pytest.approx(3 * tests[1].t_p)
    assert first == pytest.approx(2 * tests[0].t_p)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.03, 0.04 times 3, 2, 1 = 0.03, 0.06, 0.04 -> non-decreasing: 0.03, 0.06, 0.06.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_sum_matrices_and_row_shares() -> None:
    total = sum_matrices([[[1, 2], [0, 0]], [[3, 2], [0, 0]]])
    assert total == [[4, 4], [0, 0]]
    assert row_shares(total) == [[0.5, 0.5], [None, None]]
    with pytest.raises(ValueError, match="one size"):
        sum_matrices([[[1]], [[1, 0], [0, 1]]])
