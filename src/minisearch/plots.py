"""One look for every figure, and line charts that stay interactive without a kernel.

Colours are told apart by readers with each common form of colour blindness and keep a contrast
of at least 3:1 against the figure's own light background, so that they also print well; lines
differ by dash and marker too, so that no figure depends on colour alone.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minisearch.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue, vermilion, green, purple, ochre, grey: the hues of Okabe and Ito (2008), with lightness
# spread so that any two differ under protanopia and deuteranopia (a test simulates both).
COLORS = ("#1b80dd", "#a5440a", "#04483f", "#6c1480", "#c58208", "#85898f")
DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
INK = "#22272e"


def style() -> None:
    """Apply the book's look to matplotlib, and SVG output where a notebook is running."""
    from cycler import cycler
    from matplotlib import pyplot

    pyplot.style.use(Path(__file__).parent / "assets" / "book.mplstyle")
    pyplot.rcParams["axes.prop_cycle"] = cycler(color=COLORS, linestyle=DASHES)
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:  # outside Jupyter
        return
    shell = get_ipython()
    if shell is not None and hasattr(shell, "kernel"):
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg")


def figure(
    width: float = 6.5, height: float = 3.6, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, Any]:
    """A figure in the book's look, as wide as the text column unless told otherwise.

    In a notebook it shows itself when the cell ends; caption and alt text stand in the cell's
    `mystnb` metadata.

    Args:
        width, height: inches; the text column has seven.
        rows, columns: grid of axes; `options` go to `matplotlib.pyplot.subplots`.

    Returns:
        The figure and its axes, as from `subplots`.
    """
    from matplotlib import pyplot

    style()
    return pyplot.subplots(rows, columns, figsize=(width, height), **options)


def label_lines(ax: Axes, gap: float = 14.0) -> None:
    """Write each line's label at its right end, in its colour, instead of a legend.

    Labels that would overlap are moved apart vertically.

    Args:
        ax: axes whose labelled lines are all drawn.
        gap: smallest vertical distance of two labels, in points.
    """
    ends = []
    for line in ax.get_lines():
        x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        seen = np.flatnonzero(np.isfinite(y))
        if not str(line.get_label()).startswith("_") and len(seen):
            ends.append((x[seen[-1]], y[seen[-1]], line))
    if not ends:
        return
    ends.sort(key=lambda end: end[1])
    figure = ax.get_figure(root=True)
    assert figure is not None, "the axes belong to no figure"
    figure.draw_without_rendering()  # distances count only once the layout is settled
    points = 72.0 / figure.dpi
    wanted = [ax.transData.transform((x, y))[1] * points for x, y, _ in ends]
    placed = list(wanted)
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    shift = np.mean(placed) - np.mean(wanted)  # spread around where they were, not upwards only
    for (x, y, line), want, got in zip(ends, wanted, placed, strict=True):
        ax.annotate(
            str(line.get_label()),
            (x, y),
            xytext=(8, got - shift - want),
            textcoords="offset points",
            color=line.get_color(),
            va="center",
            annotation_clip=False,
        )


def interval_bars(
    ax: Axes,
    names: Sequence[str],
    centres: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    reference: float | None = None,
) -> None:
    """Estimates as dots with their intervals, one row a name, the first on top.

    Args:
        centres, lows, highs: estimate and ends of its interval, one a name.
        reference: draw a dashed vertical line here, e.g. at no difference or at a margin.

    Raises:
        InputError: where an interval does not contain its estimate.
    """
    places = np.arange(len(names))[::-1]
    centre, low, high = (np.asarray(v, float) for v in (centres, lows, highs))
    outside = np.flatnonzero((low > centre) | (centre > high))
    if len(outside):
        row = int(outside[0])
        found = f"{centre[row]} with the interval {low[row]} to {high[row]}"
        raise InputError(
            f"interval {names[row]!r}", found, "low <= centre <= high", "reorder them."
        )
    ax.hlines(places, low, high, color=COLORS[0], linewidth=3)
    ax.plot(centre, places, MARKERS[0], color=COLORS[0], markersize=7, linestyle="none")
    ax.set_yticks(places, list(names))
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.grid(axis="y", visible=False)
    if reference is not None:
        ax.axvline(reference, color=INK, linewidth=1, linestyle="--")


def curve_with_band(
    ax: Axes, x: Any, y: Any, low: Any, high: Any, label: str, index: int = 0
) -> None:
    """A curve with a shaded interval, in the `index`-th colour, dash and marker of the book.

    Shape: `x`, `y`, `low`, `high` are (N,) in data units.
    """
    color = COLORS[index % len(COLORS)]
    ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    marker = MARKERS[index % len(MARKERS)] if len(x) <= 12 else ""
    dash = DASHES[index % len(DASHES)]
    ax.plot(x, y, color=color, linestyle=dash, marker=marker, markersize=5, label=label)


@dataclass(frozen=True)
class InteractiveLines:
    """A chart whose lines the reader can switch off and read out, without a kernel.

    Make it the last expression of a cell. On the site `book/_static/figure.js` draws it; in Jupyter
    and without JavaScript it is a picture.

    Args:
        series: label to (x, y) or (x, y, low, high), each a sequence of N numbers; x ascends.
        x_label, y_label: names of the axes with their units.
        title: the caption: what to see in the chart.
        alt: what a reader who cannot see the chart should know.

    Raises:
        InputError: for a series whose columns do not fit together, or a text that is missing.
    """

    series: Mapping[str, Sequence[Sequence[float]]]
    x_label: str
    y_label: str
    title: str
    alt: str

    def __post_init__(self) -> None:
        for name in ("x_label", "y_label", "title", "alt"):
            if not getattr(self, name).strip():
                raise InputError(f"chart, {name}", "no text", "a sentence", f"write {name}.")
        if not self.series:
            raise InputError("chart, series", "none", "at least one", "pass a series.")
        for name, columns in self.series.items():
            where, lengths = f"chart, series {name!r}", [len(column) for column in columns]
            if len(columns) not in (2, 4) or len(set(lengths)) != 1 or not lengths[0]:
                expected = "(x, y) or (x, y, low, high) of one length"
                raise InputError(where, f"columns of lengths {lengths}", expected, "align them.")
            if np.any(np.diff(np.asarray(columns[0], float)) <= 0):
                raise InputError(where, "x out of order", "ascending x", "sort the rows by x.")

    def spec(self) -> dict[str, Any]:
        """What the browser gets: labels, and x, y (and low, high) of each series.

        Numbers that are not finite become None, which is a gap in the line.
        """
        lines = []
        for name, columns in self.series.items():
            keys = ("x", "y", "low", "high")[: len(columns)]
            values = [np.asarray(column, float).tolist() for column in columns]
            rows = [[v if math.isfinite(v) else None for v in column] for column in values]
            lines.append({"name": name, **dict(zip(keys, rows, strict=True))})
        labels = {"xLabel": self.x_label, "yLabel": self.y_label}
        return {"title": self.title, "alt": self.alt, **labels, "series": lines}

    def picture(self) -> str:
        """The same chart as SVG, drawn by matplotlib."""
        from matplotlib import pyplot

        fig, ax = figure(height=3.8)
        for index, (name, columns) in enumerate(self.series.items()):
            x, y = columns[:2]
            low, high = columns[2:] or (y, y)
            curve_with_band(ax, x, y, low, high, label=name, index=index)
        ax.set_xlabel(self.x_label)
        ax.set_ylabel(self.y_label)
        label_lines(ax)
        buffer = io.StringIO()
        fig.savefig(buffer, format="svg", metadata={"Date": None})
        pyplot.close(fig)
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        # "</" would end the script element early, whatever stands in a label.
        spec = json.dumps(self.spec(), ensure_ascii=False).replace("</", "<\\/")
        image = base64.b64encode(self.picture().encode()).decode()
        return (
            '<figure class="ms-figure">\n'
            f'<script type="application/json" class="ms-spec">{spec}</script>\n'
            f'<img class="ms-static" alt="{html.escape(self.alt)}" '
            f'src="data:image/svg+xml;base64,{image}">\n'
            f"<figcaption>{html.escape(self.title)}</figcaption>\n</figure>"
        )


interactive_lines = InteractiveLines  # in a chapter it reads as what the cell does
