"""Quantisers against faiss, balance against the optimum, quality against a count by hand."""

import hashlib
import math
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from minisearch.errors import InputError
from minisearch.identifiers import (
    BANDS,
    ResidualKMeans,
    ResidualOPQ,
    number_duplicates,
    quality,
    quality_table,
)
from minisearch.profiles import derive_seed

SEED = 7


def clustered(count: int = 1500, dimension: int = 16) -> np.ndarray:
    """Vectors around 40 centres, the first far commoner than the last; correlated within."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(40, dimension))
    noise = random.normal(size=(count, dimension)) @ random.normal(size=(dimension, dimension))
    vectors = centres[random.zipf(1.5, count) % 40] + 0.1 * noise
    return vectors.astype(np.float32)


VECTORS = clustered()


def error(vectors: np.ndarray, decoded: np.ndarray) -> float:
    return float(((vectors - decoded) ** 2).sum(1).mean())


def digest(quantiser: ResidualKMeans | ResidualOPQ) -> str:
    content = [quantiser.codes.tobytes(), *(part.tobytes() for part in quantiser.centroids)]
    return hashlib.sha256(b"".join(content)).hexdigest()


def faiss_kmeans(vectors: np.ndarray, size: int, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Centroids, and the number of the one next to each vector, by faiss alone."""
    limits = {"max_points_per_centroid": 10_000, "min_points_per_centroid": 1}
    seed = derive_seed(SEED, "k-means", level) % 2**31
    kmeans = faiss.Kmeans(vectors.shape[1], size, niter=25, seed=seed, **limits)
    kmeans.train(vectors)
    return kmeans.centroids, kmeans.index.search(vectors, 1)[1][:, 0]


@pytest.mark.parametrize("balance_last", [True, False])
def test_the_levels_are_faiss_kmeans_of_what_is_left_over(balance_last):
    sizes = (20, 12, 8)
    quantiser = ResidualKMeans.fit(VECTORS, sizes, SEED, balance_last)
    residual = VECTORS
    for level in range(2 if balance_last else 3):
        centroids, nearest = faiss_kmeans(residual, sizes[level], level)
        np.testing.assert_array_equal(quantiser.centroids[level], centroids)
        np.testing.assert_array_equal(quantiser.codes[:, level], nearest)
        residual = residual - centroids[nearest]
    assert quantiser.sizes == sizes
    assert quantiser.codes.dtype == np.int64
    assert [part.dtype for part in quantiser.centroids] == [np.float32] * 3


def test_a_vector_is_its_decoded_codes_and_a_residual_that_every_level_shortens():
    quantiser = ResidualKMeans.fit(VECTORS, (20, 12, 8), SEED)
    decoded, errors = np.zeros_like(VECTORS), [error(VECTORS, np.zeros_like(VECTORS))]
    for level in range(3):
        decoded = decoded + quantiser.code_vectors(level)[quantiser.codes[:, level]]
        errors.append(error(VECTORS, decoded))
    np.testing.assert_allclose(quantiser.decode(quantiser.codes), decoded, atol=1e-5)
    assert (np.diff(errors) < -0.05 * np.array(errors[:-1])).all()


@pytest.mark.parametrize("kind", [ResidualKMeans, ResidualOPQ])
def test_encoding_the_fitted_vectors_gives_their_codes_unless_balanced(kind):
    fine = ((16, 16),) if kind is ResidualOPQ else ()
    plain = kind.fit(VECTORS, (20, 12), *fine, SEED, balance_last=False)
    np.testing.assert_array_equal(plain.encode(VECTORS), plain.codes)
    balanced = kind.fit(VECTORS, (20, 12), *fine, SEED)
    changed = (balanced.encode(VECTORS) != balanced.codes).mean(0)
    assert changed[0] == 0
    assert 0.01 < changed[1] < 0.5
    assert error(VECTORS, balanced.decode(balanced.encode(VECTORS))) <= error(
        VECTORS, balanced.decode(balanced.codes)
    )


def test_encoding_takes_the_nearest_centroid_level_by_level():
    quantiser = ResidualKMeans.fit(VECTORS, (20, 12), SEED)
    queries = np.random.default_rng(1).normal(size=(50, 16)).astype(np.float32)
    codes, residual = quantiser.encode(queries), queries.astype(float)
    for level, centroids in enumerate(quantiser.centroids):
        distances = ((residual[:, None] - centroids) ** 2).sum(-1)
        np.testing.assert_array_equal(codes[:, level], distances.argmin(1))
        residual = residual - centroids[codes[:, level]]
    assert quantiser.encode(queries[:0]).shape == (0, 2)
    assert quantiser.decode(codes[:0]).shape == (0, 16)


@pytest.mark.parametrize(("count", "size"), [(1500, 60), (1499, 60), (61, 60), (60, 60), (50, 1)])
def test_a_balanced_level_uses_every_code_equally(count, size):
    vectors = VECTORS[:count]
    quantiser = ResidualKMeans.fit(vectors, (size,), SEED)
    counts = np.bincount(quantiser.codes[:, 0], minlength=size)
    assert set(counts) <= {count // size, math.ceil(count / size)}
    means = np.stack([vectors[quantiser.codes[:, 0] == code].mean(0) for code in range(size)])
    np.testing.assert_allclose(quantiser.centroids[0], means, atol=1e-4)


def test_balance_costs_little():
    vectors = clustered(10_000, 32)
    balanced = ResidualKMeans.fit(vectors, (16, 512), SEED)
    plain = ResidualKMeans.fit(vectors, (16, 512), SEED, balance_last=False)
    assert set(np.bincount(balanced.codes[:, 1], minlength=512)) == {19, 20}
    assert np.bincount(plain.codes[:, 1], minlength=512).max() > 40
    errors = [error(vectors, each.decode(each.codes)) for each in (plain, balanced)]
    assert errors[1] < 1.25 * errors[0]


@pytest.mark.parametrize("spread", ["clustered", "normal"])
def test_the_greedy_balance_is_near_the_best_one(spread):
    normal = np.random.default_rng(2).normal(size=(600, 16)).astype(np.float32)
    vectors = VECTORS[:600] if spread == "clustered" else normal
    quantiser = ResidualKMeans.fit(vectors, (30,), SEED)
    distances = ((vectors[:, None] - quantiser.centroids[0]) ** 2).sum(-1)
    rows, places = linear_sum_assignment(np.repeat(distances, 20, axis=1))
    best = distances[rows, places // 20].mean()
    assert best <= error(vectors, quantiser.decode(quantiser.codes)) < 1.1 * best


def test_opq_is_faiss_opq_on_what_kmeans_leaves_over():
    coarse = ResidualKMeans.fit(VECTORS, (20, 12), SEED)
    quantiser = ResidualOPQ.fit(VECTORS, (20, 12), (256, 256), SEED)
    assert quantiser.sizes == (20, 12, 256, 256)
    np.testing.assert_array_equal(quantiser.codes[:, :2], coarse.codes)
    residual = VECTORS - coarse.decode(coarse.codes)
    product, rotation = faiss.ProductQuantizer(16, 2, 8), faiss.OPQMatrix(16, 2)
    product.cp.seed = derive_seed(SEED, "opq") % 2**31
    product.cp.min_points_per_centroid, rotation.pq = 1, product
    rotation.train(residual)
    rotated = rotation.apply(residual)
    product.cp.niter, product.cp.max_points_per_centroid = 25, 10_000
    product.train(rotated)
    codes = product.compute_codes(rotated)
    assert (quantiser.codes[:, 2:] == codes).mean() > 0.999
    decoded = coarse.decode(coarse.codes) + rotation.reverse_transform(product.decode(codes))
    ours = quantiser.decode(np.hstack([coarse.codes, codes.astype(np.int64)]))
    np.testing.assert_allclose(ours, decoded, atol=1e-4)


def test_opq_beats_a_product_quantiser_without_the_rotation():
    coarse = ResidualKMeans.fit(VECTORS, (20, 12), SEED)
    quantiser = ResidualOPQ.fit(VECTORS, (20, 12), (32, 32), SEED)
    residual = VECTORS - coarse.decode(coarse.codes)
    product = faiss.ProductQuantizer(16, 2, 5)
    product.train(residual)
    plain = error(residual, product.decode(product.compute_codes(residual)))
    ours = error(VECTORS, quantiser.decode(quantiser.codes))
    assert ours < 0.95 * plain < plain < error(residual, np.zeros_like(residual))
    first, second = quantiser.code_vectors(2), quantiser.code_vectors(3)
    assert first.shape == second.shape == (32, 16)
    np.testing.assert_allclose(first @ second.T, 0, atol=1e-4)


SCRIPT = """
from test_identifiers import SEED, VECTORS, ResidualOPQ, digest
print(digest(ResidualOPQ.fit(VECTORS, (20, 12), (16, 16), SEED)))
"""


def test_the_same_seed_gives_the_same_bytes_in_another_process():
    command, here = [sys.executable, "-c", SCRIPT], Path(__file__).parent
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=here)
    ours = ResidualOPQ.fit(VECTORS, (20, 12), (16, 16), SEED)
    assert run.stdout.strip() == digest(ours)
    other = ResidualOPQ.fit(VECTORS, (20, 12), (16, 16), SEED + 1)
    for part, changed in zip(ours.centroids, other.centroids, strict=True):
        assert not np.array_equal(part, changed)


@pytest.mark.parametrize(
    ("vectors", "bound"),
    [
        (np.ones((20, 8)), 1e-9),
        (np.zeros((20, 8)), 1e-9),
        (np.repeat(np.eye(8)[:3], 7, axis=0), 0.1),
        (VECTORS[:5, :8], 0.1),
    ],
    ids=["equal", "zero", "three different", "fewer than dimensions"],
)
def test_few_or_equal_vectors_are_quantised_in_silence(vectors, bound, capfd):
    quantiser = ResidualOPQ.fit(vectors, (3, 4), (2, 2), SEED)
    counts = np.bincount(quantiser.codes[:, 1], minlength=4)
    assert counts.max() - counts.min() <= 1
    assert error(vectors, quantiser.decode(quantiser.codes)) < bound
    assert capfd.readouterr() == ("", "")


NAN = np.where(np.arange(12).reshape(6, 2) == 7, np.nan, 1).astype(np.float32)
TEN = VECTORS[:10, :6]


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda: ResidualKMeans.fit(TEN[:0], (2,), 0), "0 vectors for 2 codes"),
        (lambda: ResidualKMeans.fit(TEN[0], (2,), 0), "shape (6,)"),
        (lambda: ResidualKMeans.fit(TEN[:, :0], (2,), 0), "shape (10, 0)"),
        (lambda: ResidualKMeans.fit(TEN, (2, 11), 0), "10 vectors for 11 codes"),
        (lambda: ResidualKMeans.fit(TEN, (), 0), "sizes ()"),
        (lambda: ResidualKMeans.fit(TEN, (2, 0), 0), "sizes (2, 0)"),
        (lambda: ResidualKMeans.fit(NAN, (2,), 0), "1 vectors without a finite length, the first"),
        (lambda: ResidualKMeans.fit(1e30 * TEN, (2,), 0), "10 vectors without a finite length"),
        (lambda: ResidualOPQ.fit(TEN, (2,), (), 0), "sizes ()"),
        (lambda: ResidualOPQ.fit(TEN, (), (4, 4), 0), "sizes ()"),
        (lambda: ResidualOPQ.fit(TEN, (2,), (4, 8), 0), "subspaces of (4, 8) codes"),
        (lambda: ResidualOPQ.fit(TEN, (2,), (6, 6), 0), "subspaces of (6, 6) codes"),
        (lambda: ResidualOPQ.fit(TEN, (2,), (1, 1), 0), "subspaces of (1, 1) codes"),
        (lambda: ResidualOPQ.fit(TEN, (2,), (4,) * 4, 0), "4 subspaces"),
        (lambda: ResidualOPQ.fit(TEN, (2,), (16, 16), 0), "10 vectors for 16 codes"),
        (lambda: FITTED.encode(VECTORS), "shape (1500, 16)"),
        (lambda: FITTED.encode(np.full((1, 6), np.inf)), "the first in row 0"),
        (lambda: FITTED.decode(np.zeros((3, 2), int)), "shape (3, 2)"),
        (lambda: FITTED.decode(np.zeros((3, 1))), "float64"),
        (lambda: FITTED.decode(np.array([[0], [-1]])), "code -1 at row 1, position 0"),
        (lambda: quality(np.array([[0, 1], [1, 4]]), (2, 4)), "code 4 at row 1, position 1"),
        (lambda: quality(np.zeros((0, 2), int), (2, 4)), "0 identifiers"),
        (lambda: quality(np.zeros((3, 2), int), (2, 4), levels=3), "levels = 3"),
        (lambda: quality_table(np.zeros((3, 2), int), (2, 4), levels=0), "levels = 0"),
    ],
)
def test_bad_input_is_refused(call, found):
    with pytest.raises(InputError) as refused:
        call()
    assert found in refused.value.found
    assert all(refused.value.args)


FITTED = ResidualKMeans.fit(TEN, (2,), 0)

# Six items: the first two share an identifier, the last position of five tells them apart.
ITEMS = np.array([[0, 1, 0], [0, 1, 0], [0, 1, 1], [1, 1, 0], [1, 3, 0], [1, 3, 1]])
THIRDS = math.log2(3) - 2 / 3  # bits of a coin that falls on one side two times in three


def test_duplicates_are_numbered_in_row_order():
    codes = np.array([[1, 2], [1, 2], [0, 0], [1, 2], [0, 0], [2, 1]])
    numbers = number_duplicates(codes)
    assert numbers.tolist() == [0, 1, 0, 2, 1, 0]
    assert numbers.dtype == np.int64
    assert number_duplicates(ITEMS).tolist() == [0, 1, 0, 0, 0, 0]
    assert number_duplicates(ITEMS[:0]).tolist() == []


def test_quality_by_hand():
    assert quality(ITEMS, (4, 4, 2)) == pytest.approx(
        {
            "CUR_L1": 2 / 4,
            "CUR_pairs": 3 / 16,
            "CUR_total": 5 / 32,
            "ICR": 4 / 6,
            "collisions": 1 / 6,
            "largest_bucket": 2,
            "entropy_1": 1,
            "entropy_share_1": 1 / 2,
            "entropy_2": THIRDS,
            "entropy_share_2": THIRDS / 2,
            "entropy_3": THIRDS,
            "entropy_share_3": THIRDS,
        }
    )


def test_only_the_kmeans_levels_count_for_the_total_rate_if_asked():
    values, levels = quality(ITEMS, (4, 4, 2)), quality(ITEMS, (4, 4, 2), levels=2)
    assert levels.pop("CUR_total") == 3 / 16
    assert values.pop("CUR_total") == 5 / 32
    assert values == levels


def test_quality_of_one_position_and_of_one_code():
    values = quality(np.zeros((3, 1), dtype=int), (1,))
    assert "CUR_pairs" not in values
    assert values["ICR"] == 0
    assert values["collisions"] == pytest.approx(2 / 3)
    assert (values["entropy_1"], values["entropy_share_1"]) == (0, 1)
    large = quality(np.zeros((3, 8), dtype=int), (65_536,) * 8)  # 2^128 identifiers
    assert large["CUR_total"] == pytest.approx(2.0**-128)


def test_the_table_judges_by_what_so_many_items_can_reach():
    table = quality_table(ITEMS, (4, 4, 2))
    rows = {row["quantity"]: (row["healthy"], row["ok"]) for row in table}
    assert rows == {
        "CUR_L1": ("0.95 to 1", False),
        "CUR_pairs": ("0.0938 to 0.375", True),  # six items use 6 of 16 pairs at most
        "CUR_total": ("0.0938 to 0.188", True),
        "ICR": ("0.9 to 1", False),
        "collisions": ("0 to 0.1", False),
        "largest_bucket": ("1 to 10", True),
        "entropy_share_1": ("0.8 to 1", False),
        "entropy_share_2": ("0.8 to 1", False),
        "entropy_share_3": ("0.8 to 1", True),
    }
    assert [list(row) for row in table] == [["quantity", "value", "healthy", "ok"]] * len(table)
    values = quality(ITEMS, (4, 4, 2))
    assert all(row["value"] == values[row["quantity"]] for row in table)
    assert all(band.low < band.high and band.reason for band in BANDS.values())


def test_all_different_identifiers_pass_and_equal_ones_fail():
    grid = np.stack(np.meshgrid(range(8), range(8), indexing="ij"), -1).reshape(-1, 2)
    assert all(row["ok"] for row in quality_table(grid, (8, 8)))
    assert not any(row["ok"] for row in quality_table(np.zeros((64, 2), int), (8, 8)))
