"""Bars of speeds in a file, one panel a workload.

It must not know how the speeds were measured.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf_embed.bench.measuring import Speed
from gguf_embed.errors import MissingExtraError, StorageError

__all__ = ["SUFFIXES", "check_plot", "draw"]

SUFFIXES = (".png", ".svg", ".pdf")
_OURS, _OTHERS, _INK, _MUTED = "#2f6f8f", "#c3ccd2", "#20292e", "#6b757b"
_WIDTH_IN, _BAR_IN, _PANEL_IN, _HEAD_IN = 8.0, 0.34, 0.75, 0.75


def check_plot(path: Path) -> None:
    """Check at the door that a plot can be drawn.

    Raises:
        ValueError: the name ends in no format of SUFFIXES.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} does not end in {', '.join(SUFFIXES)}")
    try:
        import matplotlib as mpl  # noqa: F401, PLC0415 - an extra, checked at the door
    except ImportError as error:
        raise MissingExtraError('A plot needs matplotlib; run: pip install "gguf-embed[plot]"', extra="plot") from error


def draw(speeds: Sequence[Speed], path: Path, *, title: str) -> None:
    """Draw the speeds of all workloads: the median as a bar, the slowest and the fastest round as a line over it.

    Args:
        speeds: ours first at each workload.
        path: the file, replaced whole; its name says the format.
        title: above all panels.

    Raises:
        StorageError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra; without pyplot it needs no screen
    from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415

    panels = [[one for one in speeds if one.workload == name] for name in dict.fromkeys(one.workload for one in speeds)]
    heights = [_PANEL_IN + _BAR_IN * len(panel) for panel in panels]
    layout = ConstrainedLayoutEngine(hspace=0.06, w_pad=0.15, h_pad=0.1)
    figure = Figure(figsize=(_WIDTH_IN, _HEAD_IN + sum(heights)), layout=layout)
    figure.suptitle(title, x=0.015, ha="left", fontsize=12, fontweight="bold", color=_INK)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, panel in zip(axes, panels, strict=True):
        _draw_panel(ax, panel)
    fresh = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(fresh, dpi=160)
        fresh.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}", path=path) from error
    finally:
        fresh.unlink(missing_ok=True)


def _draw_panel(ax: Any, panel: Sequence[Speed]) -> None:
    """Draw one workload, the first system on top."""
    is_latency = panel[0].p50_ms is not None
    figures = [one.p50_ms or one.tokens_per_s for one in panel]
    unit = "ms a query, median; shorter is better" if is_latency else "tokens/s; longer is better"
    ax.set_title(f"{panel[0].workload}   ", loc="left", fontsize=10, fontweight="bold", color=_INK)
    ax.set_title(unit, loc="right", fontsize=8.5, color=_MUTED)
    places = range(len(panel))
    colors = [_OTHERS if index else _OURS for index in places]
    ax.barh(places, [one.median for one in figures], height=0.68, color=colors)
    ax.hlines(places, [one.low for one in figures], [one.high for one in figures], color=_INK, linewidth=1.1, alpha=0.7)
    longest = max(one.high for one in figures)
    for place, one, figure in zip(places, panel, figures, strict=True):
        times = f"   ours: {one.ratio:.2f}x" if one.ratio is not None else ""
        words = f"{figure.median:,.0f}" if figure.median >= 100 else f"{figure.median:.3g}"
        ax.text(figure.high + longest * 0.012, place, words + times, va="center", fontsize=9, color=_INK)
    ax.set_yticks(places, [one.system for one in panel], fontsize=9, color=_INK)
    ax.set_ylim(len(panel) - 0.5, -0.5)
    ax.set_xlim(0, longest * 1.28)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_visible(False)
    for spine in ("top", "right", "bottom"):
        ax.spines[spine].set_visible(False)
    ax.spines["left"].set_color(_MUTED)
