"""Status on a site with slurmdbd: jobs that slurmctld has forgotten are looked up in the accounting. The other tests
run without it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pfcluster.launch import slurm_client
from tests.cluster import slurm
from tests.cluster.work import LONG, TINY, Work

RUN = "runs/scratch/seed-0"


def test_state_of_a_forgotten_job_comes_from_the_accounting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its only node fails and requeueing is forbidden, so neither ranks nor epilogue can record the end."""
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
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        jobs = slurm_client.job_states([job])
        assert jobs[job].state in ("NODE_FAIL", "FAILED")
        status = " ".join(work.launch("status", "scratch").split())
        assert "seed 0 lost " in status
        assert f"{jobs[job].state}; the same command continues it" in status, status
        cluster.start("n1")
        cluster.wait_until_up()
        work.launch("finetune", "--preset", "demo", *TINY, *LONG)
        assert work.wait_for_end(RUN).outcome == "finished"
        assert work.outcomes(RUN) == ["lost", "finished"]
        work.wait_for(
            lambda: slurm_client.job_states([work.job(RUN)])[work.job(RUN)].state == "COMPLETED", "accounting"
        )
