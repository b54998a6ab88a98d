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
    """Length of PF-MAG's warm-up, 0 for other objectives. Evaluations up to this step do not measure poker faces: they
    select no checkpoint and are not scores of a sweep.
    """
    return config.pf_mag.warmup_steps if config.objective == "pf_mag" else 0


def selection_start(config: RunConfig, steps: int) -> int:
    """Step up to which evaluations of a run with so many steps select no checkpoint: `evaluate.select_from` of the
    steps, for PF-MAG of those after the warm-up, if the run does not end within it.
    """
    warmup = adversarial_start(config)
    start = warmup if warmup < steps else 0
    return start + int(config.evaluate.select_from * (steps - start))


def schedule_warnings(config: RunConfig, steps: int) -> list[str]:
    """Warnings if a run has too few steps for PF-MAG's warm-up, that of the learning rate, or the moving average."""
    is_pf_mag, pf_mag = config.objective == "pf_mag", config.pf_mag
    if is_pf_mag and pf_mag.warmup_steps >= steps:
        erasure = "" if (pf_mag.erasure_start or 0) <= steps // 3 else ", pf_mag.erasure_start to at most that,"
        return [
            "the adversarial part never begins, and no poker face is learnt: pf_mag.warmup_steps is"
            f" {pf_mag.warmup_steps}, and this run has {steps} steps. Lower it, e.g. to {steps // 3}{erasure} or train"
            " longer"
        ]
    found, name, part = [], "optim.lr", steps
    if is_pf_mag and pf_mag.warmup_lr is not None and pf_mag.warmup_steps:
        name, part = "pf_mag.warmup_lr", pf_mag.warmup_steps
    if config.optim.warmup_steps > part:
        where = "this run" if part == steps else "the warm-up of PF-MAG"
        found.append(
            f"the learning rate does not reach {name}: optim.warmup_steps is {config.optim.warmup_steps}, and {where}"
            f" has {part} steps. Lower it, e.g. to {part // 10}, or train longer"
        )
    lagging = lagging_average(config, steps)
    return found if lagging is None else [*found, lagging]


def lagging_average(config: RunConfig, steps: int) -> str | None:
    """A sentence if the moving average of the weights reaches so far back that it lags behind the training it
    evaluates: over more than a fifth of a run's steps, of PF-MAG's adversarial steps where it has some.
    """
    decay = config.optim.ema
    start = adversarial_start(config)
    counted = steps - start if start < steps else steps
    if decay == 0 or 0.2 * counted * (1 - decay) >= 1:
        return None
    fitting = max(0.0, 1 - float(f"{10 / counted:.0e}"))
    part = "adversarial steps" if counted < steps else "steps"
    return (
        f"optim.ema {decay:g} averages the weights over about the last {1 / (1 - decay):.0f} steps, and this run has"
        f" {counted} {part}: what is evaluated and exported lags behind what is trained. Lower it, e.g. to"
        f" {fitting:.10g}, or train longer"
    )


def grid_due(config: RunConfig, evaluation: int) -> bool:
    """Whether the evaluation with this 1-based number draws an image grid."""
    every = config.evaluate.grid_every
    return every > 0 and evaluation % max(1, round(every / config.evaluate.every_epochs)) == 0
