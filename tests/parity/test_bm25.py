"""BM25 against the formula in numpy and against bm25s's own search."""

import bm25s
import numpy as np
import pytest

from minisearch.index import BM25Index


def bm25(documents, query, k1, b):
    """Lucene's BM25 of every document, word by word from the formula."""
    lengths = np.array([len(document) for document in documents])
    scores = np.zeros(len(documents))
    for word in query:
        tf = np.array([document.count(word) for document in documents])
        df = (tf > 0).sum()
        if df:
            idf = np.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            scores += idf * tf / (tf + k1 * (1 - b + b * lengths / lengths.mean()))
    return scores


@pytest.fixture(scope="module")
def texts():
    """80 documents of 1 to 12 Zipf-distributed words, one empty, and 40 queries, words repeated."""
    random = np.random.default_rng(0)
    draw = lambda n: [f"w{i}" for i in random.zipf(1.4, n) % 40]  # noqa: E731
    documents = [draw(n) for n in random.integers(1, 13, 80)]
    documents[17] = []
    return documents, [draw(3) for _ in range(40)] + [["w1", "w1", "w2"], ["nowhere", "w3"]]


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (2.0, 0.0), (1.2, 0.95)])
def test_scores_equal_the_formula(texts, k1, b):
    documents, queries = texts
    hits = BM25Index(documents, k1=k1, b=b).search(queries, k=len(documents))
    for row, query in enumerate(queries):
        expected = bm25(documents, query, k1, b)
        found = np.where(np.isfinite(hits.scores[row]), hits.scores[row], 0)
        np.testing.assert_allclose(found, expected[hits.ids[row]], rtol=1e-5)
        np.testing.assert_allclose(found, -np.sort(-expected), rtol=1e-5)


def test_scores_equal_bm25s(texts):
    documents, queries = texts
    model = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    model.index(documents, show_progress=False)
    _, expected = model.retrieve(queries, k=10, show_progress=False)
    hits = BM25Index(documents).search(queries, k=10)
    np.testing.assert_allclose(np.maximum(hits.scores, 0), expected, rtol=1e-6)
