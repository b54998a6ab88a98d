"""The report's tables as values, and their renderings: Markdown, LaTeX (booktabs), CSV. The page has its own."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pfcluster.report.findings import MEASURES, POKER_ROWS, Comparison
from pfcluster.report.groups import Group
from pfcluster.report.results import Run, Unfinished
from pfcluster.report.statistics import WILCOXON_FROM
from pfcluster.report.wording import NOTHING, count, duration, interval, mean_std, number, p_value, signed


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
    """Test accuracy and macro F1 of every classification group; None where there is none."""
    rows, datasets = [], []
    for group in groups:
        accuracy = group.summary("test", "accuracy", scale=100)
        if accuracy is None:
            continue
        datasets.append(group.runs[0].dataset)
        macro_f1 = group.summary("test", "macro_f1", scale=100)
        parameters = group.summary("parameters", "test")
        figures = (str(accuracy.n), mean_std(accuracy, 2), interval(accuracy, 2), mean_std(macro_f1, 2))
        chosen = "test ‡" if group.chosen_on == "test" else group.chosen_on
        rows.append((group.title, group.objective, chosen, *figures, count(parameters.mean if parameters else None)))
    columns = (
        "run",
        "objective",
        "chosen on",
        "seeds",
        "accuracy %",
        "95 % interval",
        "macro F1 %",
        "parameters at test",
    )
    note = "Mean ± standard deviation over seeds (n − 1 in the denominator); Student's 95 % interval of the mean."
    if any(row[2] == "test ‡" for row in rows):
        note += " ‡ The checkpoint was chosen on the test split: the figure is optimistic."
    if any("⚠" in row[0] for row in rows):
        note += " ⚠ These runs differ in more than their seed: the mean is no result."
    named = [name for name in dict.fromkeys(datasets) if name]
    title = "Expression recognition on the test split" + (f" of {' and '.join(named)}" if named else "")
    return Table(title, columns, tuple(rows), note, labels=3) if rows else None


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
    rows = []
    for one in comparisons:
        if one.accuracy is None:
            rows.append((one.group.title, "0", *[NOTHING] * 6))
            continue
        mean, spread = signed(one.accuracy.difference.mean, 2), interval(one.accuracy.difference, 2, sign=True)
        p_values = [p_value(value) for value in (one.accuracy.t_p, one.holm_p, one.accuracy.wilcoxon_p)]
        f1 = signed(one.macro_f1.difference.mean, 2) if one.macro_f1 else NOTHING
        rows.append((one.group.title, str(one.accuracy.difference.n), mean, spread, *p_values, f1))
    if not rows:
        return None
    columns = (
        "run",
        "pairs",
        "accuracy",
        "95 % interval",
        "t-test p",
        "Holm p",
        "Wilcoxon p",
        "macro F1",
    )
    note = (
        "Difference in percentage points on the same seeds. "
        "Paired t-test, two-sided; Holm's p corrects it for the number of comparisons; "
        f"Wilcoxon's signed-rank test from {WILCOXON_FROM} pairs that differ. A dash: too few seeds, or not compared."
    )
    note += "".join(f" {one.group.label} is not compared: {one.why_not}." for one in comparisons if one.why_not)
    return Table(f"Against {comparisons[0].baseline.label}, seed by seed", columns, tuple(rows), note)


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
        "reconstruction's, which has the same blur, and beside the truth's. Mean ± standard deviation over seeds."
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
        "–": "--", "\u202f": r"\,", "‡": r"\ddag{}", "⚠": r"(!)", "<": "$<$", ">": "$>$", "|": "$|$",
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
