"""Bootstrap over seeds and samples and McNemar's test against closed forms and hand-computed values."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from pfcluster.report.resampling import bootstrap, bootstrap_difference, mcnemar, small_sample_factor
from pfcluster.report.statistics import summarize


def mcnemar_p(gained: int, lost: int) -> float:
    first = np.arange(gained + lost) < gained
    return mcnemar(first, ~first).p


@pytest.mark.parametrize(("gained", "lost"), [(10, 25), (25, 10), (0, 5), (7, 7), (300, 240)])
def test_mcnemar_p_is_twice_the_smaller_binomial_tail(gained: int, lost: int) -> None:
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    assert mcnemar_p(gained, lost) == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_p_of_known_counts() -> None:
    assert round(mcnemar_p(10, 25), 3) == 0.017
    assert mcnemar_p(0, 6) == pytest.approx(2 / 2**6)
    assert mcnemar_p(0, 0) == mcnemar_p(4, 4) == 1.0


def test_mcnemar_counts_discordant_samples() -> None:
    treated = np.array([True, True, True, False, False, True])
    reference = np.array([True, False, False, True, False, False])
    test = mcnemar(treated, reference)
    assert (test.gained, test.lost) == (3, 1)
    assert test.p == pytest.approx(10 / 16)
    assert mcnemar(treated, treated).p == 1.0
    with pytest.raises(ValueError, match="one length"):
        mcnemar(treated, reference[:5])


def test_bootstrap_of_one_seed_covers_samples_only() -> None:
    correct = np.arange(400) % 4 > 0
    interval = bootstrap([correct])
    assert (interval.seeds, interval.samples, interval.mean) == (1, 400, 0.75)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert (interval.low, interval.high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.004)


def test_bootstrap_of_constant_samples_covers_seeds_only() -> None:
    # Identical samples: a replicate's mean is that of 2 draws from {0, 1}, i.e. 0, 1/2 or 1, expanded about 1/2.
    interval, student = bootstrap([[0.0] * 50, [1.0] * 50]), summarize([0.0, 1.0])
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.5, student.low, student.high))


def test_bootstrap_over_seeds_approximates_students_interval() -> None:
    scores = np.random.default_rng(5).normal(70, 2, 12)
    interval, student = bootstrap(np.tile(scores[:, None], 30), replicates=20000), summarize(list(scores))
    assert student.low is not None
    assert interval.mean - interval.low == pytest.approx(student.mean - student.low, rel=0.1)


def test_small_sample_factor_by_hand() -> None:
    # sqrt(3 / 2) x 4.303 / 1.960
    assert small_sample_factor(3) == pytest.approx(math.sqrt(1.5) * 4.3027 / 1.95996, rel=1e-4)
    assert small_sample_factor(1) == 1.0
    assert small_sample_factor(1000) == pytest.approx(1, abs=0.01)


def test_bootstrap_shares_drawn_samples_between_seeds() -> None:
    # Identical seeds add no information: independent sample draws per seed would halve the interval.
    correct = np.arange(200) % 2 == 0
    one, four = bootstrap([correct]), bootstrap([correct] * 4)
    assert four.high - four.low == pytest.approx(one.high - one.low, rel=0.05)
    assert (four.seeds, four.samples) == (4, 200)


def test_bootstrap_matches_full_enumeration() -> None:
    # 2 seeds x 3 samples: all 4 x 27 equally likely replicates.
    values = np.array([[1.0, 0.0, 4.0], [2.0, 1.0, 0.0]])
    replicates = [
        values[:, samples].mean()
        + small_sample_factor(2, 0.5) * (values[np.ix_(seeds, samples)].mean() - values[:, samples].mean())
        for seeds in product(range(2), repeat=2)
        for samples in product(range(3), repeat=3)
    ]
    interval = bootstrap(values, confidence=0.5, replicates=20000)
    low, high = np.quantile(replicates, [0.25, 0.75])
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.05)


def test_bootstrap_is_deterministic_and_scales() -> None:
    correct = np.random.default_rng(3).random((3, 100)) < 0.7
    assert bootstrap(correct) == bootstrap(correct)
    assert bootstrap(100 * correct).low == pytest.approx(100 * bootstrap(correct).low)


def test_bootstrap_difference_cancels_shared_sample_difficulty() -> None:
    random = np.random.default_rng(0)
    difficulty = random.random(500)
    reference = np.array([difficulty < 0.6, difficulty < 0.62, difficulty < 0.61])
    interval = bootstrap_difference(reference | (random.random((3, 500)) < 0.05), reference)
    assert 0 < interval.low < interval.mean < interval.high < 0.05
    assert interval.sign == 1
    same = bootstrap_difference(reference, reference)
    assert (same.mean, same.low, same.high, same.sign) == (0.0, 0.0, 0.0, 0)
    with pytest.raises(ValueError, match="same seeds and samples"):
        bootstrap_difference(reference, reference[:2])


@pytest.mark.parametrize(("seeds", "samples", "skill"), [(3, 2000, 0.3), (10, 200, 0.3), (1, 300, 0.0)])
def test_bootstrap_coverage_is_at_least_nominal(seeds: int, samples: int, skill: float) -> None:
    # Logit of a correct prediction: easiness of the sample + skill of the seed. The true value is the mean over both.
    random = np.random.default_rng(1)

    def correct_probabilities(seeds: int, samples: int) -> NDArray[np.float64]:
        logit = 0.8 + skill * random.standard_normal((seeds, 1)) + 1.5 * random.standard_normal(samples)
        return np.asarray(1 / (1 + np.exp(-logit)))

    true_mean, hits = correct_probabilities(2000, 2000).mean(), 0
    for _ in range(100):
        probabilities = correct_probabilities(seeds, samples)
        interval = bootstrap(random.random(probabilities.shape) < probabilities, replicates=300)
        hits += interval.low <= true_mean <= interval.high
    assert hits >= 90


@pytest.mark.parametrize("values", [[1.0, 0.0], np.zeros((0, 3)), [[1.0, math.nan]]])
def test_bootstrap_rejects_non_matrix_and_nan(values: object) -> None:
    with pytest.raises(ValueError, match="seeds x samples"):
        bootstrap(values)


def test_bootstrap_rejects_a_confidence_of_one() -> None:
    with pytest.raises(ValueError, match="confidence"):
        bootstrap([[1.0]], confidence=1.0)
