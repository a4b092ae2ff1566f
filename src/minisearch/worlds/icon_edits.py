"""Changes asked for in words, on icons: the same in green, the same with an arrow, or both.

Every icon of a family shows one thing, in one of a few tints, plain or with one of five badges in a
corner. A query is such an icon and a change; its answer is the one icon that differs in just that.
So a gallery is full of near misses: the same thing in another tint, with another badge, with both.
Families of the test queries are in no training triplet.

Source: the Fugue icons (CC BY 3.0) in the package fugue-icons; tints and texts are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from minisearch.data.cir import CompositionSet, Triplet
from minisearch.data.fugue import BADGES, fugue_icons, parts_of
from minisearch.errors import InputError
from minisearch.profiles import derive_seed

KINDS = ("badge", "swap", "colour", "both")
TINTS = {
    "red": (220, 60, 50), "orange": (240, 150, 50), "yellow": (235, 215, 70),
    "green": (90, 180, 80), "blue": (80, 140, 220), "purple": (150, 90, 200),
    "pink": (240, 140, 190), "grey": (150, 150, 150),
}  # fmt: skip
BRIGHTER = 1.1  # of a tint times the icon's grey value
TRIES = 30  # draws for each triplet that is wanted, before there are too few
ALIKE = 0.05  # mean difference of two icons' grey values up to which they count as the same

# The badge as a customer calls it, and the phrases around it.
CALLED = {
    "plus": ("a plus", "a plus sign", "a green cross"),
    "minus": ("a minus", "a minus sign", "a red bar"),
    "pencil": ("a pencil", "an edit pencil"),
    "arrow": ("an arrow", "a blue arrow"),
    "exclamation": ("an exclamation mark", "a warning sign"),
}
ADDED = ("add {}", "put {} on it", "the same with {}", "give it {} in the corner", "now with {}")
SWAPPED = (
    "{} instead of the {old}", "swap the {old} for {}", "change its mark to {}",
    "not the {old} but {}", "with {} in place of the mark",
)  # fmt: skip
COLOURED = ("make it {}", "in {}", "the {} one", "the same thing in {}", "change the colour to {}")


@dataclass(frozen=True)
class EditDials:
    """Sizes of the world; the defaults are those of the book's toy profile."""

    families: int = 108  # of training
    dev_families: int = 16  # of the queries that a learning curve is drawn from
    test_families: int = 60
    tints: int = 3  # that each family comes in
    others: int = 1000  # icons of no family in the galleries of dev and test
    triplets: int = 16_000  # of training, a fourth of each kind
    queries: int = 1000  # of the test
    dev_queries: int = 240
    subset: int = 6  # pictures that are hard to tell apart, for each query


class Shown(NamedTuple):
    """What a picture shows: "address-book", "green", "plus"; an empty badge for none."""

    thing: str
    tint: str
    badge: str


class IconEdits:
    """Icons of one seed, and the queries about them.

    Attributes:
        shown: what each picture shows, by its name.
        sets: queries and galleries, by "train", "dev" and "test".

    Raises:
        InputError: for more families or other icons than there are.
    """

    def __init__(self, seed: int, dials: EditDials) -> None:
        self.seed, self.dials = seed, dials
        self._icons = fugue_icons()
        self._families = self._icons.families()
        self._grey = _grey(self._icons.pixels)
        self.shown: dict[str, Shown] = {}
        names = self._random("families").permutation(self._distinct()).tolist()
        wanted = (dials.families, dials.dev_families, dials.test_families)
        if sum(wanted) > len(names):
            found, expected = f"{sum(wanted)} families", f"up to {len(names)}"
            raise InputError("EditDials", found, expected, "ask for fewer.")
        others = self._others(names[: sum(wanted)])
        self.sets: dict[str, CompositionSet] = {}
        splits = (("train", dials.triplets), ("dev", dials.dev_queries), ("test", dials.queries))
        for (split, count), size in zip(splits, wanted, strict=True):
            chosen, names = names[:size], names[size:]
            tints = {thing: self._tints(thing) for thing in chosen}
            own = [
                self._named(Shown(thing, tint, badge))
                for thing in chosen for tint in tints[thing] for badge in ("", *BADGES)
            ]  # fmt: skip
            triplets = self._triplets(split, count, tints)
            gallery = own if split == "train" else own + others
            self.sets[split] = CompositionSet(gallery, triplets, self.open)

    def open(self, name: str) -> Image.Image:
        """A picture by its name, 16 x 16 pixels on white.

        Raises:
            InputError: for a name that this world does not have.
        """
        if name not in self.shown:
            remedy = "take it from a gallery or a query."
            raise InputError("picture", repr(name), "a picture of this world", remedy)
        thing, tint, badge = self.shown[name]
        row = self._icons.names.index(f"{thing}--{badge}" if badge else thing)
        plain = self._icons.pixels[self._icons.names.index(thing)]
        return Image.fromarray(tinted(plain, self._icons.pixels[row], tint))

    def _random(self, *names: object) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.seed, "icon edits", *names))

    def _named(self, shown: Shown) -> str:
        name = "/".join(part for part in shown if part)
        self.shown[name] = shown
        return name

    def _tints(self, thing: str) -> list[str]:
        chosen = self._random("tints", thing).permutation(list(TINTS))[: self.dials.tints]
        return [str(tint) for tint in chosen]

    def _distinct(self) -> list[str]:
        """Families, without those whose plain icon looks like that of an earlier one."""
        kept: list[str] = []
        for name, rows in self._families.items():
            grey = self._grey[rows[""]]
            others = self._grey[[self._families[other][""] for other in kept]]
            if not kept or np.abs(others - grey).mean(1).min() > ALIKE:
                kept.append(name)
        return kept

    def _others(self, things: list[str]) -> list[str]:
        """Plain icons of no family that look like none, each in one tint."""
        known = self._grey[[self._families[thing][""] for thing in things]]
        free = [
            row for row, name in enumerate(self._icons.names)
            if not parts_of(name)[1] and name not in self._families
            and np.abs(known - self._grey[row]).mean(1).min() > ALIKE
        ]  # fmt: skip
        if self.dials.others > len(free):
            found, expected = f"{self.dials.others} others", f"up to {len(free)}"
            raise InputError("EditDials", found, expected, "ask for fewer.")
        chosen = self._random("others").permutation(free)[: self.dials.others].tolist()
        names = [self._icons.names[row] for row in sorted(chosen)]
        return [self._named(Shown(name, self._tints(name)[0], "")) for name in names]

    # -- queries -----------------------------------------------------------------------------------

    def _triplets(self, split: str, count: int, tints: dict[str, list[str]]) -> list[Triplet]:
        """As many of each kind, of families at random; a pair and its text occur once at most."""
        random, things = self._random("triplets", split), list(tints)
        found: dict[tuple[str, str, str], Triplet] = {}
        for kind in KINDS:
            quarter = count // len(KINDS)
            wanted = len(found) + quarter
            for _ in range(TRIES * quarter):
                thing = things[random.integers(len(things))]
                pair = _pair(kind, thing, tints[thing], random)
                names = ["/".join(part for part in shown if part) for shown in pair]
                text = _text(kind, *pair, random)
                name = f"{split}/{len(found)}"
                subset = self._subset(*pair, tints, random)
                triplet = Triplet(name, names[0], text, names[1], kind, subset)
                found.setdefault((*triplet_pair(triplet), text), triplet)
                if len(found) == wanted:
                    break
            else:
                there = f"{len(found) - wanted + quarter} of kind {kind}"
                remedy = "ask for fewer, or for more families."
                raise InputError(f"{split} triplets", there, str(quarter), remedy)
        return list(found.values())

    def _subset(
        self, reference: Shown, target: Shown, tints: dict[str, list[str]],
        random: np.random.Generator,
    ) -> tuple[str, ...]:  # fmt: skip
        """Reference, target, and near misses: of the same thing, then with the target's badge."""
        thing, tint, badge = target
        alike = [Shown(thing, t, b) for t in tints[thing] for b in ("", *BADGES)]
        near = [s for s in alike if s not in (reference, target)]
        nearest = [s for s in near if (s.tint == tint) != (s.badge == badge)]
        elsewhere = [
            Shown(other, t, badge) for other in tints if other != thing
            for t in tints[other] if t == tint
        ]  # fmt: skip
        parts = [list(random.permutation(len(part))) for part in (nearest, elsewhere)]
        same = [nearest[n] for n in parts[0]]
        foreign = [elsewhere[n] for n in parts[1]]
        room = self.dials.subset - 2
        chosen = [*same[: room - 1], *foreign[:1], *same[room - 1 :]][:room]
        if len(chosen) < room:
            raise InputError("EditDials", "too few near misses", str(room), "ask for more tints.")
        return tuple(
            "/".join(part for part in shown if part) for shown in (reference, target, *chosen)
        )


def triplet_pair(triplet: Triplet) -> tuple[str, str]:
    """Reference and target of a query."""
    return triplet.reference, triplet.target


def tinted(plain: np.ndarray, icon: np.ndarray, tint: str) -> np.ndarray:
    """An icon on white in a tint; its badge, which is where it differs from the plain icon, keeps
    its own colours.

    Shape: (16, 16, 4) uint8 twice -> (16, 16, 3) uint8.
    """
    grey = _grey_values(plain[..., :3])[..., None]
    colour = (grey * np.array(TINTS[tint]) * BRIGHTER).clip(0, 255)
    changed = (icon != plain).any(-1, keepdims=True)
    pixels = np.where(changed, icon[..., :3], colour)
    opacity = icon[..., 3:] / 255
    return np.asarray((pixels * opacity + 255 * (1 - opacity)).round().astype(np.uint8))


def _grey_values(pixels: np.ndarray) -> np.ndarray:
    """Brightness from 0 to 1. Shape: (..., 3) -> (...)."""
    return np.asarray(pixels @ np.array([0.3, 0.59, 0.11]) / 255)


def _grey(pixels: np.ndarray) -> np.ndarray:
    """Grey values on white, a row an icon. Shape: (N, 16, 16, 4) uint8 -> (N, 256)."""
    opacity = pixels[..., 3] / 255
    grey = _grey_values(pixels[..., :3]) * opacity + 1 - opacity
    return grey.reshape(len(pixels), -1)


def _pair(
    kind: str, thing: str, tints: list[str], random: np.random.Generator
) -> tuple[Shown, Shown]:
    """A reference and a target that differ as a kind says."""
    first, second = (tints[n] for n in random.permutation(len(tints))[:2])
    badges = [BADGES[n] for n in random.permutation(len(BADGES))[:2]]
    states = ("", *BADGES)
    if kind == "badge":
        return Shown(thing, first, ""), Shown(thing, first, badges[0])
    if kind == "swap":
        return Shown(thing, first, badges[0]), Shown(thing, first, badges[1])
    if kind == "colour":
        badge = states[random.integers(len(states))]
        return Shown(thing, first, badge), Shown(thing, second, badge)
    old = badges[0] if random.random() < 0.5 else ""
    return Shown(thing, first, old), Shown(thing, second, badges[1])


def _text(kind: str, reference: Shown, target: Shown, random: np.random.Generator) -> str:
    """A change in words: one of several phrases, and of two in either order."""

    def one_of_them(choices: tuple[str, ...]) -> str:
        return choices[random.integers(len(choices))]

    changes = []
    if kind in ("colour", "both"):
        changes.append(one_of_them(COLOURED).format(target.tint))
    if kind != "colour":
        called = one_of_them(CALLED[target.badge])
        phrases = SWAPPED if reference.badge else ADDED
        changes.append(one_of_them(phrases).format(called, old=reference.badge))
    if random.random() < 0.5:
        changes.reverse()
    return " and ".join(changes)
