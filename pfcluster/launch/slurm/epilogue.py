"""The last line of every batch script: what follows now that the ranks have ended.

    python -m pfcluster.launch.slurm.epilogue FOLDERS --status N

Finished: nothing. Stopped by a time limit or a preemption: back into the queue, at no cost. Failed: again, away from
the node where it began, as long as the budget lasts and another attempt could do better; else given up, with what waits
for it. Cancelled: nothing. Standard library only: this runs outside of a container.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from pfcluster.launch import attempts
from pfcluster.launch.attempts import Attempt, Submitted
from pfcluster.launch.plan import RECORD
from pfcluster.launch.redaction import redact
from pfcluster.launch.slurm import client
from pfcluster.launch.slurm.client import SlurmError
from pfcluster.runs.folder import CANCELLED_FILE, LOGS_DIR

DIED = re.compile(r"srun: error: (\S+): tasks? ([\d,\-\[\]]+): (.+)")
NODE_LOST = re.compile(r"srun: error: (?:Node failure on|.*[Nn]ode) (\S+)")
MEMORY = re.compile(r"out of memory", re.IGNORECASE)
TAIL = 4000
"""Bytes of a log's end that are looked at."""


def main() -> int:
    """The exit code is the job's: 0 finished, 1 not."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", type=Path, help="file that names the folders of the array's tasks, a line each")
    parser.add_argument("--status", type=int, required=True, help="of srun")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # SLURM's way to end jobs that go on all the same
    folders = options.folders.read_text().splitlines()
    folder = Path(folders[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))])
    job, restart = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    attempt = conclude(folder, job, restart, options.status)
    print(f"{attempts.now()} {attempt.outcome}{f', {attempt.next}' if attempt.next else ''}", flush=True)
    return 0 if attempt.outcome == "finished" else 1


def conclude(folder: Path, job: str, restart: int, status: int) -> Attempt:
    """Write down how the attempt ended and see to what follows."""
    known = attempts.read(folder)
    if known and (known[-1].job, known[-1].restart) == (job, restart):
        attempt = known[-1]
    else:  # srun never came to run rank 0
        attempt = attempts.begin(folder, job, restart, os.environ.get("SLURM_JOB_NODELIST", ""))
    if attempt.outcome == "finished":
        return attempt
    meaning = _meaning(folder, job, restart)
    if meaning == "cancelled":
        return attempts.end(folder, attempt, "cancelled")
    if meaning == "requeued":  # by SLURM: preempted, or by a person
        return attempts.end(folder, attempt, "preempted", next="requeued by SLURM")
    if attempt.outcome == "stopped":
        outcome: attempts.Outcome = "time limit" if attempt.signal == "SIGUSR2" and not _preempted(job) else "preempted"
        return _again(folder, attempts.end(folder, attempt, outcome), job)
    if meaning == "preempted" or (meaning == "warned" and _preempted(job)):  # before the ranks could listen
        return _again(folder, attempts.end(folder, attempt, "preempted"), job)
    return _failed(folder, attempt, job, status)


def _meaning(folder: Path, job: str, restart: int) -> client.StopDecision:
    if (folder / CANCELLED_FILE).exists():
        return "cancelled"
    try:
        return client.verdict(client.look(job), restart)
    except SlurmError:
        return "warned"  # nobody can be asked; the ranks' own word counts


def _preempted(job: str) -> bool:
    try:
        seen = client.look(job)
    except SlurmError:
        return False
    return seen is not None and seen.preempted


def _failed(folder: Path, attempt: Attempt, job: str, status: int) -> Attempt:
    """A failure: find where it began, and try again or give up."""
    attempt = attempts.end(folder, attempt, "failed", **explain(folder, attempt, job, status))
    why = attempts.may_retry(attempts.read(folder), attempts.submitted(folder).retries)
    if why is not None:
        gone = cancel_waiting(folder)
        also = f"; {', '.join(gone)} will not run" if gone else ""
        attempt = replace(attempt, next=f"given up: {why}{also}")
        attempts.write(folder, attempt)
        return attempt
    node = attempt.node if attempt.kind in ("killed", "device", "lost rank", "submission") else None
    return _again(folder, attempt, job, exclude=node)


def explain(folder: Path, attempt: Attempt, job: str, status: int) -> dict[str, Any]:
    """Kind, error and node of a failure: as a rank told it, else as srun saw it."""
    batch = _batch_log(folder, job)
    died = [found.groups() for found in DIED.finditer(batch)]
    told = attempts.failures(folder, attempt.number)
    if told and (told[0].kind != "lost rank" or not died):
        first = told[0]
        return {"kind": first.kind, "error": first.error, "node": first.lost_node or first.node}
    if died:
        node, task, how = died[0]
        where = node.split("[")[0] if "[" not in node else client.expand(node)[0]
        error = f"rank {task} on {where}: {how} (srun); the others were ended with it"
        kind = "bug" if MEMORY.search(how) else "killed"  # another node has no more of it
        return {"kind": kind, "error": error, "node": where}
    lost = NODE_LOST.search(batch)
    if lost:
        return {"kind": "killed", "error": f"node {lost.group(1)} was lost", "node": lost.group(1)}
    said = redact(" ".join(batch.split())[-300:])
    started = (folder / LOGS_DIR).is_dir() and attempt.step > attempt.from_step
    words = f"srun ended with {status}{f'; it said: {said}' if said else ''}"
    return {"kind": "killed" if started else "submission", "error": words, "node": None}


def _batch_log(folder: Path, job: str) -> str:
    """What srun said in this attempt: the file that sbatch was given as --output, which srun shares with rank 0."""
    script = attempts.submitted(folder).script
    if not script:
        return ""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{array}_{task}" if array else job
    try:
        with open(Path(script) / f"{name}_0_log.out", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return text.rsplit(MARK, 1)[-1]


MARK = "--- attempt of job"
"""Printed by the batch script before it starts srun."""


def _again(folder: Path, attempt: Attempt, job: str, exclude: str | None = None) -> Attempt:
    """Back into the queue; where that is refused, submitted anew with what waits for it pointed at the new job."""
    exclude = _spare(job, exclude)
    try:
        client.requeue(job, exclude)
        follows = "requeued"
    except SlurmError as refused:
        try:
            follows = f"submitted again as {resubmit(folder, exclude)}"
        except (SlurmError, OSError) as error:
            follows = f"given up: neither requeued ({refused}) nor submitted again ({error}); the same command goes on"
    attempt = replace(attempt, next=follows, excluded=exclude)
    attempts.write(folder, attempt)
    return attempt


def _spare(job: str, node: str | None) -> str | None:
    """The nodes to keep away from, with those excluded before; None where too few would be left."""
    if node is None:
        return None
    try:
        text = client.ask("scontrol", "--oneliner", "show", "job", job, patience=30)
        before = re.search(r"ExcNodeList=(\S+)", text)
        known = [] if before is None or before.group(1) == "(null)" else client.expand(before.group(1))
        wanted = sorted({*known, node})
        name = re.search(r"Partition=(\S+)", text)
        usable = client.usable_nodes(name.group(1) if name else None, wanted)
    except SlurmError:
        return None
    return ",".join(wanted) if len(usable) >= int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) else None


def resubmit(folder: Path, exclude: str | None) -> str:
    """Hand the task to a new job, which starts when this one is over. Raises SlurmError, OSError."""
    known = attempts.submitted(folder)
    own, task = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}" if task else own
    scripts = Path(known.script)
    script = scripts / f"{name.split('_')[0]}_submission.sh"
    options = ["--parsable", f"--dependency=afterany:{own}", *([f"--array={task}"] if task else [])]
    options += [f"--exclude={exclude}"] if exclude else []
    inherited = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "PMI", "SUBMITIT_")
    clean = {key: value for key, value in os.environ.items() if key == "SLURM_CONF" or not key.startswith(inherited)}
    done = subprocess.run(
        ["sbatch", *options, str(script)], env=clean, capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        raise SlurmError(f"sbatch: {done.stderr.strip()}")
    number = done.stdout.strip().split(";")[0]
    new = f"{number}_{task}" if task else number
    shutil.copy(scripts / f"{name}_submitted.pkl", scripts / f"{new}_submitted.pkl")
    shutil.copy(script, scripts / f"{number}_submission.sh")
    attempts.submit(folder, replace(known, job=new, moves=known.moves + 1))
    for waiting in waiting_folders(known):
        _point_at_current(Path(known.pipeline), waiting)
    return new


def cancel_waiting(folder: Path) -> list[str]:
    """Take from the queue what waits for this task and can never run; the names of its groups."""
    known = attempts.submitted(folder)
    jobs, names = [], []
    for waiting in waiting_folders(known, deep=True):
        other = attempts.submitted(waiting)
        if other.job:
            jobs.append(other.job)
            names.append(other.group)
    try:
        client.cancel(jobs)
    except SlurmError as error:
        print(f"warning: {error}", file=sys.stderr)
    return list(dict.fromkeys(names))


def waiting_folders(known: Submitted, *, deep: bool = False) -> list[Path]:
    """Folders of the tasks whose groups wait for a task's own; with `deep` all that can never run without it: what
    waits for those too, and nothing that runs anyway.
    """
    groups = _groups(known)
    names = {known.group}
    found: dict[str, list[str]] = {}
    while True:
        new = {name: group["folders"] for name, group in groups.items() if names & set(group["after"])}
        new = {name: folders for name, folders in new.items() if not (deep and groups[name].get("anyway"))}
        if new.keys() <= found.keys():
            return [Path(folder) for folders in found.values() for folder in folders]
        found |= new
        names = names | set(found) if deep else set()


def _groups(known: Submitted) -> dict[str, Any]:
    try:
        values = json.loads((Path(known.pipeline) / RECORD).read_text())
        return dict(values["groups"])
    except (OSError, ValueError, KeyError):
        return {}


def _point_at_current(pipeline: Path, waiting: Path) -> None:
    """Have a waiting job depend on the jobs that its predecessors' tasks have now."""
    own = attempts.submitted(waiting)
    groups = _groups(own)
    if not own.job or own.group not in groups:
        return
    folders = [Path(folder) for name in groups[own.group]["after"] for folder in groups[name]["folders"]]
    jobs = [attempts.submitted(folder).job for folder in folders if not finished(folder)]
    kind = "afterany" if groups[own.group].get("anyway") else "afterok"
    wanted = ":".join([kind, *(job for job in jobs if job)])
    try:
        client.ask("scontrol", "update", f"JobId={own.job}", f"Dependency={wanted}", patience=30)
    except SlurmError as error:
        print(f"warning: {waiting}: {error}", file=sys.stderr)


def finished(folder: Path) -> bool:
    """Whether a task's last attempt finished."""
    known = attempts.read(folder)
    return bool(known) and known[-1].outcome == "finished"


if __name__ == "__main__":
    sys.exit(main())
