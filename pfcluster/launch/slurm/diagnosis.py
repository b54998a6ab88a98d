"""Why an attempt failed: from the files of its ranks, else from srun's output. Standard library only."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pfcluster.launch import attempts, slurm_client
from pfcluster.launch.attempts import Attempt
from pfcluster.launch.job_record import read_job
from pfcluster.runs.folder import LOGS_DIR
from pfcluster.system.redaction import redact

ATTEMPT_MARK = "--- attempt of job"
"""Printed by the batch script before it starts srun."""
RANK_DIED = re.compile(r"srun: error: (\S+): tasks? ([\d,\-\[\]]+): (.+)")
NODE_LOST = re.compile(r"srun: error: (?:Node failure on|.*[Nn]ode) (\S+)")
OUT_OF_MEMORY = re.compile(r"out of memory", re.IGNORECASE)
TAIL_BYTES = 4000
"""How much of the end of srun's output is read."""


def explain(folder: Path, attempt: Attempt, job: str, status: int) -> dict[str, Any]:
    """`kind`, `error` and `node` of a failed attempt. `status`: exit status of srun."""
    output = _srun_output(folder, job)
    died = [match.groups() for match in RANK_DIED.finditer(output)]
    failures = attempts.failures(folder, attempt.number)
    if failures and (failures[0].kind != "lost rank" or not died):
        first = failures[0]
        return {"kind": first.kind, "error": first.error, "node": first.lost_node or first.node}
    if died:
        nodes, task, reason = died[0]
        node = nodes.split("[")[0] if "[" not in nodes else slurm_client.expand(nodes)[0]
        error = f"rank {task} on {node}: {reason} (srun); srun ended the other ranks"
        kind = "bug" if OUT_OF_MEMORY.search(reason) else "killed"  # another node has no more memory
        return {"kind": kind, "error": error, "node": node}
    lost = NODE_LOST.search(output)
    if lost:
        return {"kind": "killed", "error": f"node {lost.group(1)} was lost", "node": lost.group(1)}
    tail = redact(" ".join(output.split())[-300:])
    trained = (folder / LOGS_DIR).is_dir() and attempt.step > attempt.from_step
    error = f"srun ended with {status}{f'; its output: {tail}' if tail else ''}"
    return {"kind": "killed" if trained else "submission", "error": error, "node": None}


def _srun_output(folder: Path, job: str) -> str:
    """srun's output in this attempt: the file of sbatch's --output, which srun shares with rank 0."""
    scripts = read_job(folder).scripts
    if not scripts:
        return ""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{array}_{task}" if array else job
    try:
        with open(Path(scripts) / f"{name}_0_log.out", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return text.rsplit(ATTEMPT_MARK, 1)[-1]
