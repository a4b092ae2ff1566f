"""Folders of products in photographs: what is read, written and refused, and how pictures open."""

from __future__ import annotations

import os
import pickle

import numpy as np
import picture_example as example
import pytest
from PIL import Image

from minisearch.data.images import load_picture, picture_size, read_pictures, write_pictures
from minisearch.errors import InputError
from minisearch.pictures import GREY, Box, CropQuery, Listing


@pytest.fixture
def folder(tmp_path):
    return example.put(tmp_path / "set", example.rows())


def changed(tmp_path, table, row, **values):
    """The example with some values of one row replaced; `...` takes the field out."""
    tables = example.rows()
    tables[table][row].update(values)
    tables[table][row] = {k: v for k, v in tables[table][row].items() if v is not ...}
    return example.put(tmp_path / "set", tables)


def failure(folder, split="test") -> InputError:
    with pytest.raises(InputError) as raised:
        read_pictures(folder, split)
    assert raised.value.expected
    assert raised.value.remedy
    return raised.value


# --- What is read -------------------------------------------------------------------------------


def test_a_split_is_read_as_records(folder):
    data = read_pictures(folder)
    assert data.listings == [
        Listing("red", "shop/1.png", "a red one", "top", Box(0, 0, 30, 40)),
        Listing("blue", "shop/1.png", "", "skirt", Box(30, 0, 60, 40)),
        Listing("plain", "shop/2.jpg", "plain", "hat"),
    ]
    assert data.queries == [CropQuery("q1", "user/1.png", ("blue", "plain"), Box(30, 10, 50, 40))]
    assert isinstance(data.listings[0].box, Box)
    assert data.open("shop/1.png").getpixel((59, 39)) == example.BLUE
    crop = data.crop(data.queries[0])
    assert crop.size == (20, 30)
    assert crop.getcolors() == [(600, example.BLUE)]


def test_a_listing_without_a_split_is_in_each(folder):
    data = read_pictures(str(folder), "train")
    assert [listing.item_id for listing in data.listings] == ["old", "plain"]
    assert data.listings[0].text == "Träger, 旧款"
    assert [query.query_id for query in data.queries] == ["q2"]
    assert data.crop(data.queries[0]).size == (60, 40)


def test_pictures_are_opened_when_asked_for(folder):
    (folder / "images/shop/2.jpg").write_bytes(b"")  # no row with a box names it
    data = read_pictures(folder)
    assert data.open("user/1.png").size == (60, 40)
    with pytest.raises(InputError) as raised:
        data.open("shop/2.jpg")
    assert f"{folder / 'images/shop/2.jpg'}, named by {folder}" in raised.value.where
    assert raised.value.where.endswith("listings.jsonl, row 4")


def test_a_set_can_be_sent_to_another_process(folder):
    data = pickle.loads(pickle.dumps(read_pictures(folder)))
    assert data.open("shop/1.png").getpixel((0, 0)) == example.RED


def test_lines_of_other_systems_are_read(folder):
    for path in folder.glob("*.jsonl"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(read_pictures(folder).listings) == 3


# --- Bad rows -----------------------------------------------------------------------------------

BAD = [
    ("listings", 1, {"price": 3}, "row 2, column price", "unknown column with value 3"),
    ("listings", 1, {"text": ...}, "row 2, column text", "no such column"),
    ("listings", 1, {"text": None}, "row 2, column text", "None (NoneType)"),
    ("listings", 1, {"item_id": 7}, "row 2, column item_id", "7 (int)"),
    ("listings", 2, {"item_id": "red"}, "row 3, column item_id", "'red', which row 1 has already"),
    ("listings", 2, {"split": "tst"}, "row 3, column split", "'tst'"),
    ("listings", 0, {"box": [0, 0, 30]}, "row 1, column box", "[0, 0, 30]"),
    ("listings", 0, {"box": [0, 0, 30.5, 9]}, "row 1, column box", "[0, 0, 30.5, 9] (list)"),
    ("listings", 1, {"box": [30, 0, 61, 40]}, "row 2", "(30, 0, 61, 40)"),
    ("listings", 0, {"box": [30, 0, 30, 40]}, "row 1", "(30, 0, 30, 40)"),
    ("listings", 0, {"picture": "shop/3.png"}, "row 1, column picture", "which is not there"),
    ("listings", 0, {"picture": "shop"}, "row 1, column picture", "which is not there"),
    ("listings", 0, {"picture": ""}, "row 1, column picture", "which is not there"),
    ("queries", 0, {"box": [-1, 0, 5, 5]}, "row 1", "(-1, 0, 5, 5)"),
    ("queries", 1, {"query_id": "q1"}, "row 2, column query_id", "'q1', which row 1 has already"),
    ("queries", 0, {"item_ids": []}, "row 1, column item_ids", "[]"),
    ("queries", 0, {"item_ids": "blue"}, "row 1, column item_ids", "'blue' (str)"),
    ("queries", 0, {"item_ids": ["blue", 1]}, "row 1, column item_ids", "['blue', 1] (list)"),
    ("queries", 0, {"item_ids": ["red", "red"]}, "row 1, column item_ids", "['red', 'red']"),
    ("queries", 0, {"item_ids": ["red", "x"]}, "row 1, column item_ids", "'x', which no listing"),
    ("queries", 0, {"item_ids": ["old"]}, "row 1, column item_ids", "'old', which no listing"),
    ("queries", 0, {"split": None}, "row 1, column split", "None (NoneType)"),
]


@pytest.mark.parametrize(("table", "row", "values", "where", "found"), BAD)
def test_a_bad_row_is_named(tmp_path, table, row, values, where, found):
    folder = changed(tmp_path, table, row, **values)
    error = failure(folder)
    assert f"{folder / table}.jsonl, {where}" in error.where
    assert error.where.endswith(where)
    assert found in error.found


@pytest.mark.parametrize(
    "name", ["../1.png", "shop/../../1.png", "..\\1.png", "/etc/passwd", "C:\\1.png", "\\1.png"]
)
def test_a_picture_cannot_be_outside_the_folder(tmp_path, name):
    folder = changed(tmp_path, "listings", 0, picture=name)
    example.photo(folder / "1.png")
    error = failure(folder)
    assert error.where.endswith("listings.jsonl, row 1, column picture")
    assert error.found == repr(name)
    assert "stays in the folder" in error.expected


def test_the_size_of_a_picture_with_a_box_is_read_with_the_rows(folder):
    (folder / "images/shop/1.png").write_bytes(b"\x89PNG")
    error = failure(folder)
    assert error.where.endswith("listings.jsonl, row 1")
    assert "shop/1.png, named by" in error.where


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"item_id": "red", "picture"', "cut off or no JSON"),
        (b"", "no rows"),
        (b"[]\n", "[] (list)"),
        (b'{"item_id": "\xd6l"}\n', "not UTF-8"),
        (b"\n", "no JSON"),
    ],
)
def test_a_damaged_file(folder, content, found):
    (folder / "listings.jsonl").write_bytes(content)
    error = failure(folder)
    assert str(folder / "listings.jsonl") in error.where
    assert found in error.found


def test_a_missing_file(folder):
    (folder / "queries.jsonl").unlink()
    error = failure(folder)
    assert error.where == str(folder / "queries.jsonl")
    assert error.found == "No such file or directory"


def test_an_unknown_split_and_one_without_rows(folder):
    assert failure(folder, "tests").remedy == "did you mean 'test'?"
    error = failure(folder, "val")
    assert error.where == f"{folder / 'queries.jsonl'}, column split"
    assert error.found == "rows of test, train alone"


# --- Pictures -----------------------------------------------------------------------------------


def gradient(kind=np.uint8) -> np.ndarray:
    """All 256 levels, in the upper 8 bits. Shape: (16, 16)."""
    levels = np.arange(256).reshape(16, 16)
    return (levels * 257).astype(kind) if kind == np.uint16 else levels.astype(kind)


@pytest.mark.parametrize(
    ("image", "suffix", "mode"),
    [
        (Image.fromarray(gradient()), "png", "L"),
        (Image.fromarray(gradient()), "jpg", "L"),
        (Image.fromarray(gradient(np.uint16)), "png", "I;16"),
        (Image.fromarray(gradient(np.uint16)), "tif", "I;16"),
        (Image.fromarray(gradient(np.int32) * 257), "tif", "I"),
        (Image.fromarray(gradient()).convert("CMYK"), "jpg", "CMYK"),
        (Image.fromarray(gradient()).convert("P"), "png", "P"),
        (Image.fromarray(gradient()).convert("LA"), "png", "LA"),
        (Image.fromarray(gradient()).convert("RGBA"), "webp", "RGBA"),
    ],
)
def test_every_mode_becomes_rgb_with_its_levels(tmp_path, image, suffix, mode):
    path = tmp_path / f"x.{suffix}"
    image.save(path, **({"lossless": True} if suffix == "webp" else {}))
    if mode != "RGBA":  # a picture that is opaque all over loses its alpha channel there
        assert Image.open(path).mode == mode
    loaded = load_picture(path)
    assert loaded.mode == "RGB"
    levels = np.asarray(loaded).astype(int)
    tolerance = 6 if suffix == "jpg" else 0
    assert np.abs(levels - gradient().astype(int)[..., None]).max() <= tolerance


@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_what_is_transparent_lies_on_grey(tmp_path, suffix):
    image = Image.new("RGBA", (8, 8), (*example.RED, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 8))
    image.save(tmp_path / f"x.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    loaded = load_picture(tmp_path / f"x.{suffix}")
    assert loaded.getpixel((0, 0)) == GREY
    assert np.abs(np.subtract(loaded.getpixel((7, 0)), example.RED)).max() <= 1


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(InputError, match=r"x\.tif: found floating-point pixels"):
        load_picture(tmp_path / "x.tif")


def upright_and_stored(orientation: int) -> tuple[Image.Image, Image.Image]:
    """A picture with four different corners, and how a camera held that way stores it."""
    upright = Image.fromarray(np.kron(np.array([[0, 90], [180, 255]], np.uint8), np.ones((16, 24))))
    undo = {
        1: None,
        3: Image.Transpose.ROTATE_180,
        6: Image.Transpose.ROTATE_90,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    upright = upright.convert("L")
    return upright, upright if undo is None else upright.transpose(undo)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_pictures_are_turned_upright(tmp_path, orientation, suffix):
    upright, stored = upright_and_stored(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    stored.save(path, exif=exif)
    loaded = load_picture(path)
    assert loaded.size == picture_size(path) == (48, 32)
    difference = np.asarray(loaded).astype(int)[..., 0] - np.asarray(upright)
    assert np.abs(difference).max() <= 8


def test_a_box_refers_to_the_upright_picture(tmp_path):
    tables, upright = example.rows(), [0, 0, 40, 60]  # fits 40 x 60 pixels, not 60 x 40
    tables["listings"][0]["box"] = tables["listings"][1]["box"] = upright
    folder = example.put(tmp_path / "set", tables)
    assert "within 60 x 40 pixels" in failure(folder).expected
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(folder / "images/shop/1.png", exif=exif)
    data = read_pictures(folder)
    assert data.listings[0].box == Box(*upright)
    assert data.open("shop/1.png").size == (40, 60)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif", "bmp"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6, 0.9])
def test_a_picture_that_is_cut_off_is_refused(tmp_path, suffix, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(noise).save(whole)
    load_picture(whole)
    content = whole.read_bytes()
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError) as raised:
        load_picture(path, "rows.jsonl, row 3")
    assert raised.value.where == f"{path}, named by rows.jsonl, row 3"
    assert "no picture that can be decoded" in raised.value.found


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "x.jpg").write_text("<html>404</html>")
    with pytest.raises(InputError, match=r"x\.jpg: found no picture that can be decoded"):
        load_picture(tmp_path / "x.jpg")
    with pytest.raises(InputError, match=r"y\.jpg: found no such file"):
        load_picture(tmp_path / "y.jpg")
    with pytest.raises(InputError, match=r"y\.jpg, named by row 1: found no such file"):
        picture_size(tmp_path / "y.jpg", "row 1")


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    path = example.photo(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="DecompressionBombError"):
        load_picture(path)


# --- What is written ----------------------------------------------------------------------------


def written(folder, target, **changes):
    """Write the example, read from `folder`, to `target`; `changes` replace fields of listing 0."""
    data = read_pictures(folder)
    listings = [(listing, "test") for listing in data.listings]
    if changes:
        listings[0] = (Listing(**{**vars(listings[0][0]), **changes}), "test")
    write_pictures(target, listings, [(query, "test") for query in data.queries], folder / "images")


def left(folder) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_what_is_written_is_read_again(folder, tmp_path):
    target = tmp_path / "new/set"
    written(folder, target)
    assert left(target) == [
        "images/shop/1.png",
        "images/shop/2.jpg",
        "images/user/1.png",
        "listings.jsonl",
        "queries.jsonl",
    ]
    first, second = read_pictures(folder), read_pictures(target)
    assert (first.listings, first.queries) == (second.listings, second.queries)
    assert second.open("user/1.png").tobytes() == first.open("user/1.png").tobytes()


def test_a_listing_of_every_split_is_written_once(folder, tmp_path):
    listing, query = read_pictures(folder).listings[2], CropQuery("q", "user/1.png", ("plain",))
    queries = [(query, "train"), (CropQuery("r", "user/1.png", ("plain",)), "val")]
    write_pictures(tmp_path / "new", [(listing, None)], queries, folder / "images")
    assert (tmp_path / "new/listings.jsonl").read_text().count("\n") == 1
    for split in ("train", "val"):
        assert read_pictures(tmp_path / "new", split).listings == [listing]


def test_pictures_take_no_room_twice_where_links_are_possible(folder, tmp_path, monkeypatch):
    written(folder, tmp_path / "new")
    assert (tmp_path / "new/images/shop/1.png").samefile(folder / "images/shop/1.png")

    def refused(*_):
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refused)
    written(folder, tmp_path / "copied")
    copy, original = (f / "images/shop/1.png" for f in (tmp_path / "copied", folder))
    assert not copy.samefile(original)
    assert copy.read_bytes() == original.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item_id": "blue"}, "new/listings.jsonl, row 2, column item_id: found 'blue'"),
        ({"box": Box(0, 0, 61, 40)}, "new/listings.jsonl, row 1: found (0, 0, 61, 40)"),
        ({"picture": "../images/shop/1.png"}, "picture '../images/shop/1.png'"),
        ({"picture": "shop/3.png"}, "set/images/shop/3.png: found no such file"),
    ],
)
def test_what_could_not_be_read_is_not_written(folder, tmp_path, changes, message):
    with pytest.raises(InputError) as raised:
        written(folder, tmp_path / "new", **changes)
    assert message in str(raised.value)
    assert ".part" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_a_set_without_queries_is_not_written(folder, tmp_path):
    listings = [(listing, None) for listing in read_pictures(folder).listings]
    with pytest.raises(InputError, match=r"new/queries\.jsonl: found no rows"):
        write_pictures(tmp_path / "new", listings, [], folder / "images")
    assert not (tmp_path / "new").exists()


def test_a_damaged_picture_is_not_written(folder, tmp_path):
    path = folder / "images/shop/2.jpg"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"set/images/shop/2\.jpg: found no picture"):
        written(folder, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_a_folder_with_files_is_not_written_over(folder, tmp_path):
    with pytest.raises(InputError, match="found a folder with files in it"):
        written(folder, folder)
    (tmp_path / "empty").mkdir()
    written(folder, tmp_path / "empty")
    assert read_pictures(tmp_path / "empty").listings
