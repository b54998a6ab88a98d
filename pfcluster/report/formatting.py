"""Numbers as text: fixed decimals, a true minus sign, and a dash for missing values."""

from __future__ import annotations

from pfcluster.report.resampling import BootstrapInterval
from pfcluster.report.statistics import Summary

MISSING = "–"


def number(value: float | None, digits: int) -> str:
    """Fixed decimals; a dash for None."""
    return MISSING if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int) -> str:
    """Fixed decimals with + or −; a dash for None."""
    return MISSING if value is None else f"{value:+.{digits}f}".replace("-", "−")


def mean_std(summary: Summary | None, digits: int) -> str:
    """ "72.13 ± 0.45"; a dash for the standard deviation of one seed; a dash for None."""
    return MISSING if summary is None else f"{number(summary.mean, digits)} ± {number(summary.std, digits)}"


def interval(summary: Summary | BootstrapInterval | None, digits: int, *, sign: bool = False) -> str:
    """ "71.0 to 73.2"; a dash for one seed or None."""
    if summary is None or summary.low is None or summary.high is None:
        return MISSING
    write = signed if sign else number
    return f"{write(summary.low, digits)} to {write(summary.high, digits)}"


def p_value(value: float | None) -> str:
    """Two significant digits, "< 0.001" below that; a dash for None."""
    if value is None:
        return MISSING
    return "<\u00a00.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def p_text(value: float | None) -> str:
    """ "p = 0.020" or "p < 0.001" with non-breaking spaces, for a sentence."""
    equals = "" if value is not None and value < 0.001 else "=\u00a0"
    return f"p\u00a0{equals}{p_value(value)}"


def count(value: float | None) -> str:
    """An integer with thin spaces as thousands separators; a dash for None."""
    return MISSING if value is None else f"{round(value):,}".replace(",", "\u202f")


def duration(seconds: float | None) -> str:
    """ "42 s", "3 min 05 s", "2 h 10 min"; a dash for None."""
    if seconds is None:
        return MISSING
    rounded = round(seconds)
    if rounded < 60:
        return f"{seconds:.0f} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"
