"""Importance of each parameter by PED-ANOVA, and direction of its effect by Spearman's rank correlation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pfcluster.report.errors import ReportError
from pfcluster.sweep.report.data import SweepData
from pfcluster.sweep.search import distribution
from pfcluster.sweep.space import Parameter

MIN_TRIALS = 8
"""With fewer trials no importance is computed."""
RELIABLE_TRIALS = 20
"""With fewer the importance is only an indication: PED-ANOVA needs 5 trials in the best quarter."""
QUARTILE = 0.25


@dataclass(frozen=True)
class Importance:
    """The effect of one parameter on the score."""

    parameter: Parameter
    fraction: float
    """Share of the total importance; all fractions sum to 1."""
    rho: float | None
    """Spearman's correlation of value and score (higher being better); None for non-numbers and constant values."""
    p: float | None
    """Two-sided p of rho = 0, not corrected for the number of parameters."""


@dataclass(frozen=True)
class Importances:
    """All parameters, the most important first."""

    parameters: tuple[Importance, ...]
    n: int
    """Number of trials that they are computed from."""
    budget: str
    """Point of the trials at which the scores were taken."""


def importances(data: SweepData) -> Importances:
    """Importances from scores at one common budget. Raises ReportError with the reason if they cannot be computed.

    PED-ANOVA (Watanabe et al. 2023, Optuna's): how far the distribution of a parameter among the best quarter of the
    trials departs from its distribution among all of them.
    """
    spec = data.spec
    if spec.scheduler == "pbt":
        raise ReportError("in a population the values change during training, so no trial has a single value")
    at_rung = data.first_rung is not None
    scores = {row.trial.number: row.first_rung if at_rung else row.score for row in data.rows}
    inside = [
        (row.trial.values, spec.sign * score)
        for row in data.rows
        if (score := scores[row.trial.number]) is not None
        and (at_rung or row.state == "completed")
        and all(one.holds(row.trial.values[one.name]) for one in spec.space)
    ]
    if len(inside) < MIN_TRIALS:
        raise ReportError(
            f"{len(inside)} comparable trials are too few; at least {MIN_TRIALS} are needed, and {RELIABLE_TRIALS} for"
            " a reliable result"
        )
    if len({score for _, score in inside}) == 1:
        raise ReportError("all comparable trials have the same score")
    fractions = _ped_anova(spec.space, inside)
    parameters = []
    for one in spec.space:
        rho, p = _spearman([values[one.name] for values, _ in inside], [score for _, score in inside])
        parameters.append(Importance(one, fractions[one.name], rho, p))
    parameters.sort(key=lambda one: -one.fraction)
    return Importances(tuple(parameters), len(inside), _budget(data))


def _budget(data: SweepData) -> str:
    steps = sorted({row.first_rung_step for row in data.rows if row.first_rung_step is not None})
    if not steps:
        return "the end of each trial"
    return f"the first rung, step {steps[0]}" + (f" to {steps[-1]}" if len(steps) > 1 else "")


def _ped_anova(space: tuple[Parameter, ...], trials: list[tuple[dict[str, object], float]]) -> dict[str, float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {one.name: distribution(one) for one in space}
    study = optuna.create_study(direction="maximize")
    for values, score in trials:
        params = {one.name: values[one.name] for one in space}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=score))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=QUARTILE)
    fractions = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {one.name: float(fractions.get(one.name, 0.0)) for one in space}


def _spearman(values: list[object], scores: list[float]) -> tuple[float | None, float | None]:
    from scipy import stats

    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values) or len(set(numbers)) < 2:
        return None, None
    correlation = stats.spearmanr(numbers, scores)
    if math.isnan(correlation.statistic):
        return None, None
    return float(correlation.statistic), float(correlation.pvalue)
