"""The command line as users call it: a complete study, resuming, stopping, and invalid commands."""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pfcluster.checkpoint import store
from pfcluster.config import RunConfig
from pfcluster.config.io import to_json
from pfcluster.launch.study_plan import make_plan
from pfcluster.launch.training_options import parse_training
from pfcluster.launch.worker import work
from pfcluster.runs.folder import REQUESTED_CONFIG_FILE
from tests.commands import command
from tests.tiny import LAUNCH, MACHINE_METRICS, OPTIONS, ROOT, config, final_weights, train_here

TINY = [*OPTIONS, *shlex.split("--checkpoint.every-steps 4 --evaluate.every-epochs 1")]


def launch(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LAUNCH, *arguments], capture_output=True, text=True, cwd=cwd, timeout=600, check=False)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("work") / "study"
    return folder, launch("demo", *TINY, "--seeds", "1", "--output", str(folder))


def test_study_writes_a_report(study):
    folder, done = study
    assert done.returncode == 0, done.stderr
    assert "Expression recognition on the test split" in done.stdout
    assert f"report: {folder / 'report/report.html'}" in done.stdout
    for name in ("judge", "mae", "scratch", "mae-vit", "pf-vit"):
        (result,) = (json.loads(path.read_text()) for path in folder.glob(f"{name}/seed-*/result.json"))
        assert (result["seed"], result["status"], result["steps"]) == (1, "finished", 12), name
    page = (folder / "report/report.html").read_text()
    assert "pf-vit" in page
    assert "data:image/png;base64" in page
    assert "http://" not in page
    assert 'src="/' not in page


def test_pf_vit_starts_from_mae_vit_of_its_seed(study):
    folder, _ = study
    values = json.loads((folder / "pf-vit/seed-1/config.json").read_text())
    assert values["model"]["init"] == str(folder / "mae-vit/seed-1")
    assert values["pf_mag"]["decoder_init"] == str(folder / "mae/seed-1")


def test_run_folder_records_command_and_versions(study):
    folder, _ = study
    run = folder / "pf-vit/seed-1"
    result = json.loads((run / "result.json").read_text())
    assert result["command"].startswith("pfcluster demo --data.size 32")
    assert result["versions"]["torch"] == torch.__version__.split("+")[0] or torch.__version__
    assert result["git_commit"]
    assert list((run / "tensorboard").iterdir())
    rows = result["poker"]["rows"]
    assert set(rows) == {"input", "reconstruction", "poker face", "expression transfer", "truth"}
    assert 0 <= rows.pop("expression transfer")["emotion_agreement"] <= 1
    assert all(0 <= cells["neutral_rate"] <= 1 for cells in rows.values())
    assert rows["truth"]["mse_inside"] == 0
    assert rows["input"]["psnr"] > 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 13))
    assert [line["split"] for line in lines].count("test") == 1


def test_repeated_command_trains_nothing(study):
    folder, _ = study
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/seed-*/result.json")}
    done = command("demo", *TINY, "--seeds", "1", "--output", str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("finished already") == 5
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/seed-*/result.json")} == before


def test_evaluate_reproduces_the_scores_of_the_run(study):
    folder, _ = study
    result = json.loads((folder / "mae-vit/seed-1/result.json").read_text())
    done = command("evaluate", folder / "mae-vit/seed-1")
    assert done.returncode == 0, done.stderr
    assert f"{100 * result['test']['accuracy']:.2f} %" in done.stdout
    refused = command("evaluate", folder / "mae/seed-1")
    assert refused.returncode == 2
    assert "which has no classes" in refused.stderr


def test_dry_run_prints_costs_and_writes_nothing(tmp_path):
    done = command("pf-mag", *TINY, "--seeds", "3", "4", "--dry-run", "--output", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    for words in ("GFLOP", "pf-vit", "3 4", "MiB", "train 96"):
        assert words in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["retrain"], "no command 'retrain'"),
        (["finetune", "--model.depht", "6"], "--model.depht"),
        (["finetune", "--model.depth", "six"], "six"),
        (["finetune", "--model.heads", "7"], "be a multiple of model.heads = 7"),
        (["finetune", "--data.shards", "nowhere"], "nowhere holds no manifest.json"),
        (["finetune", "--data.expected-name", "raf-db"], "data.expected_name is 'raf-db'"),
        (["finetune", "--model.init", "nowhere"], "neither a folder nor a file: nowhere"),
        (["finetune", "--engine.device", "cuda"], "torch sees no CUDA device"),
        (
            ["finetune", "--batch-size", "33", "--processes", "2"],
            "batch_size must be a multiple of the processes of a run, 2,",
        ),
        (["pf-mag", "--evaluate.judge", "nowhere"], "train one with `pfcluster judge`"),
        (["pf-mag", "--pf-mag.identity-net", "facenet", "--pf-mag.identity-net-weights", "no.pt"], "no file no.pt"),
        (["finetune", "--seeds", "1", "1"], "--seeds must differ"),
        (["report", "nowhere"], "nowhere is not a folder"),
        (["evaluate", "nowhere"], "neither a run with checkpoints nor a checkpoint"),
    ],
)
def test_invalid_commands_end_with_one_sentence(tmp_path, arguments, words):
    if arguments == ["finetune", "--engine.device", "cuda"] and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    done = command(*arguments, *(["--output", tmp_path] if arguments[0] in ("finetune", "pf-mag") else []))
    assert done.returncode == 2, done.stderr
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_checkpoint_of_another_shape_is_refused_before_training(study, tmp_path):
    folder, _ = study
    other = ["--model.width", "48", "--model.init", folder / "mae/seed-1"]
    done = command("finetune", *TINY, *other, "--output", tmp_path / "runs")
    assert done.returncode == 2
    assert "width 32" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_folder_of_another_config_is_refused(study):
    folder, _ = study
    done = command("finetune", "--preset", "demo", *TINY, "--seeds", "1", "--optim.lr", "0.5", "--output", folder)
    assert done.returncode == 2
    assert "optim.lr is" in done.stderr


def start(run: RunConfig, folder: Path) -> subprocess.Popen[bytes]:
    """One worker process, as the launcher starts it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REQUESTED_CONFIG_FILE).write_text(to_json(run))
    arguments = [str(folder / REQUESTED_CONFIG_FILE), str(folder), "--threads", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "pfcluster.launch.worker", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL
    )


def wait_for_step(process: subprocess.Popen[bytes], folder: Path, step: int) -> None:
    """Until metrics.jsonl has the step, or the process ended."""
    path = folder / "metrics.jsonl"
    while process.poll() is None and not (path.exists() and f'"step": {step},' in path.read_text()):
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("objective", "signals"),
    [
        ("finetune", ("SIGKILL", "SIGTERM")),
        pytest.param("mae", ("SIGINT",), marks=pytest.mark.slow),
        pytest.param("pf_mag", ("SIGKILL", "SIGTERM"), marks=pytest.mark.slow),
    ],
    ids=("finetune", "mae", "pf_mag"),
)
def test_killed_and_stopped_runs_resume_bit_exactly(tmp_path, objective, signals):
    run = config(objective, epochs=6 if objective == "pf_mag" else 8)
    train_here(run, tmp_path / "uninterrupted")
    interrupted = tmp_path / "interrupted"
    codes = []
    for step, name in zip((6, 15), signals, strict=False):
        process = start(run, interrupted)
        wait_for_step(process, interrupted, step)
        process.send_signal(signal.Signals[name])
        codes.append(process.wait(timeout=600))
    assert codes == [-signal.SIGKILL if name == "SIGKILL" else 75 for name in signals]
    assert json.loads((interrupted / "result.json").read_text())["status"] == "interrupted"
    train_here(run, interrupted)
    expected, resumed = final_weights(tmp_path / "uninterrupted"), final_weights(interrupted)
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        assert torch.equal(value, resumed[name]), name
    resumed_lines, expected_lines = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (interrupted, tmp_path / "uninterrupted")
    )
    for lines in (resumed_lines, expected_lines):
        for line in lines:
            for name in MACHINE_METRICS:
                line.pop(name, None)
    assert resumed_lines == expected_lines


@pytest.mark.slow
def test_workers_of_a_killed_launcher_stop_with_a_checkpoint(tmp_path):
    arguments = ["finetune", *TINY, "--epochs", "200", "--output", str(tmp_path)]
    launcher = subprocess.Popen([*LAUNCH, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    folder = tmp_path / "scratch/seed-0"
    wait_for_step(launcher, folder, 8)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait(timeout=300)
    for _ in range(3000):
        if (folder / "result.json").exists():
            break
        time.sleep(0.1)
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
    assert store.latest(folder / "checkpoints")[1] == []


@pytest.mark.slow
def test_ctrl_c_stops_with_a_checkpoint_and_the_same_command_continues(tmp_path):
    arguments = ["finetune", *TINY, "--epochs", "20", "--output", str(tmp_path)]
    launcher = subprocess.Popen([*LAUNCH, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "scratch/seed-0"
    wait_for_step(launcher, folder, 8)
    os.kill(launcher.pid, signal.SIGINT)
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 130
    assert "the same command continues" in errors
    assert command(*arguments).returncode == 0
    assert json.loads((folder / "result.json").read_text())["steps"] == 120


@pytest.mark.slow
def test_unwritable_checkpoint_is_named_and_the_run_can_continue(tmp_path):
    run = tmp_path / "run"
    (tmp_path / REQUESTED_CONFIG_FILE).write_text(to_json(config("finetune")))
    worker = [sys.executable, "-m", "pfcluster.launch.worker", str(tmp_path / REQUESTED_CONFIG_FILE), str(run)]

    def no_large_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    full = subprocess.run(worker, cwd=ROOT, capture_output=True, text=True, preexec_fn=no_large_files, check=False)
    assert full.returncode == 2
    assert "the checkpoint cannot be written (rank 0): File too large (EFBIG); raise this shell's limit" in full.stderr
    assert "Traceback" not in full.stderr
    assert list((run / "checkpoints").iterdir()) == []
    assert work(tmp_path / REQUESTED_CONFIG_FILE, run, None, 1).code == 0
    assert json.loads((run / "result.json").read_text())["steps"] == 12


@pytest.mark.slow
def test_diverging_run_stops_and_names_its_samples(tmp_path):
    done = command("finetune", *TINY, "--optim.lr", "1e30", "--optim.warmup-steps", "0", "--output", tmp_path)
    assert done.returncode == 1
    assert "Nothing was trained on this batch" in done.stderr
    assert "Traceback" not in done.stderr
    folder = tmp_path / "scratch/seed-0"
    failure = json.loads((folder / "failure.json").read_text())
    assert len(failure["sample_keys"]) == 16
    assert all(key.startswith("synthetic-") for key in failure["sample_keys"])
    assert failure["checkpoint_step"] == failure["step"]
    weights = final_weights(folder)
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.slow
def test_study_without_a_neutral_class_trains_no_judge(tmp_path):
    for label in ("happy", "sad"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(10):
            pixels = np.random.default_rng(number + 100 * len(label)).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    shards = tmp_path / "shards"
    options = ["--align", "none", "--size", "32", "--val-share", "0.2", "--workers", "1"]
    assert command("build", "--input", tmp_path / "photos", "--output", shards, *options).returncode == 0
    tiny = [*TINY, "--batch-size", "4", "--data.shards", shards]
    plan = make_plan(parse_training("study", [*map(str, tiny), "--executor", "local", "--output", str(tmp_path)]))
    assert [stage.name for stage in plan.stages if stage.name in ("mae", "judge", "pf-vit")] == ["mae", "pf-vit"]
    done = command("pf-mag", *tiny, "--output", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "runs/pf-vit/seed-0/result.json").read_text())["poker"]["rows"]
    assert rows["poker face"]["neutral_rate"] is None
    assert command("report", tmp_path / "runs").returncode == 0
