"""results.md of benchmarks/gpu_day.py, from its results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

from benchmarks.gpu_parts.measurements import Results

MINIATURE = "**Miniature**: tiny nets on a few images. It shows that everything runs; the figures mean nothing."
PERCENT = (
    *("mfu", "of_measured_peak", "host_wait", "with_face", "accuracy"),
    *("rec_neutralised_rate", "poker_neutralised_rate", "poker_emotion_agreement"),
)
PRODUCT = "bf16 matrix product"


def markdown(results: Results, sections: Sequence[tuple[str, Sequence[str]]]) -> str:
    """All sections that have results or problems; a section is a title and the names of its measurements."""
    lines = ["# GPU measurements", "", *_head(results)]
    for title, names in sections:
        rows = {name: values_of(results, name) for name in names if name in results.done}
        problems = [f"- {name}: {results.problems[name]}" for name in names if name in results.problems]
        if rows or problems:
            lines += ["", f"## {title}", ""]
        lines += [*_table(rows), *([""] if rows and problems else []), *problems]
    return "\n".join(lines) + "\n"


def values_of(results: Results, name: str) -> dict[str, Any]:
    """A measurement's values; those of a step with the share of the measured peak, of an MAE step also with its speed
    over the plain step of the same size.
    """
    values = dict(results.done[name]["values"])
    product = results.done.get(PRODUCT)
    if product is not None and name != PRODUCT and "tflops" in values:
        values["of_measured_peak"] = values["tflops"] / product["values"]["tflops"]
    size, _, variant = name.partition("/")
    plain = results.done.get(f"{size}/plain")
    is_step = size.startswith("mae-") and variant.endswith((", eager", ", compiled"))
    if is_step and plain is not None:
        values["over_plain"] = values["images_per_second"] / plain["values"]["images_per_second"]
    return values


def _head(results: Results) -> Iterator[str]:
    machine = results.machine
    memory = "" if machine["memory_gib"] is None else f" ({machine['memory_gib']} GiB)"
    cuda = "" if machine["cuda"] is None else f", CUDA {machine['cuda']}"
    dates = sorted({done["date"][:10] for done in results.done.values()}) or [date.today().isoformat()]
    commits = sorted({str(done["commit"]) for done in results.done.values()})
    yield (
        f"`python -m benchmarks.gpu_day` · {' to '.join(dict.fromkeys((dates[0], dates[-1])))} · {machine['device']}"
        f"{memory}, {machine['cores']} host cores · torch {machine['torch']}{cuda} · commit {', '.join(commits)}"
    )
    if machine["miniature"]:
        yield ""
        yield MINIATURE


def _table(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """One row for each measurement; columns are all values of any."""
    if not rows:
        return
    columns = list(dict.fromkeys(column for values in rows.values() for column in values))
    yield f"| measurement | {' | '.join(_title(column) for column in columns)} |"
    yield f"| --- | {' | '.join('---:' for _ in columns)} |"
    for name, values in rows.items():
        yield f"| {name} | {' | '.join(_cell(column, values.get(column)) for column in columns)} |"


def _title(column: str) -> str:
    return column.replace("_per_second", "/s").replace("_", " ") + (" %" if column in PERCENT else "")


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{100 * value:.1f}" if column in PERCENT else f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
