"""Both indexes: order, ties, filling, refusals."""

import numpy as np
import pytest

from minisearch.errors import InputError
from minisearch.index import BM25Index, DenseIndex

DOCUMENTS = [["red", "shoes"], ["blue", "shoes"], [], ["red", "red", "hat"], ["red", "shoes"]]


def test_bm25_orders_by_score_then_by_row():
    hits = BM25Index(DOCUMENTS).search([["shoes", "red"]], k=4)
    assert hits.ids.tolist()[0][:2] == [0, 4]  # the same document twice: lower row first
    assert hits.scores[0, 0] == hits.scores[0, 1] > hits.scores[0, 2] >= hits.scores[0, 3] > 0
    assert hits.ids.dtype == np.int64
    assert hits.scores.dtype == np.float32


def test_bm25_fills_with_the_lowest_unused_rows():
    hits = BM25Index(DOCUMENTS).search([["hat"], ["unknown"], []], k=4)
    assert hits.ids.tolist() == [[3, 0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert np.isfinite(hits.scores).tolist() == [[True] + [False] * 3, [False] * 4, [False] * 4]
    assert (hits.scores[1] == -np.inf).all()


def test_bm25_search_does_not_depend_on_the_batch():
    random = np.random.default_rng(0)
    texts = [[f"w{i}" for i in random.integers(0, 30, 6)] for _ in range(700)]
    index = BM25Index(texts)
    queries = [text[:3] for text in texts[:600]]
    together = index.search(queries, k=20)
    for row in (0, 255, 256, 599):
        alone = index.search([queries[row]], k=20)
        np.testing.assert_array_equal(alone.ids[0], together.ids[row])
        np.testing.assert_array_equal(alone.scores[0], together.scores[row])
    assert all(len(set(ids)) == 20 for ids in together.ids.tolist())
    assert index.search([], k=3).ids.shape == (0, 3)


def test_bm25_keeps_ties_at_the_cut_in_row_order():
    documents = [["c"]] * 10 + [["a", "b"]] * 50 + [["a", "a"]]
    hits = BM25Index(documents).search([["a"]], k=5)
    assert hits.ids.tolist() == [[60, 10, 11, 12, 13]]


def test_dense_finds_the_greatest_inner_products():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(200, 8)).astype(np.float32)
    queries = random.normal(size=(30, 8)).astype(np.float32)
    hits = DenseIndex(vectors).search(queries, k=200)
    np.testing.assert_array_equal(hits.ids, np.argsort(-(queries @ vectors.T), axis=1))
    np.testing.assert_allclose(hits.scores, -np.sort(-(queries @ vectors.T)), rtol=1e-4, atol=1e-5)


def test_dense_orders_many_equal_vectors_by_row():
    vectors = np.tile(np.array([[1, 0], [0, 1]], dtype=np.float32), (300, 1))
    hits = DenseIndex(vectors).search(np.array([[1, 0], [0, 2]], dtype=np.float32), k=4)
    assert hits.ids.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert hits.scores.tolist() == [[1] * 4, [2] * 4]


@pytest.mark.parametrize("equal", [40, 400])
def test_dense_keeps_the_lowest_of_the_equal_rows_that_do_not_all_fit(equal):
    """Better rows behind the equal ones push some of those out of faiss's heap: any of them."""
    vectors = np.array([[1]] * equal + [[2]] * 20, dtype=np.float32)
    hits = DenseIndex(vectors).search(np.array([[1]], dtype=np.float32), k=22)
    assert hits.ids.tolist() == [[*range(equal, equal + 20), 0, 1]]


@pytest.mark.parametrize("index", [BM25Index(DOCUMENTS), DenseIndex(np.eye(5, dtype=np.float32))])
@pytest.mark.parametrize("k", [0, 6])
def test_k_outside_the_documents(index, k):
    queries = [["red"]] if isinstance(index, BM25Index) else np.ones((1, 5), dtype=np.float32)
    assert len(index) == 5
    with pytest.raises(InputError, match=rf"parameter k: found {k}; expected 1 to 5"):
        index.search(queries, k)


@pytest.mark.parametrize("documents", [[], [[], []]])
def test_bm25_without_words(documents):
    with pytest.raises(InputError, match=f"found {len(documents)} documents without a word"):
        BM25Index(documents)


def test_dense_without_vectors_or_of_another_dimension():
    with pytest.raises(InputError, match=r"shape \(0, 4\)"):
        DenseIndex(np.zeros((0, 4), dtype=np.float32))
    with pytest.raises(InputError, match=r"queries of shape \(1, 3\); expected \(Q, 4\)"):
        DenseIndex(np.eye(4, dtype=np.float32)).search(np.ones((1, 3), dtype=np.float32), 2)


def test_indexing_prints_nothing(capfd):
    BM25Index(DOCUMENTS).search([["red"]], 2)
    assert capfd.readouterr() == ("", "")
