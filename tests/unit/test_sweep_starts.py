"""Sweeps of a PF-ViT that starts from MAE-ViT of its seed, and scores after the warm-up only."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfcluster.config import ConfigError
from pfcluster.config.io import load
from pfcluster.config.starts import SAME_SEED_MAE_VIT
from pfcluster.data.dataset import open_dataset
from pfcluster.distributed.process_group import World
from pfcluster.models import factory
from pfcluster.sweep.asha import EvalSchedule
from pfcluster.sweep.evaluations import require_counted_evaluations
from pfcluster.sweep.options import read
from pfcluster.sweep.space import parse
from pfcluster.sweep.spec import Spec
from pfcluster.sweep.state import SweepState
from pfcluster.sweep.trials import Runs, Stop, Trial
from pfcluster.training.selection import PeriodicEvaluation
from tests.sweeps import InProcess, outcome, sweep
from tests.tiny import OPTIONS, config

PF_VIT = config("pf_mag", name="pf-vit")
PF_VIT = replace(
    PF_VIT,
    model=replace(PF_VIT.model, init=SAME_SEED_MAE_VIT),
    evaluate=replace(PF_VIT.evaluate, final_split="validation", every_epochs=0.5),
)
BEFORE = {"mae": config("mae", name="mae", max_steps=2), "mae-vit": config("finetune", name="mae-vit", max_steps=2)}
SPEC = Spec(
    config=PF_VIT,
    before=BEFORE,
    space=(parse("optim.lr=loguniform:1e-5,3e-3"),),
    search="random",
    trials=2,
    rungs=1,
    confirm=1,
    fresh_seeds=(7,),
)


def test_preset_that_starts_from_mae_vit_trains_it_for_each_seed(tmp_path):
    words = ["--preset", "demo", *OPTIONS, "--executor", "local", "--space", "pf_mag.r1=choice:0,1", "--role", "pf-vit"]
    assert list(read(words).spec.before) == ["mae", "mae-vit", "judge"]
    runs = Runs(read(words).spec, tmp_path)
    for seed in (0, 1000):
        start, run = runs.search_runs(Trial(3, {"pf_mag.r1": 1}), seed)
        assert start.run.folder == tmp_path / f"mae-vit/seed-{seed}", "all trials share it"
        assert start.run.config.model.init == str(tmp_path / "mae/seed-0")
        assert run.run.config.model.init == str(start.run.folder)
        assert run.run.config.pf_mag.decoder_init == str(tmp_path / "mae/seed-0")
    own = Runs(read([*words, "--space", "mae.mask_ratio=uniform:0.5,0.8"]).spec, tmp_path)
    chain = own.search_runs(Trial(3, {"pf_mag.r1": 1, "mae.mask_ratio": 0.6}), 0)
    folders = [one.run.folder.relative_to(tmp_path / "trials/003") for one in chain]
    assert folders == [Path("mae-seed-0"), Path("mae-vit-seed-0"), Path("seed-0")], "each trial has its pre-training"
    named = read([*words, "--model.init", "runs/mae-vit/seed-0"]).spec
    assert set(named.before) == {"judge"}, "runs from weights that exist"
    with pytest.raises(ConfigError, match="--pf-vit-start mae-vit"):
        read([*words, "--pf-vit-start", "mae"])


@pytest.mark.slow
def test_sweep_trains_each_mae_vit_once(tmp_path):
    executor = InProcess(max_parallel=3)
    short = replace(SPEC, config=replace(PF_VIT, max_steps=5), scheduler="none")
    assert sweep(short, tmp_path, executor)[0]
    trained = executor.trained
    assert sorted(one for one in trained if one.startswith("mae")) == ["mae-vit/seed-0", "mae-vit/seed-7", "mae/seed-0"]
    assert trained.index("mae-vit/seed-7") < trained.index("000/seed-7")
    for trial in ("000", "001"):
        for seed in (0, 7):
            run = load(tmp_path / f"trials/{trial}/seed-{seed}/config.json")
            assert run.model.init == str(tmp_path / f"mae-vit/seed-{seed}")
    assert outcome(tmp_path)["winner"] == 1


def write_curve(folder: Path, points: dict[int, float]) -> None:
    folder.mkdir(parents=True)
    lines = [{"split": "validation", "step": step, "accuracy": value} for step, value in points.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_scores_are_evaluations_after_the_warm_up(tmp_path):
    """A fine-tuned start is most accurate before the adversarial part; PF_VIT has three steps of warm-up."""
    state = SweepState(SPEC, tmp_path, lambda _: EvalSchedule(12, 3))
    state.add([Trial(0, {"optim.lr": 1e-3}), Trial(1, {"optim.lr": 1e-4})])
    write_curve(tmp_path / "trials/000/seed-0", {3: 0.9, 6: 0.5, 9: 0.6, 12: 0.55})
    write_curve(tmp_path / "trials/001/seed-0", {3: 0.9})
    assert state.score(state.trials[0], (0,)) == 0.6
    assert state.score(state.trials[1], (0,)) is None
    classifier = replace(config("finetune", name="scratch"), evaluate=SPEC.config.evaluate)
    other = SweepState(replace(SPEC, config=classifier, before={}), tmp_path, state.schedule_of)
    other.add(state.trials)
    assert other.score(other.trials[0], (0,)) == 0.9


LATE = replace(SPEC, config=replace(PF_VIT, evaluate=replace(PF_VIT.evaluate, select_from=0.5)))
"""Of twelve steps, three of them warm-up, the evaluations after step 7 can select a checkpoint."""


def test_a_trial_trained_to_its_end_is_scored_by_evaluations_that_can_select_a_checkpoint(tmp_path):
    """Whatever the scheduler, seed and objective; one that ASHA stopped, by those up to its stop."""
    values = {"optim.lr": 1e-3}
    for config_of_runs in (LATE.config, replace(config("finetune"), evaluate=LATE.config.evaluate)):
        folder = tmp_path / config_of_runs.objective
        spec = replace(LATE, config=config_of_runs, before={})
        state = SweepState(spec, folder, lambda _: EvalSchedule(12, 1))
        state.add([Trial(0, values), Trial(1, values), Trial(2, values, stop=Stop(7, "a test"))])
        for trial in state.trials:
            write_curve(state.runs.folder_of(trial, 0), {5: 0.9, 6: 0.95, 8: 0.5, 10: 0.6, 12: 0.55})
        write_curve(folder / "trials/001/seed-7", {6: 0.95, 12: 0.7})
        assert [state.score(trial, (0,)) for trial in state.trials] == [0.6, 0.6, 0.95]
        assert state.value(state.lineage(1), 7) == 0.7, "also on the fresh seeds of the confirmation"


def test_members_of_a_population_are_scored_within_their_generation_until_the_last(tmp_path):
    state = SweepState(replace(LATE, scheduler="pbt", trials=4), tmp_path, lambda _: EvalSchedule(12, 1))
    values = {"optim.lr": 1e-3}
    state.add([Trial(0, values, until=6), Trial(1, values, parent=0, until=9), Trial(2, values, parent=1)])
    for trial, points in zip(
        state.trials, ({5: 0.9, 6: 0.8}, {7: 0.85, 8: 0.7, 9: 0.6}, {10: 0.5, 12: 0.6}), strict=True
    ):
        write_curve(state.runs.folder_of(trial, 0), points)
    assert [state.score(trial, (0,)) for trial in state.trials] == [0.9, 0.85, 0.7]


def test_rungs_lie_after_the_warm_up():
    for warmup in (0, 3, 8, 11):
        spec = replace(SPEC, config=replace(PF_VIT, pf_mag=replace(PF_VIT.pf_mag, warmup_steps=warmup)))
        rungs = SweepState(spec, Path("nowhere"), lambda _: EvalSchedule(12, 1)).rungs(Trial(0, {"optim.lr": 1e-3}))
        assert all(rung is None or rung > warmup for rung in rungs), (warmup, rungs)


def test_run_that_ends_in_its_warm_up_is_refused(tmp_path):
    def check(spec: Spec, total: int) -> None:
        require_counted_evaluations(spec, Runs(spec, tmp_path), lambda _: EvalSchedule(total, 3))

    check(SPEC, 4)
    with pytest.raises(ConfigError, match=r"warmup_steps must be below the 3 steps of a run, got 3: .* train longer"):
        check(SPEC, 3)
    longer = replace(SPEC, space=(*SPEC.space, parse("pf_mag.warmup_steps=int:0,12")))
    check(longer, 13)
    with pytest.raises(ConfigError, match=r"12 steps of a run with pf_mag.warmup_steps 12, got 12"):
        check(longer, 12)


@pytest.mark.parametrize(("objective", "uncounted"), [("finetune", 6), ("pf_mag", 7)])
def test_late_evaluations_alone_select_a_checkpoint(tmp_path, objective, uncounted):
    """Of twelve steps the first half does not count, of PF-MAG the three steps of warm-up and half of the others."""
    tiny = config(objective)
    tiny = replace(tiny, evaluate=replace(tiny.evaluate, select_from=0.5))
    data, world = open_dataset(tiny.data, 0), World(0, 1, torch.device("cpu"))
    model = factory.build(tiny, len(data.classes))["model"]
    evaluation = PeriodicEvaluation(tiny, tmp_path, data, model, 12, world)
    assert evaluation.uncounted_steps == uncounted
