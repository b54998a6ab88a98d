"""Numbers of steps of a run, as functions of its config."""

from __future__ import annotations

from pfcluster.config import RunConfig


def total_steps(config: RunConfig, samples: int) -> int:
    """Steps of a run on a training split with this many samples."""
    steps = max(1, round(config.epochs * samples / config.batch_size))
    return steps if config.max_steps is None else min(steps, config.max_steps)


def evaluation_steps(config: RunConfig, samples: int) -> int:
    """Steps between two evaluations. The last step is always evaluated as well."""
    return max(1, round(config.evaluate.every_epochs * samples / config.batch_size))


def adversarial_start(config: RunConfig) -> int:
    """Length of PF-MAG's warm-up, 0 for other objectives. Evaluations up to this step say nothing about poker faces:
    they select no checkpoint and are no scores of a sweep.
    """
    return config.pf_mag.warmup_steps if config.objective == "pf_mag" else 0


def grid_due(config: RunConfig, evaluation: int) -> bool:
    """Whether the evaluation with this 1-based number draws an image grid."""
    every = config.evaluate.grid_every
    return every > 0 and evaluation % max(1, round(every / config.evaluate.every_epochs)) == 0
