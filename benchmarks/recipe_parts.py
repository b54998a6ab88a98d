"""Leave-one-out: what each part of the PF-ViT recipe contributes, at the demo's length and on faces of no search.

    python -m benchmarks.recipe_parts [--seeds 1 2 3]    train missing runs, write docs/results/recipe_parts.{json,md}

Every run starts from MAE-ViT of its seed, as the recipe does. Differences are paired by seed; p values are corrected
over all parts and figures (Holm 1979).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.poker_aims import RECIPE, START, Figures, compare, over_seeds, read_figures
from benchmarks.poker_faces import FACES, RESULTS, SHARED_RUNS, seeded_run
from benchmarks.result_files import training_device, write_results
from pfcluster.config import RunConfig, presets
from pfcluster.config.data import no_augment
from pfcluster.config.io import with_values
from pfcluster.launch.local import run_plan
from pfcluster.launch.plan import Plan, Stage, TrainRun
from pfcluster.report.statistics import holm
from pfcluster.runs.folder import read_result
from pfcluster.runs.provenance import git_commit

COMMAND = "python -m benchmarks.recipe_parts"
NAME = "recipe_parts"
SEEDS = (1, 2, 3)
FIGURES = {
    "accuracy": ("accuracy", None, 1),
    "judged neutral": ("poker_neutralised_rate", None, 1),
    "reconstructions recognised": ("rec_emotion_agreement", None, 1),
    "error in the region": ("poker_mse_inside", "input_mse_inside", -1),
    "error outside": ("poker_mse_outside", "rec_mse_outside", -1),
}
"""Column -> figure, what it is divided by, and 1 where higher is better, -1 where lower is."""


def parts(recipe: RunConfig) -> dict[str, dict[str, Any]]:
    """What is left out -> config values that leave it out. benchmarks/poker_faces.py leaves out the adversary."""
    every = recipe.pf_mag.generate_every
    return {
        "discriminator as a copy of MAE-ViT": {
            "pf_mag.discriminator_init": "decoder",
            "pf_mag.warmup_discriminator": True,
        },
        "augmentation of the discriminator's input": {
            f"discriminator_augment.{field}": value for field, value in asdict(no_augment()).items()
        },
        "residual emotions as targets (`source`)": {"pf_mag.fake_class_targets": "ignore"},
        "R1": {"pf_mag.r1": 0.0},
        "anchor": {"pf_mag.weights.anchor": 0.0},
        "position bias of the fusion": {"pf_mag.fusion_bias": None},
        "overlapping patches": {"pf_mag.patch_overlap": 0},
        "small gradient share into the encoder": {"pf_mag.encoder_grad_share": 1.0},
        "classification of further images": {
            "pf_mag.generate_every": 1,
            "batch_size": recipe.batch_size // every,
            "epochs": recipe.epochs / every,
        },
        "high rate in the warm-up": {"pf_mag.warmup_lr": None},
        "orthogonality": {"pf_mag.weights.ort": 0.0},
    }


def plan(folder: Path, seeds: Sequence[int]) -> Plan:
    """Pre-training, judge and MAE-ViT, the recipe, and the recipe without each part."""
    by_role = {
        role: with_values(config, {"data.synthetic.seed": FACES}) for role, config in presets.recipe("demo").items()
    }
    shared = [Stage(name, (TrainRun(by_role[name], folder / name / "seed-0"),)) for name in SHARED_RUNS]
    start = with_values(by_role["mae-vit"], {"model.init": str(folder / "mae" / "seed-0")})
    recipe = with_values(by_role["pf-vit"], {"evaluate.judge": str(folder / "judge" / "seed-0")})
    variants = {RECIPE: recipe} | {
        name: with_values(recipe, {"name": name, **values}) for name, values in named_parts(recipe).items()
    }
    stages = [Stage(START, tuple(seeded_run(folder, start, START, seed) for seed in seeds), after=SHARED_RUNS)]
    for name, config in variants.items():
        runs = tuple(seeded_run(folder, config, name, seed, from_start=True) for seed in seeds)
        stages.append(Stage(name, runs, after=SHARED_RUNS, same_seed=(START,)))
    return Plan(NAME, folder, (*shared, *stages), COMMAND)


def named_parts(recipe: RunConfig) -> dict[str, dict[str, Any]]:
    """`parts` by the names of their runs."""
    return {f"without-{number:02d}": values for number, values in enumerate(parts(recipe).values(), start=1)}


def results(folder: Path, seeds: Sequence[int], commit: str | None) -> dict[str, Any]:
    """Content of recipe_parts.json. `commit` is recorded where the runs do not know theirs."""
    recipe = presets.recipe("demo")["pf-vit"]
    reference = columns(read_figures(folder, RECIPE, seeds))
    without = {
        part: columns(read_figures(folder, name, seeds))
        for part, name in zip(parts(recipe), named_parts(recipe), strict=True)
    }
    tests = {
        (part, column): compare(cells[column], reference[column]) for part, cells in without.items() for column in cells
    }
    corrected = holm([1.0 if test.t_p is None else test.t_p for test in tests.values()])
    p_values = dict(zip(tests, corrected, strict=True))
    rows = {
        part: {
            column: {
                "mean": over_seeds(cells, column).mean,
                "std": over_seeds(cells, column).std,
                "difference": tests[part, column].difference.mean,
                "p": p_values[part, column],
            }
            for column in cells
        }
        for part, cells in without.items()
    }
    whole = {column: over_seeds(reference, column) for column in FIGURES}
    first = read_result(folder / RECIPE / f"seed-{seeds[0]}")
    assert first is not None
    return {
        "command": COMMAND,
        "date": date.today().isoformat(),
        "commit": first.get("git_commit") or commit,
        "machine": training_device(first),
        "seeds": list(seeds),
        "recipe": {column: {"mean": summary.mean, "std": summary.std} for column, summary in whole.items()},
        "without": rows,
    }


def columns(figures: Figures) -> dict[str, dict[int, float]]:
    """`FIGURES` by seed."""
    return {
        column: {seed: value / (figures[divisor][seed] if divisor else 1) for seed, value in figures[name].items()}
        for column, (name, divisor, _) in FIGURES.items()
    }


def markdown(values: Mapping[str, Any]) -> str:
    """recipe_parts.md from the content of recipe_parts.json."""
    lines = [
        "# The recipe without each of its parts",
        "",
        f"{values['date']}, commit {values['commit']}, {values['machine']}, preset `demo` on other faces, seeds "
        f"{', '.join(map(str, values['seeds']))}, test split, mean ± standard deviation. Bold: differs from the whole "
        "recipe, p < 0.05 (Holm's correction over the table); (better) where leaving it out helps. Reproduce with",
        "",
        f"    {values['command']}",
        "",
        f"| without | {' | '.join(FIGURES)} |",
        f"| --- | {' | '.join('---:' for _ in FIGURES)} |",
        f"| nothing: the recipe | {' | '.join(_cell(values['recipe'][column]) for column in FIGURES)} |",
        *_rows(values["without"]),
        "",
        "Error in the region: of the poker face, over the photo's. Error outside: of the poker face, over the "
        "reconstruction's. Both against the true poker face.",
    ]
    return "\n".join(lines) + "\n"


def _rows(without: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    for part, cells in without.items():
        shown = []
        for column, (_, _, sign) in FIGURES.items():
            cell = cells[column]
            text = _cell(cell)
            if cell["p"] < 0.05:
                text = f"**{text}**" + (" (better)" if cell["difference"] * sign > 0 else "")
            shown.append(text)
        yield f"| {part} | {' | '.join(shown)} |"


def _cell(cell: Mapping[str, float]) -> str:
    return f"{cell['mean']:.3f} ± {cell['std']:.3f}"


def main() -> int:
    """Train and write. Exit code 130 if interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/recipe-parts"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--max-parallel", type=int, default=os.cpu_count() or 1, help="runs at the same time")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="at least two")
    parser.add_argument("--commit", default=git_commit(), help="commit to record where the runs do not know theirs")
    options = parser.parse_args()
    if len(set(options.seeds)) < 2:
        parser.error("--seeds: a standard deviation needs at least two seeds")
    if not run_plan(plan(options.folder, options.seeds), processes=1, max_parallel=options.max_parallel):
        return 130
    print(write_results(options.output, NAME, results(options.folder, options.seeds, options.commit), markdown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
