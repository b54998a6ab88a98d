"""Numbers of steps, and a moving average that fits them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pfcluster.training.schedule import lagging_average, schedule_warnings
from tests import tiny


@pytest.mark.parametrize(
    ("objective", "ema", "steps", "counted"),
    [("finetune", 0.99, 400, 400), ("pf_mag", 0.98, 203, 200), ("pf_mag", 0.9, 3, 3)],
)
def test_an_average_over_much_of_the_run_is_named(objective, ema, steps, counted):
    config = tiny.config(objective)
    config = replace(config, optim=replace(config.optim, ema=ema))
    message = lagging_average(config, steps)
    assert message is not None
    assert f"optim.ema {ema:g} averages the weights over about the last {1 / (1 - ema):.0f} steps" in message
    assert f"has {counted} {'adversarial steps' if counted < steps else 'steps'}" in message


def test_a_run_that_is_too_short_for_its_warmups_is_named():
    config = tiny.config("pf_mag")
    config = replace(
        config, optim=replace(config.optim, warmup_steps=40), pf_mag=replace(config.pf_mag, warmup_steps=30)
    )
    assert schedule_warnings(config, 40) == []
    (rate,) = schedule_warnings(config, 39)
    assert "does not reach optim.lr: optim.warmup_steps is 40, and this run has 39 steps. Lower it, e.g. to 3," in rate
    (adversarial,) = schedule_warnings(config, 30)
    assert "the adversarial part never begins" in adversarial
    assert "pf_mag.warmup_steps is 30, and this run has 30 steps. Lower it, e.g. to 10 or" in adversarial
    erased = replace(config, pf_mag=replace(config.pf_mag, erasure_start=20))
    assert "e.g. to 10, pf_mag.erasure_start to at most that, or" in schedule_warnings(erased, 30)[0]
    own_rate = replace(config, pf_mag=replace(config.pf_mag, warmup_lr=1e-3))
    (rate,) = schedule_warnings(own_rate, 400)
    assert "does not reach pf_mag.warmup_lr: optim.warmup_steps is 40, and the warm-up of PF-MAG has 30 steps" in rate
    finetune = replace(tiny.config("finetune"), pf_mag=config.pf_mag)
    assert schedule_warnings(finetune, 30) == []


@pytest.mark.parametrize("steps", [3, 12, 60, 600, 5000, 100_000])
def test_the_average_that_is_suggested_fits(steps):
    config = tiny.config("finetune")
    config = replace(config, optim=replace(config.optim, ema=0.999999))
    message = lagging_average(config, steps)
    suggested = float(message.partition("e.g. to ")[2].partition(",")[0])
    assert 0 <= suggested < 1
    assert lagging_average(replace(config, optim=replace(config.optim, ema=suggested)), steps) is None


def test_a_short_average_and_none_are_fine():
    config = tiny.config("pf_mag")
    assert lagging_average(config, 12) is None
    config = replace(config, optim=replace(config.optim, ema=0.98))
    assert lagging_average(config, 3 + 251) is None
