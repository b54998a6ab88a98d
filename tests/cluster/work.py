"""A user's folder on the test cluster: runs commands there and waits for their jobs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

from pfcluster.launch import attempts
from pfcluster.launch.attempts import Attempt
from pfcluster.launch.job_record import read_job
from pfcluster.runs.metrics_file import last_trained_step
from tests.cluster.slurm import Slurm
from tests.commands import command
from tests.tiny import OPTIONS

TINY = [
    *OPTIONS,
    *shlex.split("--engine.backend ddp --engine.timeout 300 --checkpoint.every-steps 20 --evaluate.every-epochs 10"),
]
LONG = ["--epochs", "30"]
"""180 steps: about five seconds with two ranks."""
SITE = """
signal_seconds = 20
cpus_per_task = 1
[sbatch]
exclusive = true
"""
SECONDS = 600.0


class Work:
    """Commands in one folder."""

    def __init__(self, folder: Path, cluster: Slurm) -> None:
        self.folder, self.cluster = folder, cluster
        (folder / "pfcluster.toml").write_text(SITE)

    def launch(self, *arguments: str, code: int = 0) -> str:
        """Run a command in this process, which must exit with `code`; returns its output."""
        done = command(*arguments, folder=self.folder, environment=self.cluster.environment | {"COLUMNS": "160"})
        output = done.stdout + done.stderr
        assert done.returncode == code, output
        assert "Traceback" not in output, output
        return output

    def attempts(self, run: str) -> list[Attempt]:
        return attempts.read(self.folder / run)

    def outcomes(self, run: str) -> list[str]:
        return [attempt.outcome for attempt in self.attempts(run)]

    def job(self, run: str) -> str:
        return read_job(self.folder / run).job

    def wait_for(self, condition: Callable[[], bool], description: str) -> None:
        """Wait until a condition holds; on a timeout fail with the queue and the logs."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"timed out waiting for {description}\n{self.diagnostics()}")
            time.sleep(0.1)

    def wait_for_step(self, run: str, step: int) -> None:
        self.wait_for(lambda: last_trained_step(self.folder / run) >= step, f"step {step} of {run}")

    def hold_at_step(self, run: str, step: int) -> None:
        """Suspend all ranks of a run once it has reached a step, so that it cannot finish before the fault is injected.
        SLURM resumes processes before it ends them.
        """
        self.wait_for_step(run, step)
        for node in self.nodes_of(run):
            for pid in self.ranks_on(node, self.job(run)):
                os.kill(pid, signal.SIGSTOP)

    def hold_attempt(self, run: str, number: int) -> None:
        """Suspend all ranks of the NUMBER-th attempt of a run, as `hold_at_step`, once it has trained some steps."""

        def in_progress() -> bool:
            recorded = self.attempts(run)
            return len(recorded) == number and recorded[-1].outcome == "running"

        self.wait_for(in_progress, f"attempt {number} of {run}")
        before = max((attempt.step or 0 for attempt in self.attempts(run)[:-1]), default=0)
        self.hold_at_step(run, before + 10)

    def nodes_of(self, run: str) -> list[str]:
        """Names of the nodes of the newest attempt."""
        return self.cluster.run("scontrol", "show", "hostnames", self.attempts(run)[-1].nodes).split()

    def ranks_on(self, node: str, job: str) -> list[int]:
        """Processes that train for a job on a node."""
        pids = []
        for pid in self.cluster.processes_on(node):
            process = Path(f"/proc/{pid}")
            with contextlib.suppress(OSError):
                of_job = f"SLURM_JOB_ID={job}".encode() in (process / "environ").read_bytes().split(b"\0")
                if of_job and b"submitit.core._submit" in (process / "cmdline").read_bytes().split(b"\0")[:6]:
                    pids.append(pid)
        return pids

    def wait_for_end(self, run: str) -> Attempt:
        """Wait until no further attempt of a task follows; returns its last attempt."""

        def ended() -> bool:
            recorded = self.attempts(run)
            if not recorded or recorded[-1].outcome in ("running", "stopped"):
                return False
            last = recorded[-1]
            return last.outcome == "finished" or not (last.next or "").startswith(("requeued", "submitted"))

        self.wait_for(ended, f"the end of {run}")
        self.wait_for(lambda: self.job(run) not in self.queue(), f"{run} out of the queue")
        return self.attempts(run)[-1]

    def queue(self) -> list[str]:
        """Jobs that SLURM has not ended."""
        return self.cluster.run("squeue", "-h", "--array", "-o", "%i").split()

    def occupy(self, partition: str = "high", seconds: int = 600) -> str:
        """Occupy all nodes; returns the job id."""
        options = ["-p", partition, f"--nodes={self.cluster.nodes}", "--exclusive", "-t", "20", "-o", "/dev/null"]
        return self.cluster.run("sbatch", "--parsable", *options, "--wrap", f"sleep {seconds}").strip()

    def result(self, run: str) -> dict:
        return json.loads((self.folder / run / "result.json").read_text())

    def note(self, fault: str, run: str) -> None:
        """Append a row to the table of faults in the file $PFCLUSTER_FAULTS, if it is set: the fault, the attempts, and
        the number of steps that were trained again.
        """
        table = os.environ.get("PFCLUSTER_FAULTS")
        if not table:
            return
        history = []
        for attempt in self.attempts(run):
            follows = "" if attempt.next is None or attempt.next == "requeued" else f" ({attempt.next})"
            history.append(f"{attempt.outcome} at step {attempt.step}{follows}")
        log = (self.folder / run / "logs/rank-0.log").read_text()
        starts = [int(step) for step in re.findall(r"from step (\d+) of", log)]
        ended = [attempt.step for attempt in self.attempts(run)]
        lost = sum(max(0, last - start) for last, start in zip(ended, starts[1:], strict=False))
        with open(table, "a") as file:
            file.write(f"| {fault} | {'; then '.join(history)} | {lost} |\n")

    def diagnostics(self) -> str:
        """The queue, all logs and all attempts."""
        logs = sorted(self.folder.rglob("*.log")) + sorted(self.folder.rglob("*_log.out"))
        parts = [f"== {path}\n{path.read_text(errors='replace')[-2500:]}" for path in logs]
        parts += [f"== {path}\n{path.read_text()}" for path in sorted(self.folder.rglob("attempts/*.json"))]
        return "\n".join([self.cluster.run("squeue", check=False), *parts])

    def clear(self) -> None:
        self.cluster.run("scancel", *(self.queue() or ["999999"]), check=False)
        self.cluster.run("scontrol", "update", f"nodename=n[1-{self.cluster.nodes}]", "state=resume", check=False)
        deadline = time.monotonic() + 60
        while self.queue() and time.monotonic() < deadline:
            time.sleep(0.2)
