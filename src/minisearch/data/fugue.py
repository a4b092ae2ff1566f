"""A set of small icons whose file names say how one differs from another.

`cup--plus` is the icon `cup` with a small plus in its corner. Nearly two hundred icons come with
the same five badges, so that pairs of pictures that differ by one named edit are at hand.

Source: the Fugue icons by Yusuke Kamiyamane (CC BY 3.0) in the package fugue-icons.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from minisearch.errors import InputError

SIDE = 16  # pixels of an icon
BADGES = ("plus", "minus", "pencil", "arrow", "exclamation")


@dataclass(frozen=True, eq=False)
class Fugue:
    """All icons of the set.

    Attributes:
        names: of the icons, in alphabetical order.
        pixels: their colours and opacity.

    Shape: pixels (N, 16, 16, 4) uint8.
    """

    names: list[str]
    pixels: np.ndarray

    def families(self) -> dict[str, dict[str, int]]:
        """Icons that come plain and with every one of the `BADGES`: rows by badge, "" for plain."""
        row = {name: number for number, name in enumerate(self.names)}
        found = {}
        for name in self.names:
            states = {badge: row.get(f"{name}--{badge}") for badge in BADGES}
            whole = {badge: place for badge, place in states.items() if place is not None}
            if len(whole) == len(BADGES):
                found[name] = {"": row[name], **whole}
        return found


def parts_of(name: str) -> tuple[str, str]:
    """What an icon shows, and its badge, "" for none.

    >>> parts_of("address-book--plus"), parts_of("cup")
    (('address-book', 'plus'), ('cup', ''))
    """
    base, _, badge = name.partition("--")
    return base, badge


def fugue_icons() -> Fugue:
    """Read the installed package: 3,570 icons.

    Raises:
        InputError: where the package, or a file of it, is missing, unreadable, or names a place
            outside its sheet of icons.
    """
    remedy = "run `minisearch data get fugue-icons`."
    spec = find_spec("fugue_icons")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("package fugue-icons", "it is not installed", "the icon set", remedy)
    folder = Path(spec.submodule_search_locations[0], "static")
    try:
        places = json.loads((folder / "fugue-icons.json").read_text(encoding="utf-8"))
        with Image.open(folder / "fugue-icons.png") as sheet:
            pixels = np.asarray(sheet.convert("RGBA"))
    except (OSError, ValueError) as error:
        remedy = "reinstall the package fugue-icons."
        raise InputError(str(folder), str(error), "its sheet of icons and names", remedy) from error
    names, height, width = sorted(places), *pixels.shape[:2]
    cut = []
    for name in names:
        left, top = places[name]
        if not (0 <= left <= width - SIDE and 0 <= top <= height - SIDE):
            found, expected = f"{name!r} at {left}, {top}", f"a place in {width} x {height} pixels"
            raise InputError(str(folder), found, expected, "reinstall the package fugue-icons.")
        cut.append(pixels[top : top + SIDE, left : left + SIDE])
    return Fugue(names, np.stack(cut))
