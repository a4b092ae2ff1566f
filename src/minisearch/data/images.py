"""Products in photographs: a folder of pictures and two JSON Lines files, read and written.

    listings.jsonl   item_id, picture, text, category, box, split
    queries.jsonl    query_id, picture, item_ids, box, split
    images/          the pictures, under the names that the rows give them

A row has exactly these fields. `box` is [left, top, right, bottom] in pixels of the upright
picture, or null. `split` is train, val or test; a listing with null is offered in all three.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, TypeAlias

from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from minisearch.data.tables import _no_rows, _parse, _unreadable
from minisearch.errors import InputError, one_of
from minisearch.pictures import Box, CropQuery, Listing, PictureSet, as_rgb, check_box
from minisearch.records import check_row
from minisearch.storage import atomic_directory

SPLITS = ("train", "val", "test")
FILES = ("listings.jsonl", "queries.jsonl")
# Kinds of the columns, as `check_row` knows them; what may be null, and that ids of items are
# strings, is left to `_check_row`.
LISTING = {
    "item_id": str, "picture": str, "text": str, "category": str, "box": list[int], "split": str,
}  # fmt: skip
QUERY = {"query_id": str, "picture": str, "item_ids": list[int], "box": list[int], "split": str}

Row: TypeAlias = tuple[str, dict[str, Any]]  # where it stands, and its fields


def read_pictures(folder: str | Path, split: str = "test") -> PictureSet:
    """Read the listings and queries of one split.

    Pictures are opened when they are asked for. Before, each must be there, and those with a box
    are opened as far as their size. The rows of the other splits are checked, not their pictures.

    Raises:
        InputError: naming the file, row (from 1) and field at fault: a line that is no JSON, an
            unknown or missing field, a wrong type, an id that occurs twice, a query for no item or
            for one that the split does not offer, a picture that is missing or outside the folder,
            a box outside its picture. A damaged picture is named when it is opened.
    """
    if split not in SPLITS:
        raise one_of("option split", split, list(SPLITS))
    paths = [Path(folder) / name for name in FILES]
    listings, queries = _read(paths[0], LISTING, "item_id"), _read(paths[1], QUERY, "query_id")
    offered, asked = _of_split(listings, split, paths[0]), _of_split(queries, split, paths[1])
    known = {row["item_id"] for _, row in offered}
    for where, row in asked:
        _check_items(row["item_ids"], known, f"{where}, column item_ids")
    images = Path(folder) / "images"
    named = _check_pictures(images, [*offered, *asked])
    return PictureSet(
        [Listing(**_fields(row)) for _, row in offered],
        [CropQuery(**_fields(row) | {"item_ids": tuple(row["item_ids"])}) for _, row in asked],
        partial(_open, images, named),
    )


def load_picture(path: Path, named_by: str = "") -> Image.Image:
    """A picture as RGB: decoded whole, and turned as its EXIF orientation says.

    Greys, palettes, CMYK and 16 bits a channel are converted; what is transparent lies on grey.

    Args:
        path: a file of any format that Pillow reads; of an animation the first frame is taken.
        named_by: the row that names the picture, for the message.

    Raises:
        InputError: for a file that is missing, empty, cut off, damaged, or no picture.
    """
    with _opened(path, named_by) as image:
        image.load()
        return as_rgb(ImageOps.exif_transpose(image))


def picture_size(path: Path, named_by: str = "") -> tuple[int, int]:
    """Width and height in pixels of the upright picture, from its header. Raises: InputError."""
    with _opened(path, named_by) as image:
        quarter_turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return image.size[::-1] if quarter_turned else image.size


def write_pictures(
    folder: str | Path,
    listings: Iterable[tuple[Listing, str | None]],
    queries: Iterable[tuple[CropQuery, str]],
    source: Path,
) -> None:
    """Write a folder that `read_pictures` reads, with all its files or none.

    Every picture is decoded. It is linked into the folder where the disk allows that, and takes no
    room then; elsewhere it is copied.

    Args:
        folder: a new or empty folder.
        listings: each with its split, None for all three.
        queries: each with its split.
        source: the folder in which the rows' pictures are, under the names that the rows give.

    Raises:
        InputError: where `folder` holds files already or cannot be written, where a picture cannot
            be decoded, and for whatever `read_pictures` would refuse.
    """
    final = Path(folder)
    require_empty(final)
    tables = [
        [asdict(row) | {"split": split} for row, split in rows] for rows in (listings, queries)
    ]
    with atomic_directory(final) as part:
        for name, rows in zip(FILES, tables, strict=True):
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            (part / name).write_text("".join(lines), "utf-8")
        names = dict.fromkeys(row["picture"] for rows in tables for row in rows)
        for name in tqdm(names, desc="pictures", disable=None):
            _check_name(name, f"{final}, picture {name!r}")
            load_picture(source / name)
            _bring(source / name, part / "images" / name)
        with naming(part, final):
            for split in {row["split"] for row in tables[1]} or SPLITS:
                read_pictures(part, split)


def require_empty(folder: Path) -> None:
    """Raises: InputError for a folder with files in it, which writing would replace."""
    if folder.is_dir() and any(folder.iterdir()):
        remedy = "name a new folder, or empty this one."
        raise InputError(str(folder), "a folder with files in it", "an empty folder", remedy)


@contextmanager
def naming(part: Path, final: Path) -> Iterator[None]:
    """Let errors about a temporary path, which will be gone, name the lasting one instead."""
    try:
        yield
    except InputError as error:
        where = error.where.replace(str(part), str(final))
        raise InputError(where, error.found, error.expected, error.remedy) from error


def _fields(row: dict[str, Any]) -> dict[str, Any]:
    """The fields that a record has, the box as a `Box`."""
    box = None if row["box"] is None else Box(*row["box"])
    return {name: value for name, value in row.items() if name != "split"} | {"box": box}


def _read(path: Path, schema: Mapping[str, Any], key: str) -> list[Row]:
    """The rows of a file, checked one by one; `key` names the column that tells them apart."""
    first: dict[str, int] = {}
    rows = []
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, row {number}"
                row = _parse(line.rstrip(b"\r\n"), where)
                _check_row(row, schema, where)
                if row["split"] not in (*SPLITS, None):
                    raise one_of(f"{where}, column split", row["split"], list(SPLITS))
                if first.setdefault(row[key], number) != number:
                    found = f"{row[key]!r}, which row {first[row[key]]} has already"
                    remedy = "number the copies, or drop them."
                    raise InputError(f"{where}, column {key}", found, "an id of its own", remedy)
                rows.append((where, row))
    except OSError as error:
        raise _unreadable(path, error) from error
    if not rows:
        raise _no_rows(path)
    return rows


def _check_row(row: Any, schema: Mapping[str, Any], where: str) -> None:
    """`check_row`, with null for a box and for a listing's split, and lists of ids."""
    nullable = {"box": [], **({"split": ""} if schema is LISTING else {})}
    given = row
    if isinstance(row, dict):
        given = {n: nullable[n] if v is None and n in nullable else v for n, v in row.items()}
        ids = given.get("item_ids")
        if isinstance(ids, list) and all(isinstance(item, str) for item in ids):
            given["item_ids"] = []
    check_row(given, schema, where)


def _of_split(rows: list[Row], split: str, path: Path) -> list[Row]:
    kept = [(where, row) for where, row in rows if row["split"] in (split, None)]
    if not kept:
        there = sorted({str(row["split"]) for _, row in rows})
        found, expected = f"rows of {', '.join(there)} alone", f"a row of {split}"
        raise InputError(f"{path}, column split", found, expected, "ask for another split.")
    return kept


def _check_items(item_ids: list[str], known: set[str], where: str) -> None:
    missing = [item for item in item_ids if item not in known]
    if missing or not item_ids or len(set(item_ids)) != len(item_ids):
        found = f"{missing[0]!r}, which no listing of the split has" if missing else repr(item_ids)
        remedy = "add the listing or drop the query."
        raise InputError(where, found, "ids of listings, one or more, each once", remedy)


def _check_pictures(images: Path, rows: list[Row]) -> dict[str, str]:
    """The row that names each picture first; all pictures are there, and hold their boxes."""
    named: dict[str, str] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for where, row in rows:
        name, box = row["picture"], row["box"]
        if name not in named:
            _check_name(name, f"{where}, column picture")
            if not (images / name).is_file():
                found, remedy = f"{name!r}, which is not there", "add the picture or drop the row."
                raise InputError(f"{where}, column picture", found, f"a file of {images}", remedy)
            named[name] = where
        if box is not None:
            if len(box) != 4:
                expected, remedy = "[left, top, right, bottom]", "give four numbers, or null."
                raise InputError(f"{where}, column box", repr(box), expected, remedy)
            if name not in sizes:
                sizes[name] = picture_size(images / name, where)
            check_box(Box(*box), sizes[name], where)
    return named


def _check_name(name: str, where: str) -> None:
    """Raises: InputError for a name that leads out of the folder, on any operating system."""
    path = PureWindowsPath(name)  # which takes / and \ for separators, and knows drives
    if path.anchor or ".." in path.parts:
        remedy = "put the picture into the folder, and name it from there."
        raise InputError(where, repr(name), "a path that stays in the folder images", remedy)


def _bring(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path.resolve(), target)
    except OSError:  # another disk, or one that knows no links
        shutil.copyfile(path, target)


def _open(images: Path, named: Mapping[str, str], name: str) -> Image.Image:
    return load_picture(images / name, named[name])


@contextmanager
def _opened(path: Path, named_by: str) -> Iterator[Image.Image]:
    """The picture, and whatever goes wrong with it as an InputError."""
    where = f"{path}, named by {named_by}" if named_by else str(path)
    try:
        with Image.open(path) as image:
            yield image
    except InputError as error:
        raise InputError(where, error.found, error.expected, error.remedy) from error
    except FileNotFoundError as error:
        raise InputError(where, "no such file", "a picture", "check the path.") from error
    except Exception as error:  # decoders raise a dozen kinds
        found = f"no picture that can be decoded ({type(error).__name__}: {error})"
        remedy = "fetch or store the picture again, or drop the rows that name it."
        raise InputError(where, found, "a whole picture", remedy) from error
