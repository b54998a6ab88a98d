"""The values of a trial: a pure function of the spec, the trial's number and the results of earlier trials.

No state is kept apart from the trials themselves, so a sweep whose driver was killed continues with the proposals that
it would have made. Trial 0 is the baseline.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from pfcluster.config import ConfigError
from pfcluster.sweep.space import Parameter
from pfcluster.sweep.space import baseline as baseline_of
from pfcluster.sweep.spec import Spec


@dataclass(frozen=True)
class Observation:
    """An earlier trial and its result, as a proposal may use it."""

    values: Mapping[str, Any]
    score: float | None = None
    """Higher is better; None while the trial runs or if it failed."""
    step: int = 0
    """Step at which it was stopped and scored; 0 for a completed trial."""
    running: bool = False


def trial_count(spec: Spec) -> int:
    """Number of trials in the search: in a grid and in one-at-a-time its points and the baseline."""
    if spec.search == "one-at-a-time":
        return 1 + len(_one_at_a_time(spec, baseline_of(spec.space, spec.stages())))
    return 1 + len(_grid(spec)) if spec.search == "grid" else spec.trials


def required_trials(spec: Spec, number: int) -> int:
    """How many of the first trials must be settled before trial `number` can be proposed."""
    return max(0, number - spec.lag + 1) if spec.search == "tpe" else 0


def propose(spec: Spec, baseline: Mapping[str, Any], number: int, earlier: Sequence[Observation]) -> dict[str, Any]:
    """The values of a trial. `earlier`: the trials before it; TPE uses the scores of the first `required_trials`.

    Raises ConfigError if no draw is a valid config.
    """
    if number == 0:
        return dict(baseline)
    if spec.search == "grid":
        return _grid(spec)[number - 1]
    if spec.search == "one-at-a-time":
        return _one_at_a_time(spec, baseline)[number - 1]
    if spec.search == "random":
        random = Random(f"{spec.seed}/{number}")
        return spec.valid_draw(lambda _: {one.name: one.draw(random) for one in spec.space})
    return spec.valid_draw(lambda attempt: _tpe(spec, number, earlier, attempt))


def require_valid_trials(spec: Spec) -> None:
    """Raises ConfigError if a trial that is known beforehand is not a valid config: of a grid, one-at-a-time, or a
    random search.
    """
    if spec.search == "tpe" or spec.scheduler == "pbt":
        return
    own = baseline_of(spec.space, spec.stages())
    for number in range(1, trial_count(spec)):
        values = propose(spec, own, number, ())
        try:
            spec.require_valid(values)
        except ConfigError as error:
            shown = ", ".join(f"{name} {value}" for name, value in values.items())
            raise ConfigError(
                f"--search {spec.search}: trial {number}, {shown}, is not a valid config: {error}; leave out one of"
                " these values, or use --search tpe or random, which draw again"
            ) from error


def _grid(spec: Spec) -> list[dict[str, Any]]:
    axes = [one.grid(spec.grid_points) for one in spec.space]
    names = [one.name for one in spec.space]
    return [dict(zip(names, point, strict=True)) for point in itertools.product(*axes)]


def _one_at_a_time(spec: Spec, baseline: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The baseline with one value changed, for every other value of every parameter."""
    return [
        {**baseline, one.name: value}
        for one in spec.space
        for value in one.grid(spec.grid_points)
        if value != baseline[one.name]
    ]


def _tpe(spec: Spec, number: int, earlier: Sequence[Observation], attempt: int) -> dict[str, Any]:
    """Tree-structured Parzen estimators (Bergstra et al. 2011) of Optuna, in a new study for each draw."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {one.name: distribution(one) for one in spec.space}
    key = f"{spec.seed}/{number}" + (f"/{attempt}" if attempt else "")
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    sampler = optuna.samplers.TPESampler(
        seed=seed,
        multivariate=True,
        constant_liar=True,
        n_startup_trials=min(10, max(4, spec.trials // 3)),
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for index, observation in enumerate(earlier):
        pending = index >= required_trials(spec, number)
        trial = _frozen_trial(spec, observation, distributions, pending=pending)
        if trial is not None:
            study.add_trial(trial)
    params = study.ask(distributions).params
    return {one.name: one.rounded(params[one.name]) for one in spec.space}


def distribution(parameter: Parameter) -> Any:
    """Optuna's distribution of a parameter."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.kind == "choice":
        return CategoricalDistribution(parameter.choices)
    if parameter.kind == "int":
        return IntDistribution(int(parameter.low), int(parameter.high))
    return FloatDistribution(parameter.low, parameter.high, log=parameter.kind == "loguniform")


def _frozen_trial(spec: Spec, observation: Observation, distributions: Mapping[str, Any], *, pending: bool) -> Any:
    """An observation as Optuna's trial, without its score if `pending`; None for a baseline outside the space, which
    Optuna cannot represent.
    """
    from optuna.trial import TrialState, create_trial

    if not all(one.holds(observation.values[one.name]) for one in spec.space):
        return None
    common: dict[str, Any] = {"params": dict(observation.values), "distributions": dict(distributions)}
    score = observation.score
    if pending or observation.running:
        return create_trial(state=TrialState.RUNNING, **common)
    if score is None or not math.isfinite(score):
        return create_trial(state=TrialState.FAIL, **common)
    if observation.step:
        return create_trial(state=TrialState.PRUNED, intermediate_values={observation.step: score}, **common)
    return create_trial(state=TrialState.COMPLETE, value=score, **common)
