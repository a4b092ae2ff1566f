"""Products in pictures: the rows of search by crop, the same for drawings and for photographs.

A listing is a picture, which may show more than the product, and a text that says which product is
meant. A query is a crop: the wanted product alone. Boxes are for training and evaluation; what
indexes listings or answers queries does not read them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from minisearch.errors import InputError

GREY = (128, 128, 128)  # beside a picture that is not square, and behind a transparent one


class Box(NamedTuple):
    """A rectangle in pixels; `right` and `bottom` are the first column and row outside it."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Listing:
    """A product on offer.

    Attributes:
        item_id: its name, unique in a set.
        picture: the name of its picture; listings of one mosaic share it.
        text: what its seller writes; may be empty.
        category: the name of its category.
        box: where in the picture it is, None where nobody drew one.
    """

    item_id: str
    picture: str
    text: str
    category: str
    box: Box | None = None


@dataclass(frozen=True)
class CropQuery:
    """A picture of the wanted product, and the items that are it.

    Attributes:
        query_id: its name, unique in a set.
        picture: the name of the picture.
        item_ids: one item or more.
        box: the part of the picture that is the query, None for all of it.
    """

    query_id: str
    picture: str
    item_ids: tuple[str, ...]
    box: Box | None = None


@dataclass(frozen=True)
class PictureSet:
    """Listings, the queries that look for them, and a way to open their pictures.

    Raises:
        InputError: for ids that occur twice, and queries for no item or for one that is not there.
    """

    listings: list[Listing]
    queries: list[CropQuery]
    open: Callable[[str], Image.Image]

    def __post_init__(self) -> None:
        known = _unique("item_id", (listing.item_id for listing in self.listings))
        _unique("query_id", (query.query_id for query in self.queries))
        for query in self.queries:
            missing = sorted(set(query.item_ids) - known)
            if missing or not query.item_ids:
                found = f"items {missing}, which no listing has" if missing else "no item"
                expected, remedy = "ids of listings", "drop the query or add the listing."
                raise InputError(f"query {query.query_id!r}", found, expected, remedy)

    def crop(self, query: CropQuery) -> Image.Image:
        """The picture that a query consists of. Raises: InputError for a box outside it."""
        image = self.open(query.picture)
        if query.box is None:
            return image
        check_box(query.box, image.size, f"query {query.query_id!r}")
        return image.crop(query.box)


def _unique(field: str, ids: Iterable[str]) -> set[str]:
    counts = Counter(ids)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        found, expected = f"{twice[0]!r} and {len(twice) - 1} others twice", "each id once"
        raise InputError(field, found, expected, "number the copies, or drop them.")
    return set(counts)


def check_box(box: Box, size: tuple[int, int], where: str) -> None:
    """Raises: InputError for a box without area or that leaves a picture of (width, height)."""
    width, height = size
    if not (0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height):
        expected = f"left < right and top < bottom within {width} x {height} pixels"
        remedy = "clip the box to the picture, or drop it."
        raise InputError(f"box of {where}", str(tuple(box)), expected, remedy)


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode that files have as RGB; what is transparent lies on grey.

    Raises:
        InputError: for floating-point pixels, whose range no file states.
    """
    if image.mode == "F":
        expected, remedy = "8 or 16 bits a channel", "store the picture with 8 bits a channel."
        raise InputError("picture", "floating-point pixels", expected, remedy)
    if image.mode.startswith("I"):  # 16-bit greys, which `convert` would clip at 255, not scale
        image = Image.fromarray((np.asarray(image).clip(0, 65_535) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in image.info:
        behind = Image.new("RGBA", image.size, (*GREY, 255))
        image = Image.alpha_composite(behind, image.convert("RGBA"))
    return image.convert("RGB")


def fitted(image: Image.Image, size: int, box: Box | None = None) -> tuple[np.ndarray, Box | None]:
    """A picture scaled into a square with its proportions kept, and the box moved with it.

    The box grows to whole pixels, so that all of what it held is still in it.

    Shape: (size, size, 3) uint8.

    Raises:
        InputError: for a picture without pixels, or a box that leaves it.
    """
    width, height = image.size
    if not width or not height:
        raise InputError("picture", f"{width} x {height} pixels", "one or more", "leave it out.")
    if box is not None:
        check_box(box, image.size, "a picture")
    if image.size == (size, size) and image.mode == "RGB":
        return np.asarray(image), box
    scale = size / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
    square = Image.new("RGB", (size, size), GREY)
    square.paste(as_rgb(image).resize(inner, Image.Resampling.BILINEAR), (left, top))
    pixels = np.asarray(square)
    if box is None:
        return pixels, None
    moved = Box(  # whole numbers divide without rounding errors: down to the left, up to the right
        left + box.left * inner[0] // width,
        top + box.top * inner[1] // height,
        left - (-box.right * inner[0] // width),
        top - (-box.bottom * inner[1] // height),
    )
    return pixels, moved
