"""Typed rows of the data sets, their schemas, and the columnar form the package works on.

A row is a `TypedDict` with exactly the published columns; the schema that files are checked
against is read from it, so that the two cannot differ. In memory a data set is columnar: a `Table`
maps each column to an array with one entry a row, and list columns are `Ragged`. A nested object
becomes one column a field, named with a dot: `user_statistical_features.user_show_cnt_30d_hist`.

Source: KuaiSearch (arXiv 2602.11518), the published files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict, get_type_hints, is_typeddict

import numpy as np

from minisearch.errors import InputError

EMPTY = -1  # in place of an id: nothing there


class User(TypedDict):
    """One user; `age_bucket` is one of `AGE_BUCKETS`, places are the most frequent ones."""

    user_id: int
    gender: str
    age_bucket: str
    fre_country: str
    fre_province: str
    fre_city: str


class Item(TypedDict):
    """One product; a missing category level has id 0 and name "UNKNOWN"."""

    item_id: int
    item_title: str
    brand_id: int
    brand_name: str
    seller_id: int
    seller_name: str
    category_level1_id: int
    category_level1_name: str
    category_level2_id: int
    category_level2_name: str
    category_level3_id: int
    category_level3_name: str


class SearchSession(TypedDict):
    """One request of the recall stage; clicked and purchased items are subsets of the impressed."""

    user_id: int
    session_id: int
    impressed_item_ids: list[int]
    clicked_item_ids: list[int]
    purchased_item_ids: list[int]
    time_index: int
    query: str
    split: str


class UserStatistics(TypedDict):
    """What a user did in the 30 days before the request."""

    user_show_cnt_30d_hist: float
    user_click_cnt_30d_hist: float
    user_order_cnt_30d_hist: float
    user_gmv_30d_hist: float


class ItemStatistics(TypedDict):
    """What happened to an item in the 30 days before the request."""

    item_show_cnt_30d_hist: float
    item_click_cnt_30d_hist: float
    item_order_cnt_30d_hist: float


class RankRow(TypedDict):
    """One impressed item of one request; `is_clicked` and `is_purchased` are 0 or 1."""

    user_id: int
    session_id: int
    user_fan_number: int
    user_follow_number: int
    time_index: int
    search_entrance: str
    recently_clicked_item_ids: list[int]
    recently_purchased_item_ids: list[int]
    query: str
    target_item_id: int
    target_item_price: float
    is_clicked: int
    is_purchased: int
    user_statistical_features: UserStatistics
    target_item_statistical_features: ItemStatistics
    split: str


class RelevancePair(TypedDict):
    """One judged (query, item) pair; `score` runs from 0 to 3."""

    query: str
    item_title: str
    brand: str
    seller_name: str
    attr_value: str
    score: int
    split: str


AGE_BUCKETS = ("0-11", "12-17", "18-23", "24-30", "31-40", "41-49", "50+")

ROWS: dict[str, type] = {
    "users": User,
    "items": Item,
    "recall": SearchSession,
    "rank": RankRow,
    "relevance": RelevancePair,
}

# {table: {column: int | float | str | list[int] | {field: float}}}, in the published column order.
SCHEMAS: dict[str, dict[str, Any]] = {}
for _table, _row in ROWS.items():
    SCHEMAS[_table] = {
        name: get_type_hints(kind) if is_typeddict(kind) else kind
        for name, kind in get_type_hints(_row).items()
    }


@dataclass(frozen=True, eq=False)
class Ragged:
    """A list of arrays of different lengths, held as two arrays.

    Row `i` is `values[offsets[i]:offsets[i + 1]]`.

    Shape: values (V,), offsets (N + 1,) int64 from 0 to V for N rows.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_lists(cls, lists: Iterable[Any], dtype: Any = np.int64) -> Ragged:
        """Build from one sequence a row."""
        parts = [np.asarray(row, dtype=dtype) for row in lists]
        offsets = np.concatenate([[0], np.cumsum([len(p) for p in parts], dtype=np.int64)])
        return cls(np.concatenate(parts) if parts else np.empty(0, dtype), offsets.astype(np.int64))

    @classmethod
    def from_pairs(cls, rows: np.ndarray, values: np.ndarray, length: int) -> Ragged:
        """Collect `values` by their row number, in the given order within a row.

        Shape: rows (V,) int in [0, length), values (V,) -> Ragged of `length` rows.
        """
        order = np.argsort(rows, kind="stable")
        counts = np.bincount(rows, minlength=length)
        return cls(values[order], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """The number of values in each row. Shape: (N,)."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> np.ndarray:
        """The row number of each value. Shape: (V,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def select(self, rows: np.ndarray | slice) -> Ragged:
        """The given rows (numbers, a boolean mask or a slice), in the given order."""
        return self.slices(self.offsets[:-1][rows], self.offsets[1:][rows])

    def slices(self, starts: np.ndarray, ends: np.ndarray) -> Ragged:
        """One row for each slice `values[start:end]`; slices may overlap. Shape: (M,), (M,)."""
        lengths = ends - starts
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Ragged(self.values[np.repeat(starts, lengths) + within], offsets)

    def padded(self, width: int | None = None, fill: int = EMPTY) -> np.ndarray:
        """The rows as a matrix, filled up on the right. Shape: -> (N, width).

        Args:
            width: by default the longest row's; a longer row is cut.
        """
        width = int(self.lengths.max(initial=0)) if width is None else width
        matrix = np.full((len(self), width), fill, dtype=self.values.dtype)
        place = np.arange(len(self.values)) - self.offsets[self.rows]
        kept = place < width
        matrix[self.rows[kept], place[kept]] = self.values[kept]
        return matrix


# Column name -> np.ndarray with one entry a row (int64, float64, or object for text), or Ragged for
# list columns. The values are `Any`, as each column's kind is known from its name alone.
Table: TypeAlias = dict[str, Any]


def columns(table: str) -> dict[str, Any]:
    """The flat columns of a table and their kinds: nested objects become dotted names."""
    flat: dict[str, Any] = {}
    for name, kind in SCHEMAS[table].items():
        nested = kind.items() if isinstance(kind, dict) else ()
        flat |= {f"{name}.{field}": inner for field, inner in nested} or {name: kind}
    return flat


def row_count(table: Table) -> int:
    """The number of rows of a table; 0 when it has no columns."""
    return len(next(iter(table.values()), ()))


def select_rows(table: Table, rows: np.ndarray | slice) -> Table:
    """The given rows (numbers, a boolean mask or a slice) of every column."""
    return {
        name: column.select(rows) if isinstance(column, Ragged) else column[rows]
        for name, column in table.items()
    }


def rows_of(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Row numbers of wanted ids in a table's column of distinct ids; EMPTY stays EMPTY.

    Shape: ids (N,), wanted any shape -> the shape of `wanted`.

    Raises:
        KeyError: for an id that the column does not have.
    """
    order = np.argsort(ids)
    place = np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)
    rows = np.where(wanted == EMPTY, EMPTY, order[place])
    unknown = (rows != EMPTY) & (ids[rows] != wanted)
    if unknown.any():
        raise KeyError(f"id {wanted[unknown].flat[0]} has no row")
    return np.asarray(rows)


def _fits(value: Any, kind: Any) -> bool:
    if kind == list[int]:
        return isinstance(value, list) and all(_fits(v, int) for v in value)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is int:  # bool is a subclass of int, and 64 bits is what the arrays hold
        return type(value) is int and -(2**63) <= value < 2**63
    return isinstance(value, kind)


def _shown(value: Any) -> str:
    """The value, cut to a readable length, with its type."""
    text = repr(value)
    return f"{text[:60] + '…' if len(text) > 60 else text} ({type(value).__name__})"


def check_row(row: Any, schema: Mapping[str, Any], where: str) -> None:
    """Check that a parsed JSON row has exactly the columns and types of a schema.

    Args:
        row: the parsed line.
        schema: one value of `SCHEMAS`.
        where: the file and row, for the message.

    Raises:
        InputError: naming the first column at fault, what was found, and what was expected.
    """
    if not isinstance(row, dict):
        raise InputError(where, _shown(row), "a JSON object", "write one object a line.")
    unknown = [name for name in row if name not in schema]
    for name, kind in schema.items():
        at = f"{where}, column {name}"
        if name not in row:
            found = "no such column" + (f", but {', '.join(unknown)}" if unknown else "")
            remedy = f"add or rename the column {name} in every row."
            raise InputError(at, found, "columns " + ", ".join(schema), remedy)
        if isinstance(kind, dict):
            check_row(row[name], kind, at)
        elif not _fits(row[name], kind):
            expected = "list[int]" if kind == list[int] else kind.__name__
            remedy = f"store {name} as {expected} in every row."
            raise InputError(at, _shown(row[name]), expected, remedy)
    if unknown:
        found = f"an unknown column with value {_shown(row[unknown[0]])}"
        remedy = f"remove the column {unknown[0]} from every row."
        at, expected = f"{where}, column {unknown[0]}", "columns " + ", ".join(schema)
        raise InputError(at, found, expected, remedy)
