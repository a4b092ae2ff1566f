"""The trie of a few identifiers, and beam search on a BART whose numbers can be worked out."""

import numpy as np
import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from minisearch.beam import Trie, allowed_tokens, beam_search, nested_trie
from minisearch.errors import InputError

# Sorted: [2 5 7] [2 5 9] [2 6 7] [4 5 3] [4 8 7]; the first stands there twice.
IDS = np.array([[4, 8, 7], [2, 5, 7], [2, 6, 7], [2, 5, 9], [4, 5, 3], [2, 5, 7]])
SORTED = [[2, 5, 7], [2, 5, 9], [2, 6, 7], [4, 5, 3], [4, 8, 7]]
QUERY = torch.tensor([[3, 4, 5]])


def bart(size=12, **changes):
    """A BART that knows nothing: each token is as probable as exp(final_logits_bias) says."""
    settings = {
        "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "dropout": 0.0,
        "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
        "decoder_start_token_id": 1, "forced_eos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(vocab_size=size, **{**settings, **changes}))
    torch.nn.init.zeros_(model.model.shared.weight)
    return model.eval()


def opinionated(**changes):
    """A BART whose answer depends on the query."""
    model = bart(**changes)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter)
    return model


def with_probabilities(weights):
    """Token t has a probability of weights[t] / sum(weights), whatever stands before it."""
    model = bart(len(weights))
    model.final_logits_bias[0] = torch.tensor(weights).log()
    return model


# -- the trie --------------------------------------------------------------------------------------


def test_identifiers_are_sorted_and_different():
    trie = Trie(IDS)
    assert len(trie) == 5
    assert trie.depth == 3
    assert trie.identifiers().tolist() == SORTED
    assert trie.identifiers().dtype == np.int64


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64])
def test_identifiers_of_any_integers(dtype):
    trie = Trie(IDS.astype(dtype))
    assert trie.identifiers().tolist() == SORTED
    assert trie.find(np.array(SORTED, dtype=dtype)).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (0, [([2, 4], 0)]),
        (1, [([5, 6], 0), ([5, 8], 2)]),
        (2, [([7, 9], 0), ([7], 2), ([3], 3), ([7], 4)]),
    ],
)
def test_children_are_neighbours(level, expected):
    tokens, counts, first = Trie(IDS).children(level, np.arange(len(expected)))
    rows = [row[:count].tolist() for row, count in zip(tokens, counts, strict=True)]
    assert list(zip(rows, first.tolist(), strict=True)) == expected


def test_nothing_follows_a_number_beyond_the_last():
    assert Trie(IDS).children(1, np.array([1, 2, 9])).counts.tolist() == [2, 0, 0]


def test_find():
    absent = [[2, 5, 8], [2, 8, 7], [4, 5, 7], [1, 5, 7], [9, 9, 9], [2, 5, -1], [3, 5, 7]]
    trie = Trie(IDS)
    assert trie.find(np.array(SORTED)).tolist() == [0, 1, 2, 3, 4]
    assert trie.find(np.array(absent)).tolist() == [-1] * 7
    assert trie.find(np.array(SORTED[::-1] + absent[:1])).tolist() == [4, 3, 2, 1, 0, -1]
    assert trie.find(np.empty((0, 3), dtype=int)).tolist() == []


def test_arrays_are_as_small_as_their_numbers_allow():
    # Tokens 2 + 4 + 5 and pointers 2 + 3 + 5, one byte each.
    assert Trie(IDS).nbytes == 21
    # 10 and 1000 tokens of one and two bytes; 2 and 11 pointers of one and two.
    wide = np.stack([np.arange(1000) // 100, np.arange(1000)], axis=1)
    assert Trie(wide).nbytes == 10 * 1 + 1000 * 2 + 2 * 1 + 11 * 2
    assert Trie(wide + 50_000).nbytes == Trie(wide).nbytes


def test_nested_trie_and_what_it_allows():
    nested = nested_trie(IDS)
    assert nested == {4: {8: {7: {}}, 5: {3: {}}}, 2: {5: {7: {}, 9: {}}, 6: {7: {}}}}
    allowed = allowed_tokens(nested)
    assert sorted(allowed(0, torch.tensor([1]))) == [2, 4]
    assert sorted(allowed(0, torch.tensor([1, 2, 5]))) == [7, 9]
    assert allowed(0, torch.tensor([1, 3])) == [0]  # a lost beam
    assert allowed(0, torch.tensor([1, 3, 0])) == [0]
    assert sorted(allowed_tokens(nested, start_length=2)(0, torch.tensor([1, 1, 2]))) == [5, 6]


# -- the search ------------------------------------------------------------------------------------


def test_scores_are_those_within_the_whole_vocabulary():
    weights = [1.0, 1.0, 3.0, 1.0, 2.0, 4.0, 1.0, 2.0, 5.0, 1.0, 1.0, 2.0]
    found = beam_search(with_probabilities(weights), QUERY, 5, Trie(IDS))
    # Products of weights: 24, 12, 6, 8 and 20, in the order of SORTED.
    assert found.leaves.tolist() == [[0, 4, 1, 3, 2]]
    assert found.tokens.tolist() == [[SORTED[leaf] for leaf in (0, 4, 1, 3, 2)]]
    expected = np.log(np.array([24, 20, 12, 8, 6]) / sum(weights) ** 3)
    np.testing.assert_allclose(found.scores, [expected], atol=1e-5)
    assert found.scores.dtype == np.float32
    assert found.tokens.dtype == found.leaves.dtype == np.int64


def test_a_narrow_beam_keeps_what_begins_well():
    """The best identifier, [4 8 7], begins with the second-best token: a beam of 1 loses it."""
    weights = [1.0, 1.0, 3.0, 1.0, 2.0, 4.0, 1.0, 2.0, 9.0, 1.0, 1.0, 2.0]
    model, trie = with_probabilities(weights), Trie(IDS)
    assert beam_search(model, QUERY, 1, trie).leaves.tolist() == [[0]]
    assert beam_search(model, QUERY, 2, trie).leaves.tolist() == [[4, 0]]


def test_equal_scores_are_in_lexicographic_order():
    for width in (1, 2, 3, 5):
        found = beam_search(bart(), torch.cat([QUERY, QUERY]), width, Trie(IDS))
        assert found.leaves.tolist() == [list(range(width))] * 2
    everything = [np.arange(2, 10)] * 3
    found = beam_search(bart(), QUERY, 3, everything)
    assert found.tokens.tolist() == [[[2, 2, 2], [2, 2, 3], [2, 2, 4]]]


def test_of_equal_prefixes_the_first_are_kept():
    weights = [1.0, 1.0, 3.0, 3.0, 3.0, 1.0, 1.0, 1.0]
    found = beam_search(with_probabilities(weights), QUERY, 2, [np.arange(1, 8), np.arange(4, 8)])
    assert found.tokens.tolist() == [[[2, 4], [3, 4]]]


def test_a_beam_wider_than_the_trie_leaves_places_empty():
    found = beam_search(bart(), torch.cat([QUERY, QUERY]), 8, Trie(IDS))
    assert found.leaves.tolist() == [[0, 1, 2, 3, 4, -1, -1, -1]] * 2
    assert found.tokens[:, 5:].tolist() == [[[0, 0, 0]] * 3] * 2
    assert np.isneginf(found.scores[:, 5:]).all()
    assert np.isfinite(found.scores[:, :5]).all()


def test_a_token_of_probability_zero_is_no_continuation():
    model = bart()
    model.final_logits_bias[0, 5] = -torch.inf
    found = beam_search(model, QUERY, 5, Trie(IDS))
    assert found.leaves.tolist() == [[2, 4, -1, -1, -1]]


def test_a_search_without_a_trie_goes_by_positions():
    weights = [1.0, 1.0, 3.0, 1.0, 2.0, 4.0, 1.0, 2.0, 5.0, 1.0, 1.0, 2.0]
    allowed = [np.array([4, 2, 4]), np.array([6, 5])]  # neither sorted nor different
    found = beam_search(with_probabilities(weights), QUERY, 5, allowed)
    assert found.tokens.tolist() == [[[2, 5], [4, 5], [2, 6], [4, 6], [0, 0]]]
    np.testing.assert_allclose(
        found.scores[0, :4], np.log(np.array([12, 8, 3, 2]) / sum(weights) ** 2), atol=1e-5
    )
    assert (found.leaves == -1).all()


def test_queries_come_back_in_their_order_whatever_the_batches():
    model = opinionated()
    random = torch.Generator().manual_seed(0)
    queries = torch.randint(2, 12, (9, 6), generator=random)
    for row, length in enumerate([6, 2, 4, 1, 6, 3, 2, 5, 1]):
        queries[row, length:] = 0
    trie = Trie(np.indices((10, 10, 10)).reshape(3, -1).T + 2)
    whole = beam_search(model, queries, 3, trie)
    assert len({str(row) for row in whole.leaves}) > 2, "the queries should differ"
    for size in (1, 2, 9):
        parts = beam_search(model, queries, 3, trie, batch_size=size)
        assert (parts.tokens == whole.tokens).all()
        assert (parts.leaves == whole.leaves).all()
        np.testing.assert_allclose(parts.scores, whole.scores, atol=1e-5)
    alone = [beam_search(model, row[row != 0][None], 3, trie) for row in queries]
    assert [found.leaves[0].tolist() for found in alone] == whole.leaves.tolist()


def test_queries_of_similar_length_are_read_together_without_the_columns_that_none_needs():
    model, shapes = bart(), []
    model.get_encoder().embed_tokens.register_forward_pre_hook(
        lambda _, inputs: shapes.append(tuple(inputs[0].shape))
    )
    queries = torch.full((5, 7), 3)
    for row, length in enumerate([6, 2, 5, 1, 2]):
        queries[row, length:] = 0
    beam_search(model, queries, 2, Trie(IDS), batch_size=2)
    assert shapes == [(2, 2), (2, 5), (1, 6)]


def test_no_query_has_no_beams():
    found = beam_search(bart(), torch.empty(0, 3, dtype=torch.long), 2, Trie(IDS))
    assert found.tokens.shape == (0, 2, 3)
    assert found.scores.shape == found.leaves.shape == (0, 2)


def test_a_model_in_training_is_searched_as_in_evaluation_and_left_as_it_is():
    model = opinionated(dropout=0.5)
    expected = beam_search(model, QUERY, 5, Trie(IDS))
    model.train()
    found = beam_search(model, QUERY, 5, Trie(IDS))
    assert (found.scores == expected.scores).all()
    assert all(module.training for module in model.modules())
    model(input_ids=QUERY, labels=QUERY).loss.backward()


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        (np.empty((0, 3), dtype=int), "(0, 3)"),
        (np.empty((3, 0), dtype=int), "(3, 0)"),
        (np.array([1, 2]), "(2,)"),
        (np.array([[1.0, 2.0]]), "float64"),
        (np.array([[1, -2]]), "from -2 to 1"),
        (np.array([[1, 2**31]]), "to 2147483648"),
    ],
)
def test_what_is_no_table_of_tokens(ids, found):
    with pytest.raises(InputError, match="Trie") as caught:
        Trie(ids)
    assert found in caught.value.found


def test_find_wants_whole_identifiers():
    with pytest.raises(InputError, match=r"\(Q, 3\)"):
        Trie(IDS).find(np.array([[2, 5]]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 0}, "width: found 0"),
        ({"batch_size": 0}, "batch_size: found 0"),
        ({"input_ids": QUERY[0]}, r"input_ids: found shape \(3,\)"),
        ({"input_ids": QUERY.float()}, "float32"),
        ({"input_ids": torch.tensor([[3, 4], [0, 0]])}, "nothing but padding in row 1"),
        ({"input_ids": torch.full((1, 17), 3)}, "length .*: found 17"),
        ({"constraint": Trie(np.ones((1, 17), dtype=int))}, "length .*: found 17"),
        ({"constraint": Trie(np.array([[12]]))}, "vocabulary .*: found 13; expected 0 to 12"),
        ({"constraint": [np.array([12])]}, "vocabulary .*: found 13"),
        ({"constraint": []}, "constraint"),
        ({"constraint": [np.array([2]), np.array([], dtype=int)]}, "constraint"),
        ({"constraint": [np.array([2, -1])]}, "constraint"),
    ],
)
def test_what_cannot_be_searched(changes, words):
    usable = {"input_ids": QUERY, "width": 2, "constraint": Trie(IDS)}
    with pytest.raises(InputError, match=words):
        beam_search(bart(), **{**usable, **changes})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("width", [1, 3, 8])
def test_a_model_that_returns_what_is_no_number(value, width):
    model = bart()
    model.final_logits_bias[0, 11] = value  # of a token that no identifier has
    with pytest.raises(InputError, match="no number"):
        beam_search(model, QUERY, width, Trie(IDS))
