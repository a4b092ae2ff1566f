"""Fugue icons: families from file names, and what is said where the package is missing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from minisearch.data import fugue
from minisearch.data.fugue import BADGES, fugue_icons, parts_of
from minisearch.errors import InputError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of seven icons on a sheet of 64 x 32 pixels, each of one grey."""
    folder = tmp_path / "static"
    folder.mkdir()
    names = ["cup", *(f"cup--{badge}" for badge in BADGES), "cup-empty"]
    sheet = np.zeros((32, 64, 4), np.uint8)
    places = {}
    for number, name in enumerate(names):
        left, top = 16 * (number % 4), 16 * (number // 4)
        places[name] = [left, top]
        sheet[top : top + 16, left : left + 16] = 10 * number
    Image.fromarray(sheet).save(folder / "fugue-icons.png")
    (folder / "fugue-icons.json").write_text(json.dumps(places))
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(fugue, "find_spec", lambda name: spec)
    return folder


def test_icons_are_cut_from_where_the_file_says(package):
    icons = fugue_icons()
    assert icons.names == sorted(icons.names)
    assert icons.pixels.shape == (7, 16, 16, 4)
    assert np.unique(icons.pixels[icons.names.index("cup--plus")]).tolist() == [10]
    assert np.unique(icons.pixels[icons.names.index("cup-empty")]).tolist() == [60]


def test_a_family_has_its_plain_icon_and_every_badge(package):
    icons = fugue_icons()
    families = icons.families()
    assert list(families) == ["cup"]
    assert list(families["cup"]) == ["", *BADGES]
    assert icons.names[families["cup"]["arrow"]] == "cup--arrow"


def test_an_icon_without_all_badges_is_no_family(package):
    path = package / "fugue-icons.json"
    places = json.loads(path.read_text())
    del places["cup--pencil"]
    path.write_text(json.dumps(places))
    assert fugue_icons().families() == {}


def test_a_name_falls_into_thing_and_badge():
    assert parts_of("address-book--plus") == ("address-book", "plus")
    assert parts_of("address-book") == ("address-book", "")


def test_the_set_itself():
    icons = fugue_icons()
    assert len(icons.names) == 3570
    families = icons.families()
    assert len(families) == 194
    assert {"cup", "flag", "address-book"} <= set(families)


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(fugue, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="minisearch data get fugue-icons"):
        fugue_icons()


@pytest.mark.parametrize("damage", ["missing", "no json", "outside"])
def test_a_damaged_package_is_named(package, damage):
    path = package / "fugue-icons.json"
    if damage == "missing":
        path.unlink()
    else:
        path.write_text("{" if damage == "no json" else json.dumps({"cup": [60, 0]}))
    with pytest.raises(InputError, match="reinstall the package"):
        fugue_icons()
    assert Path(package).is_dir()
