"""Figures as text, the same way everywhere: fixed decimals, a true minus sign, a dash for what is not known."""

from __future__ import annotations

from pfcluster.report.resampling import Resampled
from pfcluster.report.statistics import Summary

NOTHING = "–"


def number(value: float | None, digits: int) -> str:
    """Fixed decimals; a dash for None."""
    return NOTHING if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int) -> str:
    """Fixed decimals with + or −; a dash for None."""
    return NOTHING if value is None else f"{value:+.{digits}f}".replace("-", "−")


def mean_std(summary: Summary | None, digits: int) -> str:
    """ "72.13 ± 0.45"; a dash in place of the spread for one seed; a dash for None."""
    return NOTHING if summary is None else f"{number(summary.mean, digits)} ± {number(summary.std, digits)}"


def interval(summary: Summary | Resampled | None, digits: int, *, sign: bool = False) -> str:
    """ "71.0 to 73.2"; a dash for one seed or None."""
    if summary is None or summary.low is None or summary.high is None:
        return NOTHING
    write = signed if sign else number
    return f"{write(summary.low, digits)} to {write(summary.high, digits)}"


def p_value(value: float | None) -> str:
    """Two significant digits, never a bare zero."""
    if value is None:
        return NOTHING
    return "<\u00a00.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def p_text(value: float | None) -> str:
    """ "p = 0.020" or "p < 0.001", unbroken, for a sentence."""
    equals = "" if value is not None and value < 0.001 else "=\u00a0"
    return f"p\u00a0{equals}{p_value(value)}"


def count(value: float | None) -> str:
    """A whole number with thin spaces between its thousands."""
    return NOTHING if value is None else f"{round(value):,}".replace(",", "\u202f")


def duration(seconds: float | None) -> str:
    """ "42 s", "3 min 05 s", "2 h 10 min"."""
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
