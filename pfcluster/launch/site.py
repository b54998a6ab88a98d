"""Settings of a site for all jobs, from a TOML file (docs/guides/slurm.md).

partition = "gpu"
account = "faces"
gpus_per_node = 8
setup = ["module load cuda/12.4"]
secrets = ["HF_TOKEN"]

[environment]
NCCL_SOCKET_IFNAME = "ib0"

[run.mae]
time = "3-00:00:00"
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pfcluster.config import ConfigError
from pfcluster.launch.slurm_client import SlurmError, minutes
from pfcluster.system.credentials import hide_credentials
from pfcluster.system.home import home_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PLACES = (Path("pfcluster.toml"), Path(".config/pfcluster.toml"))
"""Places of the file, if neither --site nor $PFCLUSTER_SITE names one: in the working and in the home folder."""
SUSPICIOUS = re.compile(r"TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
"""Not TOKENIZERS_PARALLELISM."""
LAUNCHER_OPTIONS = (
    "job-name",
    "output",
    "error",
    "array",
    "dependency",
    "signal",
    "nodes",
    "ntasks-per-node",
    "open-mode",
    "requeue",
)
"""Options of sbatch that the launcher sets itself."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Settings of all jobs; `run` holds those of single runs by name."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    """Nodes that are not used."""
    time: str | None = None
    """Time limit of one job, in SLURM's notation; longer runs continue in further jobs. None: the partition's limit, at
    most a day."""
    nodes: int | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    """Memory of a node, in SLURM's notation."""
    signal_seconds: int = 120
    """Seconds before the time limit at which a job is signalled to write a checkpoint and stop."""
    requeue: bool = True
    """False if the site forbids requeueing; runs then continue in new jobs."""
    python: str | None = None
    """Command that starts Python in a job, such as "apptainer exec --nv /images/pf.sif python"; None: this Python."""
    setup: tuple[str, ...] = ()
    """Shell lines at the start of a job, such as "module load cuda"."""
    srun: tuple[str, ...] = ()
    """Arguments of srun, such as "--container-image=..."."""
    scratch: str | None = None
    """Folder on the nodes for decoded and downloaded data; may contain variables of the job, such as $SLURM_TMPDIR."""
    secrets: tuple[str, ...] = ()
    """Names of environment variables that jobs need and that must not appear in any file or log."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of every job."""
    sbatch: Mapping[str, Any] = field(default_factory=dict)
    """Further options of sbatch by their long names; true for options without a value."""
    run: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings of single runs and stages by name: mae, judge, shards, report, ..."""
    source: str = "no site file"

    def __post_init__(self) -> None:
        for name, value in self.environment.items():
            if SUSPICIOUS.search(name) or hide_credentials(str(value)) != str(value):
                raise ConfigError(
                    f"{self.source}: [environment] {name} looks like a secret or holds one, and would stand in the"
                    f" job's script;"
                    f' set it in your shell and write secrets = ["{name}"]'
                )
        reserved = [name for name in self.sbatch if name.replace("_", "-") in LAUNCHER_OPTIONS]
        if reserved:
            raise ConfigError(f"{self.source}: [sbatch] {reserved[0]} is set by the launcher itself; remove it")
        for name in ("nodes", "gpus_per_node", "cpus_per_task"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{self.source}: {name} must be at least 1, got {value}")
        if not 5 <= self.signal_seconds <= 3600:
            raise ConfigError(f"{self.source}: signal_seconds must lie in 5..3600, got {self.signal_seconds}")
        if self.time is not None:
            try:
                minutes(self.time)
            except SlurmError as error:
                raise ConfigError(f"{self.source}: {error}") from error

    def for_run(self, name: str) -> Site:
        """The settings of one run or stage."""
        return replace(self, run={}, **checked(self.run.get(name, {}), f"{self.source}, [run.{name}]", deep=False))

    def with_options(self, options: Mapping[str, Any]) -> Site:
        """The settings overridden by options that are not None. Options also override the settings of single runs."""
        given = {name: value for name, value in options.items() if value is not None}
        runs = {
            name: {key: value for key, value in values.items() if key not in given} for name, values in self.run.items()
        }
        return replace(self, run=runs, **given)


def checked(values: Mapping[str, Any], source: str, *, deep: bool = True) -> dict[str, Any]:
    """Check keys and types of a table of the file. Raises ConfigError that names the key."""
    kinds = {each.name: str(each.type) for each in fields(Site) if each.name != "source"}
    if not deep:
        kinds.pop("run")
    typed: dict[str, Any] = {}
    for name, value in values.items():
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(kinds))}"
            raise ConfigError(f"{source}: unknown setting {name}{hint}")
        typed[name] = _typed(name, value, kinds[name], source)
    return typed


def _typed(name: str, value: Any, kind: str, source: str) -> Any:
    if kind.startswith("tuple"):
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise ConfigError(f"{source}: {name} must be a list of strings, got {value!r}")
        return tuple(value)
    if kind.startswith("Mapping"):
        if not isinstance(value, dict):
            raise ConfigError(f"{source}: {name} must be a table [{name}], got {value!r}")
        if name == "environment":
            return {key: str(each) for key, each in value.items()}
        if name == "run":
            return {key: checked(each, f"{source}, [run.{key}]", deep=False) for key, each in value.items()}
        return dict(value)
    expected = {"str": str, "int": int, "bool": bool}[kind.split(" |")[0]]
    if expected is str and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise ConfigError(f"{source}: {name} must be {expected.__name__}, got {value!r}")
    return value


def load_site(path: Path | None) -> Site:
    """Read the site file: `path`, else $PFCLUSTER_SITE, else the first of PLACES that exists. Raises ConfigError."""
    named = path or (Path(os.environ["PFCLUSTER_SITE"]) if os.environ.get("PFCLUSTER_SITE") else None)
    home = home_folder()
    places = (PLACES[0], *(() if home is None else (home / PLACES[1],)))
    existing = [place for place in places if place.is_file()]
    if named is None and not existing:
        return Site()
    file = named or existing[0]
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"site file {file} cannot be read: {error.strerror}; pass --site FILE") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"site file {file} is not TOML: {error}") from error
    return Site(source=str(file), **checked(values, str(file)))
