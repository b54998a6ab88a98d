"""Writes the folders of sweeps that were never run: by default thirty trials under ASHA, two of them failed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from pfcluster.config.io import to_json
from pfcluster.sweep import asha, pbt
from pfcluster.sweep.asha import EvalSchedule, Progress
from pfcluster.sweep.confirm import CONFIRMED
from pfcluster.sweep.options import read
from pfcluster.sweep.report.data import COMMAND
from pfcluster.sweep.space import baseline
from pfcluster.sweep.spec import save
from pfcluster.sweep.state import SweepState
from pfcluster.sweep.trials import Failed, Stop, Trial, write_failed, write_trials

OPTIONS = (
    "--space", "loss_weights", "--space", "pf_mag.r1=choice:0,0.1,1", "--preset", "mini", "--trials", "30",
    "--evaluate.n-poker-faces", "64", "--fresh-seeds", "100", "101", "102",
)  # fmt: skip
FACES = {"name": "synthetic", "classes": ["neutral", "happiness"], "train": 2400, "validation": 400, "test": 800}
TOTAL, EVERY = 450, 38
"""Steps of a run and between its evaluations: 2400 faces in batches of 32, six epochs, two evaluations per epoch."""


def write_sweep(
    folder: Path,
    *options: str,
    failed: Sequence[int] = (7, 19),
    running: Sequence[int] = (),
    fresh: dict[int, Sequence[float]] | None = None,
    test: bool = True,
    identity: bool = True,
) -> SweepState:
    """Write a sweep. failed, running: trial numbers. fresh: scores on the fresh seeds by trial number, the baseline
    being 0; None omits the confirmation. test: whether the test split was measured. identity: whether there was an
    identity net.
    """
    spec = read([*OPTIONS, *options, "--output", str(folder)]).spec
    save(spec, folder)
    (folder / COMMAND).write_text("pfcluster sweep --space loss_weights\n")
    first = baseline(spec.space, spec.stages())
    trials = [Trial(number, pbt.draw(spec, first, number)) for number in range(spec.trials)]
    write_trials(folder, trials)
    state = SweepState(spec, folder, lambda _: EvalSchedule(TOTAL, EVERY))
    for trial in trials:
        for seed in spec.seeds:
            run_folder = state.runs.folder_of(trial, seed)
            if trial.number in failed:
                write_failed(run_folder, Failed("memory", "out of memory: 3.1 GiB requested"))
                write_curve(run_folder, curve_of(trial, seed)[:2])
            elif trial.number in running:
                write_curve(run_folder, curve_of(trial, seed)[:1])
            else:
                write_curve(run_folder, curve_of(trial, seed))
                write_result(state, trial, seed, identity=identity)
    if spec.scheduler == "asha":
        stop(state, {*failed, *running})
    if fresh is not None:
        confirm(state, fresh, test=test, identity=identity)
    return state


def write_population(folder: Path) -> SweepState:
    """A population: four members, two generations; trial 5, which continues trial 1, and the baseline are confirmed."""
    options = [*OPTIONS, "--scheduler", "pbt", "--trials", "4", "--generations", "2", "--confirm", "1"]
    spec = read([*options, "--output", str(folder)]).spec
    save(spec, folder)
    start = baseline(spec.space, spec.stages())
    first = [Trial(number, pbt.draw(spec, start, number), until=300) for number in range(4)]
    second = [Trial(4 + number, first[number].values, parent=number) for number in range(4)]
    write_trials(folder, [*first, *second])
    state = SweepState(spec, folder, lambda _: EvalSchedule(TOTAL, EVERY))
    for trial in state.trials:
        run_folder = state.runs.folder_of(trial, 0)
        points = curve_of(trial, 0)
        write_curve(run_folder, [one for one in points if (one[0] <= 300) == (trial.until is not None)])
        write_result(state, trial, 0, **({} if trial.until is None else {"status": "stopped", "steps": 300}))
    confirm(state, {0: (0.56, 0.55, 0.57), 5: (0.57, 0.56, 0.58)}, test=True, identity=True)
    return state


def stop(state: SweepState, absent: set[int]) -> None:
    """Stop the trials that ASHA would stop. absent: trials without scores."""
    rungs = [step for step in state.rungs(state.trials[0]) if step is not None]
    progress = []
    for trial in state.trials:
        curves = [curve_of(trial, seed) for seed in state.spec.seeds]
        at = [sum(max(v for s, v in one if s <= rung) for one in curves) / len(curves) for rung in rungs]
        progress.append(Progress(() if trial.number in absent else tuple(at), True))
    stopped, _ = asha.decide(progress, state.spec.reduction, len(rungs))
    for number, decision in stopped.items():
        reason = f"{decision.better} of the {decision.among} trials up to this one were better there"
        trial = state.trials[number]
        state.trials[number] = Trial(trial.number, trial.values, stop=Stop(rungs[decision.rung], reason))
        for seed in state.spec.seeds:
            run_folder = state.runs.folder_of(trial, seed)
            values = json.loads((run_folder / "result.json").read_text())
            ended = {"status": "stopped", "steps": rungs[decision.rung], "seconds": 12.0}
            kept = {name: values[name] for name in ("name", "seed", "dataset")}
            (run_folder / "result.json").write_text(json.dumps(kept | ended))
            write_curve(run_folder, [point for point in curve_of(trial, seed) if point[0] <= rungs[decision.rung]])
    write_trials(state.folder, state.trials)


def quality(trial: Trial) -> float:
    """Mean score of a configuration: best for a small adversarial and a large reconstruction weight."""
    adv, rec = (math.log10(trial.values[f"pf_mag.weights.{name}"]) for name in ("adv", "rec"))
    return 0.58 - 0.04 * (adv + 1.2) ** 2 - 0.02 * (rec - 0.4) ** 2


def curve_of(trial: Trial, seed: int) -> list[tuple[int, float]]:
    random = Random(f"{trial.number}/{seed}")
    steps = [*range(EVERY, TOTAL, EVERY), TOTAL]
    final, offset = quality(trial), random.gauss(0, 0.012)
    return [
        (step, round(0.14 + (final - 0.14) * (1 - math.exp(-step / 110)) + offset + random.gauss(0, 0.006), 4))
        for step in steps
    ]


def write_curve(run_folder: Path, points: Sequence[tuple[int, float]]) -> None:
    run_folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"split": "validation", "step": step, "accuracy": value, "macro_f1": value - 0.03} for step, value in points
    ]
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_result(state: SweepState, trial: Trial, seed: int, **changes: Any) -> None:
    """Write the result of a completed run. identity: whether there was an identity net."""
    run_folder = state.runs.folder_of(trial, seed)
    identity = changes.pop("identity", True)
    train_run = state.runs.run_of(trial, seed, test=changes.get("measured_on") == "test")
    score = max(value for _, value in curve_of(trial, seed))
    rec = math.log10(trial.values["pf_mag.weights.rec"])
    identity_cosine = round(0.75 + 0.08 * rec, 4) if identity else None
    face = {
        "neutral_rate": round(0.72 - 0.11 * rec, 4),
        "identity_cosine": identity_cosine,
        "mse_inside": round(0.11 - 0.012 * rec, 4),
    }
    rows = {
        "input": {"neutral_rate": 0.13, "identity_cosine": None, "mse_inside": 0.18},
        "reconstruction": {"neutral_rate": 0.2, "identity_cosine": 0.93 if identity else None, "mse_inside": 0.16},
        "poker face": face,
        "truth": {"neutral_rate": 0.9, "identity_cosine": 0.97 if identity else None, "mse_inside": 0.0},
    }
    result = {
        "format": 1, "name": trial.name, "objective": "pf_mag", "seed": seed, "status": "finished", "steps": TOTAL,
        "seconds": 40.0, "dataset": FACES, "validation": {"accuracy": score, "macro_f1": score - 0.03},
        "poker": {"n": 64, "rows": rows}, "measured_on": "validation", "command": "pfcluster sweep",
    }  # fmt: skip
    run_folder.mkdir(parents=True, exist_ok=True)
    (run_folder / "config.json").write_text(to_json(train_run.config))
    (run_folder / "result.json").write_text(json.dumps(result | changes))


def confirm(state: SweepState, fresh: dict[int, Sequence[float]], *, test: bool, identity: bool) -> None:
    """Fresh seeds with these scores; with `test` the test split of the best of them and the baseline."""
    selected = list(fresh)
    (state.folder / CONFIRMED).write_text(json.dumps({"trials": selected, "seeds": state.spec.fresh_seeds}))
    complete = [number for number in selected[1:] if len(fresh[number]) == len(state.spec.fresh_seeds)]
    winner = max(complete, key=lambda number: sum(fresh[number]), default=None)
    for number in selected:
        trial = state.trials[number]
        for seed, score in zip(state.spec.fresh_seeds, fresh[number], strict=False):
            changes: dict[str, Any] = {"identity": identity}
            if test and number in (0, winner):
                changes |= {
                    "measured_on": "test",
                    "test": {"n": 800, "accuracy": score - 0.01, "macro_f1": score - 0.04},
                }
            write_result(state, trial, seed, **changes)
            write_curve(state.runs.folder_of(trial, seed), [(EVERY, score - 0.1), (TOTAL, score)])
