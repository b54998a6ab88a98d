"""The tables of a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pfcluster.report.comparisons import Comparison
from pfcluster.report.formatting import MISSING, count, duration, interval, mean_std, number, p_value, signed
from pfcluster.report.groups import RunGroup
from pfcluster.report.poker_faces import POKER_METRICS, POKER_ROWS
from pfcluster.report.rendering import Table
from pfcluster.report.resampling import BootstrapInterval
from pfcluster.report.results import Run, UnfinishedRun
from pfcluster.report.statistics import WILCOXON_MIN_PAIRS

OVER_SEEDS = "95 % CI (seeds)"
OVER_SAMPLES = "95 % CI (seeds and samples)"
NOT_COMPARABLE = " ⚠ The runs differ in more than their seed: the mean is not meaningful."
"""Note of a table with the title of such a group."""


def main_table(groups: Sequence[RunGroup]) -> Table | None:
    """Test accuracy, mean class accuracy and macro F1 of every classification group; None if there is none."""
    scored = [group for group in groups if group.classifies]
    if not scored:
        return None
    columns = (
        "run", "objective", "selected on", "seeds", "samples", "accuracy %", OVER_SEEDS, OVER_SAMPLES,
        "mean class accuracy %", "macro F1 %", "parameters at test",
    )  # fmt: skip
    rows = [_main_row(group) for group in scored]
    note = (
        "Mean ± standard deviation over seeds (n − 1). CI (seeds): Student's t interval of the mean. CI (seeds and "
        "samples): bootstrap over both, with the same resampled test set for all seeds and a small-sample correction "
        "for seeds. Mean class accuracy: unweighted mean of the per-class accuracies."
    )
    note += _dagger(row[7] for row in rows)
    if any(row[2] == "test ‡" for row in rows):
        note += " ‡ Checkpoint selected on the test split: optimistic."
    if any("⚠" in row[0] for row in rows):
        note += NOT_COMPARABLE
    note += _no_predictions(group.bootstrap_accuracy[1] for group in scored)
    names = [name for name in dict.fromkeys(group.runs[0].dataset for group in scored) if name]
    caption = "Expression recognition on the test split" + (f" of {' and '.join(names)}" if names else "")
    return Table(caption, columns, tuple(rows), note, labels=3)


def _main_row(group: RunGroup) -> tuple[str, ...]:
    accuracy = group.summary("test", "accuracy", scale=100)
    assert accuracy is not None
    others = (mean_std(group.summary("test", name, scale=100), 2) for name in ("mean_class_accuracy", "macro_f1"))
    parameters, samples = group.summary("parameters", "test"), set(group.by_seed("test", "n").values())
    selected_on = "test ‡" if group.selection_split == "test" else group.selection_split
    return (
        group.title, group.objective, selected_on, str(accuracy.n),
        count(samples.pop()) if len(samples) == 1 else MISSING, mean_std(accuracy, 2), interval(accuracy, 2),
        _bootstrap_cell(group.bootstrap_accuracy[0]), *others, count(parameters.mean if parameters else None),
    )  # fmt: skip


def _bootstrap_cell(result: BootstrapInterval | None, *, sign: bool = False) -> str:
    """The interval, marked if it is over samples only because there was one seed."""
    return interval(result, 2, sign=sign) + (" †" if result and result.seeds == 1 else "")


def _dagger(cells: Iterable[str]) -> str:
    return " † One seed: over samples only." if any("†" in cell for cell in cells) else ""


def _no_predictions(reasons: Iterable[str]) -> str:
    """Why intervals over samples are missing."""
    distinct = [reason for reason in dict.fromkeys(reasons) if reason]
    return f" No CI over samples where predictions are missing: {'; '.join(distinct)}." if distinct else ""


def per_class_table(groups: Sequence[RunGroup]) -> Table | None:
    """Accuracy per true class, with classes in the order of the first group that has them."""
    classes = list(
        dict.fromkeys(name for group in groups for name in group.classes if group.by_seed("test", "per_class", name))
    )
    rows = []
    for group in groups:
        cells = [mean_std(group.summary("test", "per_class", name, scale=100), 2) for name in classes]
        if any(cell != MISSING for cell in cells):
            rows.append((group.title, *cells))
    note = "Recall of each class in %. Mean ± standard deviation over seeds."
    return Table("Accuracy per class", ("run", *classes), tuple(rows), note) if rows else None


def comparison_table(comparisons: Sequence[Comparison]) -> Table | None:
    """Differences from the baseline and their tests; None if there is nothing to compare."""
    if not comparisons:
        return None
    wilcoxon = any(one.accuracy and one.accuracy.wilcoxon_p is not None for one in comparisons)
    rows = [_comparison_row(one, wilcoxon) for one in comparisons]
    columns = (
        "run", "seeds", "accuracy", OVER_SEEDS, OVER_SAMPLES, "t-test p", "Holm p",
        *(["Wilcoxon p"] if wilcoxon else []), "McNemar p < 0.05", "mean class accuracy", "macro F1",
    )  # fmt: skip
    note = (
        "Difference in percentage points on the same seeds and samples; CIs as above. Two-sided paired t-test over "
        "seeds; Holm p is corrected for the number of comparisons. McNemar: number of seeds with p < 0.05 in McNemar's "
        "exact test, corrected (Holm) over all seeds of all comparisons; it compares two trained networks, not two "
        "training methods. "
    )
    note += f"Wilcoxon's signed-rank test needs {WILCOXON_MIN_PAIRS} unequal pairs. " if wilcoxon else ""
    note += "A dash: too few seeds, equal differences on all of them, or not measured." + _dagger(
        row[4] for row in rows
    )
    note += "".join(
        f" {one.group.label} is not compared: {one.not_compared}." for one in comparisons if one.not_compared
    )
    note += _no_predictions(one.no_predictions for one in comparisons)
    samples = {one.predictions.difference.samples for one in comparisons if one.predictions}
    images = f" on {count(samples.pop())} test samples" if len(samples) == 1 else ""
    caption = f"Differences from {comparisons[0].baseline.label}, paired by seed{images}"
    return Table(caption, columns, tuple(rows), note)


def _comparison_row(one: Comparison, wilcoxon: bool) -> tuple[str, ...]:
    test, predictions = one.accuracy, one.predictions
    if test is None:
        return (one.group.title, "0", *[MISSING] * (9 if wilcoxon else 8))
    p_values = (test.t_p, one.holm_p, *([test.wilcoxon_p] if wilcoxon else []))
    others = (signed(other.difference.mean, 2) if other else MISSING for other in (one.mean_class, one.macro_f1))
    return (
        one.group.title, str(test.difference.n), signed(test.difference.mean, 2),
        interval(test.difference, 2, sign=True),
        _bootstrap_cell(predictions.difference if predictions else None, sign=True), *map(p_value, p_values),
        f"{predictions.n_significant} of {len(predictions.tests)} seeds" if predictions else MISSING, *others,
    )  # fmt: skip


def poker_table(groups: Sequence[RunGroup]) -> Table | None:
    """Metrics of every group's inputs, reconstructions, poker faces and true neutral faces."""
    rows = []
    for group in groups:
        for row in POKER_ROWS:
            cells = [
                mean_std(group.summary("poker", "rows", row, metric.key), metric.digits) for metric in POKER_METRICS
            ]
            if any(cell != MISSING for cell in cells):
                rows.append((group.title, row, *cells))
    columns = ("run", "image", *(metric.title for metric in POKER_METRICS))
    note = (
        "Neutral rate: share that the judge (a classifier not used in training) classifies as neutral; neutralised "
        "rate: the same among faces with an expression. Emotion agreement: share of all faces, neutral ones included, "
        "that the judge assigns to the input's emotion. Blur affects the judge: compare the poker faces with the "
        "reconstructions, which are equally blurred, and with the truth; if emotion agreement of the reconstructions "
        "is low, a high neutral rate is not informative. Identity cosine: similarity of face embeddings with the "
        "input. PSNR, SSIM and MSE: against the true neutral face, where available; inside and outside the region of "
        "the expression. Mean ± standard deviation over seeds."
    )
    return Table("Poker faces", columns, tuple(rows), note, labels=2) if rows else None


def mae_table(groups: Sequence[RunGroup]) -> Table | None:
    """Loss and cost of the pre-training runs."""
    rows = []
    for group in groups:
        if group.objective != "mae":
            continue
        paths = (("steps",), ("parameters", "train"), ("images_per_second",), ("seconds",))
        summaries = [group.summary(*path) for path in paths]
        steps, parameters, speed, seconds = (summary.mean if summary else None for summary in summaries)
        loss = [mean_std(group.summary(split, "loss"), 4) for split in ("validation", "test")]
        rows.append(
            (group.title, str(len(group.runs)), *loss, count(steps), count(parameters), count(speed), duration(seconds))
        )
    columns = ("run", "seeds", "validation loss", "test loss", "steps", "parameters", "images/s", "time")
    note = (
        "Loss: mean squared error on masked patches as in training (by default, targets are normalised per patch), "
        "mean ± standard deviation over seeds. Other columns are means."
    )
    return Table("Masked autoencoders", columns, tuple(rows), note) if rows else None


def runs_table(runs: Sequence[Run], unfinished: Sequence[UnfinishedRun]) -> Table:
    """Every run, finished or not."""
    rows: list[tuple[str, ...]] = []
    for run in runs:
        accuracy = run.number("test", "accuracy")
        score = number(100 * accuracy, 2) if accuracy is not None else MISSING
        date = run.finished_at.strftime("%Y-%m-%d %H:%M")
        rows.append((
            run.relative_path, run.name, run.status, date, str(run.seed), score, count(run.number("steps")),
            duration(run.number("seconds")), count(run.number("images_per_second")), *_efficiency(run),
        ))  # fmt: skip
    rows += [(one.relative_path, one.name, one.status, MISSING, one.seed, *[MISSING] * 8) for one in unfinished]
    columns = (
        "folder", "run", "status", "finished (UTC)", "seed", "test accuracy %", "steps", "time", "images/s",
        "TFLOP/s", "MFU %", "host wait %", "peak GB",
    )  # fmt: skip
    note = (
        "Dates: modification time of result.json. TFLOP/s: of the model, per device; MFU: their share of the device's "
        "peak. Host wait: share of the time in which rank 0 waited for a batch. Peak: memory of rank 0's GPU. These "
        "are of the last attempt; a dash where they are unknown, as on CPUs without a given peak."
    )
    return Table("All runs", columns, tuple(rows), note, labels=4)


def _efficiency(run: Run) -> tuple[str, ...]:
    """TFLOP/s, MFU %, host wait % and peak memory."""
    tflops, memory = (run.number("efficiency", name) for name in ("tflops_per_device", "peak_memory_gb"))
    shares = [run.number("efficiency", name) for name in ("mfu", "host_wait")]
    percent = [number(None if share is None else 100 * share, 1) for share in shares]
    return number(tflops, 2), *percent, number(memory, 1)
