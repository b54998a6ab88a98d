"""Variants of the PF-ViT recipe at the demo's length: plan of their runs, and a table that compares them with it.

Every run starts from MAE-ViT of its seed, as the recipe does. Differences are paired by seed; p values are corrected
over all variants and figures of a table (Holm 1979).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.poker_aims import RECIPE, START, Figures, compare, over_seeds, read_figures
from benchmarks.poker_faces import RESULTS, SHARED_RUNS, seeded_run
from benchmarks.result_files import training_device, write_results
from pfcluster.config import presets
from pfcluster.config.io import with_values
from pfcluster.launch.local import run_plan
from pfcluster.launch.plan import Plan, Stage, TrainRun
from pfcluster.report.statistics import holm
from pfcluster.runs.folder import read_result
from pfcluster.runs.provenance import git_commit

SEEDS = (1, 2, 3)
Columns = Mapping[str, tuple[str, str | None, int]]
"""Column of the table -> figure, what it is divided by, and 1 where higher is better, -1 where lower is."""
Variants = Mapping[str, Mapping[str, Any]]
"""Name of the runs of a variant -> config values in which it differs from the recipe."""


def variants_plan(
    name: str,
    folder: Path,
    seeds: Sequence[int],
    variants: Variants,
    *,
    faces: int,
    command: str,
    common: Mapping[str, Any] | None = None,
) -> Plan:
    """Pre-training, judge and MAE-ViT, the recipe, and its variants. `faces` is `data.synthetic.seed`, `common`
    more values of all PF-ViTs.
    """
    by_role = {
        role: with_values(config, {"data.synthetic.seed": faces}) for role, config in presets.recipe("demo").items()
    }
    shared = [Stage(name, (TrainRun(by_role[name], folder / name / "seed-0"),)) for name in SHARED_RUNS]
    start = with_values(by_role["mae-vit"], {"model.init": str(folder / "mae" / "seed-0")})
    judge = {"evaluate.judge": str(folder / "judge" / "seed-0")}
    recipe = with_values(by_role["pf-vit"], {**judge, **(common or {})})
    configs = {RECIPE: recipe} | {
        variant: with_values(recipe, {"name": variant, **values}) for variant, values in variants.items()
    }
    stages = [Stage(START, tuple(seeded_run(folder, start, START, seed) for seed in seeds), after=SHARED_RUNS)]
    for variant, config in configs.items():
        runs = tuple(seeded_run(folder, config, variant, seed, from_start=True) for seed in seeds)
        stages.append(Stage(variant, runs, after=SHARED_RUNS, same_seed=(START,)))
    return Plan(name, folder, (*shared, *stages), command)


def columns_of(figures: Figures, columns: Columns) -> dict[str, dict[int, float]]:
    """The columns' values by seed."""
    return {
        column: {seed: value / (figures[divisor][seed] if divisor else 1) for seed, value in figures[name].items()}
        for column, (name, divisor, _) in columns.items()
    }


def compared(recipe: Figures, variants: Mapping[str, Figures], columns: Columns) -> dict[str, Any]:
    """Mean and standard deviation of each column: of the `recipe`, and of each variant (`variants`) with its difference
    from it and the corrected p.
    """
    reference = columns_of(recipe, columns)
    by_variant = {name: columns_of(figures, columns) for name, figures in variants.items()}
    tests = {
        (name, column): compare(cells[column], reference[column])
        for name, cells in by_variant.items()
        for column in columns
    }
    corrected = holm([1.0 if test.t_p is None else test.t_p for test in tests.values()])
    p_values = dict(zip(tests, corrected, strict=True))

    def summary(cells: Figures, column: str) -> dict[str, float | None]:
        over = over_seeds(cells, column)
        return {"mean": over.mean, "std": over.std}

    return {
        "recipe": {column: summary(reference, column) for column in columns},
        "variants": {
            name: {
                column: {
                    **summary(cells, column),
                    "difference": tests[name, column].difference.mean,
                    "p": p_values[name, column],
                }
                for column in columns
            }
            for name, cells in by_variant.items()
        },
    }


def leave_one_out(
    folder: Path, seeds: Sequence[int], columns: Columns, rows: Mapping[str, str], *, command: str, commit: str | None
) -> dict[str, Any]:
    """Content of the JSON of a benchmark that leaves out one part at a time. `rows`: title of the part -> name of its
    runs; `commit` is recorded where the runs do not know theirs.
    """
    without = {part: read_figures(folder, name, seeds) for part, name in rows.items()}
    cells = compared(read_figures(folder, RECIPE, seeds), without, columns)
    return {
        **provenance(folder, seeds, command, commit, rows),
        "recipe": cells["recipe"],
        "without": cells["variants"],
    }


def table(
    values: Mapping[str, Any], columns: Columns, *, first: str, recipe: str = "nothing: the recipe"
) -> Iterator[str]:
    """Lines of a Markdown table of `compared`; `first` is the title of the first column, `recipe` of the first row."""
    yield f"| {first} | {' | '.join(columns)} |"
    yield f"| --- | {' | '.join('---:' for _ in columns)} |"
    yield f"| {recipe} | {' | '.join(_cell(values['recipe'][column]) for column in columns)} |"
    for name, cells in values["variants"].items():
        shown = []
        for column, (_, _, sign) in columns.items():
            cell = cells[column]
            text = _cell(cell)
            if cell["p"] < 0.05:
                text = f"**{text}**" + (" (better)" if cell["difference"] * sign > 0 else "")
            shown.append(text)
        yield f"| {name} | {' | '.join(shown)} |"


def _cell(cell: Mapping[str, float]) -> str:
    return f"{cell['mean']:.3f} ± {cell['std']:.3f}"


def provenance(
    folder: Path, seeds: Sequence[int], command: str, commit: str | None, rows: Mapping[str, str]
) -> dict[str, Any]:
    """Command, date, commit, machine and seeds, and the commits of rows that were trained with another one.

    `commit` is recorded where the runs do not know theirs; `rows`: title of each variant -> name of its runs.
    """

    def first_result(name: str) -> dict[str, Any]:
        result = read_result(folder / name / f"seed-{seeds[0]}")
        assert result is not None
        return result

    first = first_result(RECIPE)
    of_recipe = first.get("git_commit") or commit
    commits = {title: first_result(name).get("git_commit") or commit for title, name in rows.items()}
    return {
        "command": command,
        "date": date.today().isoformat(),
        "commit": of_recipe,
        "other_commits": {title: other for title, other in commits.items() if other != of_recipe},
        "machine": training_device(first),
        "seeds": list(seeds),
    }


def commits_line(values: Mapping[str, Any]) -> str:
    """The commit of a table, and of the rows that have another one, from `provenance`."""
    rows_by_commit: dict[str, list[str]] = {}
    for title, other in values.get("other_commits", {}).items():
        rows_by_commit.setdefault(other[:7], []).append(f'"{title}"')
    others = "".join(f" ({' and '.join(rows)}: {other})" for other, rows in rows_by_commit.items())
    return f"commit {values['commit'][:7]}{others}"


def measured_line(values: Mapping[str, Any]) -> str:
    """Date, commits, machine, faces and seeds of a table, from `provenance`, in a sentence."""
    seeds = ", ".join(map(str, values["seeds"]))
    return (
        f"{values['date']}, {commits_line(values)}, {values['machine']}, preset `demo` on other faces, seeds {seeds},"
        " test split, mean ± standard deviation."
    )


def train_and_write(
    description: str | None,
    name: str,
    plan: Callable[[Path, Sequence[int]], Plan],
    results: Callable[[Path, Sequence[int], str | None], Mapping[str, Any]],
    markdown: Callable[[Mapping[str, Any]], str],
) -> int:
    """The command of a benchmark of variants: train missing runs, write its two files. Exit code 130 if interrupted."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs") / name.replace("_", "-"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--max-parallel", type=int, default=os.cpu_count() or 1, help="runs at the same time")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="at least two")
    parser.add_argument("--commit", default=git_commit(), help="commit to record where the runs do not know theirs")
    options = parser.parse_args()
    if len(set(options.seeds)) < 2:
        parser.error("--seeds: a standard deviation needs at least two seeds")
    if not run_plan(plan(options.folder, options.seeds), processes=1, max_parallel=options.max_parallel):
        return 130
    print(write_results(options.output, name, results(options.folder, options.seeds, options.commit), markdown))
    return 0
