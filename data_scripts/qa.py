"""Questions, corpus and indexes of the search-agent chapters: fetch, verify, build, serve.

    python data_scripts/qa.py questions data/qa                        # seven data sets, 0.8 GB
    python data_scripts/qa.py corpus data/wiki18                       # 5 GB; with --e5 70 GB
    python data_scripts/qa.py bm25 data/wiki18/wiki-18.jsonl.gz data/wiki18/bm25
    python data_scripts/qa.py dense data/wiki18/wiki-18.jsonl.gz data/wiki18/e5 --kind SQ8
    python data_scripts/qa.py serve data/wiki18/wiki-18.jsonl.gz --bm25 data/wiki18/bm25

Each file is fetched beside its place, checked against the published number of rows, and only then
given its name; an interrupted download goes on where it stopped. Building reads the corpus as a
stream. Encoding, which takes hours, goes on after the last complete part.

The data is its authors': see the data sets' own pages for their terms.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from qa_index import (
    E5,
    DenseService,
    ShardedBM25,
    build_bm25,
    build_dense,
    dense_arithmetic,
    documents_of,
    encode_corpus,
)

from minisearch.data.qa import read_corpus, read_questions
from minisearch.errors import InputError
from minisearch.retriever import BM25Retriever, Retriever, server
from minisearch.storage import atomic_write, writing

QUESTIONS = "RUC-NLPIR/FlashRAG_datasets"
CORPUS = ("PeterJinGo/wiki-18-corpus", "wiki-18.jsonl.gz")
E5_INDEX = ("PeterJinGo/wiki-18-e5-index", ("part_aa", "part_ab"))
STAGING = ".download"

# Rows of each published file; those of the tests are the 51,713 questions of the papers.
ROWS = {
    "nq/train.jsonl": 79_168,
    "hotpotqa/train.jsonl": 90_447,
    "nq/test.jsonl": 3_610,
    "triviaqa/test.jsonl": 11_313,
    "popqa/test.jsonl": 14_267,
    "hotpotqa/dev.jsonl": 7_405,
    "2wikimultihopqa/dev.jsonl": 12_576,
    "musique/dev.jsonl": 2_417,
    "bamboogle/test.jsonl": 125,
}
PASSAGES, WIDTH = 21_015_324, 768  # of the corpus, and of E5-base's vectors
FLAT_HEADER = 45  # bytes before the vectors in faiss's file of a flat index

app = typer.Typer(help=__doc__.split("\n", 1)[0], no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="Where to put the files.")]
CorpusFile = Annotated[Path, typer.Argument(help="A corpus: .jsonl, .jsonl.gz or .parquet.")]
Encoder = Annotated[str, typer.Option(help="An encoder: a folder, or its name on the hub.")]
Revision = Annotated[str, typer.Option(help="The data set's commit on the hub.")]


# --- Fetch and verify ---------------------------------------------------------------------------


def fetch(repository: str, name: str, staging: Path, revision: str = "main") -> Path:
    """Download into the staging folder; the hub's client keeps what it has and resumes there."""
    from huggingface_hub import hf_hub_download

    try:
        with writing(staging / name):
            staging.mkdir(parents=True, exist_ok=True)
            path = hf_hub_download(
                repository, name, repo_type="dataset", revision=revision, local_dir=staging
            )
    except InputError:
        raise
    except Exception as error:  # the client raises a dozen kinds, from httpx, urllib and its own
        found = f"the download stopped ({type(error).__name__}: {error})"
        remedy = "check the network and run the same command again: it goes on where it stopped."
        raise InputError(f"{repository}/{name}", found, "the whole file", remedy) from error
    return Path(path)


def place(part: Path, final: Path, check: Callable[[Path], None]) -> None:
    """Give a fetched file its name if it passes; else delete it, so that it is fetched again."""
    try:
        check(part)
    except InputError:
        part.unlink()
        raise
    with writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, final)


def check_rows(path: Path, found: int, rows: int) -> None:
    """Raises: InputError where a file has another number of rows than the published one."""
    if found != rows:
        remedy = f"delete {path} and run the same command again; else give --revision."
        raise InputError(str(path), f"{found:,} rows", f"{rows:,} rows", remedy)


def join_index(parts: Sequence[Path], final: Path) -> None:
    """Put the pieces of the published flat index together, 16 MB at a time, and check its size."""
    part = final.with_suffix(".part")
    with writing(final), open(part, "wb") as whole:
        for path in parts:
            with open(path, "rb") as piece:
                shutil.copyfileobj(piece, whole, 1 << 24)
    size, expected = part.stat().st_size, FLAT_HEADER + 4 * PASSAGES * WIDTH
    if size != expected:
        part.unlink()
        remedy = f"delete {parts[0].parent} and run the same command again."
        raise InputError(str(final), f"{size:,} bytes", f"{expected:,} bytes", remedy)
    os.replace(part, final)


def need_room(folder: Path, size: int) -> None:
    """Stop before a download that cannot fit. Raises: InputError naming the space needed."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    free += sum(p.stat().st_size for p in (folder / STAGING).rglob("*") if p.is_file())
    if free < size:
        found, expected = f"{free / 1e9:.1f} GB free", f"{size / 1e9:.1f} GB of room"
        raise InputError(str(folder), found, expected, "free some space or name another disk.")


def retriever_of(corpus: Path, bm25: Path | None, dense: Path | None, encoder: str) -> Retriever:
    """The retriever that the options ask for; without an index, BM25 in memory."""
    if bm25 is not None:
        return ShardedBM25(documents_of(corpus), bm25)
    if dense is None:
        return BM25Retriever(list(read_corpus(corpus)))
    import faiss

    if not dense.is_file():
        remedy = "name the file that the command dense wrote, or e5_Flat.index."
        raise InputError("option --dense", str(dense), "an index file", remedy)
    return DenseService(documents_of(corpus), faiss.read_index(str(dense)), E5(encoder))


# --- Commands -----------------------------------------------------------------------------------


@contextmanager
def reporting() -> Iterator[None]:
    """Print an InputError in red and leave with status 2."""
    try:
        yield
    except InputError as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(2) from error


@app.command()
def questions(folder: Folder, revision: Revision = "main") -> None:
    """Fetch the seven sets of questions and check them, every row."""
    with reporting():
        for name, rows in ROWS.items():

            def check(path: Path, rows: int = rows) -> None:
                check_rows(path, len(read_questions(path)), rows)

            final = folder / name
            if final.exists():
                check(final)
            else:
                place(fetch(QUESTIONS, name, folder / STAGING, revision), final, check)
            typer.echo(f"{final}: verified, {rows:,} rows")
        shutil.rmtree(folder / STAGING, ignore_errors=True)


@app.command()
def corpus(
    folder: Folder,
    e5: Annotated[
        bool, typer.Option(help="Fetch the E5 index too: 65 GB, 130 while joined.")
    ] = False,
) -> None:
    """Fetch the 21 million passages of Wikipedia, and the index of their vectors."""
    with reporting():
        final, index = folder / CORPUS[1], folder / "e5_Flat.index"
        if not final.exists():
            need_room(folder, 5_200_000_000)
            part = fetch(*CORPUS, folder / STAGING)
            place(part, final, lambda p: check_rows(p, sum(1 for _ in read_corpus(p)), PASSAGES))
            typer.echo(f"{final}: verified, {PASSAGES:,} passages")
        if e5 and not index.exists():
            need_room(folder, 2 * 4 * PASSAGES * WIDTH)
            join_index([fetch(E5_INDEX[0], n, folder / STAGING) for n in E5_INDEX[1]], index)
            typer.echo(f"{index}: verified, {index.stat().st_size:,} bytes")
        shutil.rmtree(folder / STAGING, ignore_errors=True)


@app.command()
def bm25(
    corpus: CorpusFile,
    folder: Folder,
    shard: Annotated[int, typer.Option(min=1, help="Passages a shard.")] = 500_000,
) -> None:
    """Build a BM25 index in shards."""
    with reporting():
        typer.echo(
            f"memory: {shard:,} passages x about 100 words x 40 bytes = {shard * 4e-6:.1f} GB"
        )
        typer.echo(build_bm25(read_corpus(corpus), folder, shard))


@app.command()
def dense(
    corpus: CorpusFile,
    folder: Folder,
    encoder: Encoder = "intfloat/e5-base-v2",
    kind: Annotated[str, typer.Option(help="faiss factory: Flat, SQ8, IVF4096,SQ8.")] = "Flat",
    batch: Annotated[int, typer.Option(min=1, help="Passages a batch.")] = 256,
    part: Annotated[int, typer.Option(min=1, help="Passages a file of vectors.")] = 100_000,
) -> None:
    """Encode the corpus and build a faiss index."""
    with reporting():
        typer.echo("for Wikipedia: " + dense_arithmetic(PASSAGES, WIDTH, kind))
        next(read_corpus(corpus))  # a wrong file is named before anything is loaded
        settings = {"encoder": encoder, "part": part, "bytes": corpus.stat().st_size}
        same_settings(folder / "settings.json", settings)
        paths = encode_corpus(read_corpus(corpus), folder, E5(encoder), batch, part)
        typer.echo(build_dense(paths, folder / f"{kind.replace(',', '_')}.index", kind))


def same_settings(path: Path, settings: dict[str, Any]) -> None:
    """Raises: InputError where a folder holds vectors of another corpus or encoder."""
    if path.exists() and (found := json.loads(path.read_text())) != settings:
        remedy = "name another folder, or delete this one."
        raise InputError(str(path), str(found), str(settings), remedy)
    atomic_write(path, json.dumps(settings))


@app.command()
def serve(
    corpus: CorpusFile,
    bm25: Annotated[Path | None, typer.Option(help="A folder that bm25 wrote.")] = None,
    dense: Annotated[Path | None, typer.Option(help="An index that dense wrote.")] = None,
    encoder: Encoder = "intfloat/e5-base-v2",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 for any free one.")] = 8000,
) -> None:
    """Answer POST /retrieve in Search-R1's format until interrupted."""
    with reporting():
        next(read_corpus(corpus))
        retriever = retriever_of(corpus, bm25, dense, encoder)
        try:
            running = server(retriever, host, port)
        except OSError as error:
            remedy = "name another port, or 0 for any free one."
            raise InputError("option --port", f"{port} ({error})", "a free port", remedy) from error
        typer.echo(f"serving http://{host}:{running.server_port}/retrieve")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            running.server_close()


if __name__ == "__main__":
    app()
