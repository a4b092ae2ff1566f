"""PyVideo: titles, speakers, descriptions and tags of recorded talks about Python.

    python data_scripts/pyvideo.py data/pyvideo

Writes `data/pyvideo/talks.jsonl`, one talk a line: title, speakers, summary, tags, category,
recorded, language. Chapter 4 reads it in place of the simulated videos.

What the set is not: nobody typed or clicked a query here. Chapter 4 *constructs* queries from tags
and titles and says so wherever they are used.

The archive of one commit is fetched to `data/pyvideo.zip` and stays there: a later run, or one on a
machine without a network, takes it from there. Before the file has its name, the archive's commit,
its checksums and the number of talks are checked.

The data is dedicated to the public domain (CC0); some records carry another text in
`copyright_text`, which is about the recording itself and not kept here.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Annotated, Any

import typer

from minisearch.errors import InputError
from minisearch.storage import atomic_write, writing

COMMIT = "8d3735025"
URL = f"https://github.com/pyvideo/data/archive/{COMMIT}.zip"
TALKS = 21_715  # at that commit, counted in its files


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
    if not commit.startswith(COMMIT):  # git writes the commit into the comment of an archive
        found = f"the commit {commit!r}" if commit else "no commit"
        raise InputError(f"{archive}, comment", found, f"{COMMIT}...", remedy)


def talk(record: Any, where: str, category: str) -> dict[str, Any]:
    """One record of the set as a row.

    The description, or the summary where there is none. Fields may be missing or null.

    Raises:
        InputError: for something else than a record with a title.
    """
    if not isinstance(record, dict) or not isinstance(record.get("title"), str):
        remedy = "fetch the archive again."
        raise InputError(where, "no title", "a record of a video", remedy)
    about = record.get("description") or record.get("summary") or ""
    return {
        "title": " ".join(record["title"].split()),
        "speakers": [str(name) for name in record.get("speakers") or []],
        "summary": " ".join(str(about).split()),
        "tags": [str(tag) for tag in record.get("tags") or []],
        "category": category,
        "recorded": record.get("recorded") or "",
        "language": record.get("language") or "",
    }


def talks(archive: Path) -> list[dict[str, Any]]:
    """Every talk of the archive, in the order of its files.

    Raises:
        InputError: for a file that is not JSON, or a record without a title.
    """
    rows = []
    with zipfile.ZipFile(archive) as file:
        for name in sorted(file.namelist()):
            _, *folders, leaf = name.split("/")
            if len(folders) != 2 or folders[1] != "videos" or not leaf.endswith(".json"):
                continue
            where = f"{archive}, {name}"
            try:
                record = json.loads(file.read(name).decode("utf-8"))
            except ValueError as error:
                remedy = "fetch the archive again."
                raise InputError(where, str(error), "a JSON file", remedy) from error
            rows.append(talk(record, where, folders[0]))
    return rows


def convert(archive: Path, folder: Path) -> str:
    """Write `talks.jsonl`; returns in words what it holds."""
    rows = talks(archive)
    if len(rows) != TALKS:
        remedy = "delete the archive and run the same command again."
        raise InputError(str(archive), f"{len(rows):,} talks", f"{TALKS:,} talks", remedy)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    atomic_write(folder / "talks.jsonl", "\n".join(lines) + "\n")
    tagged = sum(bool(row["tags"]) for row in rows)
    told = sum(bool(row["summary"]) for row in rows)
    return f"{len(rows):,} talks, {told:,} with a description, {tagged:,} with tags"


def main(
    folder: Annotated[Path, typer.Argument(help="Where to put talks.jsonl.")],
) -> None:
    """Download the talks, verify the archive, and write them one a line."""
    try:
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
