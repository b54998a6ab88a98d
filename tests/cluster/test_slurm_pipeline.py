"""The command line on a SLURM cluster of four nodes: a complete study, its status, and single commands as jobs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from pfcluster.cli.submit import job_name
from tests.cluster.slurm import Slurm
from tests.cluster.work import TINY, Work
from tests.photos import make_folder
from tests.tiny import LAUNCH, ROOT

TASKS = (
    "mae/seed-0",
    "judge/seed-0",
    *(f"{name}/seed-{seed}" for name in ("scratch", "mae-vit", "pf-vit") for seed in (0, 1)),
)


OBSTACLE = "runs/pipeline/mae-vit/seed-1/provenance.json"
"""A folder where a file is written."""
BLOCKED = "pf-vit/seed-1"


@pytest.fixture(scope="module")
def incomplete(cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A study from raw photos to the report, in which one MAE-ViT cannot write a file of its folder. Once it is
    submitted, the launcher is killed and the checkout broken.
    """
    work = Work(tmp_path_factory.mktemp("pipeline"), cluster)
    make_folder(work.folder / "photos", per_class=16, labels=("neutral", "happy", "sad"))
    (work.folder / OBSTACLE).mkdir(parents=True)
    checkout = work.folder / "checkout"
    for name in ("pfcluster", "jobs", "shards"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    arguments = [
        "--nodes", "2", "--seeds", "0", "1", "--preset", "demo", *TINY, "--batch-size", "8", "--input", "photos",
        "--build", "--align none --size 32 --test-share 0.2 --workers 1 --samples-per-shard 8", "--retries", "0",
        "--wait",
    ]  # fmt: skip
    (work.folder / "arguments.json").write_text(json.dumps(arguments))
    launcher = subprocess.Popen(
        [sys.executable, str(checkout / "jobs/launch.py"), *arguments],
        cwd=work.folder,
        env=cluster.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    work.wait_for(lambda: bool(work.job("runs/pipeline/report")) or launcher.poll() is not None, "submission")
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    for path in (checkout / "pfcluster").rglob("*.py"):
        path.write_text("raise SystemExit('edited after the submission')\n")
    work.wait_for_end("runs/pipeline/shards/slice-0")
    for task in TASKS:
        if task != BLOCKED:
            work.wait_for_end(f"runs/pipeline/{task}")
    work.wait_for(lambda: not work.queue(), "an empty queue")
    return work


@pytest.fixture(scope="module")
def pipeline(incomplete: Work) -> Work:
    """The same study, completed by the same command once the obstacle is gone."""
    (incomplete.folder / OBSTACLE).rmdir()
    arguments = json.loads((incomplete.folder / "arguments.json").read_text())
    output = " ".join(incomplete.launch(*arguments).split())
    assert output.count("1 submitted, 1 finished") == 2, "MAE-ViT and PF-ViT of seed 1"
    return incomplete


def test_failed_mae_vit_blocks_only_the_pf_vit_of_its_seed(incomplete):
    failed = incomplete.wait_for_end("runs/pipeline/mae-vit/seed-1")
    assert failed.outcome == "failed"
    assert "pf-vit seed 1, report will not run" in failed.next
    assert incomplete.result("runs/pipeline/pf-vit/seed-0")["status"] == "finished"
    status = " ".join(incomplete.launch("status", "pipeline").split())
    assert "pf-vit seed 1 not run mae-vit failed" in status


def test_jobs_run_a_snapshot_of_the_code(incomplete):
    provenance = json.loads((incomplete.folder / "runs/pipeline/mae/seed-0/provenance.json").read_text())
    assert provenance["command"].startswith("pfcluster pipeline --nodes 2 --seeds 0 1")
    (copy,) = (incomplete.folder / "runs/pipeline/.code").iterdir()
    assert "edited" not in (copy / "pfcluster/training/trainer.py").read_text()


def test_stages_are_arrays_under_one_name(incomplete):
    for name in ("scratch", "mae-vit"):
        first, second = (incomplete.job(f"runs/pipeline/{name}/seed-{seed}") for seed in (0, 1))
        assert first.split("_")[0] == second.split("_")[0]
        assert (first.split("_")[1], second.split("_")[1]) == ("0", "1")
    shown = incomplete.cluster.run("scontrol", "-o", "show", "job", incomplete.job("runs/pipeline/pf-vit/seed-0"))
    assert "JobName=pipeline.pf-vit" in shown


def test_study_from_photos_to_the_report(pipeline):
    for task in TASKS:
        result = pipeline.result(f"runs/pipeline/{task}")
        assert (result["status"], result["processes"]) == ("finished", 2), task
        outcomes = ["failed", "finished"] if task == "mae-vit/seed-1" else ["finished"]
        assert pipeline.outcomes(f"runs/pipeline/{task}") == outcomes, task
    assert (
        json.loads((pipeline.folder / "runs/pipeline/data/manifest.json").read_text())["splits"]["test"]["samples"] > 0
    )
    page = (pipeline.folder / "runs/pipeline/report/report.html").read_text()
    assert "pf-vit" in page
    rows = pipeline.result("runs/pipeline/pf-vit/seed-1")["poker"]["rows"]
    assert rows["poker face"]["neutral_rate"] is not None
    config = json.loads((pipeline.folder / "runs/pipeline/pf-vit/seed-1/config.json").read_text())
    assert config["model"]["init"].endswith("runs/pipeline/mae-vit/seed-1")
    assert config["pf_mag"]["decoder_init"].endswith("runs/pipeline/mae/seed-0")


def test_status_lists_every_task_and_a_repeated_command_submits_nothing(pipeline):
    status = " ".join(pipeline.launch("status", "pipeline").split())
    for words in ("shards 1/2 finished", "mae seed 0 finished", "pf-vit seed 1 finished", "report finished"):
        assert words in status
    arguments = json.loads((pipeline.folder / "arguments.json").read_text())
    before = {task: pipeline.job(f"runs/pipeline/{task}") for task in TASKS}
    output = pipeline.launch(*arguments)
    assert "submitted" not in output
    assert {task: pipeline.job(f"runs/pipeline/{task}") for task in TASKS} == before
    assert "rank 0 of 2 on n" in pipeline.launch("logs", "pipeline", "--task", "mae")
    assert "rank 1 of 2 on n" in pipeline.launch("logs", "pipeline", "--task", "pf-vit seed 1", "--rank", "1")


def test_queued_runs_are_attached_to_and_another_config_is_refused(work):
    blocker = work.occupy("main")
    arguments = ["finetune", "--preset", "demo", *TINY, "--nodes", "2", "--seeds", "0", "1"]
    assert "2 submitted" in work.launch(*arguments)
    jobs = [work.job(f"runs/scratch/seed-{seed}") for seed in (0, 1)]
    assert "2 attached" in work.launch(*arguments)
    assert [work.job(f"runs/scratch/seed-{seed}") for seed in (0, 1)] == jobs
    assert "queued" in work.launch("status", "scratch")
    output = work.launch(*arguments, "--optim.lr", "0.5", code=2)
    assert f"is queued as job {jobs[0]} with another config" in output
    assert "cancelled: scratch seed 0, scratch seed 1" in work.launch("cancel", "scratch")
    assert set(jobs).isdisjoint(work.queue())
    assert "cancelled" in work.launch("status", "scratch")
    work.cluster.run("scancel", blocker)


def test_two_submissions_into_a_folder_are_one_to_status_and_cancel(work):
    blocker = work.occupy("main")
    for seed in ("0", "1"):
        work.launch("finetune", "--preset", "demo", *TINY, "--seeds", seed)
    shown = work.launch("status", "scratch")
    assert "scratch seed 0" in shown
    assert "scratch seed 1" in shown
    assert "cancelled: scratch seed 0, scratch seed 1" in work.launch("cancel", "scratch")
    assert work.queue() == [blocker]
    words = ["--seeds", "2", "--partition", "main,short", "--time", "90"]
    assert "partition main,short allows 1 minutes of the 90" in work.launch(
        "finetune", "--preset", "demo", *TINY, *words
    )
    assert "scratch seed 0" not in work.launch("status", "scratch"), "its job has ended"
    work.cluster.run("scancel", blocker, work.job("runs/scratch/seed-2"))


def test_runs_on_this_machine_do_not_hide_jobs_in_their_folder(work):
    blocker = work.occupy("main")
    arguments = ["finetune", "--preset", "demo", *TINY, "--seeds"]
    work.launch(*arguments, "0")
    work.launch(*arguments, "1", "--executor", "local")
    shown = work.launch("status", "scratch")
    assert "scratch seed 0" in shown
    assert "scratch seed 1" in shown
    assert "cancelled: scratch seed 0\n" in work.launch("cancel", "scratch")
    assert work.queue() == [blocker]
    work.cluster.run("scancel", blocker)


GROWING = """
import sys
from pathlib import Path
from pfcluster.launch.plan import Command, Plan, Stage
from pfcluster.launch.site import load_site
from pfcluster.launch.slurm.submit import submit
root = Path("runs/x")
report = Command("report", root / "report", (), module="this", produces=root / "report.html")
run = Command(f"r seed {sys.argv[1]}", root / f"r/seed-{sys.argv[1]}", (), module="this")
stages = (Stage("r", (run,), single_process=True), Stage("report", (report,), ("r",), single_process=True))
submit(Plan("x", root, stages, "x"), load_site(None), processes=1, retries=0)
"""


def test_a_report_waits_for_the_runs_of_all_submissions(work):
    blocker = work.occupy("main")
    work.cluster.environment["SBATCH_PARTITION"] = "high"
    try:
        for seed in ("0", "1"):
            command = [sys.executable, "-c", GROWING, seed]
            subprocess.run(command, cwd=work.folder, env=work.cluster.environment, check=True)
    finally:
        del work.cluster.environment["SBATCH_PARTITION"]
    runs = [work.job(f"runs/x/r/seed-{seed}") for seed in (0, 1)]
    shown = work.cluster.run("squeue", "-h", "-o", "%i %P %E", "-j", work.job("runs/x/report"))
    assert all(f"afterok:{run}(" in shown for run in runs), shown
    assert " high " in shown, "where the site file names no partition the user's variable does"
    work.cluster.run("scancel", blocker, *runs, work.job("runs/x/report"))


def test_another_command_under_the_name_of_a_queued_one_is_refused(work):
    blocker = work.occupy("main")
    words = ["evaluate", "runs/a", "--executor", "slurm", "--job-name", "scores"]
    assert "1 submitted" in work.launch(*words, "--split", "test")
    assert "1 attached" in work.launch(*words, "--split", "test")
    job = work.job("runs/scores/evaluate")
    refused = work.launch(*words, "--split", "validation", code=2)
    assert f"is queued as job {job} with another command; cancel it first, or use another --output or --job-" in refused
    work.cluster.run("scancel", blocker, job)


def test_a_submission_that_slurm_refused_is_repeated_from_a_moved_folder(work):
    arguments = ["finetune", "--preset", "demo", *TINY, "--output"]
    assert "SLURM refused scratch" in work.launch(*arguments, "before", "--constraint", "a100", code=2)
    (work.folder / "before").rename(work.folder / "moved")
    blocker = work.occupy("main")
    assert "1 submitted" in work.launch(*arguments, "moved")
    work.cluster.run("scancel", blocker, work.job("moved/scratch/seed-0"))


def test_job_is_identified_after_the_launcher_died_during_submission(work):
    blocker = work.occupy("main")
    arguments = ["finetune", "--preset", "demo", *TINY, "--seeds", "0", "1"]
    work.launch(*arguments)
    for seed in (0, 1):
        path = work.folder / f"runs/scratch/seed-{seed}/job.json"
        values = json.loads(path.read_text())
        path.write_text(json.dumps(values | {"job": ""}))
    assert "2 attached" in work.launch(*arguments)
    work.cluster.run("scancel", blocker)


def test_dry_run_prints_scripts_and_submits_nothing(work):
    with open(work.folder / "pfcluster.toml", "a") as file:
        file.write('licenses = "faces"\n[environment]\nNCCL_SOCKET_IFNAME = "ib0"\n[run.mae]\ntime = "12:00:00"\n')
    output = work.launch("study", "--preset", "demo", *TINY, "--nodes", "4", "--mem", "2G", "--dry-run")
    for words in (
        "plan study: slurm", "#SBATCH --nodes=4", "#SBATCH --licenses=faces", "#SBATCH --mem=2G", "#SBATCH --requeue",
        "#SBATCH --array=0-2%3", "#SBATCH --time=720", "afterok:<mae>:<judge>",
        "export NCCL_SOCKET_IFNAME=ib0", "--kill-on-bad-exit=1", "4 x 1 GPUs",
    ):  # fmt: skip
        assert words in output, words
    assert work.queue() == []
    assert not (work.folder / "runs").exists()


def test_command_inside_of_a_job_runs_locally(work):
    command = [*LAUNCH, "finetune", "--preset", "demo", *TINY, "--dry-run"]
    done = subprocess.run(
        ["srun", "-N1", "-n1", *command],
        cwd=work.folder,
        env=work.cluster.environment | {"COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "plan scratch: local (inside SLURM job" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--partition", "main,gpu"], "--partition main,gpu: "),
        (["--partition", "short,main", "--nodes", "8"], "scratch needs --nodes 8, but partition short,main has 4"),
        (["--nodes", "8"], "scratch needs --nodes 8, but partition main has 4"),
        (["--partition", "gpu"], "--partition gpu: "),
        (["--account", "nobody", "--qos", "none", "--constraint", "a100"], "SLURM refused scratch: "),
        (["--time", "soon"], "--time must be minutes, H:MM:SS or D-HH:MM:SS"),
        (["--batch-size", "18", "--nodes", "4"], "batch_size must be a multiple of the processes of a run, 4,"),
        (["--site", "none.toml"], "site file none.toml cannot be read"),
    ],
)
def test_impossible_requests_are_refused_before_submission(work, arguments, words):
    output = work.launch("finetune", "--preset", "demo", *TINY, *arguments, code=2)
    assert words in output
    assert work.queue() == []


def test_evaluate_and_doctor_run_as_jobs_with_redacted_secrets(work, pipeline):
    shutil.copytree(pipeline.folder / "runs/pipeline", work.folder / "runs/pipeline")
    (work.folder / "photos").symlink_to(pipeline.folder / "photos")
    with open(work.folder / "pfcluster.toml", "r+") as file:
        text = file.read()
        file.seek(0)
        file.write('secrets = ["MY_TOKEN"]\n' + text)
    run = "runs/pipeline/scratch/seed-0"
    refused = work.launch("evaluate", run, "--executor", "slurm", code=2)
    assert "secrets names MY_TOKEN, which is not set in this shell" in refused
    work.cluster.environment["MY_TOKEN"] = "s3cr3t-value"
    try:
        output = work.launch("evaluate", run, "--executor", "slurm", "--wait")
        assert "finished" in output
        name = "evaluate-runs-pipeline-scratch-seed-0"
        shown = work.launch("logs", name)
        assert f"{100 * work.result(run)['test']['accuracy']:.2f} %" in shown
        lost = work.launch(
            "evaluate", "runs/s3cr3t-value", "--executor", "slurm", "--job-name", "lost", "--wait", code=1
        )
        assert "lost" in lost
        assert "ended with 2" in lost
        shown = work.launch("logs", "lost")
        assert "runs/<MY_TOKEN>" in shown
        for path in (work.folder / "runs").rglob("*"):
            if path.suffix in (".log", ".sh", ".out"):
                assert "s3cr3t-value" not in path.read_text(errors="replace"), path
        words = ["--backends", "ddp"]
        output = work.launch("doctor", "--executor", "slurm", "--nodes", "2", *words, "--wait")
        assert "finished" in output
        assert "n1" in work.launch("logs", job_name("doctor", words), "--lines", "100")
    finally:
        work.cluster.environment.pop("MY_TOKEN")


def test_nodes_without_a_cluster_are_groups_of_processes(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs/launch.py"), "finetune", "--preset", "demo", *TINY, "--nodes", "2"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "--nodes 2: 2 groups of 1 processes on this machine" in done.stdout
    assert json.loads((tmp_path / "runs/scratch/seed-0/result.json").read_text())["processes"] == 2
