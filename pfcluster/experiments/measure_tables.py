"""Tables of measurements: accuracy under masks, poker faces, linear probes, costs, training times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pfcluster.experiments import paper
from pfcluster.experiments.cells import MASK_RATIOS, cell_by_name
from pfcluster.experiments.results import Results
from pfcluster.report.formatting import duration, mean_std, number
from pfcluster.report.groups import RunGroup
from pfcluster.report.poker_faces import POKER_ROWS
from pfcluster.report.rendering import Table
from pfcluster.report.statistics import Summary, summarize

POKER_METRICS: Mapping[str, tuple[str, float, int]] = {
    "neutral_rate": ("neutral rate %", 100, 1),
    "identity_cosine": ("identity cosine", 1, 3),
    "mse_inside": ("MSE inside", 1, 3),
    "ssim": ("SSIM", 1, 3),
    "fid": ("Fréchet distance to all", 1, 2),
    "fid_neutral": ("Fréchet distance to neutral", 1, 2),
}
"""Name in result.json -> title, scale and digits."""


def mask_ratio_table(results: Results, dataset: str) -> Table | None:
    """Multi-Task MAE: accuracy by mask ratio in training (rows) and at test (columns)."""
    rows = []
    for planned in results.record.cells:
        group = results.group(planned.dataset, planned.cell)
        if planned.dataset != dataset or planned.spec.table != "multi-task" or group is None:
            continue
        rows.append((planned.spec.title, *(mean_std(_accuracy_at(group, ratio), 2) for ratio in MASK_RATIOS)))
    columns = ("cell", *(f"{round(100 * ratio)} % masked at test" for ratio in MASK_RATIOS))
    note = "Accuracy in %, mean ± standard deviation over seeds. One mask per test image, the same for all runs."
    return Table(f"Multi-Task MAE by mask ratio at test: {dataset}", columns, tuple(rows), note) if rows else None


def _accuracy_at(group: RunGroup, ratio: float) -> Summary | None:
    rows = [row for run in group.runs for row in run.values.get("by_mask_ratio") or []]
    values = [100 * row["accuracy"] for row in rows if row["mask_ratio"] == ratio]
    return summarize(values) if values else None


def poker_face_table(results: Results, dataset: str) -> Table | None:
    """Poker faces and reconstructions of every PF-ViT; inputs and true neutral faces once, as references."""
    rows: list[tuple[str, ...]] = []
    for (trained, name), group in results.groups.items():
        if trained != dataset or not group.has_poker_faces:
            continue
        for row in POKER_ROWS if name == "pf-vit" else ("reconstruction", "poker face"):
            summaries = [
                group.summary("poker", "rows", row, key, scale=scale) for key, (_, scale, _) in POKER_METRICS.items()
            ]
            if any(summaries):
                digits = [digits for _, _, digits in POKER_METRICS.values()]
                rows.append((cell_by_name(name).title, row, *map(mean_std, summaries, digits)))
    if not rows:
        return None
    columns = ("cell", "image", *(title for title, _, _ in POKER_METRICS.values()))
    fid = results.record.fid
    note = "Neutral rate: share that the judge, trained separately, classifies as neutral. MSE inside the region of the"
    note += " expression and SSIM: against the true neutral face. Fréchet distances "
    note += "use InceptionV3" if fid == "InceptionV3" else f"use {fid} and are not FID"
    note += "; the input itself scores 0 against all images, and failed de-expression can score better than a true"
    note += " neutral face."
    if dataset in paper.FID:
        note += f" The paper's FID is {paper.FID[dataset]}."
    return Table(f"Poker faces: {dataset}", columns, tuple(rows), note, labels=2).without_empty_columns()


def probe_table(results: Results, dataset: str) -> Table | None:
    """Accuracy of linear probes for emotion and identity on pooled tokens."""
    targets = ("emotion", "identity")
    rows: list[tuple[str, ...]] = []
    chance: dict[str, float | None] = {}
    for (trained, name), group in results.groups.items():
        first: Mapping[str, Any] = next((run.values["probes"] for run in group.runs if run.values.get("probes")), {})
        if trained != dataset or not first:
            continue
        chance = {target: first[f"{target}_chance"] for target in targets}
        for row in first["rows"]:
            summaries = [group.summary("probes", "rows", row, target, scale=100) for target in targets]
            rows.append((cell_by_name(name).title, row, *(mean_std(summary, 1) for summary in summaries)))
    if not rows:
        return None
    rows.append(("chance", "", *(number(None if value is None else 100 * value, 1) for value in chance.values())))
    note = (
        "Test accuracy in % of logistic regression on pooled tokens: encoder tokens f, emotion tokens f_e, identity "
        "tokens f_p. With complete separation f_p has an emotion accuracy at chance and a high identity accuracy."
    )
    columns = ("cell", "tokens", "emotion %", "identity %")
    return Table(f"Linear probes: {dataset}", columns, tuple(rows), note, labels=2)


def cost_table(results: Results) -> Table | None:
    """Parameters, FLOPs and speed of the models."""
    rows: list[tuple[str, ...]] = []
    for name, cost in results.costs.items():
        parameters = [number(cost[key] / 1e6, 2) for key in ("train_parameters", "test_parameters")]
        flops = [number(cost[key], 3) for key in ("step_gflop", "test_gflop")]
        for speed in cost["speeds"]:
            rates = [number(1000 * speed["batch"] / speed[f"{kind}_ms"], 0) for kind in ("forward", "step")]
            rows.append((name, *parameters, *flops, str(speed["batch"]), number(speed["forward_ms"], 2), *rates))
    columns = (
        "model", "M parameters in training", "at test", "GFLOP per training step", "at test", "batch", "ms at test",
        "images/s at test", "images/s in training",
    )  # fmt: skip
    theirs = paper.COSTS
    note = (
        "FLOPs per image; one multiply-add counts as two. The paper states"
        f" {theirs['train_parameters'] / 1e6:.1f} M parameters and {theirs['train_gflop']} GFLOPs in training,"
        f" {theirs['test_parameters'] / 1e6:.1f} M and {theirs['test_gflop']} at test for ViT-B, without its counting"
        " convention. Speeds were measured on this machine."
    )
    return Table("Costs", columns, tuple(rows), note) if rows else None


def time_table(results: Results) -> Table | None:
    """Training time of one run of each cell."""
    rows = []
    for (dataset, name), group in results.groups.items():
        seconds, steps = group.summary("seconds"), group.summary("steps")
        rows.append((
            cell_by_name(name).title, dataset, str(len(group.runs)), number(steps.mean if steps else None, 0),
            duration(seconds.mean if seconds else None),
        ))  # fmt: skip
    columns = ("cell", "dataset", "seeds", "steps", "time")
    note = "Mean training time of one run, without start-up and final evaluation."
    return Table("Training time of a run", columns, tuple(rows), note, labels=2) if rows else None
