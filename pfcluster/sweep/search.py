"""Which values a trial has: a pure function of the spec, the trial's number and the results of earlier trials.

No state is kept but the trials themselves, so that a sweep whose driver was killed goes on with the proposals that it
would have made. Trial 0 is the baseline.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from pfcluster.sweep.space import Parameter
from pfcluster.sweep.space import baseline as baseline_of
from pfcluster.sweep.spec import Spec


@dataclass(frozen=True)
class Observation:
    """What an earlier trial came to, as far as a proposal may know."""

    values: Mapping[str, Any]
    score: float | None = None
    """Higher is better; None while it runs, and where it failed."""
    step: int = 0
    """Where it was scored, if it was stopped there; 0 for a whole one."""
    running: bool = False


def count(spec: Spec) -> int:
    """Trials of the exploration. A grid has as many as it has points, and the baseline; "each" likewise."""
    if spec.search == "each":
        return 1 + len(_each(spec, baseline_of(spec.space, spec.stages())))
    return 1 + len(_grid(spec)) if spec.search == "grid" else spec.trials


def waits_for(spec: Spec, number: int) -> int:
    """Trials from the first that must be over before a trial is proposed."""
    return max(0, number - spec.lag + 1) if spec.search == "tpe" else 0


def propose(spec: Spec, baseline: Mapping[str, Any], number: int, earlier: Sequence[Observation]) -> dict[str, Any]:
    """The values of a trial. `earlier` are the trials before it, of which TPE uses those it may wait for."""
    if number == 0:
        return dict(baseline)
    if spec.search == "grid":
        return _grid(spec)[number - 1]
    if spec.search == "each":
        return _each(spec, baseline)[number - 1]
    if spec.search == "random":
        random = Random(f"{spec.seed}/{number}")
        return {one.name: one.draw(random) for one in spec.space}
    return _tpe(spec, number, earlier)


def _grid(spec: Spec) -> list[dict[str, Any]]:
    axes = [one.grid(spec.grid_points) for one in spec.space]
    names = [one.name for one in spec.space]
    return [dict(zip(names, point, strict=True)) for point in itertools.product(*axes)]


def _each(spec: Spec, baseline: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The baseline with one value changed, for every value of every parameter that it does not have."""
    return [
        {**baseline, one.name: value}
        for one in spec.space
        for value in one.grid(spec.grid_points)
        if value != baseline[one.name]
    ]


def _tpe(spec: Spec, number: int, earlier: Sequence[Observation]) -> dict[str, Any]:
    """Tree-structured Parzen estimators (Bergstra et al. 2011) as in Optuna, in a study made anew for each trial."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {one.name: distribution(one) for one in spec.space}
    seed = int.from_bytes(hashlib.sha256(f"{spec.seed}/{number}".encode()).digest()[:4], "big")
    sampler = optuna.samplers.TPESampler(
        seed=seed,
        multivariate=True,
        constant_liar=True,
        n_startup_trials=min(10, max(4, spec.trials // 3)),
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for index, known in enumerate(earlier):
        trial = _frozen(spec, known, distributions, still=index >= waits_for(spec, number))
        if trial is not None:
            study.add_trial(trial)
    asked = study.ask(distributions).params
    return {one.name: one.rounded(asked[one.name]) for one in spec.space}


def distribution(parameter: Parameter) -> Any:
    """Optuna's distribution of a parameter."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.kind == "choice":
        return CategoricalDistribution(parameter.choices)
    if parameter.kind == "int":
        return IntDistribution(int(parameter.low), int(parameter.high))
    return FloatDistribution(parameter.low, parameter.high, log=parameter.kind == "loguniform")


def _frozen(spec: Spec, known: Observation, distributions: Mapping[str, Any], *, still: bool) -> Any:
    """A known trial as Optuna's; None for a baseline outside of the space, of which it can learn nothing."""
    from optuna.trial import TrialState, create_trial

    if not all(one.holds(known.values[one.name]) for one in spec.space):
        return None
    same: dict[str, Any] = {"params": dict(known.values), "distributions": dict(distributions)}
    if still or known.running:
        return create_trial(state=TrialState.RUNNING, **same)
    if known.score is None or not math.isfinite(known.score):
        return create_trial(state=TrialState.FAIL, **same)
    if known.step:
        return create_trial(state=TrialState.PRUNED, intermediate_values={known.step: known.score}, **same)
    return create_trial(state=TrialState.COMPLETE, value=known.score, **same)
