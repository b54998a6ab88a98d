"""Make the models that come with the package, `builtin:NAME`: train by the recipe, evaluate on the test split, export.

    python -m benchmarks.release_models --only synthetic
    python -m benchmarks.release_models --only fer2013 --data SHARDS
    python -m benchmarks.release_models --only fer2013 --data SHARDS --judge RUN
    python -m benchmarks.release_models --check --data SHARDS

trains what is missing below --runs (finished runs are used as they are), writes float16 weights, config and card into
the package, the judge and all figures into benchmarks/results. With --judge alone the committed weights stay, and their
poker faces are measured by this judge. With --check it evaluates the committed weights again
and exits with 1 if they give other figures.

All figures are those of the weights as they are stored, computed as `pfcluster predict` does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import pfcluster
from benchmarks.release_figures import Measured, differences, measure
from benchmarks.steps import processor
from pfcluster.config import ConfigError, DataConfig, presets
from pfcluster.config.io import with_values
from pfcluster.config.json_files import convert
from pfcluster.config.starts import from_mae_vit, starts_from_mae_vit
from pfcluster.inference.builtin_models import builtin_folder
from pfcluster.inference.errors import InferenceError
from pfcluster.inference.export import RunModel, export_run, read_run
from pfcluster.inference.model import Model
from pfcluster.inference.model_card import model_card
from pfcluster.inference.model_folder import read_model, with_precision, write_model
from pfcluster.inference.model_info import CARD_FILE, Figures, ModelInfo
from pfcluster.inference.torch_predictor import TorchPredictor, build_net, load_weights
from pfcluster.launch.local import run_plan
from pfcluster.launch.plan import Plan, TrainRun, stages_of
from pfcluster.runs.folder import read_config, read_result
from pfcluster.runs.provenance import git_commit

COMMAND = "python -m benchmarks.release_models"
RESULTS = Path(__file__).resolve().parent / "results"
NAME = "release_models"
MAX_BYTES = 15_000_000
"""Of all models together, in the package."""
POKER_ROW = "poker face"
MOVED = 0.001
"""Share of test images that may get another label here than on the GPU that trained the model."""


@dataclass(frozen=True)
class Release:
    """How a builtin model is made."""

    preset: str
    role: str = "pf-vit"
    """The run of the preset's recipe that becomes the model."""
    needs_data: bool = False
    """Whether it is trained on shards that --data names."""
    build: str = ""
    """The command that builds these shards."""
    seed: int = 0
    """Of the classifiers and of PF-ViT; pre-training and judge have seed 0, as in a study."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Config values besides the preset's."""


RELEASES = {
    "synthetic": Release("poker-face", seed=1, values={"data.synthetic.seed": 1}),
    "fer2013": Release(
        "fer2013",
        needs_data=True,
        build=(
            "pfcluster build --input fer2013/train.tar --test-input fer2013/public_test.tar --output SHARDS"
            " --align none --size 48 --name fer2013"
        ),
        seed=1,
    ),
}


def plan(name: str, release: Release, runs: Path, data: Path | None) -> Plan:
    """The runs of a release, below `runs`/NAME."""
    values = {**release.values, **({} if data is None else {"data.shards": str(data)})}
    recipe = {
        role: with_values(config, {"name": role, **values}) for role, config in presets.recipe(release.preset).items()
    }
    folder = runs / name
    mae, judge = (TrainRun(recipe[role], run_of(role, release, folder)) for role in ("mae", "judge"))
    start = TrainRun(
        with_values(recipe["mae-vit"], {"model.init": str(mae.folder), "seed": release.seed}),
        run_of("mae-vit", release, folder),
    )
    stages = stages_of([mae, judge] if release.role == "pf-vit" else [mae])
    if release.role == "mae-vit" or starts_from_mae_vit(recipe):
        stages += stages_of([start], ("mae",))
    if release.role == "pf-vit":
        pf_vit = with_values(recipe["pf-vit"], {"evaluate.judge": str(judge.folder), "seed": release.seed})
        from_start = starts_from_mae_vit(recipe)
        pf_vit = (
            from_mae_vit(pf_vit, str(start.folder), str(mae.folder))
            if from_start
            else with_values(pf_vit, {"model.init": str(mae.folder)})
        )
        after = ("mae", "judge", *(("mae-vit",) if from_start else ()))
        stages += stages_of([TrainRun(pf_vit, run_of("pf-vit", release, folder))], after)
    return Plan(f"{NAME} {name}", folder, tuple(stages), command_of(name, release))


def command_of(name: str, release: Release) -> str:
    """The command that repeats a release, for its card."""
    command = f"{COMMAND} --only {name}"
    if release.needs_data:
        command = f"{release.build} && {command} --data SHARDS"
    defaults = RELEASES[name]
    changed = [(option, getattr(release, option)) for option in ("preset", "role")]
    return command + "".join(f" --{option} {value}" for option, value in changed if value != getattr(defaults, option))


def write(
    name: str, release: Release, run: Path, judge: Path | None, data: Path | None, output: Path, note: str
) -> dict[str, Any]:
    """Export a finished run with its figures, and its judge; returns the record of benchmarks/results.

    Raises ValueError, also if the run's own figures cannot be repeated.
    """
    shards = None if data is None else str(data)
    exported = read_run(run, shards)
    config = read_config(run)
    own_data = config.data if shards is None else replace(config.data, shards=shards)
    judge_model = None if judge is None else _export_judge(judge, judge_file(name), shards)
    info, weights = with_precision(exported.info, exported.weights, "float16")
    stored = measure(_model(RunModel(info, weights), "the stored weights"), own_data, judge_model)
    exact = measure(_model(exported, str(run)), own_data, judge_model)
    _require_own_figures(run, exact)
    same = int((stored.predicted == exact.predicted).sum())
    info = with_figures(info, stored, exact, same, command_of(name, release), name, note)
    write_model(output / name, info, weights)
    return {
        "preset": release.preset,
        "role": release.role,
        "command": command_of(name, release),
        "date": date.today().isoformat(),
        "commit": git_commit(),
        "machine": processor(),
        "data": asdict(replace(own_data, shards=None)),
        "n": stored.test["n"],
        "correct": stored.correct,
        "correct_float32": exact.correct,
        "same_label": same,
        "judge": None if judge is None else judge_file(name).name,
        "bytes": sum(path.stat().st_size for path in (output / name).iterdir()),
        "weights_sha256": info.weights_sha256,
        "figures": stored.figures(),
    }


def judge_again(
    name: str, record: Mapping[str, Any], judge: Path, data: Path | None, output: Path, note: str
) -> dict[str, Any]:
    """Measure the poker faces of a committed model by the finished run `judge`, for config, card and record; returns
    the record. The weights stay. A `note` takes the place of the card's.
    """
    shards = None if data is None else str(data)
    own_data = replace(convert(DataConfig, dict(record["data"]), f"data of {name}"), shards=shards)
    judge_model = _export_judge(judge, judge_file(name), shards)
    info, weights = read_model(output / name)
    measured = measure(_model(RunModel(info, weights), str(output / name)), own_data, judge_model)
    assert measured.poker is not None
    notes = (*info.notes[:2], note) if note else info.notes
    write_model(output / name, replace(info, poker_faces=_poker_row(measured), notes=notes), weights)
    size = sum(path.stat().st_size for path in (output / name).iterdir())
    return {**record, "judge": judge_file(name).name, "bytes": size, "figures": measured.figures()}


def _poker_row(measured: Measured) -> dict[str, float | int | str | None] | None:
    """Figures of the poker faces for the card."""
    rows = {} if measured.poker is None else measured.poker["rows"]
    return {metric: value for metric, value in rows.get(POKER_ROW, {}).items() if value is not None} or None


def _export_judge(run: Path, file: Path, shards: str | None) -> Model:
    export_run(run, file, precision="float16", shards=shards)
    return pfcluster.load(file, device="cpu")


def _model(model: RunModel, source: str) -> Model:
    net = build_net(model.info)
    load_weights(net, model.weights, model.info, source)
    return Model(TorchPredictor(model.info, net, "cpu"))


def _require_own_figures(run: Path, measured: Measured) -> None:
    """Raises ConfigError if the run's own test figures are others; those of a GPU may differ in a few labels."""
    result = read_result(run) or {}
    own = result.get("test")
    if own is None:
        return
    moved = sum(
        abs(ours - theirs)
        for row, other in zip(measured.test["confusion"], own["confusion"], strict=True)
        for ours, theirs in zip(row, other, strict=True)
    )
    if moved > (2 * MOVED * own["n"] if result.get("device") == "cuda" else 0):
        raise ConfigError(
            f"{run} reports an accuracy of {own['accuracy']:.5f} on its test split, and it is"
            f" {measured.test['accuracy']:.5f} here: --data is not what it was trained on, or the run is damaged"
        )


def with_figures(
    info: ModelInfo, stored: Measured, exact: Measured, same: int, command: str, name: str, note: str
) -> ModelInfo:
    """The config of a release: figures of the stored weights, the command, and what the card says besides."""
    test = stored.test
    figures = Figures(
        split="test",
        n=test["n"],
        **{metric: test[metric] for metric in ("accuracy", "mean_class_accuracy", "macro_f1", "per_class")},
    )
    notes = (
        f"It comes with pfcluster: `pfcluster predict photos/ --model builtin:{name}`,"
        f' `pfcluster.load("builtin:{name}")`.',
        f"The figures below are those of the released float16 weights: {stored.correct:,} of {test['n']:,} images"
        f" right. The float32 weights of the run have {exact.correct:,} right, and give {same:,} images the same"
        " label.",
        *((note,) if note else ()),
    )
    training = replace(info.training, command=command)
    return replace(
        info,
        name=name,
        figures=figures,
        no_figures=None,
        over_seeds=None,
        poker_faces=_poker_row(stored),
        training=training,
        notes=notes,
    )


def judge_file(name: str) -> Path:
    """The judge that measured a model's poker faces."""
    return RESULTS / f"{NAME}_{name}_judge.safetensors"


def check(name: str, record: Mapping[str, Any], folder: Path, data: Path | None) -> list[str]:
    """Differences between a committed model and its figures; empty if there are none."""
    try:
        model = pfcluster.load(folder, device="cpu")
        judge = None if record["judge"] is None else pfcluster.load(RESULTS / record["judge"], device="cpu")
    except InferenceError as error:
        return [str(error)]
    info, problems = model.info, []
    if info.weights_sha256 != record["weights_sha256"]:
        problems.append("the weights are not those of benchmarks/results")
    if (folder / CARD_FILE).read_text() != model_card(info):
        problems.append(f"{CARD_FILE} is not the card of its config")
    if info.figures is None or info.figures.accuracy != record["figures"]["accuracy"]:
        problems.append("the card's accuracy is not that of benchmarks/results")
    own_data = convert(DataConfig, dict(record["data"]), f"data of {name}")
    own_data = own_data if data is None else replace(own_data, shards=str(data))
    measured = measure(model, own_data, judge)
    print(f"{name}: {measured.correct} of {measured.test['n']} right, committed {record['correct']} of {record['n']}")
    if measured.test["n"] != record["n"]:
        problems.append(f"{record['n']} images committed, {measured.test['n']} measured")
    return problems + differences(record["figures"], measured.figures())


def markdown(records: Mapping[str, Mapping[str, Any]]) -> str:
    """release_models.md from the content of release_models.json."""
    columns = ("accuracy", "mean_class_accuracy", "macro_f1", "poker_neutralised_rate", "rec_emotion_agreement")
    lines = [
        "# Models that come with the package",
        "",
        "Test split, one seed, float16 weights; names as in docs/reference/metrics.md, `rec`: of the reconstructions."
        " `same label`: images to which the run's float32 weights give the same one. Check with",
        "",
        f"    {COMMAND} --check --data SHARDS",
        "",
        f"| model | images | {' | '.join(columns)} | same label | size | date, commit |",
        f"| --- | ---: | {' | '.join('---:' for _ in columns)} | ---: | ---: | --- |",
        *(_row(name, record, columns) for name, record in sorted(records.items())),
        "",
        *_commands(records),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _row(name: str, record: Mapping[str, Any], columns: tuple[str, ...]) -> str:
    figures = record["figures"]
    shares = [f"{100 * figures[column]:.1f} %" if column in figures else "–" for column in columns]
    cells = [f"`builtin:{name}`", f"{record['n']:,}", *shares, f"{record['same_label']:,}"]
    cells += [f"{record['bytes'] / 1e6:.2f} MB", f"{record['date']}, {str(record['commit'])[:12]}"]
    return f"| {' | '.join(cells)} |"


def _commands(records: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, record in sorted(records.items()):
        yield f"`builtin:{name}`, figures measured on {record['machine']}:"
        yield ""
        yield f"    {record['command']}"
        yield ""


def read_records() -> dict[str, Any]:
    """Content of release_models.json."""
    path = RESULTS / f"{NAME}.json"
    records: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return records


def write_records(records: Mapping[str, Any]) -> None:
    """Write release_models.json and its table."""
    (RESULTS / f"{NAME}.json").write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
    (RESULTS / f"{NAME}.md").write_text(markdown(records))


def run_of(role: str, release: Release, folder: Path) -> Path:
    """The run folder of a role."""
    return folder / role / f"seed-{0 if role in ('mae', 'judge') else release.seed}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("--only", nargs="+", choices=RELEASES, help="only these models; default: all")
    command.add_argument("--check", action="store_true", help="only evaluate the committed models")
    command.add_argument("--runs", type=Path, default=Path("runs/release"), help="folder of the runs")
    command.add_argument("--output", type=Path, default=builtin_folder(), help="folder of the models")
    command.add_argument("--data", type=Path, help="shards of FER2013, with its public test as test split")
    command.add_argument("--preset", choices=presets.PRESETS, help="another recipe; needs --only with one model")
    command.add_argument("--role", choices=("mae-vit", "pf-vit"), help="another run of it; needs --only with one model")
    command.add_argument("--run", type=Path, help="export this finished run instead of training one, with --judge")
    command.add_argument(
        "--judge", type=Path, help="the judge of --run; without --run: measure the committed model anew"
    )
    command.add_argument("--note", default="", help="a sentence for the card")
    command.add_argument("--max-parallel", type=int, default=os.cpu_count() or 1, help="runs at the same time")
    return command


def main() -> int:
    """Train and write, or check. Exit code 1 if figures differ, 2 for wrong options, 130 if interrupted."""
    command = parser()
    options = command.parse_args()
    records = read_records()
    names = options.only or list(records if options.check else RELEASES)
    if len(names) > 1 and (options.preset or options.role or options.run or options.judge or options.note):
        command.error("--preset, --role, --run, --judge and --note are for one model: name it with --only")
    for name in names:
        if RELEASES[name].needs_data and options.data is None:
            command.error(
                f"{name} needs --data SHARDS; build them with `{RELEASES[name].build}`, or name others with --only"
            )
    if options.check:
        return _check(names, records, options.output, options.data)
    for name in names:
        release = RELEASES[name]
        release = replace(release, preset=options.preset or release.preset, role=options.role or release.role)
        data = options.data if release.needs_data else None
        run, judge = options.run, options.judge
        if run is None and judge is not None:
            records[name] = judge_again(name, records[name], judge, data, options.output, options.note)
            write_records(records)
            print(f"{options.output / name}: measured by {judge}")
            continue
        if run is None:
            if not run_plan(plan(name, release, options.runs, data), processes=1, max_parallel=options.max_parallel):
                return 130
            run = run_of(release.role, release, options.runs / name)
            judge = run_of("judge", release, options.runs / name) if release.role == "pf-vit" else None
        records[name] = write(name, release, run, judge, data, options.output, options.note)
        write_records(records)
        print(f"{options.output / name}: {records[name]['correct']} of {records[name]['n']} test images right")
    return 0


def _check(names: list[str], records: Mapping[str, Any], folder: Path, data: Path | None) -> int:
    problems = []
    for name in names:
        if name not in records:
            problems.append(f"{name}: there is no such model yet")
            continue
        shards = data if RELEASES[name].needs_data else None
        problems += [f"{name}: {problem}" for problem in check(name, records[name], folder / name, shards)]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        problems.append(f"the models have {size:,} bytes together, more than {MAX_BYTES:,}")
    print("\n".join(problems) or "the committed models give the committed figures")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
