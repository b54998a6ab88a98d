"""The bootstrap over seeds and samples, and McNemar's test, against closed forms and numbers worked by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from pfcluster.report.resampling import bootstrap, bootstrap_difference, mcnemar, mcnemar_p, stretch
from pfcluster.report.statistics import summarize


@pytest.mark.parametrize(("gained", "lost"), [(10, 25), (25, 10), (0, 5), (7, 7), (300, 240)])
def test_mcnemar_as_the_binomial_test(gained: int, lost: int) -> None:
    assert mcnemar_p(gained, lost) == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)


def test_mcnemar_by_hand() -> None:
    # 10 against 25: twice the chance of at most 10 heads in 35 throws.
    tail = sum(math.comb(35, heads) for heads in range(11)) / 2**35
    assert mcnemar_p(10, 25) == pytest.approx(2 * tail)
    assert round(mcnemar_p(10, 25), 3) == 0.017
    assert mcnemar_p(0, 6) == pytest.approx(2 / 2**6)
    assert mcnemar_p(0, 0) == mcnemar_p(4, 4) == 1.0


def test_mcnemar_counts_what_parts_the_networks() -> None:
    ours = np.array([True, True, True, False, False, True])
    theirs = np.array([True, False, False, True, False, False])
    found = mcnemar(ours, theirs)
    assert (found.gained, found.lost) == (3, 1)
    assert found.p == pytest.approx(10 / 16)
    assert mcnemar(ours, ours).p == 1.0
    with pytest.raises(ValueError, match="one length"):
        mcnemar(ours, theirs[:5])


def test_bootstrap_of_one_seed_is_over_samples_only() -> None:
    correct = np.arange(400) % 4 > 0
    found = bootstrap([correct])
    assert (found.seeds, found.samples, found.mean) == (1, 400, 0.75)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert (found.low, found.high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.004)


def test_bootstrap_without_spread_over_samples_is_over_seeds() -> None:
    # All samples alike: a draw's mean is the mean of 2 draws from {0, 1}, that is 0, 1/2 or 1, stretched about 1/2.
    found = bootstrap([[0.0] * 50, [1.0] * 50])
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5 - stretch(2) / 2, 0.5 + stretch(2) / 2))


def test_over_seeds_alone_it_is_nearly_students_interval() -> None:
    scores = np.random.default_rng(5).normal(70, 2, 12)
    found, student = bootstrap(np.tile(scores[:, None], 30), draws=20000), summarize(list(scores))
    assert student.low is not None
    assert found.mean - found.low == pytest.approx(student.mean - student.low, rel=0.1)


def test_stretch_by_hand() -> None:
    # sqrt(3 / 2) x 4.303 / 1.960
    assert stretch(3) == pytest.approx(math.sqrt(1.5) * 4.3027 / 1.95996, rel=1e-4)
    assert stretch(1) == 1.0
    assert stretch(1000) == pytest.approx(1, abs=0.01)


def test_bootstrap_draws_the_samples_once_for_all_seeds() -> None:
    # Seeds that answer alike add nothing: were samples drawn anew for each, the interval would be half as wide.
    correct = np.arange(200) % 2 == 0
    one, four = bootstrap([correct]), bootstrap([correct] * 4)
    assert four.high - four.low == pytest.approx(one.high - one.low, rel=0.05)
    assert (four.seeds, four.samples) == (4, 200)


def test_bootstrap_as_every_draw_counted() -> None:
    # 2 seeds x 3 samples: all 4 x 27 draws, each with the same chance; two seeds that differ are their own mean.
    values = np.array([[1.0, 0.0, 4.0], [2.0, 1.0, 0.0]])
    every = [
        values[:, samples].mean()
        + stretch(2, 0.5) * (values[np.ix_(seeds, samples)].mean() - values[:, samples].mean())
        for seeds in product(range(2), repeat=2)
        for samples in product(range(3), repeat=3)
    ]
    found = bootstrap(values, confidence=0.5, draws=20000)
    low, high = np.quantile(every, [0.25, 0.75])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05)


def test_bootstrap_repeats_and_scales() -> None:
    correct = np.random.default_rng(3).random((3, 100)) < 0.7
    assert bootstrap(correct) == bootstrap(correct)
    assert bootstrap(100 * correct).low == pytest.approx(100 * bootstrap(correct).low)


def test_paired_interval_leaves_out_what_both_sides_share() -> None:
    random = np.random.default_rng(0)
    hard = random.random(500)
    reference = np.array([hard < 0.6, hard < 0.62, hard < 0.61])
    found = bootstrap_difference(reference | (random.random((3, 500)) < 0.05), reference)
    assert 0 < found.low < found.mean < found.high < 0.05
    assert found.sign == 1
    same = bootstrap_difference(reference, reference)
    assert (same.mean, same.low, same.high, same.sign) == (0.0, 0.0, 0.0, 0)
    with pytest.raises(ValueError, match="same seeds and samples"):
        bootstrap_difference(reference, reference[:2])


@pytest.mark.parametrize(("seeds", "samples", "skill"), [(3, 2000, 0.3), (10, 200, 0.3), (1, 300, 0.0)])
def test_interval_covers_the_truth_at_least_as_often_as_it_says(seeds: int, samples: int, skill: float) -> None:
    # A sample's logit of being right: its own ease + the seed's skill. The truth is the mean over both.
    random = np.random.default_rng(1)

    def chances(seeds: int, samples: int) -> NDArray[np.float64]:
        logit = 0.8 + skill * random.standard_normal((seeds, 1)) + 1.5 * random.standard_normal(samples)
        return np.asarray(1 / (1 + np.exp(-logit)))

    truth, hits = chances(2000, 2000).mean(), 0
    for _ in range(100):
        right = chances(seeds, samples)
        found = bootstrap(random.random(right.shape) < right, draws=300)
        hits += found.low <= truth <= found.high
    assert hits >= 90


@pytest.mark.parametrize("values", [[1.0, 0.0], np.zeros((0, 3)), [[1.0, math.nan]]])
def test_bootstrap_refuses_what_is_no_matrix(values: object) -> None:
    with pytest.raises(ValueError, match="seeds x samples"):
        bootstrap(values)


def test_bootstrap_refuses_a_confidence_of_one() -> None:
    with pytest.raises(ValueError, match="confidence"):
        bootstrap([[1.0]], confidence=1.0)
