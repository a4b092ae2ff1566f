"""Figures: told apart without full colour vision, labelled without overlap, interactive as data."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb

from minisearch import plots
from minisearch.errors import InputError

STYLESHEET = Path(__file__).parents[2] / "book" / "_static" / "custom.css"

# Machado, Oliveira and Fernandes (2009), severity 1, for linear RGB.
DEFICIENCIES = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
}  # fmt: skip


@pytest.fixture(autouse=True)
def closed_figures():
    with mpl.rc_context():
        yield
    pyplot.close("all")


def linear(color: str) -> np.ndarray:
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of linear RGB."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.clip(np.array(to_xyz) @ rgb, 0, None) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def luminance(color: str) -> float:
    return float(linear(color) @ [0.2126, 0.7152, 0.0722])


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def site_colours() -> dict[str, list[str]]:
    """The six line colours of the site's style sheet on light and on dark paper."""
    found = re.findall(r"--ms-\d: (#\w{6});", STYLESHEET.read_text(encoding="utf-8"))
    return {"light": found[:6], "dark": found[6:]}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", DEFICIENCIES)
def test_colours_are_told_apart(name: str, theme: str) -> None:
    colours = site_colours()[theme]
    assert len(colours) == 6
    seen = [lab(np.clip(DEFICIENCIES[name] @ linear(c), 0, 1)) for c in colours]
    worst = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
    assert worst > 20  # 2.3 is just noticeable


def test_colours_and_text_stand_out_from_the_paper() -> None:
    plots.style()
    paper = mpl.rcParams["figure.facecolor"]
    assert all(contrast(color, paper) >= 3 for color in plots.COLORS)
    assert all(contrast(color, "#121212") >= 4 for color in site_colours()["dark"])
    assert contrast(mpl.rcParams["text.color"], paper) >= 7


def test_the_site_draws_in_the_colours_of_the_figures() -> None:
    assert tuple(site_colours()["light"]) == plots.COLORS


def test_lines_differ_by_more_than_colour() -> None:
    _, ax = plots.figure()
    lines = [ax.plot([0, 1], [i, i])[0] for i in range(6)]
    assert len({line.get_linestyle() + str(line._dash_pattern) for line in lines}) == 6


def test_the_same_figure_gives_the_same_file() -> None:
    files = []
    for _ in range(2):
        figure, ax = plots.figure()
        plots.curve_with_band(ax, [1, 2], [1, 2], [0, 1], [2, 3], label="a")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        files.append(buffer.getvalue())
    assert files[0] == files[1]


def test_labels_stand_at_the_line_ends_without_overlap() -> None:
    figure, ax = plots.figure()
    ends = {"first": 1.0, "second": 1.001, "third": 1.002, "far": 3.0}
    for name, end in ends.items():
        ax.plot([0, 1, 2], [0, end, np.nan], label=name)
    plots.label_lines(ax)
    figure.canvas.draw()
    boxes = {t.get_text(): t.get_window_extent() for t in ax.texts}
    assert set(boxes) == set(ends)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes.values(), 2))
    assert all(figure.bbox.containsx(box.x1) and box.x0 > 0 for box in boxes.values())
    order = sorted(boxes, key=lambda name: boxes[name].y0)
    assert order == list(ends)
    assert [t.get_color() for t in ax.texts] == [line.get_color() for line in ax.get_lines()]
    last = ax.transData.transform((1, 3.0))[1]
    assert abs(boxes["far"].y0 + boxes["far"].height / 2 - last) < 25


def test_interval_bars_put_the_first_name_on_top() -> None:
    _, ax = plots.figure()
    plots.interval_bars(ax, ["a", "b"], [0.1, 0.2], [0.0, 0.1], [0.3, 0.4], reference=0.0)
    (bars,) = ax.collections
    assert [segment.tolist() for segment in bars.get_segments()] == [
        [[0.0, 1.0], [0.3, 1.0]],
        [[0.1, 0.0], [0.4, 0.0]],
    ]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    with pytest.raises(InputError, match=r"interval 'b'.*low <= centre <= high"):
        plots.interval_bars(ax, ["a", "b"], [0.1, 0.2], [0.0, 0.3], [0.3, 0.4])


def chart(**changes) -> plots.InteractiveLines:
    series = {
        "a </script> b": ([1, 2, 3], [0.5, float("nan"), 0.7]),
        "c": ([1, 2], [0, 1], [0, 0], [1, 2]),
    }
    values = {
        "series": series,
        "x_label": "K",
        "y_label": "R@K",
        "title": "T & <t>",
        "alt": 'An "a"',
    }
    return plots.interactive_lines(**{**values, **changes})


def test_a_chart_is_data_and_a_picture() -> None:
    page = chart()._repr_html_()
    spec = re.search(r'<script type="application/json" class="ms-spec">(.*?)</script>', page, re.S)
    assert spec
    data = json.loads(spec[1])
    assert data["xLabel"] == "K"
    assert data["series"][0] == {"name": "a </script> b", "x": [1, 2, 3], "y": [0.5, None, 0.7]}
    assert data["series"][1] == {
        "name": "c",
        "x": [1, 2],
        "y": [0, 1],
        "low": [0, 0],
        "high": [1, 2],
    }
    picture = re.search(r'alt="An &quot;a&quot;" src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert picture
    assert b"<svg" in base64.b64decode(picture[1])
    assert "<figcaption>T &amp; &lt;t&gt;</figcaption>" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alt": " "}, "chart, alt: found no text"),
        ({"series": {}}, "chart, series: found none"),
        ({"series": {"s": ([1, 2], [1])}}, r"series 's': found columns of lengths \[2, 1\]"),
        ({"series": {"s": ([1, 2], [1, 2], [0, 0])}}, "series 's'.*low, high"),
        ({"series": {"s": ([], [])}}, "series 's'"),
        ({"series": {"s": ([2, 1], [1, 2])}}, "series 's': found x out of order"),
    ],
)
def test_a_chart_says_what_is_wrong_with_its_data(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        chart(**changes)
