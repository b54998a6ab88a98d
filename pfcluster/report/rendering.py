"""A table as a value, and its renderings in Markdown, LaTeX (booktabs) and CSV. HTML is rendered by the templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pfcluster.report.formatting import MISSING
from pfcluster.system.csv_tables import csv_table


@dataclass(frozen=True)
class Table:
    """Cells as text. The first `labels` columns are left-aligned labels, the others right-aligned numbers."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    labels: int = 1

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.caption

    def without_empty_columns(self) -> Table:
        """The table without number columns that hold only dashes."""
        kept = [
            index
            for index in range(len(self.columns))
            if index < self.labels or any(row[index] != MISSING for row in self.rows)
        ]
        rows = tuple(tuple(row[index] for index in kept) for row in self.rows)
        return replace(self, columns=tuple(self.columns[index] for index in kept), rows=rows)


def markdown(table: Table) -> str:
    """A GitHub table under a heading, followed by its note."""
    rule = ["---" if index < table.labels else "---:" for index in range(len(table.columns))]
    lines = [table.columns, tuple(rule), *table.rows]
    cells = [[cell if row is lines[1] else markdown_text(cell) for cell in row] for row in lines]
    body = "\n".join("| " + " | ".join(row) + " |" for row in cells)
    note = f"\n{markdown_text(table.note)}\n" if table.note else ""
    return f"### {markdown_text(table.caption)}\n\n{body}\n{note}"


def markdown_text(text: str) -> str:
    """Escape Markdown and HTML syntax."""
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
    """Escape LaTeX's special characters."""
    special = {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$",
        "–": "--", "\u202f": r"\,", "†": r"\dag{}", "‡": r"\ddag{}", "⚠": r"(!)", "<": "$<$", ">": "$>$", "|": "$|$",
    }  # fmt: skip
    special |= {letter: f"\\{letter}" for letter in "&%$#_{}"}
    return "".join(special.get(letter, letter) for letter in text.replace("\n", " "))


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as CSV; columns in order of first appearance; missing values and None are empty cells."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return csv_table(columns, [[row.get(name) for name in columns] for row in rows])
