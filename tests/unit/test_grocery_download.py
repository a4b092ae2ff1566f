"""The script of GroceryStoreDataset on a small archive in the true layout, the network replaced."""

from __future__ import annotations

import importlib
import zipfile
from pathlib import Path

import picture_example as example
import pytest
import typer
from typer.testing import CliRunner

from minisearch.data.images import read_pictures
from minisearch.pictures import CropQuery, Listing

SCRIPTS = Path(__file__).parents[2] / "data_scripts"
COMMIT = "fc80ba90f803d79d0383df52c5a4ac5de99ff6fc"
TOP = f"GroceryStoreDataset-{COMMIT}"

# Rows of the published classes.csv and lists, and two of its descriptions.
HEAD = (
    "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),"
    "Iconic Image Path (str),Product Description Path (str)"
)
CLASSES = [
    ("Granny-Smith", 1, "Apple", 0, "Fruit/Apple/Granny-Smith/Granny-Smith"),
    ("Brown-Cap-Mushroom", 67, "Mushroom", 36, "Vegetables/Mushroom/Brown-Cap-Mushroom/B"),
    (
        "Bravo-Orange-Juice",
        29,
        "Juice",
        19,
        "Packages/Juice/Bravo-Orange-Juice/Bravo-Orange-Juice",
    ),
]
DESCRIPTIONS = {
    "Granny-Smith": "Granny Smith is a green apple with white, firm pulp\nand a clear acidity.\n",
    "Bravo-Orange-Juice": "Ready to drink orange juice from concentrate.\n",
}
LISTS = {
    "train": [
        "train/Fruit/Apple/Granny-Smith/Granny-Smith_001.jpg, 1, 0",
        "train/Packages/Juice/Bravo-Orange-Juice/Bravo-Orange-Juice_001.jpg, 29, 19",
    ],
    "val": ["val/Vegetables/Brown-Cap-Mushroom/Brown-Cap-Mushroom_001.jpg, 67, 36"],
    "test": ["test/Fruit/Apple/Granny-Smith/Granny-Smith_001.jpg, 1, 0"],
}


def archive(path: Path, comment: str = COMMIT, **changes: str) -> Path:
    """The archive as GitHub makes it; `changes` replace the text of a list or of classes.csv."""
    root = path.parent / "archive" / TOP / "dataset"
    icons = "/iconic-images-and-descriptions"
    lines = [HEAD]
    for name, number, coarse, coarse_number, stem in CLASSES:
        photo = example.photo(root / f"{icons[1:]}/{stem}_Iconic.jpg", (20, 20))
        if name in DESCRIPTIONS:
            Path(f"{str(photo)[:-11]}_Description.txt").write_text(DESCRIPTIONS[name])
        files = f"{icons}/{stem}_Iconic.jpg,{icons}/{stem}_Description.txt"
        lines.append(f"{name},{number},{coarse},{coarse_number},{files}")
    texts = {"classes.csv": "\n".join(lines)}
    for split, rows in LISTS.items():
        texts[f"{split}.txt"] = "\n".join(rows) + "\n"
        for row in rows:
            example.photo(root / row.split(",")[0], (24, 32))
    for name, text in {**texts, **{k.replace("_", "."): v for k, v in changes.items()}}.items():
        (root / name).write_text(text)
    (root.parent / "README.md").write_text("not data")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for member in sorted(root.parent.rglob("*")):
            file.write(member, member.relative_to(path.parent / "archive"))
        file.comment = comment.encode()
    return path


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script, with a small archive's figures, and the archive at its address."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("grocery")
    monkeypatch.setattr(module, "PRODUCTS", 3)
    monkeypatch.setattr(module, "PHOTOGRAPHS", {"train": 2, "val": 1, "test": 1})
    (tmp_path / "web").mkdir()
    monkeypatch.setattr(module, "URL", archive(tmp_path / "web/x.zip").as_uri())
    return module


def run(script, *arguments):
    app = typer.Typer()
    app.command()(script.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "web")


def test_the_address_and_figures_are_those_of_the_pinned_commit(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.reload(importlib.import_module("grocery"))
    home = "https://github.com/marcusklasson/GroceryStoreDataset"
    assert f"{home}/archive/{COMMIT}.zip" == script.URL
    assert script.PRODUCTS == 81
    assert sum(script.PHOTOGRAPHS.values()) == 5_421
    assert script.PHOTOGRAPHS["test"] == 2_485


def test_photographs_look_for_products(tmp_path, script):
    done = run(script, tmp_path / "grocery")
    assert done.exit_code == 0, done.output
    assert "3 products, 1 without a description; photographs: 2 train, 1 val, 1 test" in done.output
    data = read_pictures(tmp_path / "grocery")
    icon = "iconic-images-and-descriptions/Fruit/Apple/Granny-Smith/Granny-Smith_Iconic.jpg"
    words = "Granny Smith is a green apple with white, firm pulp and a clear acidity."
    assert data.listings[0] == Listing("Granny-Smith", icon, f"Granny Smith. {words}", "Apple")
    assert [listing.text for listing in data.listings[1:]] == [
        "Brown Cap Mushroom.",
        "Bravo Orange Juice. Ready to drink orange juice from concentrate.",
    ]
    name = "test/Fruit/Apple/Granny-Smith/Granny-Smith_001"
    assert data.queries == [CropQuery(name, f"{name}.jpg", ("Granny-Smith",))]
    assert data.crop(data.queries[0]).size == (24, 32)
    assert data.open(icon).size == (20, 20)


def test_every_split_has_all_products(tmp_path, script):
    assert run(script, tmp_path / "grocery").exit_code == 0
    for split, items in {"train": ["Granny-Smith", "Bravo-Orange-Juice"], "val": [None]}.items():
        data = read_pictures(tmp_path / "grocery", split)
        assert len(data.listings) == 3
        assert len(data.queries) == len(items)
    assert data.queries[0].item_ids == ("Brown-Cap-Mushroom",)


def test_the_number_in_the_list_says_which_product_a_photograph_shows(tmp_path, script):
    archive(tmp_path / "web/x.zip", val_txt=f"{LISTS['val'][0].split(',')[0]}, 29, 19\n")
    assert run(script, tmp_path / "grocery").exit_code == 0
    data = read_pictures(tmp_path / "grocery", "val")
    assert data.queries[0].item_ids == ("Bravo-Orange-Juice",)


def test_nothing_but_the_folder_and_the_archive_is_left(tmp_path, script):
    assert run(script, tmp_path / "grocery").exit_code == 0
    assert left(tmp_path) == ["grocery", "grocery.zip"]
    assert sorted(path.name for path in (tmp_path / "grocery").iterdir()) == [
        "images",
        "listings.jsonl",
        "queries.jsonl",
    ]
    assert not list((tmp_path / "grocery").rglob("README.md"))


def test_an_archive_that_is_there_is_taken(tmp_path, script, monkeypatch):
    archive(tmp_path / "grocery.zip")
    monkeypatch.setattr(script, "URL", "https://nowhere.invalid/x.zip")
    done = run(script, tmp_path / "grocery")
    assert done.exit_code == 0, done.output
    assert "nowhere" not in done.output


def test_a_folder_with_files_stops_before_the_download(tmp_path, script, monkeypatch):
    monkeypatch.setattr(script, "URL", "https://nowhere.invalid/x.zip")
    (tmp_path / "grocery").mkdir()
    (tmp_path / "grocery/mine.txt").write_text("mine")
    done = run(script, tmp_path / "grocery")
    assert done.exit_code == 2
    assert "found a folder with files in it" in done.output
    assert left(tmp_path) == ["grocery"]


def test_a_download_that_stops_says_what_to_do(tmp_path, script, monkeypatch):
    address = (tmp_path / "web/none.zip").as_uri()
    monkeypatch.setattr(script, "URL", address)
    done = run(script, tmp_path / "grocery")
    assert done.exit_code == 2
    assert f"{address}: found the download stopped (URLError" in done.output
    assert f"or bring {tmp_path / 'grocery.zip'} yourself" in done.output
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), "expected a whole zip archive"),
        (lambda path: path.write_text("<html>"), "expected a whole zip archive"),
        (lambda path: archive(path, comment="0" * 40), f"commit '{'0' * 40}'; expected {COMMIT}"),
        (lambda path: archive(path, comment=""), f"found no commit; expected {COMMIT}"),
    ],
)
@pytest.mark.parametrize("fetched", [True, False])
def test_another_archive_is_refused(tmp_path, script, damage, message, fetched):
    path = tmp_path / "web/x.zip" if fetched else archive(tmp_path / "grocery.zip")
    damage(path)
    done = run(script, tmp_path / "grocery")
    assert done.exit_code == 2
    assert message in done.output
    assert f"delete {tmp_path / 'grocery.zip'}" in done.output
    # what was fetched is deleted, what the reader put there stays
    assert left(tmp_path) == ([] if fetched else ["archive", "grocery.zip"])


@pytest.mark.parametrize(
    ("offset", "message"), [(2, "found a wrong checksum"), (0, "expected a whole zip archive")]
)
def test_a_damaged_file_in_the_archive_is_refused(tmp_path, script, offset, message):
    path = tmp_path / "web/x.zip"
    with zipfile.ZipFile(path) as file:
        member = file.getinfo(f"{TOP}/dataset/train.txt")
    content = bytearray(path.read_bytes())
    content[member.header_offset + 30 + len(member.filename) + offset] ^= 0xFF
    path.write_bytes(content)
    done = run(script, tmp_path / "grocery")
    assert done.exit_code == 2
    assert message in done.output
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes_csv": f"{HEAD}\n"}, "classes.csv: found 0 rows; expected 3 rows"),
        ({"classes_csv": "Name,ID\n"}, "classes.csv: found ['Name', 'ID']; expected columns"),
        (
            {"classes_csv": f"{HEAD}\nKiwi,7\n"},
            "classes.csv: found ['Kiwi', '7']; expected columns",
        ),
        ({"test_txt": ""}, "test.txt: found 0 rows; expected 1 rows"),
        ({"test_txt": "test/a.jpg\n"}, "test.txt, row 1: found 'test/a.jpg'"),
        ({"val_txt": "\n"}, "val.txt: found 0 rows; expected 1 rows"),
        ({"test_txt": "test/a.jpg, 9, 0\n"}, "test.txt, row 1: found 'test/a.jpg, 9, 0'"),
        ({"test_txt": "test/a.jpg, 1, 0\n"}, "test/a.jpg: found no such file"),
        ({"test_txt": "../../a.jpg, 1, 0\n"}, "a path that stays in the folder"),
    ],
)
def test_bad_rows_leave_no_folder(tmp_path, script, changes, message):
    archive(tmp_path / "web/x.zip", **changes)
    done = run(script, tmp_path / "grocery")
    assert done.exit_code == 2
    assert message in done.output
    assert ".grocery." not in done.output  # where it was unpacked, which is gone
    assert left(tmp_path) == ["grocery.zip"]


def test_a_damaged_picture_leaves_no_folder(tmp_path, script):
    root = tmp_path / "web/archive" / TOP / "dataset"
    path = root / LISTS["test"][0].split(",")[0]
    with zipfile.ZipFile(tmp_path / "web/x.zip", "w") as file:
        for member in sorted(root.rglob("*")):
            if member != path:
                file.write(member, member.relative_to(tmp_path / "web/archive"))
        file.writestr(str(path.relative_to(tmp_path / "web/archive")), path.read_bytes()[:-30])
        file.comment = COMMIT.encode()
    done = run(script, tmp_path / "grocery")
    assert done.exit_code == 2
    assert f"{tmp_path / 'grocery.zip'}/{TOP}/dataset/test/Fruit" in done.output
    assert "Granny-Smith_001.jpg: found no picture that can be decoded" in done.output
    assert left(tmp_path) == ["grocery.zip"]
