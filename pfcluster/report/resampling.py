"""What other seeds and other test samples might have scored: a bootstrap over both, and McNemar's exact test.

Legend: s seeds, n test samples, u different columns of a matrix, r draws. Pure functions of arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pfcluster.report.statistics import t_quantile

DRAWS = 2000


@dataclass(frozen=True)
class Resampled:
    """A mean over seeds and test samples, in the values' unit, and the percentile interval of its bootstrap."""

    seeds: int
    """With 1 the interval is over samples only."""
    samples: int
    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """+1 or -1 where the interval lies on one side of 0, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


@dataclass(frozen=True)
class McNemar:
    """Two networks on the same samples."""

    gained: int
    """Samples that only the first has right."""
    lost: int
    """Samples that only the second has right."""
    p: float
    """Two-sided exact p of "a sample on which they part falls to either alike"."""


def bootstrap(values: ArrayLike, confidence: float = 0.95, draws: int = DRAWS, seed: int = 0) -> Resampled:
    """Mean of `values` (s n: a seed's value of each sample, e.g. 100 x correct) and its interval.

    Each draw takes s seeds and n samples with replacement, the samples once for all seeds, for the test set is common
    to them (the pigeonhole bootstrap of crossed factors, Owen 2007, The Annals of Applied Statistics 1(2)). Draws of
    seeds are taken `stretch` times as far from their mean. The interval holds the middle `confidence` of the draws'
    means. The same `seed` gives the same interval. Raises ValueError for values that are no matrix, empty or not
    finite, and for a confidence outside (0, 1).
    """
    matrix = np.asarray(values, np.float64)
    if matrix.ndim != 2 or matrix.size == 0 or not np.isfinite(matrix).all():
        raise ValueError(f"bootstrap needs finite values, seeds x samples, got an array of {matrix.shape}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    seeds, samples = matrix.shape
    random = np.random.default_rng(seed)
    # Samples that all seeds answer alike are one urn: their count in a draw is all that matters, and urns are few.
    columns, counts = np.unique(matrix, axis=1, return_counts=True)  # s u, u
    of_samples = random.multinomial(samples, counts / samples, draws) / samples  # r u
    of_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds  # r s
    of_seeds = 1 / seeds + stretch(seeds, confidence) * (of_seeds - 1 / seeds)
    means = np.einsum("ru,su,rs->r", of_samples, columns, of_seeds, optimize=True)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Resampled(seeds, samples, float(matrix.mean()), float(low), float(high))


def stretch(seeds: int, confidence: float = 0.95) -> float:
    """How many times too narrow a bootstrap of few values is beside Student's interval: sqrt(s / (s - 1)) t / z.

    The expanded percentile interval of Hesterberg 2015 (The American Statistician 69(4)), as a factor: 2.7 for three
    seeds, 1.2 for ten; 1 for one, which has no spread to stretch.
    """
    if seeds == 1:
        return 1.0
    from scipy import stats

    return (
        math.sqrt(seeds / (seeds - 1)) * t_quantile(seeds - 1, confidence) / float(stats.norm.ppf((1 + confidence) / 2))
    )


def bootstrap_difference(treated: ArrayLike, reference: ArrayLike, confidence: float = 0.95) -> Resampled:
    """`bootstrap` of treated - reference (both s n): row i of both is of one seed, column j of one sample.

    A draw takes the same seeds and samples on both sides. Raises ValueError for unequal shapes, and as `bootstrap`.
    """
    ours, theirs = np.asarray(treated, np.float64), np.asarray(reference, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"both sides need the same seeds and samples, got {ours.shape} and {theirs.shape}")
    return bootstrap(ours - theirs, confidence)


def mcnemar(treated: NDArray[np.bool_], reference: NDArray[np.bool_]) -> McNemar:
    """Exact McNemar test (1947) of two networks' right answers to the same samples (n each).

    Under the null the samples that one alone has right are Binomial(gained + lost, 1/2); p doubles the smaller tail,
    and is 1 where the networks never part. Raises ValueError for unequal shapes.
    """
    if treated.shape != reference.shape or treated.ndim != 1:
        raise ValueError(f"mcnemar needs two vectors of one length, got {treated.shape} and {reference.shape}")
    gained, lost = int((treated & ~reference).sum()), int((reference & ~treated).sum())
    return McNemar(gained, lost, mcnemar_p(gained, lost))


def mcnemar_p(gained: int, lost: int) -> float:
    """Two-sided exact p from the two counts of samples on which the networks part."""
    from scipy import stats

    return float(min(1.0, 2 * stats.binom.cdf(min(gained, lost), gained + lost, 0.5)))
