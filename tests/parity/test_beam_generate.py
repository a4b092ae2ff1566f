"""Beam search finds what transformers' `generate` finds with a `prefix_allowed_tokens_fn`."""

import numpy as np
import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from minisearch.beam import Trie, allowed_tokens, beam_search, nested_trie

WORDS, CODES, LENGTH = 60, 16, 3
CLEAR = 1e-5  # scores closer than this may stand in either order


def bart(**changes):
    """Random, sharpened so that a beam has something to lose; in 64 bits.

    In 32, sums in another order change such a model's scores by 5e-5, and lists with them.
    """
    settings = {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "dropout": 0.0,
        "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
        "decoder_start_token_id": 1, "forced_eos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(1)
    size = WORDS + LENGTH * CODES
    model = BartForConditionalGeneration(BartConfig(vocab_size=size, **{**settings, **changes}))
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)  # norms and biases stay near one and zero
        parameter.data = 0.7 * noise if parameter.ndim == 2 else parameter.data + 0.3 * noise
    torch.nn.init.normal_(model.final_logits_bias)
    return model.double().eval()


def some_ids(count, seed=0):
    codes = np.random.default_rng(seed).integers(0, CODES, (count, LENGTH))
    return WORDS + CODES * np.arange(LENGTH) + codes


def some_queries(count):
    random = torch.Generator().manual_seed(2)
    queries = torch.randint(2, WORDS, (count, 9), generator=random)
    for row in range(count):
        queries[row, 1 + (5 * row) % 9 :] = 0
    return queries


def generated(model, queries, width, allowed):
    """Tokens (B, K, L) and scores (B, K) of `generate`, -inf for what the trie does not hold."""
    found = model.generate(
        queries, attention_mask=(queries != 0).long(), num_beams=width, num_return_sequences=width,
        prefix_allowed_tokens_fn=allowed, do_sample=False, length_penalty=0.0, early_stopping=False,
        min_new_tokens=LENGTH, max_new_tokens=LENGTH, eos_token_id=None, no_repeat_ngram_size=0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    tokens = found.sequences[:, 1:].reshape(len(queries), width, LENGTH).numpy()
    if width == 1:  # greedy: `generate` gives the scores of the steps
        picked = [
            step.log_softmax(-1).gather(1, found.sequences[:, [1 + i]])
            for i, step in enumerate(unmasked(model, queries, found.sequences))
        ]
        return tokens, torch.stack(picked).sum(0).numpy()
    scores = found.sequences_scores.view(len(queries), width).numpy()
    return tokens, np.where(scores < -1e8, -np.inf, scores)


def unmasked(model, queries, sequences):
    with torch.no_grad():
        logits = model(
            input_ids=queries, attention_mask=(queries != 0).long(), decoder_input_ids=sequences
        ).logits
    return logits[:, :LENGTH].unbind(1)


def assert_same(found, tokens, scores):
    """Equal ranked lists, but for places whose score is that of a neighbour's."""
    held = np.isfinite(scores)
    assert (np.isfinite(found.scores) == held).all()
    np.testing.assert_allclose(found.scores[held], scores[held], atol=CLEAR)
    near = np.diff(np.where(held, scores, -1e9), axis=1, append=-np.inf) > -CLEAR
    clear = held & ~near & ~np.roll(near, 1, axis=1)
    assert clear.sum() > 0.9 * held.sum()
    assert (found.tokens[clear] == tokens[clear]).all()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        # As facebook/bart-base has it, but small; and the switches that it leaves off.
        {"encoder_layers": 3, "decoder_layers": 3, "activation_function": "relu"},
        {"scale_embedding": True, "encoder_attention_heads": 2, "decoder_attention_heads": 8},
    ],
    ids=["toy", "deep", "scaled"],
)
def test_ranked_lists_over_a_trie(changes):
    model, ids, queries = bart(**changes), some_ids(800), some_queries(8)
    trie, allowed = Trie(ids), allowed_tokens(nested_trie(ids))
    for width in (1, 10, 50):
        found = beam_search(model, queries, width, trie, batch_size=5)
        assert_same(found, *generated(model, queries, width, allowed))
        assert len(np.unique(found.leaves[:, 0])) > 1, "the queries should differ"


def test_one_query_and_a_beam_wider_than_the_first_position():
    model, ids, queries = bart(), some_ids(300), some_queries(3)[2:]
    allowed = allowed_tokens(nested_trie(ids))
    found = beam_search(model, queries, 40, Trie(ids))
    assert_same(found, *generated(model, queries, 40, allowed))


def test_a_beam_wider_than_the_trie():
    model, ids, queries = bart(), some_ids(7), some_queries(4)
    found = beam_search(model, queries, 10, Trie(ids))
    assert np.isfinite(found.scores).sum(1).tolist() == [7] * 4
    assert_same(found, *generated(model, queries, 10, allowed_tokens(nested_trie(ids))))


def test_ranked_lists_by_position():
    model, queries = bart(), some_queries(6)
    ranges = [WORDS + CODES * level + np.arange(CODES) for level in range(LENGTH)]

    def allowed(_, written):
        return ranges[len(written) - 1].tolist()

    for width in (1, 10, 50):
        found = beam_search(model, queries, width, ranges)
        assert_same(found, *generated(model, queries, width, allowed))


def test_without_limits_words_would_come_first():
    """What the other tests rest on: the limits change the result, and scores are not rescaled."""
    model, queries = bart(), some_queries(6)
    everything = np.arange(2, model.config.vocab_size)
    found = beam_search(model, queries, 10, [everything] * LENGTH)
    assert (found.tokens < WORDS).any(axis=(1, 2)).mean() > 0.5
    limited = beam_search(model, queries, 10, Trie(some_ids(800)))
    assert (limited.scores[:, 0] < found.scores[:, 0]).all()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.bfloat16, 0.5)], ids=["32", "16"]
)
def test_lower_precision(dtype, tolerance):
    model, ids, queries = bart().to(dtype), some_ids(800), some_queries(4)
    found = beam_search(model, queries, 10, Trie(ids))
    _, scores = generated(model, queries, 10, allowed_tokens(nested_trie(ids)))
    np.testing.assert_allclose(found.scores, scores, atol=tolerance)
    assert found.scores.dtype == np.float32
