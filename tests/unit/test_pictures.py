"""The records of search by crop: what a set refuses, what a crop is, how a picture is fitted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minisearch.errors import InputError
from minisearch.pictures import (
    GREY,
    Box,
    CropQuery,
    Listing,
    PictureSet,
    as_rgb,
    check_box,
    fitted,
)

LISTINGS = [Listing("a", "one", "a cup", "cup"), Listing("b", "one", "", "hat", Box(4, 0, 8, 6))]
RED = (200, 30, 30)


def picture(_: str) -> Image.Image:
    """8 x 6 pixels, red from column 4 on."""
    image = Image.new("RGB", (8, 6))
    image.paste(RED, (4, 0, 8, 6))
    return image


def pictures(*queries: CropQuery, listings: list[Listing] = LISTINGS) -> PictureSet:
    return PictureSet(listings, list(queries), picture)


# --- The set ------------------------------------------------------------------------------------


def test_a_query_is_the_part_of_its_picture_in_the_box():
    whole, part = CropQuery("q", "one", ("a",)), CropQuery("r", "one", ("a", "b"), Box(3, 1, 5, 6))
    data = pictures(whole, part)
    assert data.crop(whole).size == (8, 6)
    crop = np.asarray(data.crop(part))
    assert crop.shape == (5, 2, 3)
    assert (crop[:, 0] == 0).all()
    assert (crop[:, 1] == RED).all()


@pytest.mark.parametrize(
    ("queries", "listings", "message"),
    [
        ([("q", ("a",)), ("q", ("b",))], LISTINGS, "query_id: found 'q' and 0 others twice"),
        ([("q", ("a",))], [*LISTINGS, LISTINGS[0]], "item_id: found 'a' and 0 others twice"),
        ([("q", ())], LISTINGS, "query 'q': found no item"),
        ([("q", ("a", "c", "d"))], LISTINGS, r"query 'q': found items \['c', 'd'\]"),
    ],
)
def test_a_set_that_does_not_join_is_refused(queries, listings, message):
    rows = [CropQuery(name, "one", items) for name, items in queries]
    with pytest.raises(InputError, match=message):
        pictures(*rows, listings=listings)


@pytest.mark.parametrize(
    "box",
    [(0, 0, 9, 6), (0, 0, 8, 7), (-1, 0, 8, 6), (0, -1, 8, 6), (5, 0, 5, 6), (0, 6, 8, 6)],
)
def test_a_box_outside_its_picture_or_without_area_is_refused(box):
    query = CropQuery("q", "one", ("a",), Box(*box))
    with pytest.raises(InputError) as raised:
        pictures(query).crop(query)
    assert raised.value.where == "box of query 'q'"
    assert raised.value.found == str(box)
    assert "8 x 6 pixels" in raised.value.expected
    with pytest.raises(InputError, match="box of a picture"):
        fitted(picture("one"), 4, Box(*box))


def test_a_box_of_the_whole_picture_is_taken():
    check_box(Box(0, 0, 8, 6), (8, 6), "it")


# --- Colours ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "I", "I;16"])
def test_every_mode_becomes_rgb(mode):
    assert as_rgb(Image.new(mode, (3, 2))).mode == "RGB"


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "PA"])
def test_what_is_transparent_lies_on_grey(mode):
    assert as_rgb(Image.new(mode, (3, 2))).getpixel((0, 0)) == GREY


def test_half_of_white_on_grey():
    assert as_rgb(Image.new("RGBA", (1, 1), (255, 255, 255, 128))).getpixel((0, 0)) == (192,) * 3


def test_a_colour_that_stands_for_transparency_lies_on_grey():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((0, 0), RED)
    image.info["transparency"] = (1, 2, 3)
    assert [as_rgb(image).getpixel((x, 0)) for x in (0, 1)] == [RED, GREY]


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    image = Image.fromarray(np.array([[0, 255, 256, 32_768, 65_535]], kind))
    assert np.asarray(as_rgb(image))[0].tolist() == [[v] * 3 for v in (0, 0, 1, 128, 255)]


def test_floating_point_pixels_are_refused():
    with pytest.raises(InputError, match="floating-point pixels"):
        as_rgb(Image.new("F", (2, 2)))


# --- Fitting ------------------------------------------------------------------------------------


def test_a_picture_is_scaled_into_the_middle_of_a_square():
    pixels, box = fitted(picture("one"), 16, Box(4, 0, 8, 6))
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    assert box == Box(8, 2, 16, 14)
    assert (pixels[:2] == GREY).all()
    assert (pixels[14:] == GREY).all()
    assert (pixels[2:14, :7] == 0).all()  # column 7 and 8 mix both colours
    assert (pixels[2:14, 9:] == RED).all()


def test_a_box_grows_to_whole_pixels():
    _, box = fitted(Image.new("RGB", (8, 6)), 4, Box(3, 1, 5, 3))
    assert box == Box(1, 0, 3, 2)  # 1.5, 0.5, 2.5, 1.5, and no row of grey above


def test_an_upright_picture_has_grey_beside_it():
    pixels, box = fitted(Image.new("RGB", (6, 12)), 6, Box(0, 0, 6, 12))
    assert box == Box(1, 0, 4, 6)
    assert (pixels[:, [0, 4, 5]] == GREY).all()
    assert (pixels[:, 1:4] == 0).all()


def test_a_thin_picture_keeps_a_column():
    pixels, box = fitted(Image.new("RGB", (1, 400)), 8, Box(0, 0, 1, 400))
    assert box == Box(3, 0, 4, 8)
    assert (pixels[:, 3] == 0).all()


def test_without_a_box_there_is_none():
    assert fitted(picture("one"), 16)[1] is None
    with pytest.raises(InputError, match="0 x 5 pixels"):
        fitted(Image.new("RGB", (0, 5)), 8)


@st.composite
def pictures_with_a_box(draw: st.DrawFn) -> tuple[tuple[int, int], Box, int]:
    width, height = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    return (width, height), Box(left, top, right, bottom), draw(st.integers(1, 128))


@given(pictures_with_a_box())
def test_the_moved_box_is_the_smallest_that_holds_all_of_the_box(case):
    (width, height), box, size = case
    _, moved = fitted(Image.new("L", (width, height)), size, box)
    longest = max(width, height)
    for length, low, high, start, end in (
        (width, box.left, box.right, moved.left, moved.right),
        (height, box.top, box.bottom, moved.top, moved.bottom),
    ):
        inner = max(1, round(length * (size / longest)))
        offset = (size - inner) // 2
        assert start - offset == low * inner // length
        assert (end - offset - 1) * length < high * inner <= (end - offset) * length
        assert 0 <= offset <= start < end <= offset + inner <= size


def test_rounding_errors_do_not_move_a_box():
    # 25 * (7 / 25) is 7.000000000000001 in floating point
    assert math.ceil(25 * (7 / 25)) == 8
    _, box = fitted(Image.new("L", (50, 50)), 14, Box(0, 0, 25, 25))
    assert box == Box(0, 0, 7, 7)
