"""GroceryStoreDataset: photographs taken in shops look for a product's own picture and text.

    python data_scripts/grocery.py data/grocery

A listing is one of 81 products: its iconic picture, its name and description, and its coarse class
("Apple", "Juice") as category. A query is a photograph that somebody took of it in a shop with a
telephone, often of a whole display. `read_pictures(folder)` takes the folder as it is.

What the set is not: nobody drew boxes; a listing's picture shows one product, so that nothing has
to be found in it; and a product has one listing, the same in training and test. It tells whether
photographs find products across two kinds of picture, not whether an encoder finds its product
in a crowded one.

The archive of one commit is fetched to `data/grocery.zip` and stays there: a later run, or one on
a machine without a network, takes it from there. Before the folder has its name, the archive's
commit, its checksums, the number of rows and every picture are checked.

The data is its authors' (Klasson, Zhang, Kjellström, WACV 2019, arXiv 1901.00711); their
repository carries the MIT licence. Products' pictures and texts come from a shop's website.
"""

from __future__ import annotations

import csv
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Annotated

import typer

from minisearch.data.images import naming, require_empty, write_pictures
from minisearch.errors import InputError
from minisearch.pictures import CropQuery, Listing
from minisearch.storage import writing

COMMIT = "fc80ba90f803d79d0383df52c5a4ac5de99ff6fc"
URL = f"https://github.com/marcusklasson/GroceryStoreDataset/archive/{COMMIT}.zip"
ROOT = f"GroceryStoreDataset-{COMMIT}/dataset"

# Rows at that commit, counted in its files; its README has other, older numbers.
PRODUCTS = 81
PHOTOGRAPHS = {"train": 2_640, "val": 296, "test": 2_485}

COLUMNS = [
    "Class Name (str)",
    "Class ID (int)",
    "Coarse Class Name (str)",
    "Coarse Class ID (int)",
    "Iconic Image Path (str)",
    "Product Description Path (str)",
]


def fetch(archive: Path) -> None:
    """Download the archive. Raises: InputError where that stops, or something else came."""
    from torch.hub import download_url_to_file

    try:
        with writing(archive):
            archive.parent.mkdir(parents=True, exist_ok=True)
            download_url_to_file(URL, str(archive))
    except InputError:
        raise
    except Exception as error:  # urllib and http.client raise a dozen kinds
        found = f"the download stopped ({type(error).__name__}: {error})"
        remedy = f"check the network and run the same command again, or bring {archive} yourself."
        raise InputError(URL, found, "the whole archive", remedy) from error
    try:
        verify(archive)
    except InputError:
        archive.unlink()  # a damaged file must not be taken for a complete one by the next run
        raise


def verify(archive: Path) -> None:
    """Raises: InputError for a file that is no archive, is damaged, or is of another commit."""
    remedy = f"delete {archive} and run the same command again."
    try:
        with zipfile.ZipFile(archive) as file:
            commit, damaged = file.comment.decode("ascii", "replace"), file.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(str(archive), str(error), "a whole zip archive", remedy) from error
    if damaged is not None:
        raise InputError(f"{archive}, {damaged}", "a wrong checksum", "a whole file", remedy)
    if commit != COMMIT:  # git writes the commit into the comment of an archive
        found = f"the commit {commit!r}" if commit else "no commit"
        raise InputError(f"{archive}, comment", found, COMMIT, remedy)


def title(name: str) -> str:
    """A class's name as the first sentence of its listing."""
    return f"{name.replace('-', ' ')}."


def products(dataset: Path) -> dict[str, Listing]:
    """The listing of each fine class, under its number.

    Its text is the name and what its description says, or the name alone where there is none.

    Raises:
        InputError: for other columns, another number of rows, or a class that stands twice.
    """
    path, listings = dataset / "classes.csv", {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    for row in rows:
        if rows[0] != COLUMNS or len(row) != len(COLUMNS):
            raise InputError(str(path), str(row), f"columns {COLUMNS}", "fetch the archive again.")
    for name, number, category, _, picture, description in rows[1:]:
        about = dataset / description.lstrip("/")
        words = about.read_text("utf-8", "replace").split() if about.is_file() else []
        text = " ".join([title(name), *words])
        listings[number] = Listing(name, picture.lstrip("/"), text, category)
    check_rows(path, len(listings), PRODUCTS)
    return listings


def photographs(dataset: Path, split: str, listings: dict[str, Listing]) -> list[CropQuery]:
    """The queries of a split. Raises: InputError for a bad row, or another number of rows."""
    path, queries = dataset / f"{split}.txt", []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        name, fine, *_ = [*(cell.strip() for cell in line.split(",")), ""]
        if name and fine not in listings:
            where, expected = f"{path}, row {number}", "a path, a fine and a coarse class"
            raise InputError(where, repr(line), expected, "fetch the archive again.")
        if name:
            queries.append(CropQuery(name.rpartition(".")[0], name, (listings[fine].item_id,)))
    check_rows(path, len(queries), PHOTOGRAPHS[split])
    return queries


def check_rows(path: Path, found: int, rows: int) -> None:
    """Raises: InputError where a file has another number of rows than at the pinned commit."""
    if found != rows:
        remedy = "delete the archive and run the same command again."
        raise InputError(str(path), f"{found:,} rows", f"{rows:,} rows", remedy)


def convert(archive: Path, folder: Path) -> str:
    """Write the archive as a folder for `read_pictures`; returns in words what it holds."""
    beside, prefix = folder.parent, f".{folder.name}."  # from there pictures can be linked
    with (
        writing(folder),
        tempfile.TemporaryDirectory(dir=beside, prefix=prefix) as unpacked,
        naming(Path(unpacked), archive),
    ):
        with zipfile.ZipFile(archive) as file:
            names = [name for name in file.namelist() if name.startswith(f"{ROOT}/")]
            file.extractall(unpacked, names)
        dataset = Path(unpacked, ROOT)
        listings = products(dataset)
        queries = {split: photographs(dataset, split, listings) for split in PHOTOGRAPHS}
        asked = [(query, split) for split, rows in queries.items() for query in rows]
        write_pictures(folder, [(listing, None) for listing in listings.values()], asked, dataset)
    bare = sum(listing.text == title(listing.item_id) for listing in listings.values())
    counts = ", ".join(f"{len(rows):,} {split}" for split, rows in queries.items())
    return f"{len(listings)} products, {bare} without a description; photographs: {counts}"


def main(
    folder: Annotated[Path, typer.Argument(help="Where to put the pictures; new or empty.")],
) -> None:
    """Download GroceryStoreDataset, verify it, convert it to a folder of pictures and rows."""
    try:
        require_empty(folder)
        archive = folder.with_name(f"{folder.name}.zip")
        if archive.exists():
            verify(archive)
        else:
            typer.echo(URL)
            fetch(archive)
        typer.echo(f"{folder}: {convert(archive, folder)}")
    except InputError as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(main)
