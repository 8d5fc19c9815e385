"""Pictures of an evaluation: what is kept against size, and against dim.

It must not know how anything is measured.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_embed.errors import MissingExtraError, StorageError
from gguf_embed.quality.evaluation import MEASURES, Evaluation, Judged
from gguf_embed.quality.report import TITLES

__all__ = ["check_plots", "draw_png", "draw_svg"]

# Colours of the page's styles; in SVG they become its variables, so that a picture follows light and dark.
_INK, _MUTED, _GRID, _PAPER = "#20292e", "#6b757b", "#dde3e6", "#ffffff"
_VARIABLES = {_INK: "var(--ink)", _MUTED: "var(--muted)", _GRID: "var(--grid)", _PAPER: "var(--paper)"}
# Told apart on white and on black, also by people who see red and green alike. Source: Okabe and Ito, 2008, darkened
# or lightened where they vanish on one of the two.
_COLORS = ("#0a7fb8", "#d9730d", "#0f9d76", "#c05a9a", "#a3871a", "#5b7fd6", "#c0483c", "#7a8a2e")
_MARKERS = "osD^vP"
_PANEL_IN, _HEIGHT_IN, _HEAD_IN = 4.6, 2.9, 0.45
_MIN_RANGE = 0.04
# Where a name may stand from its point, in points, the nearest first; from afar a line leads to it.
_NEAR = ((7, 0), (0, 7), (0, -7), (-7, 0), (5, 6), (5, -6), (-5, 6), (-5, -6))
_FAR = tuple(
    (distance * math.cos(math.radians(degrees)), distance * math.sin(math.radians(degrees)))
    for distance in (20, 32, 44, 58)
    for degrees in (0, -35, 35, -65, 65, 180, -145, 145, -115, 115)
)

Kept = Callable[[Judged, int], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    color: str
    marker: str


def check_plots() -> None:
    """Check at the door that pictures can be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: F401, PLC0415 - an extra, checked at the door
    except ImportError as error:
        raise MissingExtraError('Plots need matplotlib; run: pip install "gguf-embed[plot]"', extra="plot") from error


def draw_png(evaluation: Evaluation, path: Path) -> None:
    """Draw everything in one picture.

    Args:
        evaluation: what to show.
        path: the file, replaced whole.

    Raises:
        StorageError: the file cannot be written.
    """
    figure = _figure(evaluation, list(_measures(evaluation)), title=f"What quantization costs {evaluation.model_id}")
    fresh = path.with_name(f".{path.name}.{os.getpid()}.png")
    try:
        figure.savefig(fresh, dpi=160, metadata={"Software": None})
        fresh.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}", path=path) from error
    finally:
        fresh.unlink(missing_ok=True)


def draw_svg(evaluation: Evaluation) -> tuple[tuple[str, str], ...]:
    """Draw a picture a measure, to be put into an HTML page.

    Returns:
        Words for who cannot see it, and SVG with the page's variables for colours; the same for the same evaluation.
    """
    import matplotlib as mpl  # noqa: PLC0415 - an extra

    pictures = []
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gguf-embed", "font.family": "sans-serif"}):
        for title, kept in _measures(evaluation):
            buffer = io.StringIO()
            figure = _figure(evaluation, [(title, kept)])
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            svg = buffer.getvalue()
            svg = svg[svg.index("<svg") :].rstrip()
            for color, variable in _VARIABLES.items():
                svg = svg.replace(color, variable)
            pictures.append((f"{title} of each quantization by size and by dim, as in the tables", svg))
    return tuple(pictures)


def _measures(evaluation: Evaluation) -> Iterator[tuple[str, Kept]]:
    """What to draw: title and what a quantization keeps at a dim."""
    whole, found = evaluation.quants[0], False
    for name in reversed(MEASURES):
        if evaluation.kept(whole, name, evaluation.dims[0]) is not None:
            found = True
            yield TITLES[name], _kept_of(evaluation, name)
    if not found and whole.score is not None:
        yield "mteb", lambda judged, dim: judged.score if dim == evaluation.dims[0] else None


def _kept_of(evaluation: Evaluation, name: str) -> Kept:
    return lambda judged, dim: evaluation.kept(judged, name, dim)


def _figure(evaluation: Evaluation, measures: Sequence[tuple[str, Kept]], *, title: str = "") -> Any:
    """Set the panels: a row a measure, by size on the left and, where there are several dims, by dim on the right."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra; without pyplot it needs no screen
    from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415

    n_columns = 2 if len(evaluation.dims) > 1 else 1
    size = (_PANEL_IN * 2, _HEIGHT_IN * max(len(measures), 1) + (_HEAD_IN if title else 0))
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(hspace=0.06, wspace=0.04, w_pad=0.1, h_pad=0.1))
    if title:
        figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold", color=_INK)
    looks = {
        one.quant: _Look(color=_COLORS[index % len(_COLORS)], marker=_MARKERS[index // len(_COLORS) % len(_MARKERS)])
        for index, one in enumerate(evaluation.quants)
    }
    rows = figure.subplots(len(measures), n_columns, squeeze=False)
    for axes, (name, kept) in zip(rows, measures, strict=True):
        _by_size(axes[0], evaluation, looks, name, kept)
        if n_columns > 1:
            _by_dim(axes[1], evaluation, looks, name, kept)
    if n_columns > 1:
        handles, labels = rows[0, 1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", fontsize=8.5, frameon=False, labelcolor=_INK,
                      ncols=min(len(labels), 8))  # fmt: skip
    figure.draw_without_rendering()
    for axes, (_, kept) in zip(rows, measures, strict=True):
        _name_points(axes[0], evaluation, looks, kept)
    return figure


def _by_size(ax: Any, evaluation: Evaluation, looks: dict[str, _Look], title: str, kept: Kept) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator  # noqa: PLC0415 - an extra

    _frame(ax, evaluation, f"{title}, by size")
    for one in evaluation.quants:
        value, look = kept(one, evaluation.dims[0]), looks[one.quant]
        if value is not None:
            ax.plot([one.size_bytes], [value], look.marker, color=look.color, markersize=8, zorder=3, clip_on=False)
    largest = max(one.size_bytes for one in evaluation.quants)
    unit, name = (1 << 30, "GiB") if largest >= 1 << 30 else (1 << 20, "MiB")
    ax.set_xlim(0, largest * 1.16)
    ticks = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(0, largest * 1.05 / unit)
    ax.set_xticks([tick * unit for tick in ticks if 0 <= tick * unit <= largest * 1.16])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda size_bytes, _: f"{size_bytes / unit:g} {name}"))
    _room(ax, [value for one in evaluation.quants if (value := kept(one, evaluation.dims[0])) is not None])


def _by_dim(ax: Any, evaluation: Evaluation, looks: dict[str, _Look], title: str, kept: Kept) -> None:
    _frame(ax, evaluation, f"{title}, by dim")
    ax.set_xscale("log", base=2)
    every = []
    for one in evaluation.quants:
        look = looks[one.quant]
        points = [(dim, value) for dim in evaluation.dims if (value := kept(one, dim)) is not None]
        every += [value for _, value in points]
        ax.plot(*zip(*points, strict=True), f"{look.marker}-", color=look.color, markersize=4.5, linewidth=1.4,
                label=one.quant, zorder=3)  # fmt: skip
    ax.set_xticks(evaluation.dims, [str(dim) for dim in evaluation.dims])
    ax.minorticks_off()
    _room(ax, every)


def _frame(ax: Any, evaluation: Evaluation, title: str) -> None:
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold", color=_INK)
    ax.set_title(f"share of {evaluation.reference}'s", loc="right", fontsize=8.5, color=_MUTED)
    ax.axhline(1, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    ax.grid(axis="y", color=_GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.patch.set_visible(False)
    ax.tick_params(colors=_MUTED, labelsize=8.5, length=0)
    for spine in ("top", "right", "left"):
        ax.spines[spine].set_visible(False)
    ax.spines["bottom"].set_color(_GRID)


def _room(ax: Any, values: Sequence[float]) -> None:
    """Leave room for the reference's line and for names; a loss of a thousandth does not fill the panel."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter  # noqa: PLC0415 - an extra

    low, high = min(*values, 1.0), max(*values, 1.0)
    height = max(high - low, _MIN_RANGE)
    low = min(low, high - height)
    ax.set_ylim(low - 0.2 * height, high + 0.15 * height)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], min_n_ticks=3))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _name_points(ax: Any, evaluation: Evaluation, looks: dict[str, _Look], kept: Kept) -> None:
    """Write each name where it covers no other name and no point."""
    from matplotlib.text import Text  # noqa: PLC0415 - an extra
    from matplotlib.transforms import Bbox  # noqa: PLC0415

    named = [(one, value) for one in evaluation.quants if (value := kept(one, evaluation.dims[0])) is not None]
    centres = [ax.transData.transform((one.size_bytes, value)) for one, value in named]
    scale = ax.figure.dpi / 72  # pixels a point
    taken = [Bbox.from_bounds(x - 4 * scale, y - 4 * scale, 8 * scale, 8 * scale) for x, y in centres]
    inside = ax.get_window_extent().padded(4 * scale)
    for one, value in named:
        for dx, dy in (*_NEAR, *_FAR):
            text = _name(ax, one, value, (dx, dy), looks[one.quant].color)
            text.get_window_extent()  # which finds its place, and counts its line to it
            box = Text.get_window_extent(text)
            is_inside = box.x0 >= inside.x0 and box.x1 <= inside.x1 and box.y0 >= inside.y0 and box.y1 <= inside.y1
            if (is_inside and not any(box.overlaps(other) for other in taken)) or (dx, dy) == _FAR[-1]:
                taken.append(box)
                break
            text.remove()


def _name(ax: Any, judged: Judged, value: float, place: tuple[float, float], color: str) -> Any:
    """Write a name beside its point, on paper, so that no grid line goes through it."""
    dx, dy = place
    is_far = place in _FAR
    ha = "left" if dx > 2 else "right" if dx < -2 else "center"
    va = "center" if is_far or dy == 0 else "bottom" if dy > 0 else "top"
    line = {"arrowstyle": "-", "color": color, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 4} if is_far else None
    text = ax.annotate(
        judged.quant, (judged.size_bytes, value), place, textcoords="offset points", ha=ha, va=va, fontsize=9,
        color=color, fontweight="bold", zorder=2, arrowprops=line,
        bbox={"facecolor": _PAPER, "edgecolor": "none", "pad": 0.6},
    )  # fmt: skip
    text.set_in_layout(False)
    return text
