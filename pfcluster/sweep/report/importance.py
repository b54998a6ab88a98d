"""How much each parameter mattered, by PED-ANOVA, and in which direction, by Spearman's rank correlation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pfcluster.report.errors import ReportError
from pfcluster.sweep.report.data import SweepData
from pfcluster.sweep.report.rows import halved
from pfcluster.sweep.search import distribution
from pfcluster.sweep.space import Parameter

FEWEST = 8
"""With fewer trials nothing is said."""
ENOUGH = 20
"""With fewer, what is said is a hint: the best quarter is then fewer than the 5 trials that PED-ANOVA wants."""
QUARTILE = 0.25


@dataclass(frozen=True)
class Importance:
    """What one parameter did to the score."""

    parameter: Parameter
    share: float
    """Of the importance of all parameters, which sums to 1."""
    rho: float | None
    """Spearman's, between value and score (higher being better); None for words and for a value that never varied."""
    p: float | None
    """Two-sided p of rho = 0, not corrected for the number of parameters."""


@dataclass(frozen=True)
class Importances:
    """All parameters, the most important first."""

    found: tuple[Importance, ...]
    n: int
    """Trials that they rest on."""
    budget: str
    """At which point of the trials the scores were taken."""


def importances(data: SweepData) -> Importances:
    """Importances by the scores at one budget. Raises ReportError that says why nothing can be said.

    PED-ANOVA (Watanabe et al. 2023, Optuna's): how far the distribution of a parameter among the best quarter of the
    trials departs from that among all of them.
    """
    spec = data.spec
    if spec.scheduler == "pbt":
        raise ReportError("a population changes its values while it trains, so that no trial has one value to judge")
    asha = halved(spec) and bool(data.rungs)
    scores = {row.trial.number: row.first_rung if asha else row.score for row in data.rows}
    inside = [
        (row.trial.values, spec.sign * score)
        for row in data.rows
        if (score := scores[row.trial.number]) is not None
        and (asha or row.state == "whole")
        and all(one.holds(row.trial.values[one.name]) for one in spec.space)
    ]
    if len(inside) < FEWEST:
        raise ReportError(f"{len(inside)} comparable trials are too few; it takes {FEWEST}, and {ENOUGH} to be more")
    if len({score for _, score in inside}) == 1:
        raise ReportError("all comparable trials have the same score")
    shares = _ped_anova(spec.space, inside)
    found = []
    for one in spec.space:
        rho, p = _spearman([values[one.name] for values, _ in inside], [score for _, score in inside])
        found.append(Importance(one, shares[one.name], rho, p))
    found.sort(key=lambda one: -one.share)
    budget = f"the first rung, step {data.rungs[0]}" if asha else "the end of each trial"
    return Importances(tuple(found), len(inside), budget)


def _ped_anova(space: tuple[Parameter, ...], trials: list[tuple[dict[str, object], float]]) -> dict[str, float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {one.name: distribution(one) for one in space}
    study = optuna.create_study(direction="maximize")
    for values, score in trials:
        params = {one.name: values[one.name] for one in space}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=score))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=QUARTILE)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {one.name: float(found.get(one.name, 0.0)) for one in space}


def _spearman(values: list[object], scores: list[float]) -> tuple[float | None, float | None]:
    from scipy import stats

    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values) or len(set(numbers)) < 2:
        return None, None
    found = stats.spearmanr(numbers, scores)
    return (None, None) if math.isnan(found.statistic) else (float(found.statistic), float(found.pvalue))
