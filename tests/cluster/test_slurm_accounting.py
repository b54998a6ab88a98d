"""Watching where the site has slurmdbd: what slurmctld has forgotten is asked of the accounting. All other tests here
are without.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pfcluster.launch.slurm import client
from tests.cluster import slurm
from tests.cluster.work import LONG, TINY, Work

RUN = "runs/scratch/seed-0"


def test_a_job_that_vanished_is_told_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its only node loses its power, and the site lets no job be requeued: nobody of ours can say a word."""
    reason = slurm.missing(accounting=True)
    if reason is not None:
        pytest.skip(reason)
    (tmp_path / "work").mkdir()
    with slurm.running(tmp_path / "slurm", nodes=1, accounting=True, remembered=2) as cluster:
        work = Work(tmp_path / "work", cluster)
        with open(work.folder / "pfcluster.toml", "r+") as file:
            text = file.read()
            file.seek(0)
            file.write("requeue = false\n" + text)
        work.launch("finetune", "--preset", "demo", *TINY, *LONG)
        work.wait_for_step(RUN, 20)
        job = work.job(RUN)
        cluster.kill("n1")
        work.wait_for(lambda: job not in cluster.run("squeue", "-h", "-t", "all", "-o", "%i").split(), "forgetting")
        monkeypatch.setattr("os.environ", cluster.environment)
        known = client.job_states([job])
        assert known[job].state in ("NODE_FAIL", "FAILED")
        assert f"lost SLURM reports {known[job].state}" in " ".join(work.launch("status", "scratch").split())
        cluster.start("n1")
        cluster.wait_until_up()
        work.launch("finetune", "--preset", "demo", *TINY, *LONG)
        assert work.wait_for_end(RUN).outcome == "finished"
        assert work.outcomes(RUN) == ["lost", "finished"]
        work.wait_for(lambda: client.job_states([work.job(RUN)])[work.job(RUN)].state == "COMPLETED", "accounting")
