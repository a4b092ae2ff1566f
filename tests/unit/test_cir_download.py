"""The script of the real sets: what emoji show, and archives in the published layout."""

from __future__ import annotations

import importlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from minisearch.data.cir import read_compositions, read_fashioniq
from minisearch.errors import InputError

SCRIPTS = Path(__file__).parents[2] / "data_scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("cir")


@pytest.fixture
def run(script):
    app = typer.Typer()
    app.command()(script.main)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("1f44b", ("waving hand sign", "", "", "")),
        ("1f44b-1f3ff", ("waving hand sign", "dark", "", "")),
        ("1f3c3-1f3fb-200d-2640-fe0f", ("runner", "light", "woman", "")),
        ("1f468-1f3fd-200d-1f680", ("person with rocket", "medium", "man", "")),
        ("1f680", ("rocket", "", "", "")),
        (
            "1f3f4-e0067_e0062",
            ("waving black flag, tag latin small letter g, tag latin small letter b", "", "", ""),
        ),
        ("1f49a", ("heart", "", "", "green")),
        ("1f7e5", ("square", "", "", "red")),
        ("1f34f", ("green apple", "", "", "")),  # no other apple comes in colours by name
    ],
)
def test_what_an_emoji_shows_is_in_its_code_points(script, name, expected):
    assert tuple(script.shown(name)) == expected


def test_two_tones_are_left_out(script):
    assert script.shown("1f9d1-1f3fb-200d-1f91d-200d-1f9d1-1f3ff") is None


def test_pairs_differ_in_one_or_two_properties_and_nothing_is_taken_away(script):
    names = ["1f44b", "1f44b-1f3fb", "1f44b-1f3ff", "1f49a", "1f499",
             "1f3c3-1f3fb-200d-2640-fe0f", "1f3c3-1f3ff-200d-2642-fe0f"]  # fmt: skip
    emoji = {name: script.shown(name) for name in names}
    found = list(script.triplets_of(emoji, names, "train"))
    pairs = {(t.reference, t.target): t.kind for t in found}
    assert pairs == {
        ("1f44b", "1f44b-1f3fb"): "tone", ("1f44b", "1f44b-1f3ff"): "tone",
        ("1f44b-1f3fb", "1f44b-1f3ff"): "tone", ("1f44b-1f3ff", "1f44b-1f3fb"): "tone",
        ("1f49a", "1f499"): "colour", ("1f499", "1f49a"): "colour",
        ("1f3c3-1f3fb-200d-2640-fe0f", "1f3c3-1f3ff-200d-2642-fe0f"): "tone and gender",
        ("1f3c3-1f3ff-200d-2642-fe0f", "1f3c3-1f3fb-200d-2640-fe0f"): "tone and gender",
    }  # fmt: skip
    texts = {(t.reference, t.target): t.text for t in found}
    assert "blue" in texts["1f49a", "1f499"]
    both = texts["1f3c3-1f3fb-200d-2640-fe0f", "1f3c3-1f3ff-200d-2642-fe0f"]
    assert "dark" in both
    assert "man" in both


def test_the_package_becomes_a_folder(script, run, tmp_path, monkeypatch):
    names = [f"{code:x}" for code in (0x1F44B, 0x1F44C, 0x1F44D, 0x1F44E, 0x1F44F)]
    names += [f"{name}-1f3f{tone}" for name in list(names) for tone in "bcdef"]
    archive = tmp_path / "emoji.tgz"
    picture = io.BytesIO()
    Image.new("RGBA", (8, 8), (9, 9, 9, 255)).save(picture, format="webp")
    with tarfile.open(archive, "w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(f"package/assets/{name}.webp")
            info.size = len(picture.getvalue())
            tar.addfile(info, io.BytesIO(picture.getvalue()))
    damaged = run("emoji", tmp_path / "emoji")
    assert damaged.exit_code == 2
    assert "sha256" in damaged.output
    monkeypatch.setattr(script, "verify", lambda archive: None)
    done = run("emoji", tmp_path / "emoji")
    assert done.exit_code == 0, done.output
    assert "30 emoji of 5 things" in done.output
    parts = {split: read_compositions(tmp_path / "emoji", split) for split in ("train", "val")}
    assert len(parts["train"].triplets) == 4 * (5 + 5 * 4)
    assert len(parts["val"].triplets) == 5 + 5 * 4
    assert parts["val"].open(names[0]).size == (8, 8)
    assert parts["val"].captions["1f44d-1f3fb"] == "thumbs up sign light skin"
    again = run("emoji", tmp_path / "emoji")
    assert again.exit_code == 2
    assert "an empty folder" in again.output


def test_captions_and_splits_are_taken_from_an_archive(script, run, tmp_path, monkeypatch):
    rows = {"captions/cap.dress.val.json": 2, "image_splits/split.dress.val.json": 3}
    monkeypatch.setitem(script.ROWS, "fashioniq", rows)
    row = {"target": "B02", "candidate": "B01", "captions": ["is longer", "is red"]}
    content = {"captions/cap.dress.val.json": [row, row], "other.txt": "x",
               "image_splits/split.dress.val.json": ["B01", "B02", "B03"]}  # fmt: skip

    def made(name, changes=()):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as file:
            for path, what in {**content, **dict(changes)}.items():
                file.writestr(f"fashion-iq-master/{path}", json.dumps(what))

    made("good")
    done = run("fashioniq", tmp_path / "good")
    assert done.exit_code == 0, done.output
    assert "bring the pictures" in done.output
    assert len(read_fashioniq(tmp_path / "good", "dress").gallery) == 3
    made("short", {"captions/cap.dress.val.json": [row]})
    short = run("fashioniq", tmp_path / "short")
    assert short.exit_code == 2
    assert "1 rows" in short.output
    assert not (tmp_path / "short").exists()
    (tmp_path / "broken.zip").write_bytes(b"no archive")
    assert "a whole archive" in run("fashioniq", tmp_path / "broken").output


def test_what_cannot_be_fetched_is_said(script, run, tmp_path, monkeypatch):
    assert "emoji, fashioniq or cirr" in run("fashion", tmp_path / "x").output
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    assert "npm" in run("emoji", tmp_path / "y").output
    with pytest.raises(InputError, match="it is not installed"):
        script.pack(tmp_path / "z.tgz")
