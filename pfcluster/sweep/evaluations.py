"""Check before a sweep starts that every run has evaluations that count."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from pfcluster.config import ConfigError
from pfcluster.launch.plan import TrainRun
from pfcluster.sweep.asha import EvalSchedule
from pfcluster.sweep.space import baseline
from pfcluster.sweep.spec import Spec
from pfcluster.sweep.trials import Runs, Trial
from pfcluster.training.schedule import adversarial_start

LENGTHS = ("epochs", "max_steps", "batch_size", "pf_mag.warmup_steps", "evaluate.every_epochs")
"""Fields on which the length of a run, of its warm-up and of its evaluations' intervals depends."""


def require_counted_evaluations(spec: Spec, runs: Runs, schedule_of: Callable[[TrainRun], EvalSchedule]) -> None:
    """Check the baseline and the corners of the space: scores are evaluations after the warm-up of PF-MAG.

    Raises ConfigError for a run that ends within its warm-up. Rungs and generations end later by construction
    (`state.first_step`).
    """
    start = baseline(spec.space, spec.stages())
    axes = [[(one.name, value) for value in one.grid(2)] for one in spec.space if one.field in LENGTHS]
    for corner in itertools.product(*axes):
        values = start | dict(corner)
        run = runs.run_of(Trial(0, values), spec.seeds[0])
        warmup, schedule = adversarial_start(run.config), schedule_of(run)
        if warmup and schedule.total <= warmup:
            chosen = f" with {', '.join(f'{name} {value}' for name, value in corner)}" if corner else ""
            raise ConfigError(
                f"pf_mag.warmup_steps must be below the {schedule.total} steps of a run{chosen}, got {warmup}: the"
                " scores of a sweep are evaluations after the warm-up, and all of this run's lie in it; lower it, or"
                " train longer"
            )
