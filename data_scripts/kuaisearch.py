"""Download KuaiSearch from the Hugging Face hub, verify it, and convert it to parquet.

    python data_scripts/kuaisearch.py data/kuaisearch-lite
    python data_scripts/kuaisearch.py data/kuaisearch --edition full --tables users,items,recall

Each file is downloaded beside its place, checked against the published bytes and rows, and only
then given its name. An interrupted download goes on where it stopped when the command is run again.
Conversion reads some megabytes at a time. `KuaiSearch.read(folder)` takes the folder as it is.

The data is the authors': see their dataset page for its terms. Give each edition its own folder.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from minisearch.data.kuaisearch import LAYOUTS
from minisearch.data.tables import BLOCK_BYTES, arrow_schema, read_jsonl
from minisearch.errors import InputError, one_of
from minisearch.records import SCHEMAS
from minisearch.storage import writing

REPOSITORY = "benchen4395/KuaiSearch"
REVISION = "09807c773ce67360ed8df30842e372182fcf7ad9"
STAGING = ".download"

# (bytes, rows) of each file at that revision; relevance is shared by both editions.
FIGURES = {
    "users/train.jsonl": (43_805_433, 331_930),
    "items/train.jsonl": (7_837_345_198, 18_605_582),
    "recall/train.jsonl": (1_211_473_290, 2_574_949),
    "rank/train.jsonl": (77_675_031_316, 81_401_477),
    "relevance/train.jsonl": (15_827_789, 46_422),
    "users_lite/train.jsonl": (13_395_477, 102_086),
    "items_lite/train.jsonl": (2_789_868_956, 6_634_118),
    "recall_lite/train.jsonl": (257_794_992, 555_553),
    "rank_lite/train.jsonl": (16_749_137_750, 17_800_904),
}


def files(edition: str, tables: list[str]) -> dict[str, str]:
    """The published file of each table. Raises: InputError for an unknown edition or table."""
    if edition not in ("lite", "full"):
        raise one_of("option --edition", edition, ["lite", "full"])
    for table in tables:
        if table not in SCHEMAS:
            raise one_of("option --tables", table, list(SCHEMAS))
    layout = {**dict.fromkeys(SCHEMAS, LAYOUTS[edition]), "relevance": LAYOUTS["full"]}
    return {table: layout[table].format(table) + ".jsonl" for table in tables}


def download(name: str, folder: Path) -> Path:
    """Bring one published file to `folder / name`, verified; nothing to do where it is there.

    Raises:
        InputError: where the download stops (run again to resume), where the file differs from the
            published bytes or rows, or where there is no room or permission to write.
    """
    final, staging = folder / name, folder / STAGING
    if final.exists():
        verify(final, name)
        return final
    need_room(folder, staging, FIGURES[name][0])
    part = fetch(name, staging)
    try:
        verify(part, name)
    except InputError:
        part.unlink()  # a damaged file must not be taken for a complete one by the next run
        raise
    with writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, final)
    return final


def fetch(name: str, staging: Path) -> Path:
    """Download into the staging folder; the hub's client keeps what it has and resumes there."""
    from huggingface_hub import hf_hub_download

    try:
        with writing(staging / name):
            path = hf_hub_download(
                REPOSITORY, name, repo_type="dataset", revision=REVISION, local_dir=staging
            )
    except InputError:
        raise
    except Exception as error:  # the client raises a dozen kinds, from httpx, urllib and its own
        found = f"the download stopped ({type(error).__name__}: {error})"
        remedy = "check the network and run the same command again: it goes on where it stopped."
        raise InputError(name, found, f"{FIGURES[name][0]:,} bytes", remedy) from error
    return Path(path)


def verify(path: Path, name: str) -> None:
    """Compare a file with the published figures. Raises: InputError where bytes or rows differ."""
    size, rows = FIGURES[name]
    found = path.stat().st_size
    remedy = f"delete {path} and run the same command again."
    if found != size:
        raise InputError(str(path), f"{found:,} bytes", f"{size:,} bytes", remedy)
    with open(path, "rb") as file:
        lines = sum(block.count(b"\n") for block in iter(lambda: file.read(BLOCK_BYTES), b""))
    if lines != rows:
        raise InputError(str(path), f"{lines:,} rows", f"{rows:,} rows", remedy)


def need_room(folder: Path, staging: Path, size: int) -> None:
    """Stop before a download that cannot fit. Raises: InputError naming the space needed."""
    with writing(staging):
        staging.mkdir(parents=True, exist_ok=True)
    resumed = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free + resumed
    if free < size:
        found, expected = f"{free / 1e9:.1f} GB free", f"{size / 1e9:.1f} GB of room"
        raise InputError(str(folder), found, expected, "free some space or name another disk.")


def convert(path: Path, table: str) -> Path:
    """Write `path` as parquet beside it, a block at a time; every row is checked on the way.

    Raises:
        InputError: naming the row and column at fault, or where the file cannot be written.
    """
    import pyarrow.parquet as pq

    final = path.with_suffix(".parquet")
    if final.exists():
        return final
    part = final.with_suffix(".part")
    try:
        with writing(final):
            with pq.ParquetWriter(part, arrow_schema(SCHEMAS[table]), compression="zstd") as writer:
                for batch in read_jsonl(path, SCHEMAS[table]):
                    writer.write_table(batch)
            os.replace(part, final)
    finally:
        part.unlink(missing_ok=True)
    return final


def main(
    folder: Annotated[Path, typer.Argument(help="Where to put the files.")],
    edition: Annotated[str, typer.Option(help="lite (20 GB) or full (87 GB).")] = "lite",
    tables: Annotated[str, typer.Option(help="Tables, by commas.")] = ",".join(SCHEMAS),
    parquet: Annotated[bool, typer.Option(help="Convert to parquet, which loads faster.")] = True,
    keep_jsonl: Annotated[bool, typer.Option(help="Keep the JSON Lines once converted.")] = True,
) -> None:
    """Download KuaiSearch, verify it against the published figures, convert it to parquet."""
    try:
        for table, name in files(edition, tables.split(",")).items():
            converted = (folder / name).with_suffix(".parquet")
            if not (parquet and converted.exists()):
                typer.echo(f"{name}: {FIGURES[name][0] / 1e6:,.0f} MB")
                path = download(name, folder)
                converted = convert(path, table) if parquet else path
            if parquet and not keep_jsonl:
                (folder / name).unlink(missing_ok=True)
            typer.echo(f"{name}: verified, {FIGURES[name][1]:,} rows in {converted}")
        shutil.rmtree(folder / STAGING, ignore_errors=True)
    except InputError as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(main)
