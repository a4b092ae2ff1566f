"""A small data set in KuaiSearch's true format, made without the package's own writer."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

Rows = dict[str, list[dict[str, Any]]]
AGES = ("0-11", "12-17", "18-23", "24-30", "31-40", "41-49", "50+")


def _item(number: int) -> dict[str, Any]:
    return {
        "item_id": number,
        "item_title": f"夏季连衣裙 款式{number}",
        "brand_id": 1,
        "brand_name": "其他/other",
        "seller_id": 7,
        "seller_name": "小店",
        "category_level1_id": 1,
        "category_level1_name": "女装",
        "category_level2_id": 2,
        "category_level2_name": "裙子",
        "category_level3_id": 0,
        "category_level3_name": "UNKNOWN",
    }


def _session(number: int) -> dict[str, Any]:
    """Session n of user n % 5 at time 10 n shows four items; the second is clicked in most."""
    shown = [(3 * number + step) % 30 + 100 for step in range(4)]
    return {
        "user_id": number % 5,
        "session_id": 1000 + number,
        "impressed_item_ids": shown,
        "clicked_item_ids": [shown[1]] if number % 3 else [],
        "purchased_item_ids": [shown[1]] if number % 4 == 1 else [],
        "time_index": 10 * number,
        "query": f"连衣裙 {number % 7}",
        "split": "test" if number >= 16 else "train",
    }


def _rank_row(session: dict[str, Any], target: int, history: list[int]) -> dict[str, Any]:
    return {
        "user_id": session["user_id"],
        "session_id": session["session_id"],
        "user_fan_number": 9,
        "user_follow_number": 65,
        "time_index": session["time_index"],
        "search_entrance": "mall",
        "recently_clicked_item_ids": history,
        "recently_purchased_item_ids": [],
        "query": session["query"],
        "target_item_id": target,
        "target_item_price": 5990.0,
        "is_clicked": int(target in session["clicked_item_ids"]),
        "is_purchased": int(target in session["purchased_item_ids"]),
        "user_statistical_features": {
            "user_show_cnt_30d_hist": 3.0,
            "user_click_cnt_30d_hist": 2.0,
            "user_order_cnt_30d_hist": 0.0,
            "user_gmv_30d_hist": 1.5,
        },
        "target_item_statistical_features": {
            "item_show_cnt_30d_hist": 952.0,
            "item_click_cnt_30d_hist": 47.0,
            "item_order_cnt_30d_hist": 0.0,
        },
        "split": session["split"],
    }


def rows() -> Rows:
    """Five tables that keep every rule: 5 users, 30 items, 20 sessions, 80 rank rows, 12 pairs."""
    users = [
        {
            "user_id": number,
            "gender": "F",
            "age_bucket": AGES[number],
            "fre_country": "中国",
            "fre_province": "辽宁",
            "fre_city": "鞍山",
        }
        for number in range(5)
    ]
    sessions = [_session(number) for number in range(20)]
    rank = []
    for now in sessions:
        past = [
            item
            for s in sessions
            if s["user_id"] == now["user_id"] and s["time_index"] < now["time_index"]
            for item in s["clicked_item_ids"]
        ]
        rank += [_rank_row(now, item, past) for item in now["impressed_item_ids"]]
    pairs = [
        {
            "query": f"裙 {number}",
            "item_title": "长裙",
            "brand": "无品牌",
            "seller_name": "小店",
            "attr_value": "\\N",
            "score": number % 4,
            "split": "test" if number % 10 == 0 else "train",
        }
        for number in range(12)
    ]
    items = [_item(number) for number in range(100, 130)]
    made = {"users": users, "items": items, "recall": sessions, "rank": rank, "relevance": pairs}
    return copy.deepcopy(made)  # shared lists would be changed together by a test


def put(folder: Path, tables: Rows, layout: str = "{}/train.jsonl") -> Path:
    """Write the tables as JSON Lines under `folder`, in one of the published layouts."""
    for name, table in tables.items():
        place = layout if name != "relevance" else layout.replace("_lite", "")
        path = folder / place.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in table]
        path.write_text("".join(lines), encoding="utf-8")
    return folder
