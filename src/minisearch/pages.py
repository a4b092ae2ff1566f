"""What a chapter's results section shows: its own run, and the grid behind its claims.

For page cells alone; nothing here decides a verdict. Arms of one chapter may record
different metrics: what an arm lacks is a dash, and an arm without any of it is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas

from minisearch.cards import live_check, load_cells
from minisearch.claims import Card, Deviation, Tuning
from minisearch.logs import Record
from minisearch.plots import InteractiveLines, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Metrics = Mapping[str, float | None]  # `arm/metric` or `arm/metric/bucket` to value
MISSING = "-"


# --- one run --------------------------------------------------------------------------------------


def score_table(metrics: Metrics, arms: Iterable[str], names: Sequence[str]) -> pandas.DataFrame:
    """What one run recorded, one row an arm, as text with three decimals."""
    rows = {arm: {name: metrics.get(f"{arm}/{name}") for name in names} for arm in arms}
    return _table({arm: row for arm, row in rows.items() if _any(row.values())}, names)


def bucket_scores(metrics: Metrics, arm: str, metric: str) -> dict[str, float]:
    """A metric of an arm by bucket, in the order in which the buckets were recorded."""
    prefix = f"{arm}/{metric}/"
    found = {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}
    return {bucket: value for bucket, value in found.items() if value is not None}


def bucket_plot(
    metrics: Metrics, pair: tuple[str, str], metric: str, x_label: str
) -> Figure | None:
    """Two arms by bucket, the first bucket on top, each two dots joined by a line.

    Returns:
        The figure; None where no bucket has a score of both arms.
    """
    first, second = (bucket_scores(metrics, arm, metric) for arm in pair)
    labels = [bucket for bucket in first if bucket in second][::-1]
    if not labels:
        return None
    fig, ax = figure(height=0.26 * len(labels) + 1)
    values = [[scores[label] for label in labels] for scores in (first, second)]
    ax.hlines(range(len(labels)), *values, color="0.7", lw=2, zorder=1)
    for arm, scores, marker in zip(pair, values, "so", strict=True):
        ax.scatter(scores, labels, marker=marker, label=_label(arm), zorder=2)
    ax.set(xlabel=x_label)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return fig


def live_note(
    chapter: str, profile: str, world_seed: int, metrics: Metrics, dials_default: bool
) -> str:
    """How the page's own run compares with what the grid predicts of the primary claim's arms.

    Args:
        dials_default: whether the run left every dial and the data where the grid has them.
    """
    primary = Card.read(chapter).primary
    arms = {arm for arm in primary.arms if metrics.get(f"{arm}/{primary.metric}") is not None}
    like = (c.cell for c in _plain_cells(chapter) if c.cell.arm in arms)
    if not dials_default or (profile, world_seed) not in {(c.profile, c.world_seed) for c in like}:
        return "The grid holds no run of this profile, world and dials to compare with."
    warning = live_check(chapter, profile, world_seed, metrics)
    return warning or "This run lies where the grid predicts."


# --- the grid -------------------------------------------------------------------------------------


def arm_table(
    chapter: str, names: Sequence[str], arms: Iterable[str] | None = None
) -> pandas.DataFrame:
    """Mean scores of arms over their registered cells, with role and number of runs.

    An arm that has not run yet keeps its row; by default, all arms of the card are taken.
    """
    card, cells, rows = Card.read(chapter), _plain_cells(chapter), {}
    for arm in card.arms if arms is None else arms:
        own = [c for c in cells if c.cell.arm == arm]
        means = {name: _mean(own, f"{arm}/{name}") for name in names}
        if not own or _any(means.values()):
            rows[arm] = {"role": card.arms[arm].role, "runs": len(own), **means}
    return _table(rows, ("role", "runs", *names))


def bucket_table(chapter: str, arms: Iterable[str], metric: str) -> pandas.DataFrame:
    """Mean of a metric over the grid by bucket (rows) and arm (columns)."""
    cells, columns = _plain_cells(chapter), {}
    for arm in arms:
        own = [c for c in cells if c.cell.arm == arm]
        buckets = dict.fromkeys(b for c in own for b in bucket_scores(c.metrics, arm, metric))
        if buckets:
            columns[arm] = {b: _mean(own, f"{arm}/{metric}/{b}") for b in buckets}
    every = dict.fromkeys(bucket for column in columns.values() for bucket in column)
    rows = {b: {arm: column.get(b) for arm, column in columns.items()} for b in every}
    return _table(rows, list(columns))


def dose_response(
    chapter: str, dial: str, default: float, arm: str, metric: str
) -> tuple[list[float], list[float]]:
    """Mean score of an arm at each setting of a dial, over the cells that ran at every setting.

    Args:
        default: where the dial stands in the cells that leave it alone.

    Returns:
        Settings, ascending, and scores; both empty below two settings with cells in common.
    """
    return _dose_response(load_cells(chapter), dial, default, arm, metric)


def dose_chart(
    chapter: str, dial: str, default: float, arms: Iterable[str], metric: str,
    x_label: str, y_label: str, title: str, alt: str,
) -> Any:  # fmt: skip
    """`dose_response` of several arms as interactive lines; a note where the dial was not turned.

    Returns:
        `InteractiveLines`, or `IPython.display.Markdown`.
    """
    cells = load_cells(chapter)
    curves = {_label(arm): _dose_response(cells, dial, default, arm, metric) for arm in arms}
    curves = {name: curve for name, curve in curves.items() if curve[0]}
    if curves:
        return InteractiveLines(curves, x_label=x_label, y_label=y_label, title=title, alt=alt)
    from IPython.display import Markdown

    return Markdown("The grid holds no run of this dial.")


def training_curves(
    chapter: str,
    arm: str,
    metric: str = "em_training",
    seeds: Sequence[int] | None = None,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Attempts so far, and one array of learning curves a world; both empty without a run.

    Of all training seeds, or of some.

    Shape: (T,), W of (S_w, T).
    """
    prefix = f"{arm}/{metric}/rollouts: "
    places: list[int] = []
    worlds: dict[int, list[list[float]]] = {}
    for cell in _plain_cells(chapter):
        found = {
            int(name.removeprefix(prefix)): value
            for name, value in cell.metrics.items()
            if name.startswith(prefix)
        }
        if found and (seeds is None or cell.cell.seed in seeds):
            places = sorted(found)
            worlds.setdefault(cell.cell.world_seed, []).append([found[p] for p in places])
    return np.array(places), [np.array(curves) for curves in worlds.values()]


def smoothed(values: np.ndarray, width: int = 4) -> np.ndarray:
    """The mean of each value and up to `width` - 1 before it. Shape: (n,) -> (n,)."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    first = np.maximum(np.arange(len(values)) + 1 - width, 0)
    return (sums[1:] - sums[first]) / (np.arange(len(values)) + 1 - first)


def paired(
    chapter: str, arm: str, base: str, metric: str, seeds: Sequence[int] | None = None
) -> np.ndarray:
    """What an arm has over another in each run that both have. Shape: -> (R,).

    A run is a world, a starting checkpoint and a seed; of all seeds, or of some.
    """
    runs: dict[tuple[int, int, int], dict[str, float]] = {}
    for record in _plain_cells(chapter):
        cell, value = record.cell, record.metrics.get(f"{record.cell.arm}/{metric}")
        wanted = seeds is None or cell.seed in seeds
        if cell.arm in (arm, base) and wanted and value is not None:
            place = (cell.world_seed, cell.init_seed, cell.seed)
            runs.setdefault(place, {})[cell.arm] = value
    return np.array([run[arm] - run[base] for run in runs.values() if len(run) == 2])


def paired_table(
    chapter: str, arms: Iterable[str], base: str, metrics: Sequence[str]
) -> pandas.DataFrame:
    """What each arm has over one of them, mean and standard error over the runs both have.

    Runs that share a world are not independent: the errors are the smallest they can be.
    """
    rows: dict[str, dict[str, Any]] = {}
    for arm in arms:
        gains = {metric: paired(chapter, arm, base, metric) for metric in metrics}
        if any(len(values) for values in gains.values()):
            rows[arm] = {metric: _with_error(values) for metric, values in gains.items()}
            rows[arm]["runs"] = max(map(len, gains.values()))
    return _table(rows, [*metrics, "runs"])


def deviations_table(chapter: str) -> pandas.DataFrame:
    """Where the chapter deviates from its paper, by number."""
    return _listed(Card.read(chapter).deviations, Deviation)


def tuning_table(chapter: str) -> pandas.DataFrame:
    """What was tuned, by arm, and what was chosen."""
    return _listed(Card.read(chapter).tuning, Tuning)


# --- parts ----------------------------------------------------------------------------------------


def _plain_cells(chapter: str) -> list[Record]:
    """The logged cells that leave every dial where it stands."""
    return [record for record in load_cells(chapter) if not record.cell.overrides]


def _dose_response(
    cells: Iterable[Record], dial: str, default: float, arm: str, metric: str
) -> tuple[list[float], list[float]]:
    points: dict[float, dict[tuple[int, int, int], float]] = {}  # setting, seeds, score
    for cell, metrics in ((c.cell, c.metrics) for c in cells):
        value, overrides = metrics.get(f"{arm}/{metric}"), dict(cell.overrides)
        if cell.arm == arm and value is not None and set(overrides) <= {dial}:
            seeds = (cell.world_seed, cell.init_seed, cell.seed)
            points.setdefault(float(overrides.get(dial, default)), {})[seeds] = value
    common = set.intersection(*(set(at) for at in points.values())) if points else set()
    if len(points) < 2 or not common:
        return [], []
    x = sorted(points)
    return x, [float(np.mean([points[setting][seeds] for seeds in common])) for setting in x]


def _mean(cells: Iterable[Record], name: str) -> float | None:
    """Mean over the cells that have a metric; None where none has."""
    values = [cell.metrics[name] for cell in cells if name in cell.metrics]
    return float(np.mean(values)) if values else None


def _with_error(values: np.ndarray) -> str | None:
    """Mean and standard error as text; None below two values."""
    if len(values) < 2:
        return None
    return f"{values.mean():+.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"


def _any(values: Iterable[float | None]) -> bool:
    return any(value is not None for value in values)


def _label(arm: str) -> str:
    return arm.replace("_", " ")


def _table(rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> pandas.DataFrame:
    """Rows in the order given, numbers as text with three decimals."""
    shown = [[_text(row.get(column)) for column in columns] for row in rows.values()]
    return pandas.DataFrame(shown, index=list(rows), columns=list(columns), dtype=object)


def _text(value: Any) -> Any:
    if value is None or value != value:
        return MISSING
    return f"{value:.3f}" if isinstance(value, float) else value


def _listed(rows: Sequence[Any], kind: type[Any]) -> pandas.DataFrame:
    """Rows of a card, labelled by their first field."""
    names = [spec.name for spec in fields(kind)]
    return pandas.DataFrame([asdict(row) for row in rows], columns=names).set_index(names[0])
