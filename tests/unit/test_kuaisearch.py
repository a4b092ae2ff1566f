"""Reading, writing and sampling KuaiSearch; its recall positives and rebuilt histories."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import kuaisearch_example as example
import numpy as np
import pytest

from minisearch.data import tables
from minisearch.data.kuaisearch import KuaiSearch, past_interactions, positives
from minisearch.records import SCHEMAS, Ragged, row_count

DEMO = os.environ.get("MINISEARCH_KUAISEARCH", "")
LAYOUTS = ("{}/train.jsonl", "{}_lite/train.jsonl", "{}.jsonl")


def as_rows(data: KuaiSearch) -> example.Rows:
    """The rows again, through nothing but indexing: what a reader of the columns would see."""
    made = {}
    for name, table in data.tables().items():
        made[name] = [{} for _ in range(row_count(table))]
        for column, values in table.items():
            for row, value in zip(made[name], values, strict=True):
                plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
                outer, _, inner = column.partition(".")
                if inner:
                    row.setdefault(outer, {})[inner] = plain
                else:
                    row[outer] = plain
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_every_row_of_every_layout(tmp_path, layout):
    rows = example.rows()
    data = KuaiSearch.read(example.put(tmp_path, rows, layout))
    assert as_rows(data) == rows
    assert data.users["user_id"].dtype == np.int64
    assert data.rank["target_item_price"].dtype == np.float64
    assert data.items["item_title"].dtype == object
    assert data.items["item_id"].flags.writeable


@pytest.mark.parametrize("block", [1, 200, 5000])
def test_block_borders_change_nothing(tmp_path, monkeypatch, block):
    monkeypatch.setattr(tables, "BLOCK_BYTES", block)
    rows = example.rows()
    assert as_rows(KuaiSearch.read(example.put(tmp_path, rows))) == rows


def test_the_exact_pass_reads_what_the_fast_one_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_fast", lambda *_: None)
    rows = example.rows()
    assert as_rows(KuaiSearch.read(example.put(tmp_path, rows))) == rows


def test_the_fast_pass_is_the_one_used(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_exact", None)
    assert row_count(KuaiSearch.read(example.put(tmp_path, example.rows())).rank) == 80


def test_a_row_longer_than_pyarrow_likes_is_read(tmp_path):
    rows = example.rows()
    rows["items"][3]["item_title"] = "裙" * 2_000_000
    assert as_rows(KuaiSearch.read(example.put(tmp_path, rows))) == rows


def test_a_missing_last_newline_and_a_byte_order_mark_do_no_harm(tmp_path):
    path = example.put(tmp_path, example.rows()) / "users/train.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().rstrip(b"\n"))
    assert KuaiSearch.read(tmp_path).users["user_id"].tolist() == [0, 1, 2, 3, 4]


def test_equal_texts_are_held_once(tmp_path):
    names = KuaiSearch.read(example.put(tmp_path, example.rows())).items["category_level1_name"]
    assert len({id(name) for name in names}) == 1


def test_writes_what_it_read_in_the_published_form(tmp_path):
    source = example.put(tmp_path / "in", example.rows())
    KuaiSearch.read(source).write(tmp_path / "out")
    for name in SCHEMAS:
        before, after = (tmp_path / side / name / "train.jsonl" for side in ("in", "out"))
        assert after.read_bytes() == before.read_bytes()  # the example is written by json alone
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_chunks_of_rows_are_written_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "CHUNK_ROWS", 7)
    rows = example.rows()
    rows["users"][2]["fre_city"] = 'a "quoted" \\ city\n\u2028\x00'
    source = example.put(tmp_path / "in", rows)
    KuaiSearch.read(source).write(tmp_path / "out")
    assert as_rows(KuaiSearch.read(tmp_path / "out")) == rows


def test_tables_may_be_left_out(tmp_path):
    rows = example.rows()
    del rows["rank"], rows["relevance"]
    folder = example.put(tmp_path, rows)
    data = KuaiSearch.read(folder, tables=("users", "items", "recall"))
    assert data.rank is None
    assert data.relevance is None
    assert list(data.tables()) == ["users", "items", "recall"]


def test_schema_only_reads_files_that_do_not_join_and_lack_the_split(tmp_path):
    rows = example.rows()
    rows["recall"][0]["user_id"] = 999
    rows["relevance"] = [{k: v for k, v in r.items() if k != "split"} for r in rows["relevance"]]
    folder = example.put(tmp_path, rows, "{}.jsonl")
    data = KuaiSearch.read(folder, schema_only=True)
    assert "split" not in data.relevance
    assert as_rows(data) == rows
    assert row_count(KuaiSearch.read(folder, schema_only=True, limit=3).items) == 3


def test_a_limit_keeps_a_window_that_joins(tmp_path):
    rows = example.rows()
    random.Random(0).shuffle(rows["recall"])
    data = KuaiSearch.read(example.put(tmp_path, rows), limit=3)
    kept = {1000 + n for n in (13, 14, 15, 16, 17, 18)}
    assert set(data.recall["session_id"].tolist()) == kept
    assert set(data.rank["session_id"].tolist()) == kept
    assert row_count(data.rank) == 6 * 4
    assert row_count(data.items) < 30
    data.write(tmp_path / "sample")
    assert as_rows(KuaiSearch.read(tmp_path / "sample")) == as_rows(data)


def test_positives_are_clicked_or_purchased_once():
    recall = {
        "clicked_item_ids": Ragged.from_lists([[5, 3], [], [7], [9, 9]]),
        "purchased_item_ids": Ragged.from_lists([[3, 4], [], [], [9]]),
    }
    assert [row.tolist() for row in positives(recall)] == [[5, 3, 4], [], [7], [9]]


@pytest.mark.parametrize("last", [1, 3, 20])
def test_histories_are_what_a_loop_over_the_log_finds(last):
    draw = np.random.default_rng(0)
    size = 300
    clicked = [draw.choice(40, draw.integers(0, 4), replace=False) for _ in range(size)]
    bought = [draw.choice(40, draw.integers(0, 2), replace=False) for _ in range(size)]
    recall = {
        "user_id": draw.integers(0, 12, size),
        "time_index": draw.integers(0, 120, size),  # equal times within a user do occur
        "clicked_item_ids": Ragged.from_lists(clicked),
        "purchased_item_ids": Ragged.from_lists(bought),
    }
    done = positives(recall)
    history = past_interactions(KuaiSearch({}, {}, recall), last=last)
    for row in range(size):
        earlier = [
            other
            for other in np.argsort(recall["time_index"], kind="stable")
            if recall["user_id"][other] == recall["user_id"][row]
            and recall["time_index"][other] < recall["time_index"][row]
        ]
        items = [item for other in earlier for item in done[other].tolist()]
        assert history[row].tolist() == items[-last:]
    assert history.lengths.max() == last


@pytest.mark.skipif(not DEMO, reason="MINISEARCH_KUAISEARCH names no folder of the real demo files")
def test_the_real_demo_files_are_read_row_by_row():
    data = KuaiSearch.read(DEMO, schema_only=True)
    assert {name: row_count(table) for name, table in data.tables().items()} == dict.fromkeys(
        SCHEMAS, 200
    )
    assert "split" not in data.relevance
    for name, table in as_rows(data).items():
        lines = (Path(DEMO) / f"{name}.jsonl").read_text("utf-8").splitlines()
        assert table == [json.loads(line) for line in lines]
