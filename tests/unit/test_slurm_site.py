"""Site files, batch scripts, time limits and names of SLURM jobs, without a cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pfcluster.cli.main import main
from pfcluster.cli.submit import job_name
from pfcluster.config import ConfigError
from pfcluster.launch import slurm_client
from pfcluster.launch.options import ClusterOptions, resolve_cluster
from pfcluster.launch.plan import Plan, Stage, TrainRun
from pfcluster.launch.ray.connect import RayCluster
from pfcluster.launch.ray.run import workers_of
from pfcluster.launch.ray.train import Workers
from pfcluster.launch.site import Site, load_site
from pfcluster.launch.slurm.script import script_of, scripts_folder
from pfcluster.launch.slurm_client import SlurmError
from tests.slurm_records import CLUSTER
from tests.tiny import config


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30:00", 90), ("2-00:00:00", 2880), ("1-12", 2160), ("90:30", 91), ("UNLIMITED", None)],
)
def test_minutes_parses_time_limits(text, minutes):
    assert slurm_client.minutes(text) == minutes


@pytest.mark.parametrize("text", ["soon", "1h", "", "0:10", "-5"])
def test_minutes_refuses_invalid_time_limits(text):
    with pytest.raises(SlurmError, match="--time must be"):
        slurm_client.minutes(text)


def test_site_file_has_settings_of_single_runs(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(
        'partition = "gpu"\ngpus_per_node = 8\nsetup = ["module load cuda"]\nmem = 64000\n'
        '[environment]\nNCCL_DEBUG = "WARN"\nOMP_PROC_BIND = 1\n[run.mae]\nnodes = 4\ntime = "3-00:00:00"\n'
    )
    site = load_site(path)
    assert (site.partition, site.mem, site.setup) == ("gpu", "64000", ("module load cuda",))
    assert site.environment == {"NCCL_DEBUG": "WARN", "OMP_PROC_BIND": "1"}
    assert (site.for_run("mae").nodes, site.for_run("judge").nodes) == (4, None)
    given = site.with_options({"nodes": 2, "time": None})
    assert (given.for_run("mae").nodes, given.for_run("mae").time, given.for_run("judge").nodes) == (2, "3-00:00:00", 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('partiton = "gpu"', "unknown setting partiton; did you mean partition?"),
        ("gpus_per_node = 0", "gpus_per_node must be at least 1, got 0"),
        ('gpus_per_node = "8"', "gpus_per_node must be int, got '8'"),
        ('setup = "module load x"', "setup must be a list of strings"),
        ('time = "a while"', "--time must be"),
        ('[environment]\nHF_TOKEN = "abc"', r'HF_TOKEN looks like a secret.*secrets = \["HF_TOKEN"\]'),
        ('[sbatch]\njob-name = "x"', "job-name is set by the launcher itself"),
        ("[run.mae]\nnode = 4", r"\[run.mae\]: unknown setting node; did you mean nodes\?"),
        ("partition =", "is not TOML"),
    ],
)
def test_invalid_site_file_is_refused_with_a_hint(tmp_path, text, words):
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_site(path)


def test_not_every_token_is_a_secret(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text('[environment]\nTOKENIZERS_PARALLELISM = "false"\n')
    assert load_site(path).environment == {"TOKENIZERS_PARALLELISM": "false"}


def test_defaults_without_a_site_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PFCLUSTER_SITE", raising=False)
    assert load_site(None) == Site()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_site(tmp_path / "none.toml")


def test_commands_that_differ_have_names_that_differ():
    names = [
        job_name("evaluate", words)
        for words in (["runs/a"], ["runs/a", "--split", "test"], ["runs/a", "--split", "validation"], ["runs/b"])
    ]
    assert (names[0], names[3]) == ("evaluate-runs-a", "evaluate-runs-b")
    assert all(name.startswith("evaluate-runs-a-") for name in names[1:3])
    assert len(set(names)) == 4
    assert job_name("report", ["--baseline", "scratch", "runs/study"]).startswith("report-")
    assert job_name("doctor", []) == "doctor"
    assert job_name("report", [""]) == "report"
    assert job_name("build", ["--input", "rafdb", "--output", "data/rafdb", "--size", "112"]) == "build-data-rafdb"


def test_a_time_limit_before_the_signal_is_refused(tmp_path):
    plan = Plan("p", tmp_path, (Stage("scratch", (TrainRun(config("finetune"), tmp_path / "run"),)),), "")
    cluster = replace(CLUSTER, slurm_answers=False)
    with pytest.raises(
        ConfigError, match=r"scratch: jobs of 2 minutes would be signalled to stop as soon as they begin"
    ):
        script_of(plan, plan.stages[0], replace(cluster, site=Site(time="2")))
    assert "--time=3" in script_of(plan, plan.stages[0], replace(cluster, site=Site(time="3")))


def test_settings_of_a_slurm_site_do_not_describe_other_machines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pfcluster.toml").write_text("nodes = 4\ngpus_per_node = 8\ncpus_per_task = 12\n")
    cluster = resolve_cluster(ClusterOptions(executor="ray", processes=2))
    assert (cluster.nodes, cluster.per_node, cluster.site.cpus_per_task) == (1, 2, None)
    assert workers_of(cluster, RayCluster(1, 8, (0,), True)) == Workers(2, 1.0, 0.0, 1)
    with pytest.raises(ConfigError, match=r"none.toml cannot be read"):
        resolve_cluster(ClusterOptions(executor="ray", site=Path("none.toml")))
    given = resolve_cluster(ClusterOptions(executor="ray", gpus_per_node=2, cpus_per_task=3))
    assert workers_of(given, RayCluster(1, 8, (2,), True)) == Workers(2, 3.0, 1.0, 1)


@pytest.mark.parametrize("available", [False, True])
def test_dry_run_prints_scripts_without_slurm(tmp_path, monkeypatch, capsys, available):
    """On a machine without sbatch the limits of the partition are not checked; elsewhere they are those of SLURM."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    if available:
        monkeypatch.setattr(slurm_client, "available", lambda: (True, "a cluster answers"))
        monkeypatch.setattr(slurm_client, "partition", lambda name: {"PartitionName": "gpu", "MaxTime": "30"})
    words = ["pretrain", "--preset", "demo", "--nodes", "4", "--time", "90", "--executor", "slurm", "--dry-run"]
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "#SBATCH --nodes=4" in output
    assert f"#SBATCH --time={30 if available else 90}" in output
    assert "pfcluster.launch.slurm.epilogue" in output
    assert ("SLURM cannot be queried here" in output) is not available
    assert list(tmp_path.iterdir()) == []


def test_paths_with_percent_signs_reach_slurm_as_a_link_without(tmp_path):
    """SLURM expands `%x` in --output, for arrays twice; submitit replaces `%j` in all of its paths."""
    folder = tmp_path / "50% lr=1%x" / "%j"
    tasks = tuple(TrainRun(config("finetune"), folder / name) for name in "ab")
    stage = Stage("scratch%A", tasks)
    plan = Plan("p", folder, (stage,), "")
    assert not list(tmp_path.iterdir())
    script = script_of(plan, stage, replace(CLUSTER, slurm_answers=False))
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"
    (folder / "slurm").mkdir(parents=True)
    scripts = scripts_folder(plan, stage, create=True)
    scripts.mkdir()
    assert list((folder / "slurm").iterdir()) == [folder / "slurm/scratch_A"]
    assert scripts_folder(plan, stage, create=True) == scripts
    assert scripts.parent.parent == tmp_path
    assert "%" not in str(scripts)
    for line in script.splitlines():
        if "--output" in line or "submitit.core._submit" in line:
            assert str(scripts) in line
            assert str(folder) not in line
    plain = Plan("p", tmp_path, (stage,), "")
    assert scripts_folder(plain, stage, create=True) == tmp_path / "slurm/scratch_A"


def test_submission_without_slurm_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["pretrain", "--preset", "demo", "--executor", "slurm"]) == 2
    assert "--executor slurm: no sbatch on the PATH; run on this machine" in capsys.readouterr().err
