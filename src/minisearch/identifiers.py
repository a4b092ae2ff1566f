"""Identifiers of items: a short tuple of codes each, made by quantising the item's vector.

Position l of an identifier stands for one of K_l vectors, and the vectors of all positions sum to
an approximation of the item. A k-means position quantises what the positions before it left over,
the residual; those of OPQ look at different subspaces of one residual.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from minisearch.errors import InputError
from minisearch.profiles import derive_seed

ITERATIONS = 25  # of k-means (OneSearch, release)
MAX_POINTS = 10_000  # training vectors a centroid, at most (OneSearch, release)
BALANCING_ROUNDS = 10  # ours: more change the error by about a hundredth, at most


@dataclass(frozen=True, eq=False)
class Quantiser:
    """Identifiers of the items it was fitted on, and the vectors that their codes stand for.

    Shape: sizes (L,), centroids L times (K_l, D) float32, codes (N, L) int64.
    """

    sizes: tuple[int, ...]
    centroids: list[np.ndarray]
    codes: np.ndarray

    def code_vectors(self, level: int) -> np.ndarray:
        """What each code of one position adds to a decoded vector: (K_level, D) float32."""
        return self.centroids[level]

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Identifiers of queries or new items: the nearest centroid at every level, no balance.

        Shape: vectors (Q, D) -> (Q, L) int64.

        Raises:
            InputError: for another dimension than at `fit`, or a value that is not finite.
        """
        where, dimension = f"{type(self).__name__}.encode", self.centroids[0].shape[1]
        return _encode(_checked(where, vectors, dimension), self.centroids)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The sum of the vectors that the codes stand for.

        Shape: codes (Q, L) int -> (Q, D) float32.

        Raises:
            InputError: for another number of positions, or a code out of range.
        """
        _check_codes(f"{type(self).__name__}.decode", codes, self.sizes)
        added = zip(self.centroids, codes.T, strict=True)
        return np.asarray(sum(vectors[position] for vectors, position in added))


class ResidualKMeans(Quantiser):
    """RQ-KMeans: k-means on the vectors, then on what is left over, level by level.

    Source: OneSearch (4096-1024-512); balance on every level used fewer identifiers there.
    """

    @classmethod
    def fit(
        cls, vectors: np.ndarray, sizes: Sequence[int], seed: int, balance_last: bool = True
    ) -> Self:
        """Learns one codebook a level. On one thread the same seed gives the same bytes.

        Args:
            sizes: codes of each level, coarse to fine.
            balance_last: whether `codes` uses each code of the last level floor(N / K) or
                ceil(N / K) times. It takes an (N, K) matrix of distances.

        Shape: vectors (N, D) float32.

        Raises:
            InputError: for no sizes, fewer vectors than codes, or values that are not finite.
        """
        where, residual = "ResidualKMeans.fit", _checked("ResidualKMeans.fit", vectors)
        sizes = _checked_sizes(where, sizes, len(residual))
        centroids, codes = [], np.empty((len(residual), len(sizes)), dtype=np.int64)
        for level, size in enumerate(sizes):
            means = _kmeans(residual, size, derive_seed(seed, "k-means", level))
            if balance_last and level == len(sizes) - 1:
                means, codes[:, level] = _balanced_kmeans(residual, means)
            else:
                codes[:, level] = _nearest(residual, means)
            centroids.append(means)
            residual = residual - means[codes[:, level]]
        return cls(sizes, centroids, codes)


class ResidualOPQ(Quantiser):
    """RQ-KMeans, and an optimised product quantiser (OPQ) on what it leaves over.

    OPQ rotates the residual so that equal slices of it are cheap to quantise, and runs k-means in
    each. Rotated back, a slice's centroid is a vector of the whole space; those of different
    slices are orthogonal, so the one nearest to the residual is the one OPQ chooses.

    Source: OneSearch, 2 subspaces of 256 codes (`OPQ2,IVF1,PQ2x8`); Ge et al. (2013).
    """

    @classmethod
    def fit(
        cls,
        vectors: np.ndarray,
        sizes: Sequence[int],
        subspaces_sizes: Sequence[int],
        seed: int,
        balance_last: bool = True,
    ) -> Self:
        """Learns the k-means levels, then the rotation and one codebook a subspace.

        Shape: vectors (N, D) float32 -> codes (N, len(sizes) + len(subspaces_sizes)).

        Raises:
            InputError: as `ResidualKMeans.fit`; for sizes of subspaces that are not one and the
                same power of two, or their number no divisor of D.
        """
        where, residual = "ResidualOPQ.fit", _checked("ResidualOPQ.fit", vectors)
        fine = _checked_sizes(where, subspaces_sizes, len(residual))
        if len(set(fine)) > 1 or fine[0] < 2 or fine[0] & (fine[0] - 1):
            found = f"subspaces of {fine} codes"
            raise InputError(where, found, "one power of two for all", "choose one.")
        if residual.shape[1] % len(fine):
            expected = f"a divisor of D = {residual.shape[1]}"
            raise InputError(where, f"{len(fine)} subspaces", expected, "change either number.")
        coarse = ResidualKMeans.fit(residual, sizes, seed, balance_last)
        for position, centroids in zip(coarse.codes.T, coarse.centroids, strict=True):
            residual = residual - centroids[position]
        added = _opq(residual, len(fine), fine[0], derive_seed(seed, "opq"))
        codes = np.hstack([coarse.codes, _encode(residual, added)])
        return cls(coarse.sizes + fine, coarse.centroids + added, codes)


def number_duplicates(codes: np.ndarray) -> np.ndarray:
    """0, 1, 2 ... among equal rows, in row order: as one more position it makes rows unique.

    Shape: codes (N, L) int -> (N,) int64.

    Source: TIGER, which appends it to colliding identifiers; DSI numbers its leaves like this.
    """
    import pandas as pd

    table = pd.DataFrame(codes)
    return np.asarray(table.groupby(list(table), sort=False).cumcount(), dtype=np.int64)


@dataclass(frozen=True)
class Band:
    """A healthy range, ends included, and why."""

    low: float
    high: float
    reason: str


# The ranges of the three CURs are relative to the most that N items can reach, min(1, N / codes).
BANDS = {
    "CUR_L1": Band(0.95, 1, "an unused code is a token never trained; OneSearch 0.999"),
    "CUR_pairs": Band(0.25, 1, "at 1 / K_2 the first code decides the second; ours"),
    "CUR_total": Band(0.5, 1, "below, over half of what N items could use is lost; ours"),
    "ICR": Band(0.9, 1, "OneSearch 0.68 without OPQ, 0.92 with it; V2 0.995"),
    "collisions": Band(0, 0.1, "what ICR 0.9 implies: collisions are at most 1 - ICR"),
    "largest_bucket": Band(1, 10, "more, and one identifier fills a page of ten; ours"),
    "entropy_share": Band(0.8, 1, "below, a few codes hold most items and decide the loss; ours"),
}


def quality(codes: np.ndarray, sizes: Sequence[int], levels: int | None = None) -> dict[str, float]:
    """How well identifiers use their codes, and how well they tell items apart.

    - CUR_L1, CUR_pairs, CUR_total (codebook utilisation rate): different prefixes of 1, 2 and
      `levels` positions over the product of their sizes. One position alone has no CUR_pairs.
    - ICR (independent coding rate): share of items whose identifier is theirs alone.
    - collisions: 1 - different identifiers / N. largest_bucket: items of the commonest one.
    - entropy_l, entropy_share_l for each position l = 1 ... L: in bits, and over log2(K_l).

    Args:
        levels: positions of CUR_total, all if None; OneSearch counts the k-means levels only.

    Shape: codes (N, L) int, one identifier a row; sizes (L,), the codes of each position.

    Raises:
        InputError: for no identifiers, a code out of its range, or levels outside 1 ... L.

    Source: OneSearch (`test_cur_icr.py`) for CUR and ICR, the others are ours.
    """
    values: dict[str, float] = {}
    for name, length in _prefixes(codes, sizes, levels).items():
        values[name] = len(np.unique(codes[:, :length], axis=0)) / math.prod(sizes[:length])
    buckets = np.unique(codes, axis=0, return_counts=True)[1]
    values["ICR"] = float((buckets == 1).sum() / len(codes))
    values["collisions"] = 1 - len(buckets) / len(codes)
    values["largest_bucket"] = int(buckets.max())
    for position, size in enumerate(sizes):
        shares = np.unique(codes[:, position], return_counts=True)[1] / len(codes)
        bits = float((shares * -np.log2(shares)).sum())
        values[f"entropy_{position + 1}"] = bits
        values[f"entropy_share_{position + 1}"] = float(bits / np.log2(size)) if size > 1 else 1.0
    return values


def quality_table(
    codes: np.ndarray, sizes: Sequence[int], levels: int | None = None
) -> list[dict[str, object]]:
    """A row {quantity, value, healthy, ok} for each with a healthy range; input as `quality`."""
    lengths, rows = _prefixes(codes, sizes, levels), []
    for name, value in quality(codes, sizes, levels).items():
        band = BANDS.get("entropy_share" if name.startswith("entropy_share") else name)
        if band is not None:
            cells = math.prod(sizes[: lengths[name]]) if name in lengths else 1
            low, high = (bound * min(1, len(codes) / cells) for bound in (band.low, band.high))
            ok = low * (1 - 1e-9) <= value <= high * (1 + 1e-9)
            healthy = f"{low:.3g} to {high:.3g}"
            rows.append({"quantity": name, "value": value, "healthy": healthy, "ok": ok})
    return rows


def _kmeans(vectors: np.ndarray, size: int, seed: int) -> np.ndarray:
    import faiss

    limits = {"min_points_per_centroid": 1, "max_points_per_centroid": MAX_POINTS}  # 1: no warning
    kmeans = faiss.Kmeans(vectors.shape[1], size, niter=ITERATIONS, seed=seed % 2**31, **limits)
    kmeans.train(vectors)
    return np.array(kmeans.centroids, dtype=np.float32)


def _opq(residual: np.ndarray, subspaces: int, size: int, seed: int) -> list[np.ndarray]:
    """One codebook a subspace, (size, D) each, in the space of the residual (N, D)."""
    import faiss

    dimension = residual.shape[1]
    # faiss 1.15 writes out of bounds for fewer vectors than dimensions: then repeat them.
    residual = np.tile(residual, (math.ceil(dimension / len(residual)), 1))
    quantiser = faiss.ProductQuantizer(dimension, subspaces, size.bit_length() - 1)
    quantiser.cp.seed, quantiser.cp.min_points_per_centroid = seed % 2**31, 1
    rotation = faiss.OPQMatrix(dimension, subspaces)
    rotation.pq = quantiser  # a bare pointer; what is learned with the rotation is then refined
    rotation.train(residual)
    quantiser.cp.niter, quantiser.cp.max_points_per_centroid = ITERATIONS, MAX_POINTS
    quantiser.train(rotation.apply(residual))
    matrix = faiss.vector_to_array(rotation.A).reshape(dimension, dimension)
    tables = faiss.vector_to_array(quantiser.centroids).reshape(subspaces, size, -1)
    return [table @ rows for table, rows in zip(tables, np.split(matrix, subspaces), strict=True)]


def _encode(residual: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    codes = np.empty((len(residual), len(codebooks)), dtype=np.int64)
    for level, centroids in enumerate(codebooks):
        codes[:, level] = _nearest(residual, centroids)
        residual = residual - centroids[codes[:, level]]
    return codes


def _nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    import faiss

    return np.asarray(faiss.knn(vectors, centroids, 1)[1][:, 0])


def _balanced_kmeans(vectors: np.ndarray, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """k-means from `means` on whose clusters have floor(N / K) or ceil(N / K) members."""
    for _ in range(BALANCING_ROUNDS):
        codes = _balanced(vectors, means)
        means = np.zeros_like(means)
        np.add.at(means, codes, vectors)
        means /= np.bincount(codes, minlength=len(means)).astype(np.float32)[:, None]
    return means, codes


def _balanced(vectors: np.ndarray, means: np.ndarray) -> np.ndarray:
    """A mean for each vector, every mean used floor(N / K) or ceil(N / K) times; greedy.

    In a round each vector without a mean asks for the nearest that has room; a mean asked by too
    many takes those that would lose most by their second choice. The first floor(N / K) places
    of every mean are given out before the rest, one a mean.

    Shape: vectors (N, D), means (K, D) -> (N,) int64.
    """
    costs = (means**2).sum(1) - 2 * vectors @ means.T  # (N, K), without |vector|^2
    codes = np.full(len(vectors), -1, dtype=np.int64)
    for places in (len(vectors) // len(means), 1):
        room = np.full(len(means), places)
        while (waiting := np.flatnonzero(codes < 0)).size and room.any():
            free = np.flatnonzero(room)
            offers = costs[np.ix_(waiting, free)]
            best = offers.argmin(1)
            asked, other = free[best], min(1, len(free) - 1)  # the second best, if there is one
            loss = np.partition(offers, other, axis=1)[:, other] - offers.min(1)
            order = np.lexsort((-loss, asked))
            queue = asked[order]
            rank = np.arange(len(queue)) - np.searchsorted(queue, queue)
            taken = order[rank < room[queue]]
            codes[waiting[taken]] = asked[taken]
            room -= np.bincount(asked[taken], minlength=len(means))
    return codes


def _checked(where: str, vectors: np.ndarray, dimension: int | None = None) -> np.ndarray:
    """The vectors as contiguous float32, of the given dimension if one is given."""
    if vectors.ndim != 2 or vectors.shape[1] != (dimension or vectors.shape[1] or -1):
        found, expected = f"vectors of shape {vectors.shape}", f"(N, {dimension or 'D above 0'})"
        raise InputError(where, found, expected, "check which encoder made them.")
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(np.einsum("nd,nd->n", vectors, vectors)))
    if bad.size:
        found = f"{bad.size} vectors without a finite length, the first in row {bad[0]}"
        raise InputError(where, found, "finite numbers", "check the encoder and its input.")
    return vectors


def _checked_sizes(where: str, sizes: Sequence[int], count: int) -> tuple[int, ...]:
    if not len(sizes) or min(sizes) < 1:
        found = f"sizes {tuple(sizes)}"
        raise InputError(where, found, "1 or more a level", "give the codes of each level.")
    if max(sizes) > count:
        found, expected = f"{count} vectors for {max(sizes)} codes", "no more codes than vectors"
        raise InputError(where, found, expected, "lower the sizes, or encode more items.")
    return tuple(map(int, sizes))


def _check_codes(where: str, codes: np.ndarray, sizes: Sequence[int]) -> None:
    if codes.ndim != 2 or codes.shape[1] != len(sizes) or codes.dtype.kind not in "iu":
        found = f"codes of shape {codes.shape}, {codes.dtype}"
        raise InputError(where, found, f"(N, {len(sizes)}) integers", "pass codes and sizes alike.")
    bad = np.argwhere((codes < 0) | (codes >= np.array(sizes)))
    if len(bad):
        row, position = bad[0]
        found = f"code {codes[row, position]} at row {row}, position {position}"
        raise InputError(where, found, f"0 to {sizes[position] - 1}", "take offsets off the codes.")


def _prefixes(codes: np.ndarray, sizes: Sequence[int], levels: int | None) -> dict[str, int]:
    """How many positions each utilisation rate looks at, once the input is checked."""
    _check_codes("quality", codes, sizes)
    levels = len(sizes) if levels is None else levels
    if not len(codes) or not 1 <= levels <= len(sizes):
        found = f"{len(codes)} identifiers, levels = {levels}"
        expected = f"identifiers, and 1 to {len(sizes)} levels"
        raise InputError("quality", found, expected, "check the codes, and levels.")
    lengths = {"CUR_L1": 1, "CUR_pairs": 2, "CUR_total": levels}
    return {name: length for name, length in lengths.items() if length <= len(sizes)}
