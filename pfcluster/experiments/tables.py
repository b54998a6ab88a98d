"""The tables of a reproduction: the paper's figure, ours, and what may be said of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pfcluster.experiments import paper
from pfcluster.experiments.cells import RATIOS, REFERENCE, TABLES, Cell, cell
from pfcluster.experiments.claims import accuracy, answers, difference, judge, verdict
from pfcluster.experiments.results import Found
from pfcluster.report.formatting import NOTHING, duration, interval, mean_std, number, p_value, signed
from pfcluster.report.groups import Group
from pfcluster.report.prediction_stats import accuracy_interval
from pfcluster.report.resampling import Resampled
from pfcluster.report.statistics import Summary, holm, summarize
from pfcluster.report.tables import Table

STAND_IN = "rafdb"
"""Whose differences a miniature is held against: its own faces are not in the paper."""


def all_tables(found: Found) -> list[Table]:
    """Every table that has a row, the claims first."""
    tables: list[Table | None] = [claims(found)]
    for dataset in found.record.datasets:
        tables += [accuracies(found, dataset, key) for key in TABLES]
        tables += [ratios(found, dataset), poker_faces(found, dataset), probes(found, dataset)]
    tables += [cross(found), costs(found), walls(found), missing(found)]
    return [table for table in tables if table is not None]


def cells_of(found: Found, dataset: str, key: str) -> list[Cell]:
    """A table's cells in their order, the one they are compared with first."""
    asked = [planned.of for planned in found.record.cells if planned.dataset == dataset]
    own = [each for each in asked if each.table == key and each.name != REFERENCE[key]]
    return [cell(REFERENCE[key]), *own] if own else []


def accuracies(found: Found, dataset: str, key: str) -> Table | None:
    """Test accuracies, and their differences from the table's reference, seed by seed."""
    cells = cells_of(found, dataset, key)
    if not cells:
        return None
    reference = found.group(dataset, REFERENCE[key])
    stated = paper.ACCURACY.get(STAND_IN if found.record.miniature else dataset, {})
    pairs = {
        each.name: None if each is cells[0] else difference(found.group(dataset, each.name), reference)
        for each in cells
    }
    tested = [(name, pair.t_p) for name, pair in pairs.items() if pair is not None and pair.t_p is not None]
    corrected = dict(zip((name for name, _ in tested), holm([p for _, p in tested]), strict=True))
    rows = []
    for each in cells:
        group, pair = found.group(dataset, each.name), pairs[each.name]
        ours, theirs = accuracy(group), stated.get(each.name)
        gap = None if theirs is None or each is cells[0] else _minus(theirs, stated.get(cells[0].name))
        change = None if pair is None else pair.difference
        said = verdict(gap, change) if found.record.miniature else verdict(theirs, ours)
        if each is cells[0] and found.record.miniature:
            said = NOTHING
        figures = (
            number(None if found.record.miniature else theirs, 2),
            str(ours.n) if ours else "0",
            mean_std(ours, 2),
            interval(ours, 2),
            interval(None if group is None else accuracy_interval(group.runs)[0], 2),
            mean_std(None if group is None else group.summary("test", "mean_class_accuracy", scale=100), 2),
            signed(gap, 2),
            signed(None if change is None else change.mean, 2),
            interval(change, 2, sign=True),
            interval(None if pair is None else _difference(group, reference), 2, sign=True),
            p_value(corrected.get(each.name)),
            said if ours else "not run",
        )
        rows.append((each.title, *figures))
    columns = (
        "",
        "paper %",
        "n",
        "accuracy %",
        "95 % over seeds",
        "over seeds and faces",
        "mean class accuracy %",
        "paper's difference",
        "difference",
        "its 95 % over seeds",
        "its 95 % over seeds and faces",
        "p (Holm)",
        "verdict",
    )
    note = (
        "n seeds, mean ± standard deviation; Student's interval over seeds, bootstrap over seeds and test faces."
        f" Differences are from {cells[0].title}, seed by seed;"
        " p of the paired t-test, corrected over the table. "
    )
    note += (
        "These faces are not in the paper: its differences are those on RAF-DB with ViT-B, and the verdict says whether"
        " our interval of the difference holds them."
        if found.record.miniature
        else "The verdict says whether our interval holds the paper's figure, or lies above or below it."
    )
    return _without_empty(Table(f"{TABLES[key]}: {dataset}", columns, tuple(rows), note))


def _difference(treated: Group | None, reference: Group | None) -> Resampled | None:
    compared = answers(treated, reference)
    return None if compared is None else compared.difference


def _minus(a: float, b: float | None) -> float | None:
    return None if b is None else a - b


def _without_empty(table: Table) -> Table:
    """Without the columns in which nobody has anything."""
    kept = [
        index
        for index in range(len(table.columns))
        if index < table.labels or any(row[index] != NOTHING for row in table.rows)
    ]
    rows = tuple(tuple(row[index] for index in kept) for row in table.rows)
    return Table(table.caption, tuple(table.columns[index] for index in kept), rows, table.note, table.labels)


def claims(found: Found) -> Table | None:
    """What holds of the paper's claims."""
    rows = []
    for judged in judge(found):
        gain = judged.claim.gain or {}
        stated = gain.get(STAND_IN if found.record.miniature else judged.dataset)
        change = None if judged.paired is None else judged.paired.difference
        title = judged.claim.text + ("" if judged.claim.of_the_paper else " *")
        figures = (
            signed(stated, 2),
            str(change.n) if change else "0",
            signed(None if change is None else change.mean, 2),
            interval(change, 2, sign=True),
            interval(judged.answers.difference if judged.answers else None, 2, sign=True),
            p_value(judged.p),
            f"{judged.answers.told_apart} of {len(judged.answers.tests)}" if judged.answers else NOTHING,
        )
        rows.append((title, judged.dataset, judged.verdict, *figures))
    columns = (
        "claim",
        "dataset",
        "verdict",
        "paper's points",
        "n",
        "points",
        "95 % over seeds",
        "over seeds and faces",
        "p (Holm)",
        "McNemar",
    )
    note = (
        "Points of test accuracy, paired over seeds. It holds where p, corrected over this whole table, is below 0.05;"
        " it points that way where only its own interval leaves out 0. McNemar: of how many seeds the two networks"
        " answer differently (exact, p corrected over the table), which says nothing of other seeds. * Not the paper's"
        " claim." + (" The paper's points are those on RAF-DB." if found.record.miniature else "")
    )
    return (
        _without_empty(Table("What holds of the paper's claims", columns, tuple(rows), note, labels=3))
        if rows
        else None
    )


def ratios(found: Found, dataset: str) -> Table | None:
    """Multi-Task MAE: share hidden in training by share hidden at test."""
    rows = []
    for planned in found.record.cells:
        group = found.group(planned.dataset, planned.cell)
        if planned.dataset != dataset or planned.of.table != "multi-task" or group is None:
            continue
        rows.append((planned.of.title, *(mean_std(_at(group, ratio), 2) for ratio in RATIOS)))
    columns = ("", *(f"{round(100 * ratio)} % hidden at test" for ratio in RATIOS))
    note = "Accuracy in %, mean ± standard deviation over seeds; each test face under one mask, the same for all runs."
    return Table(f"Multi-Task MAE under masks: {dataset}", columns, tuple(rows), note) if rows else None


def _at(group: Group, ratio: float) -> Summary | None:
    found = [each for run in group.runs for each in run.values.get("by_mask_ratio") or []]
    values = [100 * each["accuracy"] for each in found if each["mask_ratio"] == ratio]
    return summarize(values) if values else None


POKER: Mapping[str, tuple[str, float, int]] = {
    "neutral_rate": ("neutral %", 100, 1),
    "identity_cosine": ("identity", 1, 3),
    "mse_inside": ("error in the region", 1, 3),
    "ssim": ("SSIM", 1, 3),
    "fid": ("Fréchet to all", 1, 2),
    "fid_neutral": ("Fréchet to neutral", 1, 2),
}


def poker_faces(found: Found, dataset: str) -> Table | None:
    """Poker faces of every PF-ViT, under the rows that keep figures honest: inputs, reconstructions, true ones."""
    rows: list[tuple[str, ...]] = []
    for (where, name), group in found.groups.items():
        if where != dataset or not group.has_poker_faces:
            continue
        names = (
            ("input", "reconstruction", "poker face", "truth") if name == "pf-vit" else ("reconstruction", "poker face")
        )
        for row in names:
            figures = [group.summary("poker", "rows", row, key, scale=scale) for key, (_, scale, _) in POKER.items()]
            if any(figures):
                cells = (mean_std(each, digits) for each, (_, _, digits) in zip(figures, POKER.values(), strict=True))
                rows.append((cell(name).title, row, *cells))
    columns = ("", "image", *(title for title, _, _ in POKER.values()))
    stated = paper.FID.get(dataset)
    note = (
        f"Fréchet distances of {found.record.fid}"
        + ("" if found.record.fid == "InceptionV3" else ", no FID")
        + "; copying the input scores 0 against all photos, and a failed de-expression can score better than a true"
        " one: the paper warns of it."
        + (f" The paper's FID is {stated}." if stated else "")
        + " Neutral is what a judge says that was trained apart; error and SSIM are against the true poker face."
    )
    return _without_empty(Table(f"Poker faces: {dataset}", columns, tuple(rows), note, labels=2)) if rows else None


def probes(found: Found, dataset: str) -> Table | None:
    """What linear readers find in the tokens."""
    rows: list[tuple[str, ...]] = []
    chances: dict[str, float] = {}
    for (where, name), group in found.groups.items():
        first: Mapping[str, Any] = next((run.values["probes"] for run in group.runs if run.values.get("probes")), {})
        if where != dataset or not first:
            continue
        chances = {what: first[f"{what}_chance"] for what in ("emotion", "identity")}
        for row in first["rows"]:
            figures = [group.summary("probes", "rows", row, what, scale=100) for what in ("emotion", "identity")]
            rows.append((cell(name).title, row, *(mean_std(each, 1) for each in figures)))
    if not rows:
        return None
    chance = [None if value is None else 100 * value for value in chances.values()]
    rows.append(("chance", "", *(number(value, 1) for value in chance)))
    note = (
        "Test accuracy in % of a logistic regression on pooled tokens: f are the encoder's, f_e the separated"
        " emotion's, f_p what is left. A separation would leave no emotion in f_p, and the person."
    )
    return Table(
        f"What is left where: {dataset}", ("", "tokens", "emotion %", "identity %"), tuple(rows), note, labels=2
    )


def cross(found: Found) -> Table | None:
    """Trained here, tested there."""
    rows = []
    keys = dict.fromkeys((each["cell"], each["trained"], each["tested"]) for each in found.cross)
    for name, trained, tested in keys:
        cases = [
            each for each in found.cross if (each["cell"], each["trained"], each["tested"]) == (name, trained, tested)
        ]
        values = [100 * each["accuracy"] for each in cases]
        stated = paper.CROSS.get((trained, tested)) if name == "pf-vit" else None
        summary = summarize(values)
        figures = (number(stated, 2), str(len(values)), mean_std(summary, 2), interval(summary, 2), str(cases[0]["n"]))
        rows.append((cell(name).title, trained, tested, *figures, verdict(stated, summary)))
    columns = ("", "trained on", "tested on", "paper %", "n", "accuracy %", "95 % interval", "faces", "verdict")
    note = "Classes are matched by name; faces of a class that the run does not know are left out."
    return _without_empty(Table("Across datasets", columns, tuple(rows), note, labels=3)) if rows else None


def costs(found: Found) -> Table | None:
    """Parameters, FLOPs and speed of the models."""
    rows: list[tuple[str, ...]] = []
    for name, cost in found.costs.items():
        counts = [number(cost[part] / 1e6, 2) for part in ("train_parameters", "test_parameters")] + [
            number(cost[part], 3) for part in ("step_gflop", "test_gflop")
        ]
        for speed in cost["speeds"]:
            rates = [1000 * speed["batch"] / speed[f"{turn}_ms"] for turn in ("forward", "step")]
            rows.append(
                (
                    name,
                    *counts,
                    str(speed["batch"]),
                    number(speed["forward_ms"], 2),
                    *(number(rate, 0) for rate in rates),
                )
            )
    columns = (
        "model",
        "M parameters in training",
        "at test",
        "GFLOP of a step",
        "at test",
        "batch",
        "ms at test",
        "images/s at test",
        "images/s in training",
    )
    theirs = paper.COSTS
    note = (
        "For one image, a multiplication and an addition counted as two; the paper states"
        f" {theirs['train_parameters'] / 1e6:.1f} M and {theirs['train_gflop']} GFLOPs in training,"
        f" {theirs['test_parameters'] / 1e6:.1f} M and {theirs['test_gflop']} at test for ViT-B, and not how it"
        " counted. Speeds are this machine's."
    )
    return Table("Costs", columns, tuple(rows), note) if rows else None


def walls(found: Found) -> Table | None:
    """Wall time of a cell's run."""
    rows = []
    for (dataset, name), group in found.groups.items():
        seconds = group.summary("seconds")
        mean = None if seconds is None else seconds.mean
        steps = group.summary("steps")
        rows.append(
            (cell(name).title, dataset, str(len(group.runs)), number(steps.mean if steps else None, 0), duration(mean))
        )
    note = "Mean over seeds of one run's training time, without its start and its final evaluation."
    return (
        Table("Wall time of a run", ("", "dataset", "n", "steps", "time"), tuple(rows), note, labels=2)
        if rows
        else None
    )


def missing(found: Found) -> Table | None:
    """Cells that were not run, and why."""
    datasets: dict[tuple[str, str], list[str]] = {}
    for (dataset, name), why in found.missing.items():
        datasets.setdefault((name, why), []).append(dataset)
    cells: dict[tuple[str, str], list[str]] = {}
    for (name, why), places in datasets.items():
        cells.setdefault((", ".join(places), why), []).append(name)
    rows = tuple((", ".join(names), places, why) for (places, why), names in cells.items())
    return Table("Not run", ("cell", "datasets", "why"), rows, labels=3) if rows else None
