"""Two exact indexes with one protocol, `search(queries, k) -> Hits`: words (BM25) and vectors.

Both always return k different rows a query, in an order that depends on nothing but the scores:
equal scores are ordered by the lower row number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from minisearch.errors import InputError


@dataclass(frozen=True)
class Hits:
    """What a search returned, best first.

    Shape: ids (Q, K) int64 row numbers of the indexed documents, scores (Q, K) float32.
    """

    ids: np.ndarray
    scores: np.ndarray


class BM25Index:
    """Lucene's BM25 over documents given as lists of words.

    score(q, d) = sum over the words t of q of idf(t) tf / (tf + k1 (1 - b + b |d| / mean |d|)),
    idf(t) = ln(1 + (N - df + 0.5) / (df + 0.5)).

    Args:
        documents: one list of words a document; a document may be empty.
        k1: how soon a repeated word stops adding to the score.
        b: how far long documents are discounted, 0 to 1.

    Raises:
        InputError: when no document holds a word.

    Source: Kamphuis et al. (2020), variant "Lucene (accurate)", through bm25s.
    """

    def __init__(
        self, documents: Sequence[Sequence[str]], k1: float = 1.5, b: float = 0.75
    ) -> None:
        import bm25s
        from scipy.sparse import csr_array

        if not any(map(len, documents)):
            found = f"{len(documents)} documents without a word"
            raise InputError("BM25Index", found, "at least one word", "check the texts.")
        model = bm25s.BM25(k1=k1, b=b, method="lucene")
        model.index([list(document) for document in documents], show_progress=False)
        parts = tuple(model.scores[name] for name in ("data", "indices", "indptr"))
        # bm25s stores the score of every (document, word) by column; read by row it is (V, N).
        self._word_scores = csr_array(parts, shape=(len(parts[2]) - 1, len(documents)))
        self._word_rows = model.vocab_dict

    def __len__(self) -> int:
        return self._word_scores.shape[1]

    def search(self, queries: Sequence[Sequence[str]], k: int) -> Hits:
        """The k best documents for each list of words.

        Where fewer than k share a word with the query, the list is filled with the lowest unused
        rows at score -inf.

        Raises:
            InputError: for k below 1 or above the number of documents.
        """
        from scipy.sparse import csr_array

        _check_k(k, len(self))
        found = [[self._word_rows[w] for w in q if w in self._word_rows] for q in queries]
        columns = np.array([c for row in found for c in row], dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in found])]).astype(np.int64)
        shape = (len(found), self._word_scores.shape[0])
        weights = csr_array((np.ones(len(columns), np.float32), columns, offsets), shape=shape)
        ids = np.empty((len(found), k), dtype=np.int64)
        scores = np.empty((len(found), k), dtype=np.float32)
        for first in range(0, len(found), 256):  # blocks bound the memory of the product
            block = weights[first : first + 256] @ self._word_scores
            for row, (start, end) in enumerate(pairwise(block.indptr), start=first):
                ids[row], scores[row] = _best(block.indices[start:end], block.data[start:end], k)
        return Hits(ids, scores)


class DenseIndex:
    """Exact search by inner product over vectors, on faiss.

    Shape: vectors (N, D) float32.

    Raises:
        InputError: when there is no vector.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        import faiss

        if vectors.ndim != 2 or not vectors.size:
            found = f"vectors of shape {vectors.shape}"
            raise InputError("DenseIndex", found, "(N, D), neither 0", "check what was encoded.")
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(np.ascontiguousarray(vectors, dtype=np.float32))

    def __len__(self) -> int:
        return self._index.ntotal

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """The k rows with the greatest inner product for each query.

        Shape: queries (Q, D) float32.

        Raises:
            InputError: for k below 1 or above the number of vectors, or another dimension.
        """
        _check_k(k, len(self))
        if queries.ndim != 2 or queries.shape[1] != self._index.d:
            found, expected = f"queries of shape {queries.shape}", f"(Q, {self._index.d})"
            raise InputError("DenseIndex", found, expected, "encode both into the same space.")
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        depth = min(k + 16, len(self))
        scores, ids = self._index.search(queries, depth)
        # faiss picks any of several equal scores: look deeper until every tie at rank k is seen.
        while depth < len(self) and (scores[:, k - 1] == scores[:, -1]).any():
            depth = min(4 * depth, len(self))
            scores, ids = self._index.search(queries, depth)
        order = np.lexsort((ids, -scores), axis=-1)[:, :k]
        return Hits(np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1))


def _best(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of the matched rows; below them the lowest other rows, at -inf.

    Shape: rows (M,) int, all different, scores (M,) float32 -> (k,), (k,).
    """
    if len(rows) > k:  # drop what is below the k-th score, keep every tie with it
        kept = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
        rows, scores = rows[kept], scores[kept]
    order = np.lexsort((rows, -scores))[:k]
    rows, scores = rows[order], scores[order]
    if len(rows) < k:
        others = np.setdiff1d(np.arange(k), rows)[: k - len(rows)]
        rows = np.concatenate([rows, others])
        scores = np.concatenate([scores, np.full(len(others), -np.inf, scores.dtype)])
    return rows, scores


def _check_k(k: int, size: int) -> None:
    if not 1 <= k <= size:
        expected = f"1 to {size}, the number of documents"
        raise InputError("parameter k", str(k), expected, "lower k, or index more.")
