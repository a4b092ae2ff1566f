"""The audit: clean data pass, and every planted defect is named with its rows."""

from __future__ import annotations

import os

import kuaisearch_example as example
import numpy as np
import pytest

from minisearch.data.audit import Check, audit
from minisearch.data.kuaisearch import KuaiSearch
from minisearch.records import select_rows

DEMO = os.environ.get("MINISEARCH_KUAISEARCH", "")


def audited(tmp_path, rows=None, **options) -> dict[str, Check]:
    """The checks by name; the defects are planted where no reader has seen them yet."""
    folder = example.put(tmp_path, rows or example.rows())
    return {
        check.name: check for check in audit(KuaiSearch.read(folder, schema_only=True, **options))
    }


def test_clean_data_pass_every_check_that_data_can_answer(tmp_path):
    checks = audited(tmp_path)
    assert {name for name, check in checks.items() if check.passed is False} == set()
    unknown = {name for name, check in checks.items() if check.passed is None}
    assert unknown == {
        "code: embedding files are found",
        "code: text features are the paper's",
        "rank: recently_purchased_item_ids lies in the past",  # the lists are empty here
    }
    assert all(check.detail for check in checks.values())
    assert not any(check.rows for check in checks.values())


# table, row (from 1), values put there, the check that must name the row
DEFECTS = [
    ("users", 3, {"user_id": 1}, "users: one row for each user_id"),
    ("items", 30, {"item_id": 100}, "items: one row for each item_id"),
    ("recall", 9, {"session_id": 1000}, "recall: one row for each session_id"),
    ("recall", 7, {"user_id": 44}, "recall: user_id joins users"),
    ("recall", 2, {"impressed_item_ids": [9]}, "recall: impressed_item_ids joins items"),
    ("recall", 2, {"clicked_item_ids": [9]}, "recall: clicked_item_ids joins items"),
    ("recall", 2, {"purchased_item_ids": [9]}, "recall: purchased_item_ids joins items"),
    ("rank", 2, {"user_id": 44}, "rank: user_id joins users"),
    ("rank", 80, {"target_item_id": 9}, "rank: target_item_id joins items"),
    ("rank", 5, {"session_id": 9}, "rank: session_id joins recall"),
    ("rank", 6, {"recently_clicked_item_ids": [9]}, "rank: recently_clicked_item_ids joins items"),
    (
        "rank",
        6,
        {"recently_purchased_item_ids": [9]},
        "rank: recently_purchased_item_ids joins items",
    ),
    ("recall", 4, {"clicked_item_ids": [100]}, "recall: clicked items were impressed"),
    ("recall", 4, {"purchased_item_ids": [100]}, "recall: purchased items were impressed"),
    ("recall", 4, {"impressed_item_ids": [100]}, "recall: impressed items are those of rank"),
    ("recall", 3, {"clicked_item_ids": []}, "recall: clicked items are those of rank"),
    ("recall", 2, {"purchased_item_ids": []}, "recall: purchased items are those of rank"),
    ("rank", 40, {"user_id": 1}, "rank: user_id is its session's"),
    ("rank", 40, {"query": "裤子"}, "rank: query is its session's"),
    ("rank", 40, {"time_index": 1}, "rank: time_index is its session's"),
    ("rank", 40, {"split": "test"}, "rank: split is its session's"),
    ("rank", 40, {"split": "test"}, "rank: no session lies in two splits"),
    ("rank", 11, {"is_clicked": 2}, "rank: is_clicked is one of 0, 1"),
    ("rank", 11, {"is_purchased": -1}, "rank: is_purchased is one of 0, 1"),
    ("relevance", 12, {"score": 4}, "relevance: score is one of 0, 1, 2, 3"),
    ("recall", 1, {"split": "dev"}, "recall: split is one of train, test"),
    ("relevance", 1, {"split": "dev"}, "relevance: split is one of train, test"),
    ("recall", 17, {"time_index": 150}, "recall: training ends before testing begins"),
    (
        "rank",
        9,
        {"recently_clicked_item_ids": [100] * 21},
        "rank: recently_clicked_item_ids has at most 20",
    ),
    (
        "users",
        5,
        {"age_bucket": "35"},
        "users: age_bucket is one of 0-11, 12-17, 18-23, 24-30, 31-40, 41-49, 50+",
    ),
    ("items", 1, {"category_level3_id": 5}, "items: category level 3 is 0 where UNKNOWN"),
    ("items", 1, {"category_level1_name": "UNKNOWN"}, "items: category level 1 is 0 where UNKNOWN"),
]


@pytest.mark.parametrize(("table", "row", "values", "name"), DEFECTS)
def test_a_planted_defect_is_named_with_its_row(tmp_path, table, row, values, name):
    rows = example.rows()
    rows[table][row - 1].update(values)
    check = audited(tmp_path, rows)[name]
    assert check.passed is False
    assert row in check.rows
    assert len(check.rows) <= 4
    assert f"{len(check.rows)} rows at fault" in check.detail


def test_rank_rows_of_some_sessions_alone_are_no_defect_but_half_a_session_is(tmp_path):
    rows = example.rows()
    rows["rank"] = rows["rank"][:-4]
    check = audited(tmp_path, rows)["recall: impressed items are those of rank"]
    assert check.passed
    assert check.detail == "19 of 20 sessions have rank rows to compare"
    rows["rank"] = rows["rank"][:-1]
    assert audited(tmp_path, rows)["recall: impressed items are those of rank"].rows == [19]


def test_a_history_that_holds_the_future_is_flagged(tmp_path):
    """The trap of the real files: user 1 clicks item 122 only in its session 7, at time 70."""
    rows = example.rows()
    assert rows["recall"][7]["user_id"] == 2
    assert rows["recall"][7]["clicked_item_ids"] == [122]
    for row in rows["rank"][8:12]:  # session 2 of the same user, at time 20
        row["recently_clicked_item_ids"] = [122, 107]
    check = audited(tmp_path, rows)["rank: recently_clicked_item_ids lies in the past"]
    assert check.passed is False
    assert check.rows == [9]  # one history a request: its first rank row
    assert "or later" in check.detail


def test_an_item_met_before_and_again_later_is_no_leak(tmp_path):
    rows = example.rows()
    rows["recall"][17]["impressed_item_ids"][0] = 107  # clicked by user 2 at time 20 already
    rows["recall"][17]["clicked_item_ids"] = [107]
    for row in rows["rank"][28:32]:  # session 7 of user 2, at time 70
        row["recently_clicked_item_ids"] = [107]
    assert audited(tmp_path, rows)["rank: recently_clicked_item_ids lies in the past"].passed


def test_an_empty_split_fails(tmp_path):
    rows = example.rows()
    for row in rows["recall"]:
        row["split"] = "train"
    checks = audited(tmp_path, rows)
    assert checks["recall: split is one of train, test"].passed is False
    assert checks["recall: training ends before testing begins"].passed is None


@pytest.mark.parametrize("score", [0, 3])
def test_one_label_alone_fails(tmp_path, score):
    rows = example.rows()
    for row in rows["relevance"]:
        row["score"] = score
    check = audited(tmp_path, rows)["relevance: the label is score == 3, and both labels occur"]
    assert check.passed is False
    assert f"base rate {score / 3:.4f}" in check.detail


def test_missing_tables_cannot_be_checked_and_say_so(tmp_path):
    checks = audited(tmp_path, tables=("users", "items", "recall"))
    about = [c for name, c in checks.items() if name.startswith(("rank:", "relevance:"))]
    assert about
    assert all(check.passed is None and "not read" in check.detail for check in about)


def test_ten_rows_are_named_at_most(tmp_path):
    data = KuaiSearch.read(example.put(tmp_path, example.rows()))
    users = select_rows(data.users, np.array([0]))
    lost = KuaiSearch(users, data.items, data.recall, data.rank, data.relevance)
    check = next(c for c in audit(lost) if c.name == "recall: user_id joins users")
    assert check.rows == [2, 3, 4, 5, 7, 8, 9, 10, 12, 13]
    assert "4 of 20 ids found" in check.detail
    assert "16 rows at fault" in check.detail


@pytest.mark.skipif(not DEMO, reason="MINISEARCH_KUAISEARCH names no folder of the real demo files")
def test_the_real_demo_files_do_not_join_and_the_audit_says_so():
    checks = {c.name: c for c in audit(KuaiSearch.read(DEMO, schema_only=True))}
    assert checks["rank: target_item_id joins items"].passed is False
    assert checks["recall: impressed_item_ids joins items"].passed is False
    assert checks["rank: session_id joins recall"].passed is True
    assert checks["recall: clicked items were impressed"].passed is True
    assert checks["recall: purchased items were impressed"].passed is True
    assert checks["relevance: split is one of train, test"].passed is None
    assert checks["recall: impressed items are those of rank"].rows == [2]  # cut off at row 200
    assert "0.3350" in checks["relevance: the label is score == 3, and both labels occur"].detail
