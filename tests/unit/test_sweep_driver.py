"""Sweeps of real runs, trained in this process: the outcome does not depend on order or interruptions."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace

import pytest

from pfcluster.launch.errors import LaunchError
from pfcluster.runs.early_stop import read_early_stop
from pfcluster.runs.folder import EARLY_STOP_FILE, RESULT_FILE
from pfcluster.sweep.space import parse
from pfcluster.sweep.spec import Spec
from pfcluster.sweep.trials import Failed, clear_failures, curve, read_trials, result_of, write_failed
from tests.sweeps import InProcess, outcome, sweep
from tests.tiny import config

FINETUNE = config("finetune", epochs=4, name="scratch")
FINETUNE = replace(FINETUNE, evaluate=replace(FINETUNE.evaluate, final_split="validation"))
SPEC = Spec(
    config=FINETUNE,
    before={},
    space=(parse("optim.lr=loguniform:1e-5,3e-3"),),
    search="random",
    trials=5,
    rungs=1,
    confirm=1,
    fresh_seeds=(7, 8),
)


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A sweep, one run at a time: its folder, outcome and log."""
    folder = tmp_path_factory.mktemp("complete")
    done, log = sweep(SPEC, folder, InProcess(max_parallel=1))
    assert done
    return folder, outcome(folder), log


def test_sweep_searches_confirms_and_measures_the_test_split(complete):
    folder, result, log = complete
    assert len(result["trials"]) == 5
    assert all(0 <= score <= 1 for score in result["scores"])
    assert any("stopped at step" in line for line in log)
    selected = list(result["confirmed"])
    assert selected[0] == 0
    assert len(selected) == 2
    unstopped = {n: s for n, s in enumerate(result["scores"]) if n and result["trials"][n][3] is None}
    assert selected[1] == max(unstopped, key=lambda number: (unstopped[number], -number))
    assert result["winner"] == selected[1]
    for trial in range(5):
        for run_folder in (folder / f"trials/{trial:03d}").iterdir():
            fresh = run_folder.name in ("seed-7", "seed-8")
            assert ("test" in result_of(run_folder)) == (fresh and trial in selected), run_folder


def test_stopped_trial_is_scored_at_its_rung(complete):
    folder, sweep_outcome, _ = complete
    stops = {number: trial[3] for number, trial in enumerate(sweep_outcome["trials"]) if trial[3] is not None}
    assert stops
    for number, stop in stops.items():
        result = result_of(folder / f"trials/{number:03d}/seed-0")
        assert result["status"] in ("stopped", "finished")
        assert read_early_stop(folder / f"trials/{number:03d}/seed-0").step == stop.step
        points = curve(folder / f"trials/{number:03d}/seed-0", "accuracy")
        assert sweep_outcome["scores"][number] == max(value for step, value in points if step <= stop.step)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_outcome_does_not_depend_on_the_order_of_completion(complete, tmp_path, seed):
    done, _ = sweep(SPEC, tmp_path, InProcess(max_parallel=3, order=random.Random(seed)))
    assert done
    assert outcome(tmp_path) == complete[1]


@pytest.mark.slow
def test_restarted_driver_keeps_finished_runs(complete, tmp_path):
    """The driver is replaced twice, once while runs are interrupted; finished runs are not trained again."""
    first, second, third = InProcess(), InProcess(interrupt_after=3), InProcess()
    assert not sweep(SPEC, tmp_path, first, ticks=3)[0]
    assert not sweep(SPEC, tmp_path, second, ticks=8)[0]
    assert sweep(SPEC, tmp_path, third)[0]
    assert outcome(tmp_path) == complete[1]
    assert set(third.trained).isdisjoint(first.trained)


def test_complete_sweep_trains_nothing(complete):
    again = InProcess()
    assert sweep(SPEC, complete[0], again)[0]
    assert again.trained == []


@pytest.mark.parametrize("loses", ["its result", "its early stop"])
def test_a_stopped_trial_is_not_trained_on_when_it_is_tried_again(complete, tmp_path, loses):
    """Its run failed before it could write a result, or its folder lost the record of the stop."""
    folder = tmp_path / "sweep"
    shutil.copytree(complete[0], folder)
    trial = next(trial for trial in read_trials(folder) if trial.stop is not None)
    run_folder = folder / f"trials/{trial.number:03d}/seed-0"
    if loses == "its result":
        (run_folder / RESULT_FILE).unlink()
        write_failed(run_folder, Failed("storage", "the disk was full"))
        assert clear_failures(folder) == 1
    else:
        (run_folder / EARLY_STOP_FILE).unlink()
    again = InProcess()
    assert sweep(SPEC, folder, again)[0]
    assert again.trained == []
    assert read_early_stop(run_folder).step == trial.stop.step
    assert outcome(folder) == complete[1]


@pytest.mark.slow
def test_diverging_trial_is_reported_and_the_sweep_continues(tmp_path):
    spec = replace(SPEC, space=(parse("optim.lr=choice:1e-3,1e30"),), search="grid", scheduler="none", confirm=0)
    done, log = sweep(spec, tmp_path, InProcess())
    assert done
    result = outcome(tmp_path)
    assert result["failed"] == [None, None, "training"]
    assert result["scores"][2] is None
    assert any(line.startswith("trial-002: failed (training)") and "lower optim.lr" in line for line in log)
    again = InProcess()
    assert sweep(spec, tmp_path, again)[0]
    assert again.trained == [], "failed trials are tried again only with --retry-failed"


def test_sweep_fails_if_every_trial_fails(tmp_path):
    spec = replace(SPEC, config=replace(FINETUNE, optim=replace(FINETUNE.optim, lr=1e30)), search="grid", confirm=0)
    spec = replace(spec, space=(parse("optim.weight_decay=choice:0,0.1"),))
    with pytest.raises(LaunchError, match=r"every trial failed: .*lower optim.lr"):
        sweep(spec, tmp_path, InProcess())


@pytest.mark.slow
def test_score_is_the_mean_over_seeds(tmp_path):
    spec = replace(SPEC, trials=2, seeds=(0, 1), confirm=0, scheduler="none")
    assert sweep(spec, tmp_path, InProcess())[0]
    for number, score in enumerate(outcome(tmp_path)["scores"]):
        each = [max(dict(curve(tmp_path / f"trials/{number:03d}/seed-{seed}", "accuracy")).values()) for seed in (0, 1)]
        assert score == pytest.approx(sum(each) / 2)


@pytest.mark.slow
def test_trial_with_its_own_pretraining_starts_from_it(tmp_path):
    mae = config("mae", name="mae")
    mae = replace(mae, evaluate=replace(mae.evaluate, final_split="validation"))
    spec = replace(SPEC, before={"mae": mae}, space=(parse("mae.mask_ratio=choice:0.5,0.75"),), search="grid")
    spec = replace(spec, scheduler="none", confirm=0, config=replace(FINETUNE, name="mae-vit"))
    assert sweep(spec, tmp_path, InProcess())[0]
    for number, ratio in enumerate((0.75, 0.5, 0.75)):
        folder = tmp_path / f"trials/{number:03d}"
        assert json.loads((folder / "mae-seed-0/config.json").read_text())["mae"]["mask_ratio"] == ratio
        assert json.loads((folder / "seed-0/config.json").read_text())["model"]["init"] == str(folder / "mae-seed-0")
    scores = outcome(tmp_path)["scores"]
    assert scores[0] == scores[2], "the baseline and the equal grid point are the same run"


@pytest.mark.slow
def test_population_continues_from_checkpoints(tmp_path):
    spec = replace(SPEC, scheduler="pbt", trials=4, generations=2, search="random", fresh_seeds=(7,))
    done, _ = sweep(spec, tmp_path, InProcess(order=random.Random(0)))
    assert done
    trials = read_trials(tmp_path)
    assert len(trials) == 8
    assert [one.until for one in trials] == [18] * 4 + [None] * 4  # 2 + 22 / 2 = 13, at an evaluation
    replaced = [one for one in trials[4:] if one.parent != one.number - 4]
    assert len(replaced) == 1
    for one in trials[4:]:
        first = json.loads((tmp_path / f"trials/{one.number:03d}/seed-0/metrics.jsonl").read_text().splitlines()[0])
        assert first["step"] == trials[0].until + 1, "a generation continues where its parent's ended"
    best = outcome(tmp_path)["winner"]
    assert best in range(4, 8)
    folders = sorted(path.name for path in (tmp_path / f"trials/{best:03d}").iterdir())
    assert folders == ["seed-0", "seed-7", "seed-7-generation-0"], "the winner's whole schedule again on the fresh seed"
    assert "test" in result_of(tmp_path / f"trials/{best:03d}/seed-7")
    assert result_of(tmp_path / "trials/000/seed-7")["steps"] == 24
