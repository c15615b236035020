"""Durations, sizes and coordinates as text."""

from __future__ import annotations

import math


def format_duration(seconds: float | None) -> str:
    """Return a duration as text: "45 s", "1 min 04 s", "2 h 10 min"; "unknown" for None."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_coordinate(value: float) -> str:
    """Return an SVG or CSS coordinate with at most two decimals: "50", "33.33"."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def format_size(size: float) -> str:
    """Return a number of bytes as text: "12 KiB", "3.4 MiB", "1.2 GiB"."""
    if size < 2**20:
        return f"{math.ceil(size / 2**10)} KiB"
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"
