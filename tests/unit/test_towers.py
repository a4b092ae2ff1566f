"""Towers, the dual encoder, the query generator, and the arithmetic of model sizes."""

import numpy as np
import pytest
import torch
from transformers import BertModel, MT5ForConditionalGeneration

from minisearch.errors import InputError
from minisearch.models import describe
from minisearch.models.dense import DenseRetriever
from minisearch.models.seq2seq import QueryGenerator, mt5_base_config, toy_t5_config
from minisearch.models.towers import (
    DualEncoder,
    TextTower,
    bag_config,
    bert_base_chinese_config,
)

IDS = torch.tensor([[5, 6, 7, 5], [8, 9, 0, 0], [3, 0, 0, 0]])


@pytest.fixture
def bag():
    torch.manual_seed(0)
    return TextTower(bag_config(50, 16))


def test_a_bag_is_the_mean_of_normalised_words(bag):
    table = torch.nn.functional.layer_norm(
        bag.bert.embeddings.word_embeddings.weight, (16,), eps=1e-12
    )
    expected = [table[row[row > 0]].mean(dim=0) for row in IDS]
    torch.testing.assert_close(bag(IDS), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_a_bag_has_no_order_and_no_padding(bag):
    vectors = bag(IDS)
    torch.testing.assert_close(bag(IDS[:, [2, 0, 3, 1]]), vectors)
    torch.testing.assert_close(bag(torch.nn.functional.pad(IDS, (0, 5))), vectors)
    torch.testing.assert_close(bag(IDS[:1]), vectors[:1])  # no padding anywhere
    assert bag(torch.zeros(1, 4, dtype=torch.long)).abs().max() == 0  # an empty text


def test_every_word_of_a_bag_gets_the_gradient_of_its_texts(bag):
    bag(IDS).square().sum().backward()
    gradient = bag.bert.embeddings.word_embeddings.weight.grad.abs().sum(dim=1)
    assert set(gradient.nonzero().flatten().tolist()) == set(IDS.flatten().tolist()) - {0}
    assert not bag.bert.embeddings.position_embeddings.weight.requires_grad


def test_a_shared_tower_is_counted_once(bag):
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    other = TextTower(bag_config(50, 16))
    assert count(DualEncoder(bag, bag)) == count(bag)
    assert count(DualEncoder(bag, other)) == 2 * count(bag)


def test_encoding_in_batches(bag):
    torch.manual_seed(0)
    other = TextTower(bag_config(50, 16, hidden_dropout_prob=0.5), projection=8)
    encoder = DualEncoder(TextTower(bag_config(50, 16), projection=8), other).train()
    ids = np.random.default_rng(0).integers(0, 50, (10, 6))
    vectors = encoder.encode_items(ids, batch_size=3)
    assert vectors.dtype == np.float32
    assert vectors.shape == (10, 8)
    assert encoder.training  # left as it was, though dropout was off:
    np.testing.assert_allclose(vectors, encoder.encode_items(ids), rtol=1e-5, atol=1e-6)
    assert np.abs(vectors - encoder.encode_queries(ids)).max() > 0.01


@pytest.mark.parametrize("pooling", ["max", "cls"])
def test_wrong_pooling_of_a_bag(pooling):
    with pytest.raises(InputError, match=f"parameter pooling: found '{pooling}'"):
        TextTower(bag_config(50, 16), pooling=pooling)


def test_a_query_generator_learns_and_samples():
    """Titles are one word; its query is the word 20 above, always."""
    torch.manual_seed(0)
    generator = QueryGenerator(toy_t5_config(50, 32))
    titles = torch.arange(2, 12)[:, None]
    queries = torch.cat([titles + 20, torch.ones(10, 1, dtype=torch.long)], dim=1)
    optimiser = torch.optim.AdamW(generator.parameters(), 5e-3)
    first = generator.loss(titles, queries).item()
    for _ in range(80):
        optimiser.zero_grad()
        generator.loss(titles, queries).backward()
        optimiser.step()
    assert generator.loss(titles, queries).item() < 0.2 * first
    state = torch.get_rng_state()
    samples = generator.sample(titles, n=5, seed=1, max_len=4, batch_size=3)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is untouched
    assert samples.shape == (10, 5, 4)
    right = (samples[:, :, 0] == titles.numpy() + 20) & (samples[:, :, 1] == 1)
    assert right.mean() > 0.8
    assert samples[:, :, 2:][right].max() == 0  # nothing after the end
    again = generator.sample(titles, n=5, seed=1, max_len=4, batch_size=3)
    np.testing.assert_array_equal(again, samples)


def test_samples_differ_by_seed_and_stay_within_top_k():
    torch.manual_seed(0)
    generator = QueryGenerator(toy_t5_config(50, 32)).eval()
    titles = torch.arange(2, 6)[:, None]
    samples = [generator.sample(titles, n=50, seed=s, top_k=3, max_len=1) for s in (1, 2)]
    assert (samples[0] != samples[1]).any()
    start = torch.zeros_like(titles)
    logits = generator.model(input_ids=titles, decoder_input_ids=start).logits[:, 0]
    likeliest = logits.topk(3).indices.numpy()
    for drawn, allowed in zip(samples[0][:, :, 0], likeliest, strict=True):
        assert set(drawn.tolist()) == set(allowed.tolist())


def test_padding_is_no_target_and_is_not_read():
    torch.manual_seed(0)
    generator = QueryGenerator(toy_t5_config(50, 32)).eval()
    titles, queries = torch.tensor([[4, 5]]), torch.tensor([[6, 1]])
    padded = generator.loss(
        torch.nn.functional.pad(titles, (0, 3)), torch.nn.functional.pad(queries, (0, 2))
    )
    torch.testing.assert_close(padded, generator.loss(titles, queries))


def test_full_models_have_their_published_sizes_and_allocate_nothing():
    """102,267,648 and 582,401,280 parameters: the published checkpoints."""
    bert = describe(lambda: BertModel(bert_base_chinese_config()))
    assert bert["parameters"] == 102_267_648
    tower = describe(lambda: TextTower(bert_base_chinese_config(), pooling="cls"))
    assert tower["parameters"] == 102_267_648 - 768 * 769  # without BERT's pooler
    generator = describe(lambda: QueryGenerator(mt5_base_config()))
    assert generator["parameters"] == 582_401_280
    assert MT5ForConditionalGeneration.config_class is type(mt5_base_config())


def test_memory_arithmetic():
    def factory():
        frozen = torch.nn.Linear(10, 10, bias=False).requires_grad_(False)
        return torch.nn.Sequential(frozen, torch.nn.Linear(10, 5, bias=False))

    expected = {
        "parameters": 150,
        "weight_bytes": 600,
        "gradient_bytes": 200,
        "optimiser_bytes": 400,
    }
    assert describe(factory) == describe(factory, precision="bf16-mixed") == expected
    assert describe(factory, "sgd")["optimiser_bytes"] == 0
    assert describe(factory, precision="bf16-true")["weight_bytes"] == 300


# -- the retriever that is trained on clicks -----------------------------------------------------

TITLES = torch.tensor([[2, 3, 0], [4, 5, 6], [7, 0, 0], [8, 9, 0]])


def clicks(rows, negatives):
    """A batch in which each query is the title that was clicked, and one more word."""
    rows = torch.tensor(rows)
    query = torch.cat([TITLES[rows], torch.full((len(rows), 1), 10)], dim=1)
    return {"query": query, "row": rows, "negative": torch.tensor(negatives)}


def scores_of(retriever, batch):
    """Inner products by hand. Shape: -> (B, B + N)."""
    encoder = retriever.encoder
    rows = torch.cat([batch["row"], batch["negative"]])
    items = encoder.item_tower(TITLES[rows])
    return encoder.query_tower(batch["query"]) @ items.T


def test_a_retriever_picks_the_clicked_title_among_the_batch_and_random_ones(bag):
    retriever = DenseRetriever(DualEncoder(bag, bag), TITLES, temperature=0.5)
    batch = clicks([0, 1], [2, 3])
    logits = scores_of(retriever, batch) / 0.5
    expected = -logits.log_softmax(1).diagonal().mean()
    torch.testing.assert_close(retriever.loss(batch), expected)


def test_the_clicked_product_is_no_negative_of_its_own_query(bag):
    retriever = DenseRetriever(DualEncoder(bag, bag), TITLES)
    batch = clicks([0, 1, 0], [2, 0, 3])  # row 0 was clicked twice, and drawn at random
    logits = scores_of(retriever, batch)
    kept = torch.tensor([
        [1, 1, 0, 1, 0, 1],
        [1, 1, 1, 1, 1, 1],
        [0, 1, 1, 1, 0, 1],
    ]).bool()  # fmt: skip
    logits = logits.masked_fill(~kept, -torch.inf)
    expected = -logits.log_softmax(1).diagonal().mean()
    torch.testing.assert_close(retriever.loss(batch), expected)


def test_random_negatives_alone(bag):
    retriever = DenseRetriever(DualEncoder(bag, bag), TITLES)
    retriever.in_batch = False
    batch = clicks([0, 1], [2, 3])
    logits = scores_of(retriever, batch)
    logits[0, 1] = logits[1, 0] = -torch.inf
    expected = -logits.log_softmax(1).diagonal().mean()
    torch.testing.assert_close(retriever.loss(batch), expected)


def test_titles_are_no_weights_and_a_retriever_learns(bag):
    retriever = DenseRetriever(DualEncoder(bag, bag), TITLES)
    assert not any("titles" in name for name in retriever.state_dict())
    batch = clicks([0, 1, 2, 3], [3, 2, 1, 0])
    batch["query"] = torch.tensor([[20], [21], [22], [23]])  # words of no title
    first = retriever.loss(batch).item()
    optimiser = torch.optim.AdamW(retriever.parameters(), 5e-2)
    for _ in range(40):
        optimiser.zero_grad()
        retriever.loss(batch).backward()
        optimiser.step()
    assert retriever.loss(batch).item() < 0.2 * first
    scores = scores_of(retriever, batch)[:, :4]
    assert scores.argmax(1).tolist() == [0, 1, 2, 3]
