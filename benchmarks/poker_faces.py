"""Does the recipe make poker faces of faces? Trains it over fresh seeds, with the same without an adversary and MAE-ViT
at the same compute beside it, and holds it against aims that were set before (benchmarks/poker_aims.py).

    python -m benchmarks.poker_faces            train what is not there yet, write docs/results/poker_faces.{json,md}
    python -m benchmarks.poker_faces --check    does the committed checkpoint of one seed still have its figures?

One pre-training and one judge serve all runs, as in a study. The search saw seed 0 and validation only; these are other
seeds and the test split. MAE-ViT has as many epochs as make PF-MAG's FLOPs, at four times the batch and twice the rate.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.poker_aims import CLASSIFIER, OURS, WITHOUT, Figures, Judged, figures_of, judge, read, summary
from benchmarks.poker_check import check, save
from benchmarks.steps import processor
from pfcluster.config import RunConfig, presets
from pfcluster.config.io import with_values
from pfcluster.launch.local import run_plan
from pfcluster.launch.plan import Plan, Stage, TrainRun
from pfcluster.profiling.flops import profile
from pfcluster.runs.provenance import git_commit

SEEDS = (1, 2, 3, 4, 5)
CLASSES = 8
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
NAME = "poker_faces"
MEASURED = {"evaluate.n_probe_images": 2000, "evaluate.n_probe_identities": 200, "evaluate.n_poker_faces": 1000}


def configs(folder: Path) -> dict[str, RunConfig]:
    """Every run but for its seed, in the order in which they are made."""
    recipe = presets.recipe("poker-face")
    starts = {"model.init": str(folder / "mae" / "seed-0")}
    ours = with_values(recipe["pf-vit"], {**starts, **MEASURED, "evaluate.judge": str(folder / "judge" / "seed-0")})
    without = with_values(ours, {"name": WITHOUT, "pf_mag.weights.adv": 0.0})
    alone = with_values(recipe["mae-vit"], {**starts, **MEASURED, "batch_size": 128, "optim.lr": 1e-3})
    share = profile(_in_the_game(ours), CLASSES).flops / profile(alone, CLASSES).flops
    alone = replace(alone, epochs=float(round(ours.epochs * share)))
    return {"mae": recipe["mae"], "judge": recipe["judge"], OURS: ours, WITHOUT: without, CLASSIFIER: alone}


def _in_the_game(config: RunConfig) -> RunConfig:
    """A config whose first step is one of the game: what is counted."""
    return with_values(config, {"pf_mag.warmup_steps": 0, "pf_mag.discriminator_pretrain_steps": 0, "model.init": None})


def plan(folder: Path, seeds: Sequence[int], only: Sequence[str]) -> Plan:
    """Pre-training and judge, then every run with every seed."""
    made = configs(folder)
    first = [Stage(name, (TrainRun(made[name], folder / name / "seed-0"),)) for name in ("mae", "judge")]
    after = tuple(group.name for group in first)
    rest = [
        Stage(
            name,
            tuple(TrainRun(replace(made[name], seed=seed), folder / name / f"seed-{seed}") for seed in seeds),
            after,
        )
        for name in (OURS, WITHOUT, CLASSIFIER)
        if name in only
    ]
    return Plan(NAME, folder, (*first, *rest), "python -m benchmarks.poker_faces")


def _spent(folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Wall-clock seconds, steps and devices of all runs."""
    found: dict[str, Any] = {}
    for name in ("mae", "judge", OURS, WITHOUT, CLASSIFIER):
        runs = [folder / name / f"seed-{seed}" for seed in ((0,) if name in ("mae", "judge") else seeds)]
        results = [json.loads((run / "result.json").read_text()) for run in runs]
        found[name] = {
            "steps": results[0]["steps"],
            "seconds_a_run": [round(result["seconds"], 1) for result in results],
            "device": sorted({str(result["device"]) for result in results}),
        }
    return found


def results(folder: Path, seeds: Sequence[int], shown: int) -> dict[str, Any]:
    """All that is written."""
    figures = {name: read(folder, name, seeds) for name in (OURS, WITHOUT, CLASSIFIER)}
    aims = judge(figures[OURS], figures[WITHOUT], figures[CLASSIFIER])
    told = json.loads((folder / OURS / f"seed-{shown}" / "result.json").read_text())
    return {
        "command": "python -m benchmarks.poker_faces",
        "date": date.today().isoformat(),
        "commit": told.get("git_commit") or git_commit(),
        "machine": {"processor": processor(), "torch": told["versions"].get("torch")},
        "seeds": list(seeds),
        "test_faces": told["test"]["n"],
        "spent": _spent(folder, seeds),
        "aims": [_plain(aim) for aim in aims],
        "runs": {name: {figure: _row(own, figure) for figure in own} for name, own in figures.items()},
        "checkpoint": {"seed": shown, "figures": figures_of(told)},
    }


def _plain(aim: Judged) -> dict[str, Any]:
    return {**asdict(aim), "value": asdict(aim.value)}


def _row(figures: Figures, name: str) -> dict[str, Any]:
    over = summary(figures, name)
    return {**asdict(over), "by_seed": {str(seed): value for seed, value in figures[name].items()}}


def table(found: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    seeds = found["seeds"]
    lines = [
        "# Poker faces: the recipe against its aims",
        "",
        f"{found['date']}, {len(seeds)} seeds ({', '.join(map(str, seeds))}), {found['test_faces']} test faces; mean ± "
        "standard deviation over seeds, Student's 95 % interval. Repeats with",
        "",
        f"    {found['command']}",
        "",
        "| aim | wanted | found | 95 % interval | p | met |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for aim in found["aims"]:
        value, p = aim["value"], "–" if aim["p"] is None else f"{aim['p']:.2g}"
        cells = (
            f"{aim['name']}{': ' + aim['note'] if aim['note'] else ''}",
            aim["wanted"],
            f"{value['mean']:.4g} ± {value['std']:.2g}",
            f"{value['low']:.4g} to {value['high']:.4g}",
            p,
            "yes" if aim["met"] else "**no**",
        )
        lines.append(f"| {' | '.join(cells)} |")
    names = list(found["runs"])
    every = list(dict.fromkeys(figure for name in names for figure in found["runs"][name]))
    lines += ["", f"| figure | {' | '.join(names)} |", f"| --- | {' | '.join('---:' for _ in names)} |"]
    for figure in every:
        by_run = [found["runs"][name].get(figure) for name in names]
        words = ["–" if one is None else f"{one['mean']:.4f} ± {one['std']:.4f}" for one in by_run]
        lines.append(f"| {figure} | {' | '.join(words)} |")
    lines += [
        "",
        "`rec`, `poker`, `input`, `truth`: reconstruction, poker face, photo, true poker face. `region`, `outside`: "
        "mean squared error against the true poker face where the expression is and elsewhere (values in -1..1). "
        "`calmed`: share of faces with an expression that the judge calls neutral; `recognised`: share whose input's "
        "emotion it names. `emotion`, `people`: linear probes of tokens (f, f_e, f_p) or pixels.",
        "",
        "| run | steps | seconds a run | device |",
        "| --- | ---: | ---: | --- |",
    ]
    for name, spent in found["spent"].items():
        seconds = spent["seconds_a_run"]
        mean = sum(seconds) / len(seconds)
        lines.append(f"| {name} × {len(seconds)} | {spent['steps']} | {mean:.0f} | {', '.join(spent['device'])} |")
    return "\n".join(lines) + "\n"


def write(folder: Path, output: Path, seeds: Sequence[int]) -> None:
    """Results, table, checkpoint and picture of the first seed."""
    shown = seeds[0]
    found = results(folder, seeds, shown)
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{NAME}.json").write_text(json.dumps(found, indent=1) + "\n")
    (output / f"{NAME}.md").write_text(table(found))
    save(folder / OURS / f"seed-{shown}", folder / "judge" / "seed-0", output / f"{NAME}.safetensors")
    shutil.copy(folder / OURS / f"seed-{shown}" / "pictures" / "views.png", output / f"{NAME}.png")


def main() -> int:
    """Train and write, or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="evaluate the committed checkpoint alone")
    parser.add_argument("--folder", type=Path, default=Path("runs/poker-faces"), help="where the runs go")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--only", nargs="+", default=[OURS, WITHOUT, CLASSIFIER], help="train these, and write nothing")
    known = parser.parse_args()
    if known.check:
        wrong = check(known.output / f"{NAME}.safetensors", known.output / f"{NAME}.json")
        print("\n".join(wrong) or "the checkpoint has the figures that are written beside it")
        return 1 if wrong else 0
    if not run_plan(plan(known.folder, known.seeds, known.only), processes=1, at_once=known.jobs):
        return 130
    if len(known.only) == 3:
        write(known.folder, known.output, known.seeds)
        print(f"{known.output / NAME}.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
