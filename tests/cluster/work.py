"""A user's folder on the throw-away cluster: commands as users give them, and waiting for what they lead to."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from pfcluster.launch import attempts
from pfcluster.launch.attempts import Attempt
from pfcluster.runs.folder import last_trained_step
from tests.cluster.slurm import Slurm
from tests.tiny import LAUNCH, OPTIONS

TINY = [
    *OPTIONS,
    *shlex.split("--engine.backend ddp --engine.timeout 300 --checkpoint.every-steps 20 --evaluate.every-epochs 10"),
]
LONG = ["--epochs", "60"]
"""360 steps: some ten seconds of two ranks."""
SITE = """
signal_seconds = 20
cpus_per_task = 1
[sbatch]
exclusive = true
"""
SECONDS = 300.0


class Work:
    """Commands in one folder."""

    def __init__(self, folder: Path, cluster: Slurm) -> None:
        self.folder, self.cluster = folder, cluster
        (folder / "pfcluster.toml").write_text(SITE)

    def launch(self, *arguments: str, code: int = 0, launcher: list[str] = LAUNCH) -> str:
        """A command's whole output; it must end with `code`."""
        done = subprocess.run(
            [*launcher, *arguments],
            cwd=self.folder,
            env=self.cluster.environment | {"COLUMNS": "160"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == code, said
        assert "Traceback" not in said, said
        return said

    def attempts(self, run: str) -> list[Attempt]:
        return attempts.read(self.folder / run)

    def outcomes(self, run: str) -> list[str]:
        return [attempt.outcome for attempt in self.attempts(run)]

    def job(self, run: str) -> str:
        return attempts.submitted(self.folder / run).job

    def wait_for(self, what: Callable[[], bool], words: str) -> None:
        """Until something holds. Fails with the status and the logs."""
        deadline = time.monotonic() + SECONDS
        while not what():
            if time.monotonic() > deadline:
                raise AssertionError(f"never came: {words}\n{self.told()}")
            time.sleep(0.1)

    def wait_for_step(self, run: str, step: int) -> None:
        self.wait_for(lambda: last_trained_step(self.folder / run) >= step, f"step {step} of {run}")

    def hold_at_step(self, run: str, step: int) -> None:
        """Stop all ranks of a run once it is there, so that it cannot end before what is done to it; every way in which
        SLURM ends jobs continues them first.
        """
        self.wait_for_step(run, step)
        for node in self.nodes_of(run):
            for pid in self.ranks_on(node, self.job(run)):
                os.kill(pid, signal.SIGSTOP)

    def nodes_of(self, run: str) -> list[str]:
        """Names of the nodes of the newest attempt."""
        return self.cluster.run("scontrol", "show", "hostnames", self.attempts(run)[-1].nodes).split()

    def ranks_on(self, node: str, job: str) -> list[int]:
        """Processes that train for a job on a node."""
        found = []
        for pid in self.cluster.processes_on(node):
            place = Path(f"/proc/{pid}")
            with contextlib.suppress(OSError):
                mine = f"SLURM_JOB_ID={job}".encode() in (place / "environ").read_bytes().split(b"\0")
                if mine and b"submitit.core._submit" in (place / "cmdline").read_bytes().split(b"\0")[:6]:
                    found.append(pid)
        return found

    def wait_for_end(self, run: str) -> Attempt:
        """Until nothing more follows of a task; its last attempt."""

        def over() -> bool:
            known = self.attempts(run)
            if not known or known[-1].outcome in ("running", "stopped"):
                return False
            return known[-1].outcome == "finished" or not (known[-1].next or "").startswith(("requeued", "submitted"))

        self.wait_for(over, f"the end of {run}")
        self.wait_for(lambda: self.job(run) not in self.queue(), f"{run} out of the queue")
        return self.attempts(run)[-1]

    def queue(self) -> list[str]:
        """Jobs that SLURM has not finished with."""
        return self.cluster.run("squeue", "-h", "--array", "-o", "%i").split()

    def occupy(self, partition: str = "high", seconds: int = 600) -> str:
        """Take all nodes; the job's number."""
        options = ["-p", partition, f"--nodes={self.cluster.nodes}", "--exclusive", "-t", "20", "-o", "/dev/null"]
        return self.cluster.run("sbatch", "--parsable", *options, "--wrap", f"sleep {seconds}").strip()

    def result(self, run: str) -> dict:
        return json.loads((self.folder / run / "result.json").read_text())

    def note(self, fault: str, run: str) -> None:
        """A row of the table of faults, where $PFCLUSTER_FAULTS names a file: what happened, and the steps that had to
        be trained again. That the final weights are equal is the tests' own business.
        """
        table = os.environ.get("PFCLUSTER_FAULTS")
        if not table:
            return
        story = []
        for attempt in self.attempts(run):
            follows = "" if attempt.next is None or attempt.next == "requeued" else f" ({attempt.next})"
            story.append(f"{attempt.outcome} at step {attempt.step}{follows}")
        log = (self.folder / run / "logs/rank-0.log").read_text()
        starts = [int(step) for step in re.findall(r"from step (\d+) of", log)]
        ended = [attempt.step for attempt in self.attempts(run)]
        lost = sum(max(0, last - start) for last, start in zip(ended, starts[1:], strict=False))
        with open(table, "a") as file:
            file.write(f"| {fault} | {'; then '.join(story)} | {lost} |\n")

    def told(self) -> str:
        """All that a person could look at."""
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
