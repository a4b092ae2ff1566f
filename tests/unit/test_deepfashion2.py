"""The script of DeepFashion2 on small files in the published form."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import picture_example as example
import pytest
import typer
from typer.testing import CliRunner

from minisearch.data.images import read_pictures
from minisearch.pictures import Box, CropQuery, Listing

SCRIPTS = Path(__file__).parents[2] / "data_scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("deepfashion2")


def garment(category: str, style: int, box: list[int]) -> dict[str, Any]:
    """An item of an annotation, with all its published fields."""
    left, top, right, bottom = box
    return {
        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
        "scale": 2,
        "viewpoint": 2,
        "zoom_in": 1,
        "landmarks": [left, top, 2, right, bottom, 1],
        "style": style,
        "bounding_box": box,
        "category_id": {"short sleeve top": 1, "vest": 5, "skirt": 9}[category],
        "occlusion": 2,
        "category_name": category,
    }


ANNOTATIONS: dict[str, dict[str, Any]] = {
    "000001": {  # a customer in a top and a skirt of one shop, and in shorts of nobody
        "item1": garment("short sleeve top", 1, [5, 0, 25, 20]),
        "item2": garment("skirt", 2, [5, 20, 25, 40]),
        "item3": garment("vest", 0, [30, 0, 60, 40]),
        "source": "user",
        "pair_id": 1,
    },
    "000002": {  # both in one picture; a box that leaves it by a pixel
        "item2": garment("skirt", 2, [30, -1, 61, 40]),
        "source": "shop",
        "pair_id": 1,
        "item1": garment("short sleeve top", 1, [0, 0, 30, 40]),
    },
    "000003": {  # the top once more, and a box without area
        "source": "shop",
        "pair_id": 1,
        "item1": garment("short sleeve top", 1, [10, 10, 50, 40]),
        "item2": garment("vest", 3, [60, 0, 70, 40]),
    },
    "000004": {  # style 1 of another shop, which no customer wears
        "source": "shop",
        "pair_id": 2,
        "item1": garment("skirt", 1, [0, 0, 60, 40]),
    },
    "000005": {  # a customer's style that no shop shows
        "source": "user",
        "pair_id": 2,
        "item1": garment("skirt", 4, [0, 0, 60, 40]),
    },
}


def unpacked(folder: Path, annotations: dict[str, Any] = ANNOTATIONS, part="validation") -> Path:
    """The data set as its owners' archives unpack."""
    for name, row in annotations.items():
        example.photo(folder / part / "image" / f"{name}.jpg")
        path = folder / part / "annos" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(row if isinstance(row, str) else json.dumps(row))
    return folder


def run(script, *arguments):
    app = typer.Typer()
    app.command()(script.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def converted(script, tmp_path, **options):
    source = unpacked(tmp_path / "DeepFashion2", **options)
    return run(script, source, tmp_path / "set", "--parts", options.get("part", "validation"))


def test_garments_in_a_shops_picture_are_listings_that_share_it(tmp_path, script):
    done = converted(script, tmp_path)
    assert done.exit_code == 0, done.output
    data = read_pictures(tmp_path / "set", "val")
    shared, second = "validation/image/000002.jpg", "validation/image/000003.jpg"
    top, skirt = ("short sleeve top",) * 2, ("skirt",) * 2
    assert data.listings == [
        Listing("validation/000002/item1", shared, *top, Box(0, 0, 30, 40)),
        Listing("validation/000002/item2", shared, *skirt, Box(30, 0, 60, 40)),
        Listing("validation/000003/item1", second, *top, Box(10, 10, 50, 40)),
        Listing(
            "validation/000004/item1", "validation/image/000004.jpg", *skirt, Box(0, 0, 60, 40)
        ),
    ]


def test_a_query_is_a_customers_box_and_wants_every_picture_of_the_garment(tmp_path, script):
    assert converted(script, tmp_path).exit_code == 0
    data = read_pictures(tmp_path / "set", "val")
    photo = "validation/image/000001.jpg"
    items = ("validation/000002/item1", "validation/000003/item1")
    assert data.queries == [
        CropQuery("validation/000001/item1", photo, items, Box(5, 0, 25, 20)),
        CropQuery(
            "validation/000001/item2", photo, ("validation/000002/item2",), Box(5, 20, 25, 40)
        ),
    ]
    assert data.crop(data.queries[0]).size == (20, 20)


def test_what_is_left_out_is_counted(tmp_path, script):
    done = converted(script, tmp_path)
    assert "validation: 4 listings, 2 queries" in done.output
    assert "1 of style 0, 1 with a box without area, 1 without a shop's picture" in done.output


def test_pairs_of_training_and_validation_are_not_mixed(tmp_path, script):
    """Both parts number their pairs from 1."""
    source = unpacked(unpacked(tmp_path / "DeepFashion2"), part="train")
    done = run(script, source, tmp_path / "set")
    assert done.exit_code == 0, done.output
    for split, part in (("train", "train"), ("val", "validation")):
        data = read_pictures(tmp_path / "set", split)
        assert len(data.listings) == 4
        assert {item.split("/")[0] for query in data.queries for item in query.item_ids} == {part}
    assert (tmp_path / "set/images/train/image/000001.jpg").is_file()


def test_only_pictures_that_rows_name_are_taken(tmp_path, script):
    assert converted(script, tmp_path).exit_code == 0
    names = sorted(path.name for path in (tmp_path / "set/images").rglob("*.jpg"))
    assert names == ["000001.jpg", "000002.jpg", "000003.jpg", "000004.jpg"]


def changed(name: str, item: str | None = None, **values: Any) -> dict[str, Any]:
    """The annotations with some values of one replaced; `...` takes the field out."""
    rows = json.loads(json.dumps(ANNOTATIONS))
    row = rows[name] if item is None else rows[name][item]
    row.update(values)
    for field in [field for field, value in values.items() if value is ...]:
        del row[field]
    return rows


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (changed("000002", source="store"), "000002.json, column source: found 'store'"),
        (changed("000002", source=...), "000002.json, column source: found no such column"),
        (changed("000002", pair_id="1"), "000002.json, column pair_id: found '1' (str)"),
        (changed("000002", item1=[1]), "000002.json, column item1: found [1] (list)"),
        (
            changed("000002", "item1", style=1.5),
            "000002.json, column item1, column style: found 1.5 (float); expected int",
        ),
        (
            changed("000002", "item1", category_name=...),
            "column item1, column category_name: found no such column",
        ),
        (
            changed("000002", "item1", bounding_box=[1, 2, 3]),
            "column item1, column bounding_box: found [1, 2, 3]",
        ),
        ({**ANNOTATIONS, "000002": '{"source": '}, "000002.json: found no JSON"),
        ({**ANNOTATIONS, "000002": "[]"}, "000002.json: found [] (list)"),
    ],
)
def test_a_bad_annotation_is_named(tmp_path, script, annotations, message):
    done = converted(script, tmp_path, annotations=annotations)
    assert done.exit_code == 2
    assert f"annos/{message}" in done.output or message in done.output
    assert not (tmp_path / "set").exists()


def test_a_missing_and_a_damaged_picture_are_named(tmp_path, script):
    source = unpacked(tmp_path / "DeepFashion2")
    path = source / "validation/image/000002.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    done = run(script, source, tmp_path / "set", "--parts", "validation")
    assert done.exit_code == 2
    assert "000002.jpg: found no picture that can be decoded" in done.output
    path.unlink()
    done = run(script, source, tmp_path / "set", "--parts", "validation")
    assert done.exit_code == 2
    assert f"{path}, named by {source}/validation/annos/000002.json: found no such" in done.output
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["DeepFashion2"]


def test_a_part_that_is_not_there_or_has_no_such_name(tmp_path, script):
    source = unpacked(tmp_path / "DeepFashion2")
    done = run(script, source, tmp_path / "set")
    assert done.exit_code == 2
    assert f"{source / 'train/annos'}: found no annotations" in done.output
    done = run(script, source, tmp_path / "set", "--parts", "valid")
    assert done.exit_code == 2
    assert "did you mean 'validation'?" in done.output


def test_a_part_without_queries_is_not_written(tmp_path, script):
    done = converted(script, tmp_path, annotations={"000004": ANNOTATIONS["000004"]})
    assert done.exit_code == 2
    assert "queries.jsonl: found no rows" in done.output
    assert not (tmp_path / "set").exists()


def test_a_folder_with_files_is_not_written_over(tmp_path, script):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/mine.txt").write_text("mine")
    done = converted(script, tmp_path)
    assert done.exit_code == 2
    assert "found a folder with files in it" in done.output
    assert (tmp_path / "set/mine.txt").read_text() == "mine"
