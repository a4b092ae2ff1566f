"""How icons become products, and products pictures: colour, texture, pose, place, light, clutter.

Source: the fonts of Font Awesome Free (SIL OFL 1.1) in the package fontawesomefree.
"""

from __future__ import annotations

import colorsys
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from minisearch.errors import InputError
from minisearch.pictures import Box

FONTS = ("Free-Solid-900", "Brands-Regular-400")
SPRITE = 64  # pixels, sides of a product's master drawing
PERIOD = 16  # pixels of it, one repeat of a texture
TEXTURES = ("plain", "stripes", "bars", "checks", "dots", "fade")
POSES = (-40, 0, 40)  # degrees
HUES = (0.0, 0.075, 0.145, 0.33, 0.48, 0.60, 0.76, 0.90)
OPAQUE = [0] * 64 + [255] * 192  # of alpha values, those that count as the product
LIGHT = ((0.55, 1.0), (0.8, 0.85), (1.0, 0.55))  # value and saturation of each shade

APPEARANCES = (len(LIGHT), len(TEXTURES), len(POSES))


@dataclass(frozen=True)
class Appearance:
    """What tells apart products of one icon in one colour: rows of LIGHT, TEXTURES and POSES."""

    shade: int
    texture: int
    pose: int


class Painter:
    """Draws products. All randomness is that of the generator it is given.

    Args:
        size: pixels, sides of a listing's picture.
        crop_size: pixels, sides of a query.

    Raises:
        InputError: where the package of the icons is missing.
    """

    def __init__(self, size: int, crop_size: int) -> None:
        spec = find_spec("fontawesomefree")  # not imported: it is a plug-in of a web framework
        if spec is None or not spec.submodule_search_locations:
            remedy = "run `minisearch data get fontawesomefree`."
            raise InputError("package fontawesomefree", "it is not installed", "icons", remedy)
        root = Path(spec.submodule_search_locations[0], "static", "fontawesomefree")
        icons = json.loads((root / "metadata" / "icons.json").read_text(encoding="utf-8"))
        self._fonts = [
            ImageFont.truetype(str(root / "otfs" / f"Font Awesome 6 {name}.otf"), SPRITE)
            for name in FONTS
        ]
        self._codes = {
            name: ("solid" not in icon["free"], chr(int(icon["unicode"], 16)))
            for name, icon in icons.items()
        }
        self.size, self.crop_size = size, crop_size
        self.sprite = lru_cache(maxsize=8192)(self._sprite)

    def outline(self, name: str) -> Image.Image:
        """An icon filling a square, (SPRITE, SPRITE) of mode L: 255 where it is."""
        font, character = self._codes[name]
        mask = self._fonts[font].getmask(character)
        shape = Image.frombytes("L", mask.size, bytes(mask))
        scale = SPRITE / max(mask.size)
        shape = shape.resize([max(1, round(side * scale)) for side in mask.size])
        alpha = Image.new("L", (SPRITE, SPRITE))
        alpha.paste(shape, ((SPRITE - shape.width) // 2, (SPRITE - shape.height) // 2))
        return alpha

    def _sprite(self, name: str, family: int, appearance: Appearance) -> Image.Image:
        """The master drawing of a product, (SPRITE, SPRITE) RGBA, turned into its pose."""
        alpha = self.outline(name)
        sprite = Image.fromarray(_texture(family, appearance))
        sprite.putalpha(alpha)
        if POSES[appearance.pose]:
            sprite = _turned(sprite, POSES[appearance.pose])
        return sprite

    def crop(self, sprite: Image.Image, random: np.random.Generator) -> tuple[Image.Image, Box]:
        """A product cut out of another picture: it fills the frame, light and angle differ."""
        canvas = self._background(self.crop_size, random, plain=random.random() < 0.5)
        side = round(self.crop_size * random.uniform(0.8, 1.0))
        box = self._place(canvas, sprite, side, random, turn=12)
        return self._exposed(canvas, random), box

    def alone(self, sprite: Image.Image, random: np.random.Generator) -> tuple[Image.Image, Box]:
        """A usual listing: one large product, a light background, a little clutter at most."""
        canvas = Image.new("RGB", (self.size, self.size), (int(random.integers(225, 256)),) * 3)
        self._clutter(canvas, random, int(random.integers(0, 3)), largest=0.2)
        side = round(self.size * random.uniform(0.55, 0.85))
        box = self._place(canvas, sprite, side, random, turn=8)
        return self._exposed(canvas, random), box

    def mosaic(
        self, sprites: Sequence[Image.Image], random: np.random.Generator
    ) -> tuple[Image.Image, list[Box]]:
        """Several products at random places and scales, clutter behind them and some before."""
        canvas = self._background(self.size, random, plain=False)
        self._clutter(canvas, random, 6, largest=0.35)
        taken: list[Box] = []
        boxes = []
        for sprite in sprites:
            side = round(self.size * random.uniform(0.3, 0.46))
            boxes.append(self._place(canvas, sprite, side, random, turn=8, taken=taken))
            taken.append(boxes[-1])
        self._clutter(canvas, random, 3, largest=0.12)
        return self._exposed(canvas, random), boxes

    def _place(
        self, canvas: Image.Image, sprite: Image.Image, side: int, random: np.random.Generator,
        turn: float, taken: Sequence[Box] = (),
    ) -> Box:  # fmt: skip
        """Paste at a random place that hides little of what is `taken`; the box it covers."""
        small = sprite.resize((side, side), Image.Resampling.BILINEAR)
        turned = small.rotate(random.uniform(-turn, turn), Image.Resampling.BILINEAR)
        outline = turned.getchannel("A").point(OPAQUE).getbbox()
        assert outline is not None  # no icon is empty
        turned = turned.crop(outline)
        room = (canvas.width - turned.width, canvas.height - turned.height)
        tries = []
        for _ in range(12 if taken else 1):
            left, top = (int(random.integers(0, max(1, space + 1))) for space in room)
            box = Box(left, top, left + turned.width, top + turned.height)
            tries.append((sum(_overlap(box, other) for other in taken), box))
            if not tries[-1][0]:
                break
        box = min(tries)[1]
        canvas.paste(turned, box[:2], turned)
        return box

    def _background(self, side: int, random: np.random.Generator, plain: bool) -> Image.Image:
        """A colour of little saturation; or one that changes towards another across the canvas."""
        first, second = (random.uniform(0.3, 1.0) * 255 * random.uniform(0.8, 1, 3) for _ in "ab")
        if plain:
            second = first
        weight = np.linspace(0, 1, side)[:, None, None]
        pixels = (first * (1 - weight) + second * weight) * np.ones((side, side, 1))
        if random.random() < 0.5:
            pixels = pixels.swapaxes(0, 1)
        return Image.fromarray(pixels.astype(np.uint8))

    def _clutter(
        self, canvas: Image.Image, random: np.random.Generator, count: int, largest: float
    ) -> None:
        """Rectangles, ellipses and lines of any colour, up to a share of the canvas's side."""
        draw = ImageDraw.Draw(canvas)
        for kind in random.integers(0, 3, count):
            colour = tuple(int(value) for value in random.integers(0, 256, 3))
            left, top = random.uniform(0, canvas.width, 2)
            right, bottom = (left, top) + random.uniform(0.03, largest, 2) * canvas.width
            if kind == 0:
                draw.rectangle((left, top, right, bottom), fill=colour)
            elif kind == 1:
                draw.ellipse((left, top, right, bottom), fill=colour)
            else:
                draw.line((left, top, right, bottom), fill=colour, width=1)

    def _exposed(self, canvas: Image.Image, random: np.random.Generator) -> Image.Image:
        """Another brightness, and the grain of a sensor."""
        pixels = np.asarray(canvas, dtype=np.float32) * random.uniform(0.8, 1.15)
        pixels += random.normal(0, 5, pixels.shape).astype(np.float32)
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def outlines_of(names: Sequence[str]) -> np.ndarray:
    """Where icons are and where not, coarsely. Shape: (N, SPRITE * SPRITE / 4) float32, 0 or 1."""
    painter, side = Painter(SPRITE, SPRITE), SPRITE // 2
    small = [painter.outline(name).resize((side, side)) for name in names]
    return np.stack([np.asarray(image).ravel() > 127 for image in small]).astype(np.float32)


def _texture(family: int, appearance: Appearance) -> np.ndarray:
    """Two colours of a family in a pattern. Shape: (SPRITE, SPRITE, 3) uint8."""
    value, saturation = LIGHT[appearance.shade]
    first = np.array(colorsys.hsv_to_rgb(HUES[family], saturation, value))
    second = first * 0.35 if value > 0.6 else first + (1 - first) * 0.75
    rows, columns = np.mgrid[:SPRITE, :SPRITE] / PERIOD
    pattern = {
        "plain": np.zeros_like(rows),
        "stripes": rows % 1 < 0.4,
        "bars": columns % 1 < 0.4,
        "checks": (rows % 1 < 0.5) ^ (columns % 1 < 0.5),
        "dots": (rows % 1 - 0.5) ** 2 + (columns % 1 - 0.5) ** 2 < 0.09,
        "fade": rows / rows.max(),
    }[TEXTURES[appearance.texture]][..., None]
    colours = first * (1 - pattern) + second * pattern
    return np.asarray((255 * colours).round().astype(np.uint8))


def _turned(sprite: Image.Image, degrees: float) -> Image.Image:
    """Turned within its frame, made smaller so that no corner is lost."""
    grown = sprite.rotate(degrees, Image.Resampling.BILINEAR, expand=True)
    outline = grown.getbbox()
    assert outline is not None
    grown = grown.crop(outline)
    grown.thumbnail((SPRITE, SPRITE), Image.Resampling.BILINEAR)
    square = Image.new("RGBA", (SPRITE, SPRITE))
    square.paste(grown, ((SPRITE - grown.width) // 2, (SPRITE - grown.height) // 2))
    return square


def _overlap(box: Box, other: Box) -> int:
    """Pixels that both cover."""
    width = min(box.right, other.right) - max(box.left, other.left)
    height = min(box.bottom, other.bottom) - max(box.top, other.top)
    return max(0, width) * max(0, height)
