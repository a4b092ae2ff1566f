"""Where an item tower looks, for one picture and several texts: a figure to explore.

All that can be shown stands in the HTML, pictures included; a little script shows one text at a
time. Without the script the first text stays.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from minisearch.errors import InputError
from minisearch.pictures import Box

TINT = (247, 165, 1)  # of the attention; the more, the more opaque
# A figure that a second run of the script finds live is left alone: a page may hold several.
SCRIPT = """
for (const figure of document.querySelectorAll(".ms-look:not(.ms-look-live)")) {
  figure.classList.add("ms-look-live");
  for (const scene of figure.querySelectorAll(".ms-look-scene")) {
    const buttons = [...scene.querySelectorAll("button")];
    const views = [...scene.querySelectorAll("[data-text]")];
    const choose = (text) => {
      buttons.forEach((b) => b.setAttribute("aria-pressed", b.value === text));
      views.forEach((v) => { v.hidden = v.dataset.text !== text; });
    };
    buttons.forEach((b) => { b.disabled = false; b.onclick = () => choose(b.value); });
  }
}
"""


@dataclass(frozen=True, eq=False)
class LookView:
    """A picture with one of its texts.

    Shape: attention (R, R), shares of the picture's patches, row by row; nearest, pictures.
    """

    text: str
    attention: np.ndarray
    box: Box  # of the product that the text means
    nearest: list[np.ndarray]  # what the item's vector is closest to, best first
    right: list[bool]  # whether each of them is that product


def looks_html(scenes: Sequence[tuple[np.ndarray, Sequence[LookView]]], title: str) -> str:
    """A figure in which a reader picks a text and sees the attention move.

    Shape: scenes of a picture (H, W, 3) uint8 and its views -> HTML with a `figure`.

    Raises:
        InputError: without scenes, for a scene without views, or an attention that is not square
            or nowhere positive.
    """
    if not scenes:
        raise InputError("looks_html", "no scene", "at least one", "pass a picture.")
    shown = "".join(_scene(number, *scene) for number, scene in enumerate(scenes, 1))
    return (
        f'<figure class="ms-look"><figcaption>{html.escape(title)}</figcaption>{shown}'
        '<p class="ms-look-legend">Coloured patches are where the tower looks; the dashed frame is '
        "the product that the text means, which the tower is not told. Small pictures are the "
        "queries nearest to the item's vector; framed ones show that product.</p></figure>"
        f"<script>(() => {{{SCRIPT}}})();</script>"
    )


def _scene(number: int, picture: np.ndarray, views: Sequence[LookView]) -> str:
    if not views:
        raise InputError(f"scene {number}", "no view", "at least one text", "leave it out.")
    height, width = picture.shape[:2]
    buttons, layers, found = [], [], []
    for place, view in enumerate(views):
        hidden = " hidden" if place else ""
        pressed = "false" if place else "true"
        buttons.append(
            f'<button type="button" value="{place}" aria-pressed="{pressed}" disabled>'
            f"{html.escape(view.text) or '(no text)'}</button>"
        )
        left, top = 100 * view.box.left / width, 100 * view.box.top / height
        across = 100 * (view.box.right - view.box.left) / width
        down = 100 * (view.box.bottom - view.box.top) / height
        layers.append(
            f'<div data-text="{place}"{hidden}><img alt="where the tower looks for: '
            f'{html.escape(view.text) or "no text"}" src="{_heat(view, number)}"><span '
            f'style="left:{left:.1f}%;top:{top:.1f}%;width:{across:.1f}%;height:{down:.1f}%">'
            "</span></div>"
        )
        small = "".join(
            f'<img{" class=ms-look-right" if right else ""} src="{_data(crop)}" '
            f'alt="{"the product" if right else "another product"}">'
            for crop, right in zip(view.nearest, view.right, strict=True)
        )
        found.append(f'<p data-text="{place}"{hidden}>Nearest queries: {small}</p>')
    return (
        f'<div class="ms-look-scene"><div class="ms-look-picture">'
        f'<img alt="Scene {number}: several products in one picture" src="{_data(picture)}">'
        f"{''.join(layers)}</div><div><div role=group aria-label='texts of scene {number}'>"
        f"{''.join(buttons)}</div>{''.join(found)}</div></div>"
    )


def _heat(view: LookView, number: int) -> str:
    """The attention as a layer of colour over the picture, a patch a pixel."""
    attention = np.asarray(view.attention, dtype=np.float64)
    square = attention.ndim == 2 and attention.shape[0] == attention.shape[1]
    if not square or not attention.max(initial=0) > 0:
        found = f"shape {attention.shape}, at most {attention.max(initial=0):g}"
        remedy = "pass the shares of the patches as rows and columns."
        raise InputError(f"scene {number}, attention", found, "a square with shares", remedy)
    layer = np.empty((*attention.shape, 4), dtype=np.uint8)
    layer[..., :3] = TINT
    layer[..., 3] = 200 * attention / attention.max()
    return _data(layer)


def _data(pixels: np.ndarray) -> str:
    """A picture as the address of its own content."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
