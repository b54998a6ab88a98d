"""A stage that always runs, such as a table, on a real SLURM: it runs after stages that failed or were cancelled."""

from __future__ import annotations

import subprocess
import sys

SUBMIT = """
from pathlib import Path
from pfcluster.launch.plan import Command, Plan, Stage
from pfcluster.launch.site import load_site
from pfcluster.launch.slurm.submit import submit

def stage(name, code, **options):
    command = Command(name, Path("plan") / name, ("-n1", "-r1", code), module="timeit")
    return Stage(name, (command,), single_process=True, **options)

write = "open('{0}', 'w').write('{0}')"
stages = (
    stage("broken", "raise ValueError('no such thing')"),
    stage("independent", write.format("independent")),
    stage("waiting", write.format("waiting"), after=("broken",)),
    stage("table", write.format("table"), after=("waiting", "independent"), always_run=True),
)
plan = Plan("plan", Path("plan"), stages, "the command", continue_on_failure=True)
submit(plan, load_site(None), processes=1, retries=0)
"""


def test_stage_that_always_runs_follows_a_failure(work):
    subprocess.run([sys.executable, "-c", SUBMIT], cwd=work.folder, env=work.cluster.environment, check=True)
    assert work.wait_for_end("plan/broken").outcome == "failed"
    assert "waiting will not run" in work.attempts("plan/broken")[-1].next
    assert work.wait_for_end("plan/table").outcome == "finished"
    assert {path.name for path in work.folder.iterdir()} >= {"independent", "table"}
    assert not (work.folder / "waiting").exists()
    assert not work.attempts("plan/waiting")
