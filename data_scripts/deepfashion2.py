"""DeepFashion2: garments in customers' photographs look for the shops' photographs of them.

    python data_scripts/deepfashion2.py ~/DeepFashion2 data/deepfashion2
    python data_scripts/deepfashion2.py ~/DeepFashion2 data/deepfashion2 --parts validation

Nothing is downloaded. The owners give the password of their archives to who fills in their form,
for research that is not commercial: https://github.com/switchablenorms/DeepFashion2. Unpack them:

    DeepFashion2/train/image/000001.jpg         DeepFashion2/train/annos/000001.json
    DeepFashion2/validation/image/000001.jpg    DeepFashion2/validation/annos/000001.json

A query is the box of a garment in a customer's photograph. A listing is a garment in a shop's
photograph, which often shows more than one: each is a listing of its own, with its box, and they
share the picture. The text is the name of the category, as shops' texts are not part of the data:
of two skirts in one picture it cannot say which is meant. A query's items are all listings with
its pair and style, which is how the owners define the same garment; style 0, which they gave to
garments without a counterpart, is left out, and so is a query that no shop's picture answers.

Training becomes the split train, validation the split val; the test pictures have no public
annotations. Pictures are linked where the disk allows it, else copied.

Source: Ge, Zhang, Wu, Wang, Tang, Luo, CVPR 2019 (arXiv 1901.07973), and the repository's README.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from minisearch.data.images import picture_size, require_empty, write_pictures
from minisearch.errors import InputError, one_of
from minisearch.pictures import Box, CropQuery, Listing
from minisearch.records import check_row

SPLITS = {"train": "train", "validation": "val"}
SOURCES = ("user", "shop")
PICTURE = {"source": str, "pair_id": int}
GARMENT = {"category_name": str, "style": int, "bounding_box": list[int]}


@dataclass(frozen=True)
class Garment:
    """One garment in one photograph; garments of the same pair and style are the same."""

    name: str
    picture: str
    source: str
    same: tuple[int, int]  # pair and style
    category: str
    box: Box


def fields(row: Any, schema: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a schema, others left out. Raises: InputError for one missing or mistyped."""
    known = {k: row[k] for k in schema if k in row} if isinstance(row, dict) else row
    check_row(known, schema, where)
    return known


def annotation(path: Path) -> dict[str, Any]:
    """What a file says about its picture. Raises: InputError naming the file and the field."""
    try:
        row = json.loads(path.read_bytes())
    except ValueError as error:
        remedy = "unpack the archive again."
        raise InputError(str(path), f"no JSON ({error})", "an annotation", remedy) from error
    source = fields(row, PICTURE, str(path))["source"]
    if source not in SOURCES:
        raise one_of(f"{path}, column source", source, list(SOURCES))
    return row


def garments(folder: Path, part: str) -> Iterator[Garment]:
    """The garments of one part, those of style 0 too, their boxes clipped to the pictures.

    Raises:
        InputError: naming the annotation and field at fault, or the picture that is missing.
    """
    paths = sorted((folder / part / "annos").glob("*.json"))
    if not paths:
        where, remedy = str(folder / part / "annos"), "unpack the archive there, or give --parts."
        raise InputError(where, "no annotations", "000001.json and so on", remedy)
    for path in tqdm(paths, desc=f"{part}/annos", disable=None):
        row, picture = annotation(path), f"{part}/image/{path.stem}.jpg"
        size = picture_size(folder / picture, str(path))
        for name in sorted(row.keys() - PICTURE.keys()):  # item1, item2 ...
            where = f"{path}, column {name}"
            item = fields(row[name], GARMENT, where)
            same, box = (row["pair_id"], item["style"]), clipped(item["bounding_box"], size, where)
            names = f"{part}/{path.stem}/{name}", picture, row["source"]
            yield Garment(*names, same, item["category_name"], box)


def clipped(corners: list[int], size: tuple[int, int], where: str) -> Box:
    """The part of a box that is in its picture. Raises: InputError for other than four numbers."""
    if len(corners) != 4:
        expected, remedy = "[left, top, right, bottom]", "unpack the archive again."
        raise InputError(f"{where}, column bounding_box", repr(corners), expected, remedy)
    left, top, right, bottom = corners
    return Box(max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1]))


def rows(found: Iterable[Garment]) -> tuple[list[Listing], list[CropQuery], Counter[str]]:
    """Listings of the shops' garments, queries of the customers', and what was left out."""
    left_out: Counter[str] = Counter()
    items: dict[tuple[int, int], list[str]] = defaultdict(list)
    listings, users = [], []
    for garment in found:
        if not garment.same[1]:
            left_out["of style 0"] += 1
        elif garment.box.right <= garment.box.left or garment.box.bottom <= garment.box.top:
            left_out["with a box without area"] += 1
        elif garment.source == "user":
            users.append(garment)
        else:
            items[garment.same].append(garment.name)
            text = garment.category
            listings.append(Listing(garment.name, garment.picture, text, text, garment.box))
    queries = [
        CropQuery(user.name, user.picture, tuple(items[user.same]), user.box)
        for user in users
        if user.same in items
    ]
    left_out["without a shop's picture"] = len(users) - len(queries)
    return listings, queries, left_out


def main(
    source: Annotated[Path, typer.Argument(help="The unpacked data set.")],
    folder: Annotated[Path, typer.Argument(help="Where to put the pictures; new or empty.")],
    parts: Annotated[str, typer.Option(help="Parts, by commas.")] = ",".join(SPLITS),
) -> None:
    """Convert DeepFashion2, which you have unpacked, to a folder of pictures and rows."""
    try:
        require_empty(folder)
        listings: list[tuple[Listing, str | None]] = []
        queries: list[tuple[CropQuery, str]] = []
        for part in parts.split(","):
            if part not in SPLITS:
                raise one_of("option --parts", part, list(SPLITS))
            offered, asked, left_out = rows(garments(source, part))
            listings += [(listing, SPLITS[part]) for listing in offered]
            queries += [(query, SPLITS[part]) for query in asked]
            counts = f"{part}: {len(offered):,} listings, {len(asked):,} queries"
            without = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
            typer.echo(f"{counts}; garments left out: {without}")
        write_pictures(folder, listings, queries, source)
        typer.echo(f"{folder}: written; every picture was decoded")
    except InputError as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(main)
