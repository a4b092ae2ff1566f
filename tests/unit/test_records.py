"""Ragged lists, and the schemas that the published files are checked against."""

from __future__ import annotations

import kuaisearch_example as example
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisearch import records
from minisearch.errors import InputError
from minisearch.records import SCHEMAS, Ragged

LISTS = st.lists(st.lists(st.integers(-5, 5), max_size=4), max_size=6)


@given(LISTS)
def test_ragged_is_the_lists_it_was_made_from(lists):
    ragged = Ragged.from_lists(lists)
    assert [row.tolist() for row in ragged] == lists
    assert ragged.lengths.tolist() == [len(row) for row in lists]
    assert ragged.rows.tolist() == [number for number, row in enumerate(lists) for _ in row]
    assert ragged.values.dtype == np.int64
    assert ragged.offsets.dtype == np.int64


@given(LISTS.filter(bool), st.data())
def test_select_takes_rows_in_any_order_and_by_mask(lists, data):
    ragged = Ragged.from_lists(lists)
    wanted = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=6))
    chosen = ragged.select(np.array(wanted, dtype=int))
    assert [row.tolist() for row in chosen] == [lists[row] for row in wanted]
    mask = np.array([len(row) > 1 for row in lists])
    assert [row.tolist() for row in ragged.select(mask)] == [r for r in lists if len(r) > 1]


def test_from_pairs_keeps_the_order_within_a_row():
    ragged = Ragged.from_pairs(np.array([2, 0, 2, 0]), np.array([9, 8, 7, 6]), 4)
    assert [row.tolist() for row in ragged] == [[8, 6], [], [9, 7], []]


def test_slices_may_overlap():
    ragged = Ragged(np.arange(6), np.array([0, 6])).slices(np.array([0, 1]), np.array([3, 4]))
    assert [row.tolist() for row in ragged] == [[0, 1, 2], [1, 2, 3]]


def test_a_row_out_of_range_is_an_index_error():
    ragged = Ragged.from_lists([[1], [2, 3]])
    assert ragged[-1].tolist() == [2, 3]
    for row in (2, -3):
        with pytest.raises(IndexError):
            ragged[row]


def test_schemas_have_the_published_columns():
    assert {name: len(schema) for name, schema in SCHEMAS.items()} == {
        "users": 6,
        "items": 12,
        "recall": 8,
        "rank": 16,
        "relevance": 7,
    }
    assert SCHEMAS["recall"]["clicked_item_ids"] == list[int]
    assert records.columns("rank")["user_statistical_features.user_gmv_30d_hist"] is float
    assert len(records.columns("rank")) == 16 - 2 + 4 + 3


def test_select_rows_and_row_count():
    table = {"a": np.arange(3), "b": Ragged.from_lists([[1], [], [2, 3]])}
    chosen = records.select_rows(table, np.array([2, 0]))
    assert records.row_count(table) == 3
    assert records.row_count({}) == 0
    assert chosen["a"].tolist() == [2, 0]
    assert [row.tolist() for row in chosen["b"]] == [[2, 3], [1]]


def test_rows_in_the_true_format_pass():
    for name, table in example.rows().items():
        for row in table:
            records.check_row(row, SCHEMAS[name], name)


@pytest.mark.parametrize(
    ("change", "where", "found", "expected"),
    [
        ({"user_id": "7"}, "column user_id", "'7' (str)", "int"),
        ({"user_id": True}, "column user_id", "True (bool)", "int"),
        ({"user_id": 2**63}, "column user_id", "9223372036854775808", "int"),
        ({"user_id": None}, "column user_id", "None", "int"),
        ({"query": 5}, "column query", "5 (int)", "str"),
        ({"target_item_price": float("nan")}, "column target_item_price", "nan", "float"),
        ({"recently_clicked_item_ids": [1, "2"]}, "_item_ids", "[1, '2']", "list[int]"),
        ({"user_statistical_features": 1}, "features", "1 (int)", "a JSON object"),
        (
            {"user_statistical_features": {"user_show_cnt_30d_hist": 1.0}},
            "column user_statistical_features, column user_click_cnt_30d_hist",
            "no such column",
            "user_gmv_30d_hist",
        ),
        ({"price": 3}, "column price", "an unknown column with value 3 (int)", "target_item_price"),
    ],
)
def test_a_wrong_row_is_named_with_its_column(change, where, found, expected):
    row = {**example.rows()["rank"][0], **change}
    with pytest.raises(InputError) as error:
        records.check_row(row, SCHEMAS["rank"], "rank.jsonl, row 1")
    assert error.value.where.startswith("rank.jsonl, row 1, column ")
    assert error.value.where.endswith(where)
    assert found in error.value.found
    assert expected in error.value.expected
    assert error.value.remedy


def test_a_missing_column_is_named_with_the_one_that_may_be_meant():
    row = dict(example.rows()["relevance"][0])
    row["label"] = row.pop("score")
    with pytest.raises(InputError, match="column score: found no such column, but label"):
        records.check_row(row, SCHEMAS["relevance"], "relevance.jsonl, row 1")


def test_ragged_rows_as_a_matrix():
    lists = Ragged.from_lists([[1, 2, 3], [], [4]])
    assert lists.padded().tolist() == [[1, 2, 3], [-1, -1, -1], [4, -1, -1]]
    assert lists.padded(2, fill=0).tolist() == [[1, 2], [0, 0], [4, 0]]


def test_rows_of_ids():
    ids = np.array([30, 10, 20])
    assert records.rows_of(ids, np.array([[10, -1], [30, 20]])).tolist() == [[1, -1], [0, 2]]
    with pytest.raises(KeyError, match="id 7 has no row"):
        records.rows_of(ids, np.array([7]))
