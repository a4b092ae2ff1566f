"""Simulated shops from a shared cache: built once, however many chapters and processes ask.

`open_shop` gives the tables and nothing else; `open_truth` gives what the simulator knows, for
evaluation. They read different files of the same folder.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from minisearch.data.kuaisearch import KuaiSearch
from minisearch.records import Ragged, Table
from minisearch.storage import cached
from minisearch.worlds.shop import make_shop
from minisearch.worlds.shop_catalogue import ShopConfig
from minisearch.worlds.shop_truth import ShopTruth


def open_shop(config: ShopConfig, world_seed: int) -> KuaiSearch:
    """The tables of one world, for training and for everything that must not see the truth."""
    with np.load(_world(config, world_seed) / "tables.npz", allow_pickle=False) as file:
        return _unpacked(dict(file))


def open_truth(config: ShopConfig, world_seed: int) -> ShopTruth:
    """What the simulator knows about one world's requests, for evaluation only."""
    return ShopTruth.load(_world(config, world_seed) / "truth.npz")


def _world(config: ShopConfig, world_seed: int) -> Path:
    """The cached folder of one world; the key holds the generator's own source."""
    here = Path(__file__).parent
    sources = sorted([*here.glob("shop*.py"), here.parent / "assets" / "shop_lexicon.yaml"])
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    key = {"config": asdict(config), "world_seed": world_seed, "code": code}

    def build(folder: Path) -> None:
        tables, truth = make_shop(config, world_seed)
        np.savez(folder / "tables.npz", **_packed(tables))
        truth.save(folder / "truth.npz")

    return cached("shop", key, build)


def _packed(data: KuaiSearch) -> dict[str, Any]:
    """Every column as plain arrays, named table/column, ragged ones as two."""
    arrays: dict[str, Any] = {}
    for table, columns in data.tables().items():
        for name, column in columns.items():
            if isinstance(column, Ragged):
                arrays[f"{table}/{name}/values"] = column.values
                arrays[f"{table}/{name}/offsets"] = column.offsets
            else:
                arrays[f"{table}/{name}"] = column.astype(str) if column.dtype == object else column
    return arrays


def _unpacked(arrays: dict[str, np.ndarray]) -> KuaiSearch:
    tables: dict[str, Table] = {}
    for key, array in arrays.items():
        table, name, *part = key.split("/")
        columns = tables.setdefault(table, {})
        if part == ["offsets"]:
            columns[name] = Ragged(columns[name], array)
        else:
            columns[name] = array.astype(object) if array.dtype.kind == "U" else array
    return KuaiSearch(**tables)
