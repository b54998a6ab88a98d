"""The report's tables as values, and their renderings: Markdown, LaTeX (booktabs), CSV. The page has its own."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pfcluster.report.findings import MEASURES, POKER_ROWS, Comparison
from pfcluster.report.formatting import NOTHING, count, duration, interval, mean_std, number, p_value, signed
from pfcluster.report.groups import Group
from pfcluster.report.resampling import Resampled
from pfcluster.report.results import Run, Unfinished
from pfcluster.report.statistics import WILCOXON_MIN_PAIRS

OVER_SEEDS = "95 % over seeds"
OVER_SAMPLES = "95 % over seeds and samples"


@dataclass(frozen=True)
class Table:
    """Cells as text. The first `labels` columns are words, the others figures (aligned to the right)."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    labels: int = 1

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.caption


def main_table(groups: Sequence[Group]) -> Table | None:
    """Test accuracy, mean class accuracy and macro F1 of every classification group; None where there is none."""
    rows, datasets, missing = [], [], []
    for group in groups:
        accuracy = group.summary("test", "accuracy", scale=100)
        if accuracy is None:
            continue
        datasets.append(group.runs[0].dataset)
        others = (mean_std(group.summary("test", name, scale=100), 2) for name in ("mean_class_accuracy", "macro_f1"))
        parameters, samples = group.summary("parameters", "test"), set(group.by_seed("test", "n").values())
        over_samples, why_not = group.over_samples
        missing.append(why_not)
        chosen = "test ‡" if group.chosen_on == "test" else group.chosen_on
        rows.append((
            group.title, group.objective, chosen, str(accuracy.n),
            count(samples.pop()) if len(samples) == 1 else NOTHING, mean_std(accuracy, 2), interval(accuracy, 2),
            _over_samples(over_samples), *others, count(parameters.mean if parameters else None),
        ))  # fmt: skip
    columns = (
        "run", "objective", "chosen on", "seeds", "samples", "accuracy %", OVER_SEEDS, OVER_SAMPLES,
        "mean class accuracy %", "macro F1 %", "parameters at test",
    )  # fmt: skip
    note = (
        "Mean ± standard deviation over seeds (n − 1 in the denominator). Over seeds: Student's interval of the mean. "
        "Over seeds and samples: bootstrap of both, the same samples for all seeds, with Student's allowance for few "
        "seeds. Mean class accuracy: mean of the classes' accuracies."
    )
    note += _dagger(row[7] for row in rows)
    if any(row[2] == "test ‡" for row in rows):
        note += " ‡ The checkpoint was chosen on the test split: the figure is optimistic."
    if any("⚠" in row[0] for row in rows):
        note += " ⚠ These runs differ in more than their seed: the mean is no result."
    note += _no_answers(missing)
    named = [name for name in dict.fromkeys(datasets) if name]
    title = "Expression recognition on the test split" + (f" of {' and '.join(named)}" if named else "")
    return Table(title, columns, tuple(rows), note, labels=3) if rows else None


def _over_samples(found: Resampled | None, *, sign: bool = False) -> str:
    """The bootstrap's interval, marked where there was one seed to resample."""
    return interval(found, 2, sign=sign) + (" †" if found and found.seeds == 1 else "")


def _dagger(cells: Iterable[str]) -> str:
    return " † One seed: over samples only." if any("†" in cell for cell in cells) else ""


def _no_answers(reasons: Iterable[str]) -> str:
    """Why there is a dash instead of an interval over samples."""
    known = [reason for reason in dict.fromkeys(reasons) if reason]
    return f" Nothing is known of other samples where answers are missing: {'; '.join(known)}." if known else ""


def per_class_table(groups: Sequence[Group]) -> Table | None:
    """Accuracy within each true class, classes as columns in the order of the first group that has them."""
    classes = list(dict.fromkeys(name for group in groups for name in group.classes if _has_class(group, name)))
    rows = []
    for group in groups:
        cells = [mean_std(group.summary("test", "per_class", name, scale=100), 2) for name in classes]
        if any(cell != NOTHING for cell in cells):
            rows.append((group.title, *cells))
    note = "Share of each true class that was recognised (recall), in %. Mean ± standard deviation over seeds."
    return Table("Accuracy per class", ("run", *classes), tuple(rows), note) if rows else None


def _has_class(group: Group, name: str) -> bool:
    return bool(group.by_seed("test", "per_class", name))


def comparison_table(comparisons: Sequence[Comparison]) -> Table | None:
    """Differences from the baseline with their tests; None where there is nothing to compare."""
    if not comparisons:
        return None
    wilcoxon = any(one.accuracy and one.accuracy.wilcoxon_p is not None for one in comparisons)
    rows = [_comparison_row(one, wilcoxon) for one in comparisons]
    columns = (
        "run", "seeds", "accuracy", OVER_SEEDS, OVER_SAMPLES, "t-test p", "Holm p",
        *(["Wilcoxon p"] if wilcoxon else []), "McNemar p < 0.05", "mean class accuracy", "macro F1",
    )  # fmt: skip
    note = (
        "Difference in percentage points on the same seeds and samples; intervals as above. Paired t-test over seeds, "
        "two-sided; Holm's p corrects it for the number of comparisons. McNemar's exact test, seed by seed, corrected "
        "(Holm) for every seed of every comparison: it tells two networks apart, not two ways of training. "
    )
    note += f"Wilcoxon's signed-rank test from {WILCOXON_MIN_PAIRS} pairs that differ. " if wilcoxon else ""
    note += "A dash: too few seeds, or not known." + _dagger(row[4] for row in rows)
    note += "".join(f" {one.group.label} is not compared: {one.why_not}." for one in comparisons if one.why_not)
    note += _no_answers(one.no_answers for one in comparisons)
    samples = {one.answers.difference.samples for one in comparisons if one.answers}
    faces = f" on {count(samples.pop())} test samples" if len(samples) == 1 else ""
    title = f"Against {comparisons[0].baseline.label}, seed by seed{faces}"
    return Table(title, columns, tuple(rows), note)


def _comparison_row(one: Comparison, wilcoxon: bool) -> tuple[str, ...]:
    test, answers = one.accuracy, one.answers
    if test is None:
        return (one.group.title, "0", *[NOTHING] * (9 if wilcoxon else 8))
    p_values = (test.t_p, one.holm_p, *([test.wilcoxon_p] if wilcoxon else []))
    others = (signed(other.difference.mean, 2) if other else NOTHING for other in (one.mean_class, one.macro_f1))
    change, spread = signed(test.difference.mean, 2), interval(test.difference, 2, sign=True)
    return (
        one.group.title, str(test.difference.n), change, spread,
        _over_samples(answers.difference if answers else None, sign=True), *map(p_value, p_values),
        f"{answers.told_apart} of {len(answers.tests)} seeds" if answers else NOTHING, *others,
    )  # fmt: skip


def poker_table(groups: Sequence[Group]) -> Table | None:
    """Every group's input, reconstruction, poker face and truth."""
    rows = []
    for group in groups:
        for row in POKER_ROWS:
            cells = [mean_std(group.summary("poker", "rows", row, measure.key), measure.digits) for measure in MEASURES]
            if any(cell != NOTHING for cell in cells):
                rows.append((group.title, row, *cells))
    columns = ("run", "image", *(measure.title for measure in MEASURES))
    note = (
        "PSNR, SSIM and the error are distances to the true neutral face, where it is known. Identity: likeness to the "
        "person in the input. Neutrality is a judge's word, and judges mistrust blur: read the poker face's beside the "
        "reconstruction's, which has the same blur, and beside the truth's; where no emotion is recognised in the "
        "reconstructions, a calm poker face shows nothing. Mean ± standard deviation over seeds."
    )
    return Table("Poker faces, image by image", columns, tuple(rows), note, labels=2) if rows else None


def mae_table(groups: Sequence[Group]) -> Table | None:
    """Pre-training runs: what they cost and how well they fill in hidden patches."""
    rows = []
    for group in groups:
        if group.objective != "mae":
            continue
        means = [
            group.summary(*path) for path in (("steps",), ("parameters", "train"), ("images_per_second",), ("seconds",))
        ]
        steps, parameters, speed, seconds = (one.mean if one else None for one in means)
        loss = [mean_std(group.summary(split, "loss"), 4) for split in ("validation", "test")]
        rows.append(
            (group.title, str(len(group.runs)), *loss, count(steps), count(parameters), count(speed), duration(seconds))
        )
    columns = ("run", "seeds", "validation loss", "test loss", "steps", "parameters", "images/s", "time")
    note = (
        "Loss: mean squared error on hidden patches, as they were trained (by default each patch normalised by its own "
        "mean and variance), mean ± standard deviation over seeds. The other columns are means."
    )
    return Table("Masked autoencoders", columns, tuple(rows), note) if rows else None


def runs_table(runs: Sequence[Run], unfinished: Sequence[Unfinished]) -> Table:
    """Every run, finished or not."""
    rows: list[tuple[str, ...]] = []
    for run in runs:
        accuracy = run.number("test", "accuracy")
        speed, seconds = count(run.number("images_per_second")), duration(run.number("seconds"))
        score = number(100 * accuracy, 2) if accuracy is not None else NOTHING
        date = run.finished_at.strftime("%Y-%m-%d %H:%M")
        rows.append(
            (run.place, run.name, run.status, date, str(run.seed), score, count(run.number("steps")), seconds, speed)
        )
    rows += [(one.place, one.name, one.status, NOTHING, one.seed, *[NOTHING] * 4) for one in unfinished]
    columns = ("folder", "run", "status", "finished (UTC)", "seed", "test accuracy %", "steps", "time", "images/s")
    return Table("All runs", columns, tuple(rows), "Dates are those of the result files.", labels=4)


def markdown(table: Table) -> str:
    """A GitHub table under its caption, with its note."""
    rule = ["---" if index < table.labels else "---:" for index in range(len(table.columns))]
    lines = [table.columns, tuple(rule), *table.rows]
    cells = [[cell if row is lines[1] else markdown_text(cell) for cell in row] for row in lines]
    body = "\n".join("| " + " | ".join(row) + " |" for row in cells)
    return f"### {markdown_text(table.caption)}\n\n{body}\n" + (
        f"\n{markdown_text(table.note)}\n" if table.note else ""
    )


def markdown_text(text: str) -> str:
    """Text in which Markdown and HTML find nothing to interpret."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]|<>#" else letter for letter in text)
    return escaped.replace("&", "&amp;").replace("\n", " ")


def latex(table: Table) -> str:
    """A booktabs table (\\usepackage{booktabs})."""
    align = "".join("l" if index < table.labels else "r" for index in range(len(table.columns)))
    rows = [" & ".join(map(latex_text, row)) + r" \\" for row in table.rows]
    head = " & ".join(map(latex_text, table.columns)) + r" \\"
    caption = rf"\caption{{{latex_text(table.caption)}. {latex_text(table.note)}}}"
    body = ["\\toprule", head, "\\midrule", *rows, "\\bottomrule"]
    lines = ["% needs \\usepackage{booktabs}", r"\begin{table}[t]", r"\centering", caption]
    lines += [rf"\begin{{tabular}}{{{align}}}", *body, r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def latex_text(text: str) -> str:
    """Text with LaTeX's own characters escaped."""
    special = {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$",
        "–": "--", "\u202f": r"\,", "†": r"\dag{}", "‡": r"\ddag{}", "⚠": r"(!)", "<": "$<$", ">": "$>$", "|": "$|$",
    }  # fmt: skip
    special |= {letter: f"\\{letter}" for letter in "&%$#_{}"}
    return "".join(special.get(letter, letter) for letter in text.replace("\n", " "))


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as CSV; columns in the order in which they first appear; an empty cell for what a row lacks."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    return out.getvalue()
