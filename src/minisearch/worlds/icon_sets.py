"""The picture sets of a world of icons: one to train on, five to evaluate on, kept in a cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from minisearch.errors import InputError
from minisearch.pictures import Box, CropQuery, Listing, PictureSet
from minisearch.storage import cached
from minisearch.worlds.icons import IconDials, IconWorld


def open_icons(seed: int, dials: IconDials) -> dict[str, PictureSet]:
    """The sets of one world by name, drawn once and then read from a cache.

    train: each training product in a picture of its own and in mosaics; crops of it. normal: each
    test product alone in its picture. mosaic: the same products and queries, in mosaics. new:
    queries for products of icons that no training product has, in mosaics beside those of
    `mosaic`. noisy: `mosaic` with texts that lost words and got wrong ones. many: `mosaic` with
    each product listed twice, in different mosaics and words, both of them right.
    """
    here = Path(__file__).parent
    sources = [*sorted(here.glob("icon*.py")), here.parent / "pictures.py"]
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    key = {"dials": asdict(dials), "seed": seed, "code": code}
    return _read(cached("icons", key, lambda folder: _write(folder, make_sets(seed, dials))))


def make_sets(seed: int, dials: IconDials) -> dict[str, PictureSet]:
    """What `open_icons` returns, drawn anew."""
    world = IconWorld(seed, dials)
    train = _normal(world, world.train)
    for turn in range(dials.mosaics):
        train += _mosaics(world, world.train, f"train{turn}")
    mosaic = _mosaics(world, world.test, "test")
    again = _mosaics(world, world.test, "again", rewritten=True)
    new = _mosaics(world, world.new, "new")
    return {
        "train": PictureSet(train, _crops(train, range(dials.crops)), world.open),
        "normal": _searched(world, _normal(world, world.test)),
        "mosaic": _searched(world, mosaic),
        "new": _searched(world, new, beside=mosaic),
        "noisy": _searched(world, _noisy(world, mosaic)),
        "many": _searched(world, mosaic + again),
    }


def _listing(world: IconWorld, row: int, picture: str, text: str, box: Box) -> Listing:
    return Listing(f"{row}/{picture}", picture, text, world.products[row].category, box)


def _normal(world: IconWorld, rows: Sequence[int]) -> list[Listing]:
    listings = []
    for row in rows:
        picture = f"normal/{row}"
        box = world.paint(picture)[1][0]
        listings.append(_listing(world, row, picture, world.products[row].text, box))
    return listings


def _mosaics(
    world: IconWorld, rows: Sequence[int], name: str, rewritten: bool = False
) -> list[Listing]:
    random, listings = world.random("mosaics", name), []
    for number, members in enumerate(world.groups(rows, random)):
        picture = world.add_mosaic(f"{name}/{number}", members)
        for row, box in zip(members, world.paint(picture)[1], strict=True):
            product = world.products[row]
            text = product.text
            if rewritten:
                text = world.text(product.glyph, product.category, product.family, random)
            listings.append(_listing(world, row, picture, text, box))
    return listings


def _noisy(world: IconWorld, listings: list[Listing]) -> list[Listing]:
    """The listings with words lost, and words of a random one, seldom itself, in their place."""
    random, dials, noisy = world.random("noise"), world.dials, []
    for listing in listings:
        other = listings[random.integers(len(listings))].text.split()
        words = []
        for word in listing.text.split():
            draw = random.random()
            if draw < dials.words_wrong:
                words.append(str(random.choice(other)))
            elif draw >= dials.words_wrong + dials.words_lost:
                words.append(word)
        fields = (listing.item_id, listing.picture, " ".join(words), listing.category)
        noisy.append(Listing(*fields, listing.box))
    return noisy


def _product(item_id: str) -> int:
    return int(item_id.split("/")[0])


def _crops(listings: list[Listing], views: Iterable[object], rows: Sequence[int] = ()) -> list:
    """Queries for the products of all listings, or for some: one for each view of each product."""
    ids: dict[int, list[str]] = {}
    for listing in listings:
        ids.setdefault(_product(listing.item_id), []).append(listing.item_id)
    return [
        CropQuery(f"{row}/{view}", f"crop/{row}/{view}", tuple(ids[row]))
        for row in rows or ids
        for view in views
    ]


def _searched(
    world: IconWorld, listings: list[Listing], beside: Sequence[Listing] = ()
) -> PictureSet:
    """Queries for the products of some listings, among these and others."""
    there = sorted({_product(listing.item_id) for listing in listings})
    rows = world.random("queries").permutation(there)[: world.dials.queries].tolist()
    return PictureSet([*listings, *beside], _crops(listings, ["test"], rows), world.open)


# -- cache -----------------------------------------------------------------------------------------


def _write(folder: Path, sets: dict[str, PictureSet]) -> None:
    names: dict[str, dict[str, None]] = {"listings": {}, "queries": {}}
    rows = {}
    for name, pictures in sets.items():
        names["listings"] |= dict.fromkeys(listing.picture for listing in pictures.listings)
        names["queries"] |= dict.fromkeys(query.picture for query in pictures.queries)
        rows[name] = {
            "listings": [list(vars(listing).values()) for listing in pictures.listings],
            "queries": [list(vars(query).values()) for query in pictures.queries],
        }
    for kind, of_kind in names.items():
        drawn = [np.asarray(sets["train"].open(picture)) for picture in of_kind]
        np.save(folder / f"{kind}.npy", np.stack(drawn))
    content = {"names": {kind: list(found) for kind, found in names.items()}, "sets": rows}
    (folder / "sets.json").write_text(json.dumps(content), encoding="utf-8")


def _read(folder: Path) -> dict[str, PictureSet]:
    content = json.loads((folder / "sets.json").read_text(encoding="utf-8"))
    place: dict[str, tuple[np.ndarray, int]] = {}
    for kind, names in content["names"].items():
        pixels = np.load(folder / f"{kind}.npy", mmap_mode="r")
        place |= {name: (pixels, row) for row, name in enumerate(names)}

    def opened(picture: str) -> Image.Image:
        if picture not in place:
            remedy = "take it from a listing or query."
            raise InputError("picture", repr(picture), "a picture of this world", remedy)
        pixels, row = place[picture]
        return Image.fromarray(np.array(pixels[row]))

    return {
        name: PictureSet(
            [
                Listing(item, picture, text, category, Box(*box))
                for item, picture, text, category, box in rows["listings"]
            ],
            [CropQuery(row[0], row[1], tuple(row[2])) for row in rows["queries"]],
            opened,
        )
        for name, rows in content["sets"].items()
    }
