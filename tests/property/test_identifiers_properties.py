"""Identifiers of any vectors, and the quality of any identifiers."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minisearch.identifiers import (
    ResidualKMeans,
    ResidualOPQ,
    number_duplicates,
    quality,
    quality_table,
)

unhurried = settings(deadline=None)  # the first example also imports faiss or pandas
SIZES = (3, 4, 2)
identifiers = st.lists(
    st.tuples(*(st.integers(0, size - 1) for size in SIZES)), min_size=1, max_size=25
).map(np.array)
# Few different values, so that equal vectors and equal distances are common.
vectors = arrays(
    np.float32,
    st.tuples(st.integers(4, 30), st.sampled_from([2, 6])),
    elements=st.integers(-2, 2).map(float),
)


@given(vectors, st.integers(1, 4), st.integers(0, 9))
@settings(unhurried, max_examples=60)
def test_codes_are_in_range_balanced_and_decoded_by_their_vectors(points, last, seed):
    for quantiser in (
        ResidualKMeans.fit(points, (3, last), seed),
        ResidualOPQ.fit(points, (3, last), (4, 4), seed),
    ):
        for codes in (quantiser.codes, quantiser.encode(points)):
            assert codes.shape == (len(points), len(quantiser.sizes))
            assert (codes >= 0).all()
            assert (codes < quantiser.sizes).all()
        counts = np.bincount(quantiser.codes[:, 1], minlength=last)
        assert set(counts) <= {len(points) // last, math.ceil(len(points) / last)}
        parts = [quantiser.code_vectors(i)[c] for i, c in enumerate(quantiser.codes.T)]
        assert np.allclose(quantiser.decode(quantiser.codes), np.sum(parts, axis=0), atol=1e-5)
        assert np.isfinite(parts).all()


@given(vectors, st.integers(0, 9))
@settings(unhurried, max_examples=60)
def test_no_level_lengthens_the_residual_of_what_it_was_fitted_on(points, seed):
    quantiser = ResidualOPQ.fit(points, (3, 4), (2, 2), seed)
    lengths, residual = [(points**2).sum()], points
    for level, codes in enumerate(quantiser.codes.T):
        residual = residual - quantiser.code_vectors(level)[codes]
        lengths.append((residual**2).sum())
    assert (np.diff(lengths) <= 1e-3 + 1e-5 * lengths[0]).all()


@given(identifiers)
@unhurried
def test_numbered_duplicates_are_unique_and_count_from_zero(codes):
    numbers = number_duplicates(codes)
    assert len(np.unique(np.column_stack([codes, numbers]), axis=0)) == len(codes)
    for row, number in enumerate(numbers):
        assert number == (codes[:row] == codes[row]).all(1).sum()
    numbered = quality(np.column_stack([codes, numbers]), (*SIZES, len(codes)))
    assert (numbered["ICR"], numbered["collisions"], numbered["largest_bucket"]) == (1, 0, 1)
    assert numbers.max() + 1 == quality(codes, SIZES)["largest_bucket"]


@given(identifiers)
@unhurried
def test_quality_keeps_its_bounds(codes):
    values = quality(codes, SIZES)
    # A shared identifier has two items or more: distinct ones are at most single + shared / 2.
    assert (1 - values["ICR"]) / 2 <= values["collisions"] + 1e-12
    assert values["collisions"] <= 1 - values["ICR"] + 1e-12
    assert values["largest_bucket"] * (1 - values["collisions"]) >= 1 - 1e-12
    alone = [values["ICR"] == 1, values["collisions"] == 0, values["largest_bucket"] == 1]
    assert len(set(alone)) == 1
    assert 0 < values["CUR_total"] <= values["CUR_pairs"] <= values["CUR_L1"] <= 1
    distinct = values["CUR_total"] * math.prod(SIZES)
    assert math.isclose(distinct, len(codes) * (1 - values["collisions"]))
    for position, size in enumerate(SIZES, start=1):
        assert 0 <= values[f"entropy_{position}"] <= math.log2(size) + 1e-12
        assert 0 <= values[f"entropy_share_{position}"] <= 1 + 1e-12
    rows = {row["quantity"]: row for row in quality_table(codes, SIZES)}
    assert rows["collisions"]["ok"] or not rows["ICR"]["ok"]


@given(identifiers, st.randoms(use_true_random=False))
@unhurried
def test_quality_depends_neither_on_the_order_of_items_nor_on_the_names_of_codes(codes, random):
    rows = random.sample(range(len(codes)), len(codes))
    names = [random.sample(range(size), size) for size in SIZES]
    renamed = np.stack([np.array(n)[c] for n, c in zip(names, codes.T, strict=True)], axis=1)
    values = quality(codes, SIZES)
    for other in (codes[rows], renamed):
        changed = quality(other, SIZES)
        assert list(changed) == list(values)
        assert np.allclose(list(changed.values()), list(values.values()), atol=1e-12)


@given(identifiers)
@unhurried
def test_a_position_more_never_hurts(codes):
    """A prefix tells apart at most what the whole identifier does."""
    values = [quality(codes[:, :length], SIZES[:length]) for length in (1, 2, 3)]
    assert (np.diff([each["ICR"] for each in values]) >= 0).all()
    assert (np.diff([each["collisions"] for each in values]) <= 0).all()
    assert (np.diff([each["largest_bucket"] for each in values]) <= 0).all()
    assert values[1]["CUR_total"] == quality(codes, SIZES, levels=2)["CUR_total"]
