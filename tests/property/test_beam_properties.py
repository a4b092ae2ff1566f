"""Any trie, and beam search over any trie on a BART with random weights."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BartConfig, BartForConditionalGeneration

from minisearch.beam import Trie, allowed_tokens, beam_search, nested_trie

FIRST, CODES, SIZE = 6, 5, 24  # tokens of identifiers and of the vocabulary
lengths = st.integers(1, 4)
unhurried = settings(deadline=None, max_examples=60)


@st.composite
def tables(draw, most=40, greatest=CODES - 1):
    """Identifiers of one length, some of them twice."""
    length = draw(lengths)
    rows = st.lists(st.integers(0, greatest), min_size=length, max_size=length)
    return np.array(draw(st.lists(rows, min_size=1, max_size=most)))


@st.composite
def queries(draw, most=4):
    """A batch filled up with zeros."""
    rows = draw(
        st.lists(st.lists(st.integers(1, FIRST), min_size=1, max_size=5), min_size=1, max_size=most)
    )
    return torch.tensor([row + [0] * (5 - len(row)) for row in rows])


@pytest.fixture(scope="module")
def model():
    """Random, with probabilities far from equal."""
    torch.manual_seed(0)
    model = BartForConditionalGeneration(
        BartConfig(
            vocab_size=SIZE, d_model=16, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=2, decoder_attention_heads=4, encoder_ffn_dim=32,
            decoder_ffn_dim=24, max_position_embeddings=16, scale_embedding=True, pad_token_id=0,
            bos_token_id=1, eos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=None,
        )
    )  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.normal_(model.final_logits_bias)
    return model.eval()


def taught(model, input_ids, tokens):
    """Log-probability of each identifier, all of its tokens read at once.

    Shape: input_ids (B, S), tokens (B, K, L) -> (B, K).
    """
    count, width, _ = tokens.shape
    many = input_ids.repeat_interleave(width, dim=0)
    written = torch.from_numpy(tokens).flatten(0, 1)
    start = torch.full((count * width, 1), model.config.decoder_start_token_id)
    with torch.no_grad():
        logits = model(
            input_ids=many,
            attention_mask=(many != 0).long(),
            decoder_input_ids=torch.cat([start, written[:, :-1]], dim=1),
        ).logits
    picked = logits.log_softmax(-1).gather(2, written[..., None])
    return picked.sum((1, 2)).view(count, width).numpy()


@given(tables(greatest=300))
@unhurried
def test_a_trie_is_its_dictionaries(ids):
    ids = ids + np.arange(ids.shape[1]) * 70_000
    trie, nested = Trie(ids), nested_trie(ids)
    assert trie.identifiers().tolist() == np.unique(ids, axis=0).tolist()
    level = [((), nested)]  # in lexicographic order
    for depth in range(trie.depth):
        found = trie.children(depth, np.arange(len(level)))
        following = []
        for node, (prefix, children) in enumerate(level):
            tokens = found.tokens[node, : found.counts[node]].tolist()
            assert tokens == sorted(children)
            assert found.first[node] == len(following)
            following += [((*prefix, token), children[token]) for token in tokens]
        level = following
    assert len(level) == len(trie)


@given(tables(), st.integers(0, 2**32 - 1))
@unhurried
def test_find_finds_what_is_there_and_nothing_else(ids, seed):
    asked = np.random.default_rng(seed).integers(-1, CODES + 1, (50, ids.shape[1]))
    asked = np.concatenate([asked, ids])
    rows = {tuple(row): leaf for leaf, row in enumerate(np.unique(ids, axis=0).tolist())}
    assert Trie(ids).find(asked).tolist() == [rows.get(tuple(row), -1) for row in asked.tolist()]


@given(tables(), queries(), st.integers(1, 12))
@unhurried
def test_beams_exist_differ_are_sorted_and_score_what_the_model_says(model, ids, input_ids, width):
    ids = ids + FIRST
    trie = Trie(ids)
    found = beam_search(model, input_ids, width, trie, batch_size=3)
    assert found.tokens.shape == (len(input_ids), width, trie.depth)
    held = np.isfinite(found.scores)
    assert held[:, 0].all()
    assert (held == (found.leaves >= 0)).all()
    assert (held[:, :-1] | ~held[:, 1:]).all(), "empty places come last"
    assert (found.tokens[held] == trie.identifiers()[found.leaves[held]]).all()
    assert not found.tokens[~held].any()
    for row, leaves in zip(held, found.leaves, strict=True):
        assert len(set(leaves[row])) == row.sum()
    padded = np.where(held, found.scores, -1e9)
    assert (np.diff(padded, axis=1) <= 0).all()
    exact = taught(model, input_ids, found.tokens)
    np.testing.assert_allclose(found.scores[held], exact[held], atol=1e-4)


@given(tables(), queries(most=2), st.integers(0, 3))
@unhurried
def test_a_wide_beam_finds_every_identifier_in_order(model, ids, input_ids, more):
    ids = np.unique(ids + FIRST, axis=0)
    found = beam_search(model, input_ids, len(ids) + more, Trie(ids))
    exact = taught(model, input_ids, np.repeat(ids[None], len(input_ids), axis=0))
    for leaves, scores, truth in zip(found.leaves, found.scores, exact, strict=True):
        assert sorted(leaves[: len(ids)]) == list(range(len(ids)))
        assert (leaves[len(ids) :] == -1).all()
        np.testing.assert_allclose(scores[: len(ids)], truth[leaves[: len(ids)]], atol=1e-4)


@given(lengths, queries(most=2), st.integers(1, 30), st.integers(0, 2**32 - 1))
@unhurried
def test_all_combinations_by_position_and_as_a_trie(model, length, input_ids, width, seed):
    random = np.random.default_rng(seed)
    allowed = [FIRST + random.permutation(CODES)[: random.integers(1, 4)] for _ in range(length)]
    trie = Trie(np.array(list(itertools.product(*allowed))))
    free, held = (beam_search(model, input_ids, width, limit) for limit in (allowed, trie))
    assert (free.tokens == held.tokens).all()
    assert (free.scores == held.scores).all()
    assert (free.leaves == -1).all()


@given(tables(), st.data())
@unhurried
def test_the_function_for_generate_allows_what_the_trie_allows(ids, data):
    nested = nested_trie(ids)
    prefix = ids[data.draw(st.integers(0, len(ids) - 1))]
    prefix = prefix[: data.draw(st.integers(0, len(prefix) - 1))]
    known = ids[(ids[:, : len(prefix)] == prefix).all(1), len(prefix)]
    start = data.draw(st.integers(0, 2))
    written = torch.tensor([9] * start + prefix.tolist())
    assert sorted(allowed_tokens(nested, start)(0, written)) == sorted(set(known))
