"""PF-ViT of each seed from MAE-ViT of the same seed: plans of studies, and their execution where a seed fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pfcluster.config import ConfigError
from pfcluster.launch import status
from pfcluster.launch.errors import LaunchError
from pfcluster.launch.local import run_plan
from pfcluster.launch.plan import Plan, TrainRun, stages_of
from pfcluster.launch.preflight import preflight
from pfcluster.launch.run_queue import RunQueue
from pfcluster.launch.study_plan import make_plan
from pfcluster.launch.training_options import Options, parse_training
from tests.commands import command
from tests.tiny import OPTIONS, config


def study(output: Path, *arguments: str) -> Options:
    words = [*arguments, *OPTIONS, "--executor", "local", "--seeds", "3", "1", "--output", str(output)]
    return parse_training("study", words)


def stage(plan: Plan, name: str):
    return next(stage for stage in plan.stages if stage.name == name)


@pytest.mark.parametrize("arguments", [["--preset", "demo"], ["--preset", "small", "--pf-vit-start", "mae-vit"]])
def test_pf_vit_of_each_seed_starts_from_mae_vit_of_that_seed(tmp_path, arguments):
    plan = make_plan(study(tmp_path, *arguments))
    pf_vit = stage(plan, "pf-vit")
    assert (pf_vit.after, pf_vit.same_seed) == (("mae", "judge"), ("mae-vit",))
    configs = [run.config for run in pf_vit.tasks]
    assert [one.model.init for one in configs] == [str(tmp_path / f"mae-vit/seed-{seed}") for seed in (3, 1)]
    assert {one.pf_mag.decoder_init for one in configs} == {str(tmp_path / "mae/seed-3")}
    assert {run.config.model.init for run in stage(plan, "mae-vit").tasks} == {str(tmp_path / "mae/seed-3")}


@pytest.mark.parametrize("arguments", [["--preset", "small"], ["--preset", "vit-t"]])
def test_pf_vit_starts_from_the_mae_unless_the_preset_says_otherwise(tmp_path, arguments):
    pf_vit = stage(make_plan(study(tmp_path, *arguments)), "pf-vit")
    assert (pf_vit.after, pf_vit.same_seed) == (("mae", "judge"), ())
    assert {run.config.model.init for run in pf_vit.tasks} == {str(tmp_path / "mae/seed-3")}
    assert {run.config.pf_mag.decoder_init for run in pf_vit.tasks} == {None}


def test_discriminator_from_a_classifier_needs_one(tmp_path):
    options = study(tmp_path, "--preset", "demo", "--pf-vit-start", "mae")
    with pytest.raises(ConfigError, match=r"discriminator_init must be \"decoder\".*--pf-vit-start mae-vit"):
        make_plan(options)


def test_single_stage_asks_for_the_run_that_it_starts_from(tmp_path):
    words = ["--preset", "demo", *OPTIONS, "--executor", "local", "--output", str(tmp_path)]
    with pytest.raises(ConfigError, match=r"model.init must name a run: PF-ViT of preset demo starts from"):
        make_plan(parse_training("pf-mag", words))
    (named,) = make_plan(parse_training("pf-mag", [*words, "--model.init", "runs/mae-vit/seed-0"])).stages
    assert named.tasks[0].config.model.init == "runs/mae-vit/seed-0"


def test_missing_weights_of_the_decoder_are_named_before_anything_trains(tmp_path):
    options = study(tmp_path, "--preset", "demo", "--pf-mag.decoder-init", "nowhere")
    with pytest.raises(ValueError, match=r"pf_mag.decoder_init: .*nowhere"):
        preflight(make_plan(options), options.cluster)


def test_weights_of_a_study_are_those_of_the_mae(tmp_path):
    plan = make_plan(study(tmp_path, "--preset", "demo", "--model.init", "mae.pth"))
    starts = {run.config.name: run.config.model.init for stage in plan.stages for run in stage.tasks if is_run(run)}
    assert starts.pop("pf-vit").startswith(str(tmp_path / "mae-vit"))
    assert starts == {"mae": "mae.pth", "judge": None, "scratch": None, "mae-vit": str(tmp_path / "mae/seed-3")}


def test_a_study_uses_the_judge_that_it_is_given(tmp_path):
    plan = make_plan(study(tmp_path, "--preset", "demo", "--evaluate.judge", "runs/judge"))
    assert "judge" not in [stage.name for stage in plan.stages]
    assert {run.config.evaluate.judge for run in stage(plan, "pf-vit").tasks} == {"runs/judge"}


@pytest.mark.parametrize("preset", ["small", "fer2013", "poker-face"])
def test_finetune_trains_the_same_run_as_a_study(tmp_path, preset):
    words = ["--preset", preset, "--executor", "local", "--output", str(tmp_path), "--data.limit", "8"]
    of_study = {stage.name: stage.tasks[0].config for stage in make_plan(parse_training("study", words)).stages[:-1]}
    (from_mae,) = make_plan(parse_training("finetune", [*words, "--model.init", str(tmp_path / "mae/seed-0")])).stages
    (from_scratch,) = make_plan(parse_training("finetune", words)).stages
    assert from_mae.tasks[0] == TrainRun(of_study["mae-vit"], tmp_path / "mae-vit/seed-0")
    assert from_scratch.tasks[0] == TrainRun(of_study["scratch"], tmp_path / "scratch/seed-0")


def test_finetune_takes_the_values_of_a_file_for_the_run_that_it_trains(tmp_path):
    file = tmp_path / "winner.json"
    file.write_text('{"preset": "demo", "overrides": {"mae-vit:optim.lr": 0.003}}')
    words = ["--overrides", str(file), "--executor", "local", "--output", str(tmp_path)]
    (fine_tuning,) = make_plan(parse_training("finetune", [*words, "--model.init", "runs/mae/seed-0"])).stages
    assert fine_tuning.tasks[0].config.optim.lr == 0.003
    with pytest.raises(ConfigError, match=r"has only values of mae-vit, and .* trains the preset's scratch"):
        parse_training("finetune", words)


def is_run(task: object) -> bool:
    return isinstance(task, TrainRun)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--evaluate.judge nowhere", r"evaluate.judge: .*nowhere"),
        ("--evaluate.identity-net nowhere", r"evaluate.identity_net: .*nowhere"),
        ("--evaluate.fid nowhere", r"evaluate.fid: neither a file nor a folder: nowhere"),
        ("--pf-mag.identity-net run --pf-mag.identity-net-weights nowhere", r"identity_net_weights.*nowhere"),
        ("--pf-mag.identity-net facenet --pf-mag.identity-net-weights nowhere.pt", r"nowhere.pt"),
        ("--processes 3", r"batch_size must be a multiple of the processes of a run, 3, "),
        ("--data.shards nowhere", r"nowhere"),
    ],
)
def test_what_a_late_run_needs_is_named_before_anything_trains(tmp_path, options, message):
    options = study(tmp_path, "--preset", "demo", *options.split())
    with pytest.raises(ValueError, match=message):
        preflight(make_plan(options), options.cluster)
    assert not list(tmp_path.iterdir())


def test_a_study_that_is_too_short_for_its_warmups_is_named_before_it_starts(tmp_path):
    words = ["--preset", "demo", "--executor", "local", "--output", str(tmp_path)]
    short, whole = (parse_training("study", [*words, *more]) for more in (["--max-steps", "50"], []))
    warnings = preflight(make_plan(short), short.cluster)
    assert any(each.startswith("pf-vit: the adversarial part never begins") for each in warnings)
    assert any(each.startswith("mae: the learning rate does not reach optim.lr") for each in warnings)
    assert not preflight(make_plan(whole), whole.cluster)


def test_data_without_a_test_split_is_named_once_before_a_study_starts(tmp_path, built):
    words = ["study", "--preset", "demo", *OPTIONS, "--executor", "local", "--output", tmp_path, "--data.shards", built]
    options = parse_training("study", list(map(str, words[1:])))
    (warning,) = [each for each in preflight(make_plan(options), options.cluster) if "test split" in each]
    assert warning.startswith("faces has no test split")
    assert "--test-share 0.15" in warning
    dry = command(*words, "--dry-run")
    assert (dry.returncode, dry.stdout.count("has no test split")) == (0, 1)
    validation = parse_training("study", [*map(str, words[1:]), "--evaluate.final-split", "validation"])
    assert not any("test split" in each for each in preflight(make_plan(validation), validation.cluster))


def chain(folder: Path) -> tuple[list[TrainRun], Plan]:
    """Two seeds of a classifier, each continued by a second one; the first of seed 1 cannot find its data."""
    good = config("finetune", max_steps=1, name="first")
    broken = replace(good, seed=1, data=replace(good.data, shards=str(folder / "nowhere")))
    first = [TrainRun(each, folder / f"first-{each.seed}") for each in (broken, replace(good, seed=0))]
    second = [
        TrainRun(
            replace(good, name="second", seed=run.config.seed, model=replace(good.model, init=str(run.folder))),
            folder / f"second-{run.config.seed}",
        )
        for run in first
    ]
    stages = [*stages_of(first), *stages_of(second, same_seed=("first",))]
    return [*first, *second], Plan("plan", folder, tuple(stages), "", continue_on_failure=True)


@pytest.mark.slow
def test_failed_run_blocks_only_the_run_of_its_own_seed(tmp_path):
    runs, plan = chain(tmp_path)
    with pytest.raises(LaunchError, match=r"(?s)1 of the plan.*first seed 1: .*nowhere.*not run.*: second seed 1"):
        run_plan(plan, processes=1, max_parallel=1)
    assert [run.finished() for run in runs] == [False, True, False, True]
    tasks = status.overview(tmp_path).tasks
    assert [(task.state, task.reason) for task in tasks][2] == ("not run", "first failed")
    with pytest.raises(LaunchError, match="first seed 1"):
        run_plan(plan, processes=1, max_parallel=2)
    assert not runs[2].folder.exists(), "a repeated command trains nothing else"


def test_queue_starts_runs_after_those_of_their_seeds(tmp_path):
    runs, plan = chain(tmp_path)
    first_1, first_0, second_1, second_0 = runs
    queue = RunQueue(runs, plan.same_seed_runs())
    assert [queue.next(), queue.next(), queue.next()] == [first_1, first_0, None]
    queue.finished(first_0)
    assert queue.next() == second_0
    queue.drop_after(first_1)
    assert not queue
    assert RunQueue([second_1], plan.same_seed_runs()).next() == second_1, "the run before it finished earlier"
