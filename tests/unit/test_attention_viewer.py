"""Where a tower looks, as HTML: escaped, one text at a time, frames in place, nothing fetched."""

from __future__ import annotations

import base64
import io
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from minisearch.attention_viewer import TINT, LookView, looks_html
from minisearch.errors import InputError
from minisearch.pictures import Box

PICTURE = np.random.default_rng(0).integers(0, 256, (80, 64, 3), dtype=np.uint8)
CROPS = [np.full((32, 32, 3), level, dtype=np.uint8) for level in (10, 20, 30)]
ATTENTION = np.array([[0.1, 0.0], [0.4, 0.5]])
FIRST = LookView("red <kettle> & 'co'", ATTENTION, Box(8, 20, 40, 60), CROPS, [False, True, False])
SECOND = LookView("", ATTENTION.T, Box(0, 0, 64, 80), CROPS[:1], [True])
SCENE = (PICTURE, [FIRST, SECOND, replace(FIRST, text="mug")])


class Balance(HTMLParser):
    """Every element that opens is closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def decoded(address):
    start = "data:image/png;base64,"
    assert address.startswith(start)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.removeprefix(start)))))


def images(page):
    return re.findall(r'<img[^>]*? src="([^"]*)"', page)


def test_the_page_is_well_formed_and_asks_nobody():
    page = looks_html([SCENE, SCENE], "t")
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert all(address.startswith("data:image/png;base64,") for address in images(page))
    assert not re.search(r"https?:|@import|fetch\(", page)
    assert page.count("<figure") == page.count("<script>") == 1
    assert re.findall(r"Scene (\d)", page) == ["1", "2"]


def test_title_and_texts_are_escaped():
    page = looks_html([SCENE], "<Where> it looks")
    assert "<figcaption>&lt;Where&gt; it looks</figcaption>" in page
    assert re.findall(r"<button.*?>(.*?)</button>", page) == [
        "red &lt;kettle&gt; &amp; &#x27;co&#x27;", "(no text)", "mug",
    ]  # fmt: skip
    assert "<kettle>" not in page


def test_without_the_script_the_first_text_of_each_scene_is_shown():
    page = looks_html([SCENE, SCENE], "")
    for kind in ("div", "p"):
        shown = re.findall(rf'<{kind} data-text="(\d)"( hidden)?>', page)
        assert shown == 2 * [("0", ""), ("1", " hidden"), ("2", " hidden")]
    buttons = re.findall(r'<button type="button" value="(\d)" aria-pressed="(\w+)" disabled>', page)
    assert buttons == 2 * [("0", "true"), ("1", "false"), ("2", "false")]


def test_a_box_is_framed_in_per_cent_of_width_and_height():
    frames = re.findall(r'<span style="(.*?)">', looks_html([SCENE], ""))
    assert frames == [
        "left:12.5%;top:25.0%;width:50.0%;height:50.0%",
        "left:0.0%;top:0.0%;width:100.0%;height:100.0%",
        "left:12.5%;top:25.0%;width:50.0%;height:50.0%",
    ]


def test_pictures_are_shown_as_they_are_and_right_ones_framed():
    page = looks_html([(PICTURE, [FIRST])], "")
    found = re.findall(r'<img( class=ms-look-right)? src="([^"]*)" alt="([^"]*)"', page)
    assert [(bool(framed), alt) for framed, _, alt in found] == [
        (False, "another product"), (True, "the product"), (False, "another product"),
    ]  # fmt: skip
    for crop, (_, address, _) in zip(CROPS, found, strict=True):
        assert (decoded(address) == crop).all()
    assert (decoded(images(page)[0]) == PICTURE).all()


def test_attention_is_a_layer_whose_greatest_patch_is_the_least_transparent():
    layer = decoded(images(looks_html([(PICTURE, [FIRST])], ""))[1])
    assert layer.shape == (2, 2, 4)
    assert (layer[..., :3] == TINT).all()
    assert layer[..., 3].tolist() == [[40, 0], [160, 200]]
    scaled = replace(FIRST, attention=ATTENTION / 100)
    assert (decoded(images(looks_html([(PICTURE, [scaled])], ""))[1]) == layer).all()


@pytest.mark.parametrize(
    ("scenes", "said"),
    [
        ([], "looks_html: found no scene"),
        ([SCENE, (PICTURE, [])], "scene 2: found no view"),
        ([(PICTURE, [replace(FIRST, attention=np.ones((2, 3)))])], "found shape (2, 3)"),
        ([(PICTURE, [replace(FIRST, attention=np.ones(4))])], "found shape (4,)"),
        ([(PICTURE, [replace(FIRST, attention=np.zeros((2, 2)))])], "at most 0"),
        ([(PICTURE, [replace(FIRST, attention=np.full((2, 2), np.nan))])], "at most nan"),
        ([SCENE, (PICTURE, [replace(FIRST, attention=np.ones((0, 0)))])], "scene 2, attention"),
    ],
)
def test_what_cannot_be_shown_is_refused(scenes, said):
    with pytest.raises(InputError, match=re.escape(said)):
        looks_html(scenes, "")


@pytest.mark.browser
def test_a_reader_picks_a_text_in_one_scene_and_the_others_stay():
    found = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if found is None:
        pytest.skip("no browser: neither chromium nor google-chrome is installed")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = chromium.new_page()
        page.set_content(looks_html([SCENE, SCENE], "t") * 2)  # two figures
        scene = page.locator(".ms-look").last.locator(".ms-look-scene").first
        scene.get_by_role("button", name="(no text)").click()
        shown = [
            [view.get_attribute("data-text") for view in of_scene.locator("p:visible").all()]
            for of_scene in page.locator(".ms-look-scene").all()
        ]
        assert shown == [["0"], ["0"], ["1"], ["0"]]
        pressed = scene.locator("button[aria-pressed=true]")
        assert pressed.all_inner_texts() == ["(no text)"]
        assert scene.locator("div[data-text]:not([hidden])").count() == 1
        chromium.close()
