"""Whatever happens to a JSON file, reading it works or ends in a sentence that names the file."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest

from pfcluster.cli.watch import table
from pfcluster.config import RunConfig, presets
from pfcluster.config.io import load, to_json
from pfcluster.config.json_files import JsonFileError, record_of
from pfcluster.config.overrides import read_overrides
from pfcluster.data.build.make_shard import ShardResult
from pfcluster.data.build.plan import Plan as BuildPlan
from pfcluster.data.build.shard_writer import read_checksummed, write_checksummed
from pfcluster.data.inspect.quality import read_enlargements
from pfcluster.data.manifest import ShardError, load_manifest
from pfcluster.data.shards import ShardSplit
from pfcluster.experiments.matrix import plan_runs
from pfcluster.experiments.record import make_record, write_record
from pfcluster.experiments.results import read_results
from pfcluster.experiments.tables import all_tables
from pfcluster.launch import attempts
from pfcluster.launch.attempts import Failure
from pfcluster.launch.errors import LaunchError
from pfcluster.launch.job_record import JobRecord, read_job, write_job
from pfcluster.launch.plan import Plan, Stage, TrainRun
from pfcluster.launch.plan_record import write_plan
from pfcluster.launch.slurm.task import read_task
from pfcluster.launch.status import overview
from pfcluster.report.csv_rows import group_row, run_rows
from pfcluster.report.rendering import csv_text
from pfcluster.report.study import read_report
from pfcluster.report.write import report_markdown
from pfcluster.runs import provenance
from pfcluster.runs.early_stop import EarlyStop, read_early_stop, write_early_stop
from pfcluster.runs.folder import write_progress
from pfcluster.runs.metrics_file import MetricsTail, append_metrics, last_trained_step, read_metrics, truncate_metrics
from pfcluster.runs.output_inputs import input_states, is_made_from, record_inputs
from pfcluster.sweep.report.csv_rows import confirmed_rows, trial_rows
from pfcluster.sweep.report.data import read_sweep
from pfcluster.sweep.report.findings import findings
from pfcluster.sweep.report.notices import notices
from pfcluster.sweep.report.tables import confirmation_table, trials_table, values_table
from tests.json_damage import damage
from tests.studies import poker, write_run
from tests.sweep_folders import write_sweep
from tests.unit.test_experiments import real_settings


@dataclass(frozen=True)
class Inner:
    kind: Literal["a", "b"]


@dataclass(frozen=True)
class Outer:
    number: int
    inner: tuple[Inner, ...] = ()
    pair: tuple[int, str] | None = None
    shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """One kind of JSON file, and what reads it."""

    file: Path
    read: Callable[[], Any]


def trial(kind: Kind, original: bytes, random: Random) -> str:
    """Damage a file, read it, restore it. -> "read" or "named"; raises AssertionError for any other outcome."""
    kind.file.write_bytes(damaged := damage(original, random))
    try:
        kind.read()
    except (ValueError, LaunchError, OSError) as error:
        message = str(error)
        assert kind.file.name in message, f"{message!r} for {damaged[:300]!r}"
        assert "\n" not in message, message
        return "named"
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error} for {damaged[:2000]!r}") from error
    finally:
        kind.file.write_bytes(original)
    return "read"


def report(study: Path) -> None:
    """The texts of a report; its figures are drawn from the same values."""
    content = read_report(study)
    report_markdown(content, content.notices)
    csv_text(run_rows(content))
    csv_text([group_row(group) for group in content.groups])


def sweep_report(folder: Path) -> None:
    """The parts of a sweep's report that take no time; the others compute on the same values."""
    data = read_sweep(folder)
    for part in (findings, notices, confirmation_table, values_table, trials_table):
        part(data)
    csv_text(trial_rows(data))
    csv_text(confirmed_rows(data))


def state_of_plan(folder: Path) -> None:
    table(overview(folder))


def metrics(folder: Path) -> None:
    read_metrics(folder)
    last_trained_step(folder)
    MetricsTail(folder).new_lines()
    truncate_metrics(folder, 3)


def tables(root: Path) -> None:
    all_tables(read_results(root))


def shards(folder: Path) -> None:
    """All that is checked before a sample is read."""
    for name in load_manifest(folder).splits:
        split = ShardSplit(folder, name)
        split.labels(), split.identities(), [split.key(index) for index in range(len(split))]


def study_kinds(root: Path) -> dict[str, Kind]:
    """The files of a study's runs, of its launcher and of its report."""
    study, config = root / "study", RunConfig(name="mae-vit")
    runs = [write_run(study, "mae-vit", seed, poker=poker(0.1)) for seed in (0, 1)]
    write_run(study, "scratch", 0)
    run, stage = runs[0], TrainRun(config, runs[0])
    write_plan(Plan("p", study, (Stage("mae-vit", (stage,)),), "pfcluster study"), "local", {})
    (study / "pictures").mkdir()
    pictures = [{"file": "a.png", "section": "s", "caption": "c"}]
    (study / "pictures/pictures.json").write_text(json.dumps(pictures))
    for step in (1, 2, 3):
        append_metrics(run, "train", step, 0.5, {"loss": 0.3, "images_per_second": 80.0})
        append_metrics(run, "validation", step, 0.5, {"accuracy": 0.3})
    write_progress(run, 3, "train")
    (run / "logs").mkdir()
    (run / "logs/exit-status-0.json").write_text(json.dumps({"code": 1, "kind": "bug", "error": "no"}))
    write_early_stop(run, EarlyStop(3, "enough"))
    write_job(run, JobRecord("12", 1))
    attempt = attempts.begin(run, "12", 0, "node")
    attempts.end(run, attempt, "failed", kind="bug", error="x")
    attempts.write_failure(run, 1, Failure(0, "node", "bug", "x"))
    provenance.write(run, "pfcluster")
    task = {"label": "mae", "command": "pfcluster", "module": "pfcluster", "arguments": ["report"]}
    (run / "task.json").write_text(json.dumps(task))
    (run / "requested_config.json").write_text(to_json(config))
    output = run / "out.html"
    output.touch()
    record_inputs(output, input_states([run / "config.json"]))
    (root / "config.json").write_text(to_json(config))
    return {
        "result": Kind(run / "result.json", lambda: report(study)),
        "config of a reported run": Kind(run / "config.json", lambda: report(study)),
        "config": Kind(root / "config.json", lambda: load(root / "config.json")),
        "requested config": Kind(run / "requested_config.json", lambda: state_of_plan(study)),
        "metrics": Kind(run / "metrics.jsonl", lambda: (metrics(run), state_of_plan(study))),
        "progress": Kind(run / "progress.json", lambda: state_of_plan(study)),
        "exit status": Kind(run / "logs/exit-status-0.json", lambda: state_of_plan(study)),
        "early stop": Kind(run / "early_stop.json", lambda: read_early_stop(run)),
        "job": Kind(run / "job.json", lambda: read_job(run)),
        "task": Kind(run / "task.json", lambda: read_task(run)),
        "attempt": Kind(run / "attempts/001.json", lambda: (attempts.read(run), state_of_plan(study))),
        "failure of a rank": Kind(run / "attempts/001.rank-0.json", lambda: attempts.failures(run, 1)),
        "provenance": Kind(run / "provenance.json", lambda: provenance.write(run, "x")),
        "plan": Kind(study / "plan.json", lambda: state_of_plan(study)),
        "pictures": Kind(study / "pictures/pictures.json", lambda: report(study)),
        "inputs": Kind(run / ".out.html.inputs.json", lambda: is_made_from(output, [run / "config.json"])),
    }


def sweep_kinds(root: Path) -> dict[str, Kind]:
    folder = root / "sweep"
    write_sweep(folder, "--trials", "6", failed=(3,), fresh={0: (0.5, 0.51, 0.52), 1: (0.6, 0.61, 0.62)})
    winner = root / "winner.json"
    winner.write_text(json.dumps({"preset": "mini", "overrides": {"epochs": 6.0, "pf-vit:pf_mag.weights.adv": 0.05}}))
    read = lambda: sweep_report(folder)  # noqa: E731
    return {
        "sweep": Kind(folder / "sweep.json", read),
        "trials": Kind(folder / "trials.json", read),
        "confirmed": Kind(folder / "confirmed.json", read),
        "failed": Kind(next(folder.glob("trials/*/*/failed.json")), read),
        "result of a trial": Kind(folder / "trials/001/seed-0/result.json", read),
        "metrics of a trial": Kind(folder / "trials/001/seed-0/metrics.jsonl", read),
        "overrides": Kind(winner, lambda: read_overrides(winner).apply(presets.recipe("mini"))),
    }


def shard_kinds(root: Path, built: Path) -> dict[str, Kind]:
    folder = root / "shards"
    shutil.copytree(built, folder)
    plan = {
        "identity": {},
        "plan": {"classes": ["a"], "photos": 0, "known_identities": 0, "shards": [], "left_out": []},
    }
    write_checksummed(root / "plan.json", plan)
    result = {"file": vars(load_manifest(folder).splits["train"].shards[0]), "per_class": {}, "identities": []}
    write_checksummed(root / "train-00000.done.json", {**result, "left_out": []})

    def read_named(path: Path, make: Callable[[Any], Any]) -> None:
        try:
            value = read_checksummed(path)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        make(value)

    return {
        "manifest": Kind(folder / "manifest.json", lambda: shards(folder)),
        "index": Kind(folder / "train-00000.index.json", lambda: shards(folder)),
        "plan of a build": Kind(
            root / "plan.json", lambda: read_named(root / "plan.json", lambda value: BuildPlan.from_json(value["plan"]))
        ),
        "marker of a shard": Kind(
            root / "train-00000.done.json", lambda: read_named(root / "train-00000.done.json", ShardResult.from_json)
        ),
    }


def experiment_kinds(root: Path) -> dict[str, Kind]:
    root = root / "reproduced"
    settings = real_settings(root, datasets={"rafdb": {}, "ferplus": {}}, unavailable={"timm": "no network here"})
    write_record(root, make_record(settings, plan_runs(settings), "the command", miniature=False))
    folder = write_run(root / "made", "mae-vit", settings.seeds[0])
    target = root / f"rafdb/mae-vit/seed-{settings.seeds[0]}"
    target.parent.mkdir(parents=True)
    folder.rename(target)
    (root / "measured").mkdir()
    row = {"cell": "mae-vit", "seed": settings.seeds[0], "trained": "rafdb", "tested": "ferplus"}
    row |= {"accuracy": 0.5, "mean_class_accuracy": 0.4, "n": 8}
    (root / "measured/cross.json").write_text(json.dumps([row]))
    speed = {"batch": 1, "forward_ms": 1.5, "step_ms": 4.5}
    cost = {"train_parameters": 10, "test_parameters": 9, "step_gflop": 1.0, "test_gflop": 0.3, "speeds": [speed]}
    (root / "measured/costs.json").write_text(json.dumps({"mae-vit (cpu)": cost}))
    return {
        "reproduction": Kind(root / "reproduce.json", lambda: tables(root)),
        "accuracy on other datasets": Kind(root / "measured/cross.json", lambda: tables(root)),
        "costs": Kind(root / "measured/costs.json", lambda: tables(root)),
    }


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Mapping[str, Kind]:
    root = tmp_path_factory.mktemp("json")
    every = study_kinds(root) | sweep_kinds(root) | shard_kinds(root, built) | experiment_kinds(root)
    assert set(every) == set(NAMES)
    return every


NAMES = (
    "result", "config of a reported run", "config", "requested config", "metrics", "progress", "exit status",
    "early stop", "job", "task", "attempt", "failure of a rank", "provenance", "plan", "pictures", "inputs", "sweep",
    "trials", "confirmed", "failed", "result of a trial", "metrics of a trial", "overrides", "manifest", "index",
    "plan of a build", "marker of a shard", "reproduction", "accuracy on other datasets", "costs",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_read_or_named(name: str, kinds: Mapping[str, Kind]) -> None:
    kind = kinds[name]
    original = kind.file.read_bytes()
    kind.read()
    kind.file.write_bytes(original)
    for number in range(3):
        trial(kind, original, Random(f"{name} {number}"))


@pytest.mark.filterwarnings("ignore:.*this attempt is ignored")
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_of_a_thousand_damaged_files_each_is_read_or_named(name: str, kinds: Mapping[str, Kind]) -> None:
    original = kinds[name].file.read_bytes()
    outcomes = [trial(kinds[name], original, Random(f"{name} {number}")) for number in range(3, 39)]
    assert len(outcomes) * len(NAMES) > 1000


def test_a_damaged_record_of_a_sample_is_read_or_named(built: Path, tmp_path: Path) -> None:
    shard = load_manifest(built).splits["train"].shards[0]
    original = json.dumps({"label": "fear", "identity": "x", "box": [0, 0, 20, 30]}).encode()
    for number in range(60):
        content = damage(original, Random(number))
        with tarfile.open(tmp_path / shard.file, "w") as tar:
            member = tarfile.TarInfo("train-0.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        with suppress(ShardError):
            read_enlargements(tmp_path, [shard], 24)


def test_a_record_is_checked_field_by_field() -> None:
    whole = {"number": 1, "inner": [{"kind": "a"}], "pair": [1, "x"], "shares": {"a": 1}}
    assert record_of(Outer, whole, "f") == Outer(1, (Inner("a"),), (1, "x"), {"a": 1.0})
    for change, message in (
        ({"number": True}, "f: number must be an integer, got True"),
        ({"number": 1.0}, "f: number must be an integer, got 1.0"),
        ({"inner": [{"kind": "c"}]}, r"f: inner\[0\].kind must be one of a, b, got 'c'"),
        ({"inner": [{}]}, r"f: the field inner\[0\].kind is missing"),
        ({"inner": {}}, "f: inner must be a list, got {}"),
        ({"pair": [1]}, "f: pair must be a list of 2 values"),
        ({"shares": {"a": "x"}}, "f: shares.a must be a number"),
        ({"extra": 1}, "f: unknown field extra; the fields are number, inner"),
    ):
        with pytest.raises(JsonFileError, match=message):
            record_of(Outer, whole | change, "f")
