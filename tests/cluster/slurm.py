"""A temporary SLURM on this machine: munge, slurmctld and a few slurmd from the distribution's packages.

    python -m tests.cluster.slurm up [--nodes 4] [--folder /tmp/pfcluster-slurm]     start it and say how to use it
    python -m tests.cluster.slurm down [--folder ...]                                stop it

Everything it writes lies in its folder, and it knows no other SLURM on the machine. On Debian and Ubuntu it needs
`apt-get install --no-install-recommends munge slurmctld slurmd slurm-client` (and `slurmdbd mariadb-server-core
mariadb-client-core` for `--accounting`), and no privileges to run. Python's standard library is enough.

Partitions: `main`; `short` ends jobs after a minute; `high` preempts `requeued` (SIGTERM, then killed and requeued),
`cancelled` (SIGTERM, then killed for good), `graceful` (SIGTERM and 60 s of grace) and `signalled` (USR2 and 60 s).
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db", "my_print_defaults", "sacct")
PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
START_SECONDS = 120.0
LOST_SECONDS = 15
"""Seconds after which a node without a responding slurmd is down."""

CONF = """
ClusterName=throwaway
SlurmctldHost=localhost
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=0
SlurmctldTimeout=10
SlurmdTimeout={lost}
InactiveLimit=0
KillWait=20
MinJobAge={remembered}
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters={preempt}
PropagateResourceLimits=NONE
{accounting}
NodeName={nodes} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports} CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes={nodes} Default=YES MaxTime=1-00:00:00 PriorityTier=5 PreemptMode=OFF
PartitionName=short Nodes={nodes} MaxTime=00:01:00 PriorityTier=5 PreemptMode=OFF
PartitionName=requeued Nodes={nodes} MaxTime=1-00:00:00 PriorityTier=1 PreemptMode=REQUEUE
PartitionName=cancelled Nodes={nodes} MaxTime=1-00:00:00 PriorityTier=1 PreemptMode=CANCEL
PartitionName=graceful Nodes={nodes} MaxTime=1-00:00:00 PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes={nodes} MaxTime=1-00:00:00 PriorityTier=10 PreemptMode=OFF
"""


ACCOUNTED = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge/socket
"""
DBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=localhost
DbdPort={port}
SlurmUser={user}
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={storage}
StorageUser=root
"""


def missing(*, accounting: bool = False) -> str | None:
    """Why no SLURM can be started here; None if one can."""
    absent = [
        name for name in (*PROGRAMS, *(ACCOUNTING if accounting else ())) if shutil.which(name, path=PATH) is None
    ]
    if not absent:
        return None
    packages = "munge slurmctld slurmd slurm-client" + (
        " slurmdbd mariadb-server-core mariadb-client-core" if accounting else ""
    )
    return f"no {', '.join(absent)} here: apt-get install --no-install-recommends {packages}"


def free_ports(count: int) -> list[int]:
    """The first of several consecutive free ports."""
    for first in range(21000, 29000, count + 1):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return list(range(first, first + count))
    raise RuntimeError("no free ports between 21000 and 29000")


@dataclass
class Slurm:
    """A running cluster. `environment`: variables of a user's shell; `processes`: the daemons."""

    folder: Path
    nodes: int
    environment: dict[str, str]
    processes: dict[str, int] = field(default_factory=dict)
    ports: tuple[int, ...] = ()
    """Processes of slurmdbd and its database, if there is accounting."""

    def run(self, *arguments: str, check: bool = True) -> str:
        """Run a SLURM command; returns its output."""
        done = subprocess.run(arguments, env=self.environment, capture_output=True, text=True, check=False, timeout=120)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def start(self, name: str) -> None:
        """Start one daemon: `munged`, `slurmctld`, `n1`, ..."""
        binary = name if name in (*PROGRAMS, *ACCOUNTING) else "slurmd"
        path = shutil.which(binary, path=PATH)
        assert path is not None
        munge = self.folder / "munge"
        arguments = {
            "munged": [
                "--foreground", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket",
                f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
            ],
            "slurmctld": ["-D", "-f", self.environment["SLURM_CONF"]],
            "slurmdbd": ["-D"],
            "mariadbd": [
                "--no-defaults", f"--datadir={self.folder}/database", f"--socket={self.folder}/database.socket",
                f"--user={getpass.getuser()}", "--bind-address=127.0.0.1", f"--port={self.ports[1]}",
                "--innodb-buffer-pool-size=16M",
            ],
        }.get(name, ["-D", "-N", name, "-f", self.environment["SLURM_CONF"]])  # fmt: skip
        with open(self.folder / f"{name}.out", "ab") as log:
            process = subprocess.Popen(
                [path, *arguments], env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        self.processes[name] = process.pid
        (self.folder / "processes.json").write_text(json.dumps(self.processes))

    def kill(self, name: str) -> None:
        """Kill a daemon with SIGKILL; for a node also everything that runs on it, as in a power failure."""
        victims = [self.processes.pop(name)]
        if name.startswith("n"):
            victims += self.processes_on(name)
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: none reports the death of another
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(victims[0], 0)

    def processes_on(self, node: str) -> list[int]:
        """Process ids of jobs on a node and of their slurmstepd."""
        pids = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "environ").read_bytes().split(b"\0")
                if f"SLURM_CONF={self.environment['SLURM_CONF']}".encode() not in words:
                    continue
                if f"SLURMD_NODENAME={node}".encode() in words or self._is_stepd(entry, node):
                    pids.append(int(entry.name))
        return pids

    def _is_stepd(self, entry: Path, node: str) -> bool:
        return "slurmstepd" in (entry / "comm").read_text() and str(self.folder / f"spool-{node}") in os.readlink(
            entry / "cwd"
        )

    def wait_until_up(self) -> None:
        """Wait until all nodes are idle. Raises RuntimeError with the end of the logs."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            states = self.run("sinfo", "-h", "-p", "main", "-N", "-o", "%t", check=False).split()
            if len(states) == self.nodes and set(states) <= {"idle", "mix", "alloc"}:
                return
            time.sleep(0.2)
        logs = [path.read_text(errors="replace")[-1500:] for path in sorted(self.folder.glob("*.out"))]
        raise RuntimeError("SLURM did not come up:\n" + "\n".join(logs))

    def start_accounting(self) -> None:
        """Start a database and slurmdbd and register this cluster, before slurmctld."""
        install = shutil.which("mariadb-install-db", path=PATH)
        assert install is not None
        subprocess.run(
            [install, "--no-defaults", f"--datadir={self.folder}/database", f"--user={getpass.getuser()}",
             "--auth-root-authentication-method=normal", "--skip-test-db"],
            env=self.environment, check=True, capture_output=True,
        )  # fmt: skip
        conf = self.folder / "slurmdbd.conf"
        conf.write_text(
            DBD_CONF.format(folder=self.folder, port=self.ports[0], storage=self.ports[1], user=getpass.getuser())
        )
        conf.chmod(0o600)
        for name, port in (("mariadbd", self.ports[1]), ("slurmdbd", self.ports[0])):
            self.start(name)
            _wait_for_port(port)
        self.run("sacctmgr", "--immediate", "add", "cluster", "throwaway")

    def stop(self) -> None:
        """Stop all jobs and daemons. Files remain."""
        self.run("scancel", "--full", "--signal=KILL", "-u", getpass.getuser(), check=False)
        for node in [f"n{number}" for number in range(1, self.nodes + 1)]:
            for pid in self.processes_on(node):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for pid in reversed(self.processes.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self.processes.clear()
        (self.folder / "processes.json").unlink(missing_ok=True)


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"nothing listens on port {port}")


def up(
    folder: Path,
    nodes: int = 4,
    *,
    user_signal: bool = False,
    accounting: bool = False,
    remembered: int = 300,
    environment: Mapping[str, str] = os.environ,
) -> Slurm:
    """Start a cluster in an empty folder.

    With `user_signal` preemption sends the job's own signal, not SIGTERM; with `accounting` there is slurmdbd over a
    MariaDB; slurmctld forgets jobs `remembered` seconds after their end.
    """
    reason = missing(accounting=accounting)
    if reason is not None:
        raise RuntimeError(reason)
    for name in ("munge", "state"):
        (folder / name).mkdir(parents=True)
    for number in range(1, nodes + 1):
        (folder / f"spool-n{number}").mkdir()
    folder.chmod(0o755)
    subprocess.run(
        [shutil.which("mungekey", path=PATH) or "mungekey", "--create", f"--keyfile={folder}/munge/key"], check=True
    )
    ports = free_ports(nodes + 3)
    conf = CONF.format(
        folder=folder,
        user=getpass.getuser(),
        nodes=f"n[1-{nodes}]",
        port=ports[0],
        ports=f"[{ports[1]}-{ports[nodes]}]",
        lost=LOST_SECONDS,
        preempt="preempt_send_user_signal" if user_signal else "",
        remembered=remembered,
        accounting=ACCOUNTED.format(port=ports[-2], folder=folder) if accounting else "",
    )
    (folder / "slurm.conf").write_text("\n".join(line for line in conf.splitlines() if not line.endswith("=")) + "\n")
    clean = {name: value for name, value in environment.items() if not name.startswith(("SLURM", "SBATCH"))}
    cluster = Slurm(folder, nodes, {**clean, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")})
    cluster.ports = (ports[-2], ports[-1])
    try:
        cluster.start("munged")
        if accounting:
            cluster.start_accounting()
        for name in ("slurmctld", *(f"n{number}" for number in range(1, nodes + 1))):
            cluster.start(name)
        cluster.wait_until_up()
    except BaseException:
        cluster.stop()
        raise
    return cluster


@contextlib.contextmanager
def running(folder: Path, nodes: int = 4, **options: Any) -> Iterator[Slurm]:
    """A cluster for the duration of the context; options as of `up`."""
    cluster = up(folder, nodes, **options)
    try:
        yield cluster
    finally:
        cluster.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("up", "down"))
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/pfcluster-slurm"))
    parser.add_argument("--accounting", action="store_true", help="with slurmdbd over a MariaDB")
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.command == "up":
        cluster = up(folder, options.nodes, accounting=options.accounting)
        print(cluster.run("sinfo"))
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}")
        return 0
    processes = folder / "processes.json"
    if not processes.exists():
        print(f"error: no cluster runs in {folder}", file=sys.stderr)
        return 2
    environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
    nodes = len(list(folder.glob("spool-*")))
    Slurm(folder, nodes, environment, json.loads(processes.read_text())).stop()
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
