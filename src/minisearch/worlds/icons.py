"""Products drawn from real icons: a picture shows several of them, a text says which one is meant.

A product is an icon with an appearance: a shade of its colour, a texture, a pose. Its text names
the icon, its category, search terms that people chose and often the colour; of the rest of the
appearance it says nothing. So a text fits several products that look alike, and a mosaic, which
shows products of different categories, fits each of them.

Source: Font Awesome Free (icons CC BY 4.0, fonts SIL OFL 1.1) in the package fontawesomefree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from minisearch.data.icons import IconTerms, icon_search_terms
from minisearch.errors import InputError
from minisearch.pictures import Box
from minisearch.profiles import derive_seed
from minisearch.worlds.icon_drawing import APPEARANCES, Appearance, Painter, outlines_of

# Categories of signs rather than things, and words in the names of variants of another icon.
SIGNS = {
    "Alphabet", "Arrows", "Charts + Diagrams", "Editing", "Mathematics", "Media Playback",
    "Numbers", "Punctuation + Symbols", "Spinners", "Text Formatting", "Toggle",
}  # fmt: skip
VARIANTS = {
    "arrow", "arrows", "check", "circle", "dash", "down", "exclamation", "left", "lock", "minus",
    "plus", "question", "right", "slash", "square", "up", "xmark",
}  # fmt: skip
ALIKE = 0.9  # share of two outlines' area from which on they count as the same
FAMILIES = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
ATTRIBUTES = (
    "small", "large", "light", "sturdy", "classic", "modern", "indoor", "outdoor", "washable",
    "foldable", "handmade", "organic", "premium", "basic", "compact", "durable",
)  # fmt: skip
NOISE = (
    "new", "sale", "hot", "gift", "free", "shipping", "original", "best", "deal", "2026", "store",
    "official", "quality", "fashion", "limited", "top",
)  # fmt: skip


@dataclass(frozen=True)
class IconDials:
    """Sizes of the world; the defaults are those of the book's toy profile."""

    glyphs: int = 334  # icons that training and test products share
    new_glyphs: int = 84  # icons of products that only a test set has
    families: int = 2  # colours an icon comes in
    trained: int = 4  # training products of an icon in a colour
    tested: int = 3  # test products of an icon in a colour
    queries: int = 1000  # of each test set, at most one a product
    objects: int = 4  # products in a mosaic
    crops: int = 3  # queries for each training product
    mosaics: int = 2  # mosaics that each training product is in
    size: int = 64  # pixels, sides of a listing's picture
    crop_size: int = 32  # pixels, sides of a query
    named: float = 0.5  # share of texts that name the colour
    words_lost: float = 0.4  # of a noisy text
    words_wrong: float = 0.2  # of a noisy text, from another product's


@dataclass(frozen=True)
class Product:
    """An icon with an appearance; `text` has no word on shade, texture and pose."""

    glyph: str
    category: str
    family: int
    appearance: Appearance
    text: str


def signs(icons: IconTerms) -> list[str]:
    """Icons that no product is made of: signs, brands, and variants of other icons."""
    return [
        name
        for name, categories in zip(icons.names, icons.categories, strict=True)
        if not categories or SIGNS & set(categories) or VARIANTS & set(name.split("-"))
    ]


def things(icons: IconTerms) -> dict[str, str]:
    """Icons that products may be made of, with the rarest of their categories.

    None is one of `signs`, the stem of one (as folder is of folder-plus), or looks like one or like
    another thing, which is the case for outlines that share nine tenths of their area.
    """
    others = signs(icons)
    stems = {"-".join(parts[:end]) for parts in (n.split("-") for n in others) for end in (1, 2, 3)}
    size = Counter(category for categories in icons.categories for category in categories)
    known = sorted(set(icons.names) - set(others))
    outlines = outlines_of([*others, *known])
    shared = outlines @ outlines.T
    area = outlines.sum(1)
    alike = shared > ALIKE * (area[:, None] + area - shared)
    chosen = {}
    for row, name in enumerate(known, len(others)):
        if name not in stems and not alike[row, :row].any():
            found = icons.categories[icons.names.index(name)]
            chosen[name] = min(found, key=lambda category: (size[category], category))
    return chosen


class IconWorld:
    """Products of one seed, and their pictures, always the same for the same name.

    Attributes:
        products: all of them.
        train, test, new: rows of `products`; of `new` no training product has the icon.

    Raises:
        InputError: for more icons than there are, or more products of one than appearances.
    """

    def __init__(self, seed: int, dials: IconDials) -> None:
        self.seed, self.dials = seed, dials
        self.products: list[Product] = []
        self.train: list[int] = []
        self.test: list[int] = []
        self.new: list[int] = []
        self._icons = icon_search_terms()
        self._row = {name: row for row, name in enumerate(self._icons.names)}
        self._terms: dict[int, list[str]] = {}
        for term, row in self._icons.pairs:
            self._terms.setdefault(row, []).append(term)
        self._painter = Painter(dials.size, dials.crop_size)
        self._mosaics: dict[str, tuple[int, ...]] = {}
        self.paint = lru_cache(maxsize=None)(self._paint)
        self._make_products()

    def random(self, *what: object) -> np.random.Generator:
        """A generator for one named use."""
        return np.random.default_rng(derive_seed(self.seed, "icons", *what))

    # -- products ----------------------------------------------------------------------------------

    def _make_products(self) -> None:
        dials, random = self.dials, self.random("products")
        category = things(self._icons)
        wanted, each = dials.glyphs + dials.new_glyphs, dials.trained + dials.tested
        possible = [Appearance(*rows) for rows in np.ndindex(*APPEARANCES)]
        for name, asked, there in (
            ("icons", wanted, len(category)),
            ("products of an icon", each, len(possible)),
            ("families", dials.families, len(FAMILIES)),
        ):
            if asked > there:
                raise InputError(name, str(asked), f"at most {there}", "ask for fewer.")
        known = sorted(category)
        for place, glyph in enumerate(random.permutation(known)[:wanted].tolist()):
            for family in random.permutation(len(FAMILIES))[: dials.families].tolist():
                chosen = random.permutation(len(possible))[:each]
                if place >= dials.glyphs:
                    chosen = chosen[dials.trained :]
                for number, row in enumerate(chosen):
                    seen = self.train if number < dials.trained else self.test
                    split = seen if place < dials.glyphs else self.new
                    split.append(len(self.products))
                    kind = (glyph, category[glyph], family)
                    text = self.text(*kind, random)
                    self.products.append(Product(*kind, possible[row], text))

    def text(self, glyph: str, category: str, family: int, random: np.random.Generator) -> str:
        """Name, category, two search terms, perhaps the colour, attributes, noise; mixed."""
        row = self._row[glyph]
        terms = self._terms.get(row, [])
        parts = [self._icons.labels[row], category.replace(" + ", " ")]
        parts += [terms[i] for i in random.permutation(len(terms))[:2]]
        parts += [FAMILIES[family]] if random.random() < self.dials.named else []
        parts += [*random.choice(ATTRIBUTES, 2, replace=False)]
        parts += [*random.choice(NOISE, 2, replace=False)]
        return " ".join(parts[i] for i in random.permutation(len(parts))).lower()

    def groups(self, rows: Sequence[int], random: np.random.Generator) -> list[tuple[int, ...]]:
        """Rows in groups of `objects` products of different categories.

        At the end too few are left, or too many alike: groups get smaller there.
        """
        left, groups = random.permutation(rows).tolist(), []
        while left:
            members = [left.pop()]
            for row in reversed(left[-200:]):
                if len(members) == self.dials.objects:
                    break
                taken = {self.products[member].category for member in members}
                if self.products[row].category not in taken:
                    members.append(row)
                    left.remove(row)
            groups.append(tuple(members))
        return groups

    # -- pictures ----------------------------------------------------------------------------------

    def add_mosaic(self, name: str, members: tuple[int, ...]) -> str:
        """Name a mosaic of products, rows of `products`; the name under which it is painted."""
        self._mosaics[f"mosaic/{name}"] = members
        return f"mosaic/{name}"

    def open(self, picture: str) -> Image.Image:
        """Draw a picture. Raises: InputError for a name that no listing or query has."""
        image: Image.Image = self.paint(picture)[0]
        return image

    def _paint(self, picture: str) -> tuple[Image.Image, list[Box]]:
        """A picture by name, and the boxes of its products, in their order."""
        kind, _, rest = picture.partition("/")
        random = self.random("picture", picture)
        if picture in self._mosaics:
            sprites = [self._sprite(row) for row in self._mosaics[picture]]
            return self._painter.mosaic(sprites, random)
        row = rest.split("/")[0]
        if kind not in ("normal", "crop") or not row.isdecimal() or int(row) >= len(self.products):
            expected = "normal/ROW, crop/ROW/VIEW or the name of a mosaic"
            raise InputError("picture", repr(picture), expected, "take it from a listing.")
        paint = self._painter.alone if kind == "normal" else self._painter.crop
        image, box = paint(self._sprite(int(row)), random)
        return image, [box]

    def _sprite(self, row: int) -> Image.Image:
        product = self.products[row]
        return self._painter.sprite(product.glyph, product.family, product.appearance)
