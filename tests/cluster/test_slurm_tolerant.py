"""A stage that runs anyway, such as a table, on a real SLURM: it waits for what fails, and for what waits for that."""

from __future__ import annotations

import subprocess
import sys

SUBMIT = """
from pathlib import Path
from pfcluster.launch.plan import Call, Group, Plan
from pfcluster.launch.slurm.site import load_site
from pfcluster.launch.slurm.submit import submit

def group(name, code, **options):
    call = Call(name, Path("plan") / name, ("-n1", "-r1", code), module="timeit")
    return Group(name, (call,), alone=True, **options)

write = "open('{0}', 'w').write('{0}')"
groups = (
    group("broken", "raise ValueError('no such thing')"),
    group("beside", write.format("beside")),
    group("behind", write.format("behind"), after=("broken",)),
    group("table", write.format("table"), after=("behind", "beside"), anyway=True),
)
submit(Plan("plan", Path("plan"), groups, "the command", tolerant=True), load_site(None), processes=1, retries=0)
"""


def test_a_table_is_made_of_what_there_is(work):
    subprocess.run([sys.executable, "-c", SUBMIT], cwd=work.folder, env=work.cluster.environment, check=True)
    assert work.wait_for_end("plan/broken").outcome == "failed"
    assert "behind will not run" in work.attempts("plan/broken")[-1].next
    assert work.wait_for_end("plan/table").outcome == "finished"
    assert {path.name for path in work.folder.iterdir()} >= {"beside", "table"}
    assert not (work.folder / "behind").exists()
    assert not work.attempts("plan/behind")
