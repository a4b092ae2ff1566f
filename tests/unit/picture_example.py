"""A small folder of products in photographs, as the reader takes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

RED, BLUE = (200, 30, 30), (30, 30, 200)


def photo(path: Path, size: tuple[int, int] = (60, 40)) -> Path:
    """A photograph: red on the left half, blue on the right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    image.save(path)
    return path


def rows() -> dict[str, list[dict[str, Any]]]:
    """Two listings of one mosaic, one of training, one that every split offers; two queries."""
    listings: list[dict[str, Any]] = [
        {"item_id": "red", "picture": "shop/1.png", "text": "a red one", "category": "top"},
        {"item_id": "blue", "picture": "shop/1.png", "text": "", "category": "skirt"},
        {"item_id": "old", "picture": "shop/2.jpg", "text": "Träger, 旧款", "category": "top"},
        {"item_id": "plain", "picture": "shop/2.jpg", "text": "plain", "category": "hat"},
    ]
    boxes, splits = [[0, 0, 30, 40], [30, 0, 60, 40], None, None], ["test", "test", "train", None]
    for row, box, split in zip(listings, boxes, splits, strict=True):
        row.update(box=box, split=split)
    queries = [
        {"query_id": "q1", "picture": "user/1.png", "item_ids": ["blue", "plain"]},
        {"query_id": "q2", "picture": "user/1.png", "item_ids": ["old"]},
    ]
    queries[0].update(box=[30, 10, 50, 40], split="test")
    queries[1].update(box=None, split="train")
    return {"listings": listings, "queries": queries}


def put(folder: Path, tables: dict[str, list[dict[str, Any]]]) -> Path:
    """Write the rows and their pictures."""
    for name in ("shop/1.png", "shop/2.jpg", "user/1.png"):
        photo(folder / "images" / name)
    for name, of_table in tables.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in of_table]
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    return folder
