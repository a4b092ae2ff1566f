"""Indexes over a corpus that does not fit into memory, and retrievers over them.

The commands of `qa.py` that build and serve use this module. The corpus is read as a stream; BM25
is built and kept in shards on disk, vectors go through files of float16 into a faiss index.
"""

from __future__ import annotations

import json
import math
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from minisearch.data.qa import Document
from minisearch.errors import InputError
from minisearch.retriever import Hit, check_topk
from minisearch.storage import atomic_directory, atomic_write, writing
from minisearch.text import words

K1, B = 1.5, 0.75  # as `index.BM25Index`


def documents_of(corpus: Path) -> Any:
    """The passages by row number, memory-mapped; converted once, beside the corpus."""
    from datasets import load_dataset

    kind, cache = "parquet" if corpus.suffix == ".parquet" else "json", corpus.parent / ".datasets"
    return load_dataset(kind, data_files=str(corpus), split="train", cache_dir=str(cache))


def hit(document: Any, score: float) -> Hit:
    """One passage found, in the wire format."""
    passage: Document = {"id": str(document["id"]), "contents": document["contents"]}
    return {"document": passage, "score": score}


def check_same(where: object, indexed: int, passages: int) -> None:
    """Raises: InputError where an index and a corpus differ in length."""
    if indexed != passages:
        found, expected = f"{indexed:,} rows", f"the corpus's {passages:,}"
        raise InputError(str(where), found, expected, "build the index from this corpus.")


# --- BM25 in shards -----------------------------------------------------------------------------


def build_bm25(corpus: Iterator[Document], folder: Path, shard: int) -> str:
    """Index a stream of passages; equal to `index.BM25Index` over all of them at once.

    Memory: one shard's words (about 40 bytes a word while they are sorted) and the vocabulary.
    The first pass counts each shard's words; the second, once the statistics of the whole corpus
    are known, turns counts into scores.

    Returns: what was built, in figures.
    """
    vocabulary: dict[str, int] = {}
    with atomic_directory(folder) as part:
        counted: list[Path] = []
        while (path := _count(islice(corpus, shard), vocabulary, part, len(counted))) is not None:
            counted.append(path)
        frequency = np.zeros(len(vocabulary), np.int64)
        passages = length = 0
        for path in counted:
            with np.load(path) as counts:
                frequency[: len(counts["starts"]) - 1] += np.diff(counts["starts"])
                passages, length = (
                    passages + len(counts["lengths"]),
                    length + counts["lengths"].sum(),
                )
        if not length:
            raise InputError("corpus", "no word", "passages with words", "check the texts.")
        idf = np.log1p((passages - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)
        for path in counted:
            _score(path, idf, length / passages)
        text = json.dumps(list(vocabulary), ensure_ascii=False)
        (part / "vocabulary.json").write_text(text, encoding="utf-8")
    postings = int(frequency.sum())
    return (
        f"{passages:,} passages, {len(vocabulary):,} words, {len(counted)} shards; on disk "
        f"{postings:,} postings x 8 bytes + {len(counted)} x {len(vocabulary):,} starts x 4 bytes "
        f"= {(postings * 8 + len(counted) * len(vocabulary) * 4) / 1e9:.2f} GB"
    )


def _count(
    documents: Iterator[Document], vocabulary: dict[str, int], folder: Path, number: int
) -> Path | None:
    """Count one shard's words: for each word the passages that have it, and how often."""
    ids, sizes = array("i"), array("i")
    for document in documents:
        found = words(document["contents"])
        ids.extend(vocabulary.setdefault(word, len(vocabulary)) for word in found)
        sizes.append(len(found))
    if not sizes:
        return None
    lengths = np.asarray(sizes, np.int64)
    keys = np.asarray(ids, np.int64) * len(lengths) + np.repeat(np.arange(len(lengths)), lengths)
    keys, times = np.unique(keys, return_counts=True)
    starts = np.searchsorted(keys, np.arange(len(vocabulary) + 1) * len(lengths))
    rows, path = (keys % len(lengths)).astype(np.int32), folder / f"{number:05d}" / "counts.npz"
    path.parent.mkdir()
    np.savez(path, starts=starts, rows=rows, times=times.astype(np.int32), lengths=lengths)
    return path


def _score(path: Path, idf: np.ndarray, mean: float) -> None:
    """Turn one shard's counts into the memory-mapped form of bm25s."""
    import bm25s

    with np.load(path) as counts:
        starts, rows, times, lengths = (counts[k] for k in ("starts", "rows", "times", "lengths"))
    starts = np.pad(starts, (0, len(idf) + 1 - len(starts)), mode="edge")
    norm = (K1 * (1 - B + B * lengths / mean)).astype(np.float32)
    scores = np.repeat(idf, np.diff(starts)) * (times / (times + norm[rows])).astype(np.float32)
    model = bm25s.BM25(k1=K1, b=B, method="lucene")
    model.scores = {"data": scores, "indices": rows, "indptr": starts.astype(np.int32)}
    model.scores["num_docs"] = len(lengths)
    model.vocab_dict, model.nonoccurrence_array = {}, None  # one vocabulary serves all shards
    model.save(path.parent, show_progress=False)
    path.unlink()


class ShardedBM25:
    """A `Retriever` over what `build_bm25` wrote; the shards stay on disk, memory-mapped."""

    def __init__(self, documents: Sequence[Any], folder: Path) -> None:
        import bm25s

        names = sorted(path.parent for path in folder.glob("*/params.index.json"))
        load = bm25s.BM25.load
        self._shards = [load(n, mmap=True, load_vocab=False, show_progress=False) for n in names]
        indexed = sum(shard.scores["num_docs"] for shard in self._shards)
        check_same(folder, indexed, len(documents))
        vocabulary = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        self._ids = {word: number for number, word in enumerate(vocabulary)}
        self._documents = documents

    def batch_search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """As `Retriever`."""
        check_topk(topk)
        return [
            self._search([self._ids[w] for w in words(q) if w in self._ids], topk) for q in queries
        ]

    def _search(self, ids: list[int], topk: int) -> list[Hit]:
        best: list[tuple[float, int]] = []
        first = 0
        for shard in self._shards if ids else ():
            scores = shard.get_scores_from_ids(ids)
            bound = np.partition(scores, -topk)[-topk] if topk < len(scores) else 0
            rows = np.flatnonzero((scores >= bound) & (scores > 0))
            best += zip((-scores[rows]).tolist(), (first + rows).tolist(), strict=True)
            first += len(scores)
        return [hit(self._documents[row], -score) for score, row in sorted(best)[:topk]]


# --- Vectors ------------------------------------------------------------------------------------


class E5:
    """Texts to vectors as E5 has it: a prefix, the mean over the tokens, length 1.

    Args:
        name: a folder, or a name on the hub.
        max_length: tokens a text, the prefix included.

    Raises:
        InputError: where there is no such encoder.

    Source: E5 (arXiv 2212.03533).
    """

    def __init__(self, name: str, max_length: int = 256) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        half = torch.float16 if self.device == "cuda" else torch.float32
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            self.model = AutoModel.from_pretrained(name).to(self.device, half).eval()
        except (OSError, ValueError) as error:
            found, expected = f"{name!r} ({error})", "a folder or a name on the hub"
            raise InputError("option --encoder", found, expected, "check the name.") from error
        self.max_length = max_length

    def __call__(self, texts: Sequence[str], prefix: str) -> np.ndarray:
        """Shape: N texts -> (N, D) float32. `prefix` is "query: " or "passage: "."""
        import torch

        texts = [prefix + text for text in texts]
        cut = {"truncation": True, "max_length": self.max_length}
        inputs = self.tokenizer(texts, padding=True, return_tensors="pt", **cut).to(self.device)
        with torch.inference_mode():
            states = self.model(**inputs).last_hidden_state.float()  # (N, T, D)
        mask = inputs["attention_mask"].unsqueeze(-1)  # (N, T, 1)
        means = (states * mask).sum(1) / mask.sum(1)
        return np.asarray(torch.nn.functional.normalize(means, dim=-1).cpu().numpy())


def encode_corpus(
    corpus: Iterator[Document],
    folder: Path,
    encode: Callable[..., np.ndarray],
    batch: int,
    part: int,
) -> list[Path]:
    """Encode a stream into float16 files of `part` rows each; complete files are kept.

    Memory: one part, and one batch in the encoder.
    """
    paths: list[Path] = []
    while documents := list(islice(corpus, part)):
        paths.append(folder / f"{len(paths):05d}.npy")
        if paths[-1].exists() and len(np.load(paths[-1], mmap_mode="r")) == len(documents):
            continue
        texts = [document["contents"] for document in documents]
        batches = [texts[start : start + batch] for start in range(0, len(texts), batch)]
        vectors = np.concatenate([encode(b, "passage: ").astype(np.float16) for b in batches])
        content = BytesIO()
        np.save(content, vectors)
        atomic_write(paths[-1], content.getvalue())
    return paths


def build_dense(paths: Sequence[Path], final: Path, kind: str, sample: int = 262_144) -> str:
    """Build a faiss index from files of vectors, one file at a time.

    Args:
        kind: one of faiss's factory strings, e.g. Flat, SQ8 or IVF4096,SQ8.
        sample: vectors that centroids and ranges are learnt from, spread over the corpus.

    Returns: what was built, in figures.
    """
    import faiss

    width = np.load(paths[0], mmap_mode="r").shape[1]
    index = new_index(width, kind)
    if not index.is_trained:
        each = math.ceil(sample / len(paths))
        picks = [np.load(path, mmap_mode="r") for path in paths]
        some = [vectors[:: max(1, len(vectors) // each)] for vectors in picks]
        index.train(np.concatenate(some).astype(np.float32))
    for path in paths:
        index.add(np.load(path).astype(np.float32))
    part = final.with_suffix(".part")
    with writing(final):
        faiss.write_index(index, str(part))
        os.replace(part, final)
    return dense_arithmetic(index.ntotal, width, kind)


def new_index(width: int, kind: str) -> Any:
    """An empty index. Raises: InputError for a factory string that faiss does not know."""
    import faiss

    try:
        return faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        remedy = "see faiss's page on the index factory."
        raise InputError(
            "option --kind", repr(kind), "e.g. Flat, SQ8, IVF4096,SQ8", remedy
        ) from error


def dense_arithmetic(passages: int, width: int, kind: str) -> str:
    """The memory and disk that an index needs, spelled out."""
    index = new_index(width, kind)
    size = getattr(index, "code_size", index.sa_code_size()) + 8 * kind.startswith("IVF")  # ids
    return (
        f"{passages:,} passages x {size:,} bytes = {passages * size / 1e9:.1f} GB in memory "
        f"as {kind}; vectors on disk {passages:,} x {width} x 2 bytes "
        f"= {passages * width * 2 / 1e9:.1f} GB"
    )


class DenseService:
    """A `Retriever` over a faiss index whose rows are those of the corpus."""

    def __init__(
        self, documents: Sequence[Any], index: Any, encode: Callable[..., np.ndarray]
    ) -> None:
        check_same("index", index.ntotal, len(documents))
        self._documents, self._index, self._encode = documents, index, encode

    def batch_search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """As `Retriever`."""
        check_topk(topk)
        if not queries:
            return []
        vectors = self._encode(queries, "query: ")
        found = self._index.search(vectors, min(topk, self._index.ntotal))
        return [
            [hit(self._documents[row], score) for score, row in zip(*pair, strict=True) if row >= 0]
            for pair in zip(*(values.tolist() for values in found), strict=True)
        ]
