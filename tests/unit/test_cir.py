"""Composed image retrieval on files: FashionIQ, CIRR, a folder of our own, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from minisearch.data.cir import (
    CompositionSet,
    Triplet,
    cirr_submission,
    joined,
    read_captions,
    read_cirr,
    read_compositions,
    read_fashioniq,
    training_texts,
    write_compositions,
)
from minisearch.errors import InputError


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def fashion(tmp_path):
    """Two queries among four dresses of the validation split, in the published form."""
    rows = [
        {"target": "B02", "candidate": "B01", "captions": ["is longer.", "has red sleeves "]},
        {"target": "B01", "candidate": "B03", "captions": ["is darker", "and plainer?"]},
    ]
    write(tmp_path / "captions" / "cap.dress.val.json", rows)
    write(tmp_path / "image_splits" / "split.dress.val.json", ["B01", "B02", "B03", "B04"])
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 12), (1, 2, 3)).save(tmp_path / "images" / "B01.png")
    return tmp_path


@pytest.fixture
def cirr(tmp_path):
    """One query with its subset of six, in the published form."""
    members = [f"dev-{n}-0-img0" for n in range(6)]
    row = {
        "pairid": 12, "reference": members[0], "target_hard": members[3],
        "target_soft": {members[3]: 1.0}, "caption": "with two dogs",
        "img_set": {"id": 4, "members": members, "reference_rank": 0, "target_rank": 3},
    }  # fmt: skip
    write(tmp_path / "captions" / "cap.rc2.val.json", [row])
    places = {name: f"./dev/{name}.png" for name in (*members, "dev-9-0-img1")}
    write(tmp_path / "image_splits" / "split.rc2.val.json", places)
    (tmp_path / "images" / "dev").mkdir(parents=True)
    Image.new("L", (4, 4), 9).save(tmp_path / "images" / "dev" / f"{members[0]}.png")
    return tmp_path


def test_sentences_are_joined_as_fashioniq_is_evaluated():
    assert joined(["is longer. ", "has red sleeves?"]) == "Is longer and has red sleeves"
    assert joined([" .", "is red"]) == "Is red"
    texts = training_texts(["is longer", "has sleeves"])
    assert texts == [
        "Is longer and has sleeves", "Has sleeves and is longer", "Is longer", "Has sleeves",
    ]  # fmt: skip


def test_fashioniq_has_two_galleries_and_two_protocols(fashion):
    whole = read_fashioniq(fashion, "dress")
    assert whole.gallery == ["B01", "B02", "B03", "B04"]
    assert whole.keeps_reference
    assert [(t.reference, t.text, t.target) for t in whole.triplets] == [
        ("B01", "Is longer and has red sleeves", "B02"),
        ("B03", "Is darker and and plainer", "B01"),
    ]  # fmt: skip
    assert len(whole.triplets[0].texts) == 4
    pairs = read_fashioniq(fashion, "dress", gallery="pairs")
    assert pairs.gallery == ["B01", "B02", "B03"]
    assert not pairs.keeps_reference
    assert whole.open("B01").size == (8, 12)
    with pytest.raises(InputError, match="no such picture"):
        whole.open("B02")


def test_a_picture_outside_the_folder_is_not_opened(cirr):
    Image.new("L", (4, 4)).save(cirr / "secret.png")
    path = cirr / "image_splits" / "split.rc2.val.json"
    places = json.loads(path.read_text())
    write(path, places | {"dev-0-0-img0": "../secret.png"})
    with pytest.raises(InputError, match="outside the folder"):
        read_cirr(cirr).open("dev-0-0-img0")


def test_a_test_split_has_no_targets(fashion):
    rows = [{"candidate": "B01", "captions": ["is longer", "is red"]}]
    write(fashion / "captions" / "cap.dress.test.json", rows)
    write(fashion / "image_splits" / "split.dress.test.json", ["B01", "B02"])
    assert read_fashioniq(fashion, "dress", "test").triplets[0].target == ""


def test_captions_come_as_text_or_with_their_thoughts(fashion):
    path = fashion / "caption_files" / "dress_cot_val.json"
    write(
        path, {"B01": "a  red dress", "B02": {"Parts": "..", "Final_Caption": "long"}, "B99": "x"}
    )
    assert read_captions(path)["B01"] == "a red dress"
    found = read_fashioniq(fashion, "dress")
    assert found.captions == {"B01": "a red dress", "B02": "long"}
    write(path, {"B01": {"Parts": "no last field"}})
    with pytest.raises(InputError, match="Final_Caption"):
        read_captions(path)


def test_cirr_removes_the_reference_and_has_subsets(cirr):
    found = read_cirr(cirr)
    (triplet,) = found.triplets
    assert not found.keeps_reference
    assert triplet.triplet_id == "12"
    assert triplet.target == "dev-3-0-img0"
    assert len(triplet.subset) == 6
    assert len(found.gallery) == 7
    assert found.open("dev-0-0-img0").getpixel((0, 0)) == (9, 9, 9)


def test_what_the_server_takes():
    names = [f"n{n}" for n in range(60)]
    sent = cirr_submission({"12": names}, "recall")
    assert sent == {"version": "rc2", "metric": "recall", "12": names[:50]}
    assert cirr_submission({"12": names}, "recall_subset")["12"] == names[:3]
    with pytest.raises(InputError, match="50 different"):
        cirr_submission({"12": names[:49]}, "recall")
    with pytest.raises(InputError, match="3 different"):
        cirr_submission({"12": ["a", "a", "b"]}, "recall_subset")
    with pytest.raises(InputError, match="recall_subset"):
        cirr_submission({"12": names}, "recal_subset")


def test_a_folder_of_our_own_comes_back_as_it_was_written(tmp_path):
    triplets = {
        "train": [Triplet("1", "a", "in red", "b", "colour")],
        "val": [Triplet("2", "b", "with a dot", "c", "dot", ("b", "c", "a"))],
    }
    opened = {name: Image.new("RGB", (2, 2)) for name in "abc"}
    sets = {s: CompositionSet(list("abc"), t, opened.__getitem__) for s, t in triplets.items()}
    write_compositions(tmp_path, sets, {name: f"a {name}" for name in "abc"})
    for split in ("train", "val"):
        found = read_compositions(tmp_path, split)
        assert found.triplets == triplets[split]
        assert found.gallery == list("abc")
        assert found.captions["c"] == "a c"
    with open(tmp_path / "triplets.jsonl", "a") as file:
        file.write("{\n")
    with pytest.raises(InputError, match="row 3"):
        read_compositions(tmp_path, "val")


GOOD = {"triplet_id": "1", "reference": "a", "text": "in red", "target": "b"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "z"}, "query '1', reference: found 'z'"),
        ({"target": "z"}, "query '1', target: found 'z'"),
        ({"text": "  "}, "query '1', text"),
        ({"subset": ("a", "b", "z")}, "subset: found 'z'"),
        ({"subset": ("a", "c")}, "subset: found no 'b'"),
    ],
)
def test_bad_queries_are_named(change, message):
    with pytest.raises(InputError, match=message):
        CompositionSet(list("abc"), [Triplet(**(GOOD | change))], None)


def test_what_stands_twice_is_named():
    with pytest.raises(InputError, match="gallery: found 'a'"):
        CompositionSet(["a", "b", "a"], [Triplet(**GOOD)], None)
    with pytest.raises(InputError, match="triplet_id: found '1'"):
        CompositionSet(list("abc"), [Triplet(**GOOD)] * 2, None)


def test_captions_of_unknown_pictures_and_missing_ones_are_named():
    found = CompositionSet(list("abc"), [Triplet(**GOOD)], None)
    with pytest.raises(InputError, match="one for 'z'"):
        CompositionSet(list("abc"), [], None, {"z": "a dress"})
    with pytest.raises(InputError, match="none for 'b' and 1 others"):
        found.with_captions({"a": "x", "b": " "})
    with pytest.raises(InputError, match="one for 'z'"):
        found.with_captions({"a": "x", "b": "y", "c": "w", "z": "v"})
    assert found.with_captions({"a": "x", "b": "y", "c": "w"}).captions["b"] == "y"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no row"),
        ({"a": 1}, "a JSON list"),
        ([{"target": "B02", "captions": ["x", "y"]}], "row 1, field candidate: found no such"),
        ([{"target": "B02", "candidate": "B01", "captions": []}], "row 1, field captions"),
        ([{"target": "B02", "candidate": "B01", "captions": [3]}], "a list of sentences"),
        ([{"target": "B02", "candidate": "B01", "captions": [" ", "."]}], "a change in words"),
    ],
)
def test_bad_files_name_the_row_and_the_field(fashion, content, message):
    write(fashion / "captions" / "cap.dress.val.json", content)
    with pytest.raises(InputError, match=message):
        read_fashioniq(fashion, "dress")


def test_options_and_missing_files(fashion, tmp_path):
    with pytest.raises(InputError, match="did you mean 'dress'"):
        read_fashioniq(fashion, "dres")
    with pytest.raises(InputError, match="pairs"):
        read_fashioniq(fashion, "dress", gallery="pair")
    with pytest.raises(InputError, match=r"cap\.shirt\.val\.json"):
        read_fashioniq(fashion, "shirt")
    (fashion / "captions" / "cap.dress.val.json").write_text("[{")
    with pytest.raises(InputError, match="a JSON file"):
        read_fashioniq(fashion, "dress")
    with pytest.raises(InputError, match="gallery"):
        read_compositions(tmp_path / "nowhere")
