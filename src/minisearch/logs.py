"""The log of a grid: what is kept, and committed, of a chapter's many runs.

Two files under `book/cards/logs`: `<chapter>.cells.json` with one record a cell, where what many
cells share (the origin, the names of metrics) stands once, and `<chapter>.parquet` with per-query
rows of the arms and metrics that claims are about.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minisearch.cells import Cell, read_json
from minisearch.errors import InputError
from minisearch.storage import atomic_write

if TYPE_CHECKING:
    import pandas

LOG_LIMIT = 1_000_000  # bytes a chapter, both files together


@dataclass(frozen=True)
class Record:
    """One finished cell: its metrics (`arm/metric` or `arm/metric/bucket`) and their origin."""

    cell: Cell
    metrics: dict[str, float]
    code_key: str
    command: str
    commit: str | None
    dirty: bool | None
    versions: dict[str, str]
    machine: dict[str, Any]
    date: str
    wall_seconds: float
    cpu_seconds: float | None


_OWN = ("date", "wall_seconds", "cpu_seconds")
_SHARED = ("code_key", "command", "commit", "dirty", "versions", "machine")  # by many cells


@dataclass
class Logs:
    """What is kept of a chapter's grid.

    Attributes:
        records: every cell, by folder name.
        rows: per query: `cell` (folder name), `query_row`, `cluster` where the chapter records one,
            and a column a metric; None without any.
        rechecks: code keys under which random cells gave equal numbers again.
    """

    records: dict[str, Record] = field(default_factory=dict)
    rows: pandas.DataFrame | None = None
    rechecks: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def by_cell(self) -> dict[str, pandas.DataFrame]:
        """The rows of each cell that has any."""
        if self.rows is None:
            return {}
        groups = self.rows.groupby("cell", sort=False, observed=True)
        # A column that a cell has no value of belongs to the cells of another task.
        return {str(name): frame.dropna(axis=1, how="all") for name, frame in groups}


def read_run(folder: Path) -> Record:
    """The record of a complete run folder; metrics without a value (null) are left out.

    Raises:
        InputError: naming the file and the field that is missing or of the wrong kind.
    """
    run, numbers = read_json(folder / "run.json"), read_json(folder / "metrics.json")
    for name in ("cell", *_SHARED, *_OWN):
        if name not in run:
            where = f"{folder / 'run.json'}, field {name}"
            raise InputError(where, "nothing", "a value", "run the cell again.")
    metrics = {name: value for name, value in numbers.items() if value is not None}
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            where = f"{folder / 'metrics.json'}, {name}"
            raise InputError(where, repr(value), "a number", "record only numbers as metrics.")
    facts = {name: run[name] for name in (*_SHARED, *_OWN)}
    return Record(cell=Cell.from_dict(run["cell"]), metrics=metrics, **facts)


def read_rows(folder: Path, cell: Cell, metrics: Iterable[str]) -> pandas.DataFrame | None:
    """Per-query rows of a run, in query order, with the named metrics; None where it has none."""
    import pandas

    path = folder / "rows" / f"{cell.arm}.parquet"
    found = pandas.read_parquet(path) if path.is_file() else pandas.DataFrame()
    kept = [name for name in dict.fromkeys(metrics) if name in found]
    if not kept:
        return None
    whole = [name for name in ("query_row", "cluster") if name in found]
    if "query_row" not in whole:
        raise InputError(str(path), "no column query_row", "one", "record it with the rows.")
    types = dict.fromkeys(whole, "int32") | dict.fromkeys(kept, "float32")
    frame = found[list(types)].astype(types).sort_values("query_row")
    frame.insert(0, "cell", cell.folder_name)
    return frame


def read_logs(folder: Path, chapter: str) -> Logs:
    """The committed log of a chapter; empty where there is none."""
    path, rows = folder / f"{chapter}.cells.json", folder / f"{chapter}.parquet"
    if not path.is_file():
        return Logs()
    import pandas

    content, records = read_json(path), {}
    for stored in content["cells"]:
        names, values = content["metrics"][stored.pop("metrics")], stored.pop("values")
        facts = {**content["runs"][stored.pop("run")], **stored}
        facts |= {"metrics": dict(zip(names, values, strict=True))}
        record = Record(**{**facts, "cell": Cell.from_dict(stored["cell"])})
        records[record.cell.folder_name] = record
    frame = _unshared(pandas.read_parquet(rows)) if rows.is_file() else None
    return Logs(records, frame, content["rechecks"])


def read_dates(folder: Path, chapter: str) -> tuple[dict[str, str], str | None]:
    """When the first cell of each arm began, and when cells last gave equal numbers again.

    Cells with overrides do not count. Rows are not read; without a log there is nothing.
    """
    path = folder / f"{chapter}.cells.json"
    content = read_json(path) if path.is_file() else {"cells": [], "rechecks": []}
    first: dict[str, str] = {}
    for stored in content["cells"]:
        cell = Cell.from_dict(stored["cell"])
        if not cell.overrides:
            first[cell.arm] = min(stored["date"], first.get(cell.arm, stored["date"]))
    return first, max((check["date"] for check in content["rechecks"]), default=None)


def write_logs(logs: Logs, folder: Path, chapter: str) -> None:
    """Write a chapter's log: `<chapter>.parquet` and `<chapter>.cells.json`.

    Raises:
        InputError: when they would take more than `LOG_LIMIT` bytes; nothing is written then.
    """
    runs: list[dict[str, Any]] = []
    names: list[list[str]] = []  # of metrics, in the order they were recorded in
    cells = []
    for _, record in sorted(logs.records.items()):
        own = {name: getattr(record, name) for name in _OWN} | {"cell": record.cell.to_dict()}
        own["run"] = _place(runs, {name: getattr(record, name) for name in _SHARED})
        own["metrics"] = _place(names, list(record.metrics))
        # Ten digits keep a metric well within the tolerance of a recheck.
        own["values"] = [float(f"{value:.10g}") for value in record.metrics.values()]
        cells.append(json.dumps(own, sort_keys=True))
    head = json.dumps({"runs": runs, "rechecks": logs.rechecks}, sort_keys=True, indent=1)
    lists = ",\n".join(map(json.dumps, names))
    text = f'{head[:-2]},\n "metrics": [\n{lists}\n],\n "cells": [\n'
    text += ",\n".join(cells) + "\n]}\n"
    packed = _packed(logs.rows)
    if (size := len(text.encode()) + len(packed)) > LOG_LIMIT:
        remedy = "claim fewer metrics, or record fewer buckets or queries."
        raise InputError(f"log of {chapter}", f"{size:,} bytes", f"at most {LOG_LIMIT:,}", remedy)
    if packed:
        atomic_write(folder / f"{chapter}.parquet", packed)
    atomic_write(folder / f"{chapter}.cells.json", text)


def _place(known: list[Any], item: Any) -> int:
    """Where an item stands in a list, to which it is added if it is new."""
    if item not in known:
        known.append(item)
    return known.index(item)


def _packed(rows: pandas.DataFrame | None) -> bytes:
    """Rows as one page of parquet, so that what repeats from cell to cell costs little."""
    if rows is None or not len(rows):
        return b""
    import io

    import pyarrow
    from pyarrow import parquet

    shared = _shared(rows)
    table = pyarrow.Table.from_pandas(shared, preserve_index=False).replace_schema_metadata()
    names = [name for name in table.column_names if name not in _QUERIES]
    buffer, page = io.BytesIO(), 2**28
    options = {"compression": "zstd", "compression_level": 19, "use_dictionary": names}
    parquet.write_table(table, buffer, data_page_size=page, row_group_size=page, **options)
    return buffer.getvalue()


_QUERIES = ("query_row", "cluster")  # the same in all cells of a world
_NOTHING = -1


def _shared(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Rows for the file: cells with the same queries share one `layout`, written at the first."""
    import pandas

    present = [name for name in _QUERIES if name in rows]
    rows = rows.fillna(dict.fromkeys(present, _NOTHING)).astype(dict.fromkeys(present, "int32"))
    layouts: dict[bytes, int] = {}
    parts = []
    for _, frame in rows.groupby("cell", sort=False, observed=True):
        queries, count = frame[present].to_numpy().tobytes(), len(layouts)
        number = layouts.setdefault(queries, count)
        frame = frame.assign(layout=np.int32(number))
        if number < count:
            frame[present] = np.int32(_NOTHING)
        parts.append(frame)
    return pandas.concat(parts, ignore_index=True)


def _unshared(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Rows as they were before `_shared`; a cell without clusters has none again."""
    import pandas

    present = [name for name in _QUERIES if name in rows]
    first: dict[int, pandas.DataFrame] = {}
    parts = []
    for _, frame in rows.groupby("cell", sort=False, observed=True):
        whole = first.setdefault(frame["layout"].iloc[0], frame)
        parts.append(frame.assign(**{name: whole[name].to_numpy() for name in present}))
    rows = pandas.concat(parts, ignore_index=True).drop(columns="layout")
    if "cluster" in rows and (rows["cluster"] == _NOTHING).any():
        rows["cluster"] = rows["cluster"].where(rows["cluster"] != _NOTHING)
    return rows
