"""Why people click and buy in the simulated shop: intents, tastes, and the two decisions.

Only modules of `worlds` may refer to `ShopTruth`; training code gets the tables alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from minisearch.worlds.shop_catalogue import NONE, Goods, ShopConfig

GRADE_LOGITS = np.array([-5.0, -3.0, -1.5, 0.3])  # ours: appeal of relevance grades 0 to 3


@dataclass(eq=False)
class People:
    """The users. Shape: (U,), favourites (U, 3), taste (U, 8)."""

    gender: np.ndarray  # 0 F, 1 M
    age: np.ndarray  # index into AGE_BUCKETS
    favourites: np.ndarray  # leaves
    taste: np.ndarray
    price: np.ndarray  # the price level they like, on the scale of `Goods.price_rank`
    activity: np.ndarray


@dataclass(eq=False)
class Requests:
    """What people ask, in time order, and how the engine reads it. Shape: (S,), required (S, 3)."""

    user: np.ndarray  # row of People
    time: np.ndarray
    kind: np.ndarray  # index into QUERY_TYPES
    leaf: np.ndarray  # the category that is wanted
    required: np.ndarray  # the values that are wanted, NONE-padded
    forbidden: np.ndarray  # the value that is not wanted, or NONE
    engine_leaf: np.ndarray  # the category that the engine takes it for
    query: np.ndarray


@dataclass(frozen=True, eq=False)
class ShopTruth:
    """Everything behind the log. Rows are those of the `items`, `users` and `recall` tables."""

    config: ShopConfig
    world_seed: int
    goods: Goods
    people: People
    requests: Requests
    item_id: np.ndarray
    user_id: np.ndarray
    session_id: np.ndarray

    def save(self, path: str | Path) -> None:
        """Write all of it to one npz file."""
        arrays: dict[str, Any] = {"about": json.dumps([asdict(self.config), self.world_seed])}
        for part, _ in _PARTS:
            values = vars(getattr(self, part))
            arrays |= {f"{part}.{name}": array for name, array in values.items()}
        arrays["requests.query"] = self.requests.query.astype(str)
        ids = {name: getattr(self, name) for name in ("item_id", "user_id", "session_id")}
        np.savez(path, **arrays, **ids)

    @classmethod
    def load(cls, path: str | Path) -> ShopTruth:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Any] = dict(file)
        config, world_seed = json.loads(str(arrays.pop("about")))
        config["query_mix"] = tuple(config["query_mix"])
        arrays["requests.query"] = arrays["requests.query"].astype(object)
        parts = {
            part: kind(**{f.name: arrays.pop(f"{part}.{f.name}") for f in fields(kind)})
            for part, kind in _PARTS
        }
        return cls(ShopConfig(**config), world_seed, **parts, **arrays)


_PARTS: tuple[tuple[str, Any], ...] = (
    ("goods", Goods),
    ("people", People),
    ("requests", Requests),
)


def grade(truth: ShopTruth, sessions: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Relevance of items to intents, from 0 to 3.

    3: the wanted category with every wanted value. 2: that category, but some value differs.
    1: that category with the value not wanted, or with none of two or more wanted values; or a
    sister category with every wanted value. 0: the rest.

    Shape: sessions, items (P,) row numbers -> (P,) int.
    """
    goods, wanted = truth.goods, truth.requests.required[sessions]
    asked = (wanted != NONE).sum(1)
    matched = sum(_has(goods, items, values) for values in wanted.T)
    leaf, item_leaf = truth.requests.leaf[sessions], goods.leaf[items]
    sister = goods.leaf_level2[leaf] == goods.leaf_level2[item_leaf]
    inside = np.where(matched == asked, 3, np.where((matched > 0) | (asked == 1), 2, 1))
    inside = np.where(_has(goods, items, truth.requests.forbidden[sessions]), 1, inside)
    return np.where(leaf == item_leaf, inside, np.where(sister & (matched == asked), 1, 0))


def _has(goods: Goods, items: np.ndarray, values: np.ndarray) -> np.ndarray:
    found = goods.values[items, goods.value_attribute[values]] == values
    return (found & (values != NONE)).astype(int)


def _affinity(truth: ShopTruth, sessions: np.ndarray, items: np.ndarray) -> np.ndarray:
    """How well an item suits the person, in logits: taste, quality, price. Shape: (P,)."""
    users, people, goods = truth.requests.user[sessions], truth.people, truth.goods
    taste = np.einsum("pd,pd->p", people.taste[users], goods.taste[items])
    gap = np.abs(goods.price_rank[items] - people.price[users])
    return truth.config.preference * taste + 0.5 * goods.quality[items] - 0.3 * gap


def _logistic(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def click_probability(
    truth: ShopTruth, sessions: np.ndarray, items: np.ndarray, ranks: np.ndarray
) -> np.ndarray:
    """Chance of a click at full attention: examined with 1 / log2(1 + rank), then attracted.

    Multiply by the attention of the request, on average `config.attention`. Ranks count from 1.

    Shape: (P,), (P,), (P,) -> (P,).
    """
    appeal = GRADE_LOGITS[grade(truth, sessions, items)] + _affinity(truth, sessions, items)
    return _logistic(appeal + truth.config.click_bias) / np.log2(1 + ranks)


def order_probability(truth: ShopTruth, sessions: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Chance that a click becomes an order. Shape: (P,), (P,) -> (P,)."""
    right = 0.8 * (grade(truth, sessions, items) - 3)
    return _logistic(right + _affinity(truth, sessions, items) + truth.config.order_bias)
