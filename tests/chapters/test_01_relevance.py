"""Chapter 1, step 7: judged pairs, how three models read them, and `full` on tiny checkpoints."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from minisearch import chapters
from minisearch.models.towers import TextTower, bag_config
from minisearch.recorder import Recorder
from minisearch.records import Ragged
from minisearch.tasks import Collection

WORDS = 50  # w0 to w49, with the ids 2 to 51


@pytest.fixture(scope="module")
def chapter():
    return chapters.load("01_kuaisearch")


def settings_of(chapter, **changes):
    defaults = {"width": 64, "epochs": 3, "query_words": 2, "item_words": 8}
    return chapter.RelevanceSettings.of("smoke", **(defaults | changes))


def ids_of(texts, max_words):
    ids = torch.zeros(len(texts), max_words, dtype=torch.long)
    for row, text in zip(ids, texts, strict=True):
        found = torch.tensor([2 + int(word[1:]) for word in text.split()], dtype=torch.long)
        row[: len(found)] = found
    return ids


@pytest.fixture
def toy(chapter, monkeypatch):
    """Random word vectors in place of those that step 5 learns from clicks."""

    def click_words(width, seed):
        torch.manual_seed(7)
        vectors = F.layer_norm(torch.randn(WORDS + 2, width), (width,))
        return vectors, TextTower(bag_config(WORDS + 2, width)), ids_of

    monkeypatch.setattr(chapter, "click_words", click_words)
    monkeypatch.setattr(chapter, "HISTORIES", {})
    return chapter


def words_of(numbers):
    return " ".join(f"w{number}" for number in numbers)


@pytest.fixture(scope="module")
def held(chapter):
    """2,000 pairs: does the product's text of four words hold the one word of the query?"""
    rng, rows = np.random.default_rng(0), []
    for number in range(2000):
        order = rng.permutation(WORDS)
        rows.append((f"w{order[rng.integers(0, 4) if number % 2 else 4]}", words_of(order[:4])))
    queries, products = (list(column) for column in zip(*rows, strict=True))
    label = np.arange(2000) % 2 == 1
    return chapter.Judged(queries, products, products, label, np.arange(2000) % 5 > 0)


# --- pairs ---


def test_a_pair_is_positive_at_a_score_of_three_and_absent_marks_are_left_out(chapter):
    table = {
        "query": ["cup"] * 5,
        "item_title": ["a", "b", "c", "no brand cup", "e"],
        "brand": ["no brand", "无品牌", r"\N", "B", "no brands"],
        "seller_name": ["s1", "s2", "s3", "s4", "s5"],
        "attr_value": ["red", r"\N", "blue", "无品牌", "no brand"],
        "score": [0, 1, 2, 3, 3],
        "split": ["train", "test", "train", "test", "train"],
    }
    pairs = chapter.judged_pairs({k: np.array(v, object) for k, v in table.items()})
    assert pairs.label.tolist() == [False, False, False, True, True]
    assert pairs.training.tolist() == [True, False, True, False, True]
    assert pairs.titles == table["item_title"]
    assert pairs.products == [
        "a s1 red", "b s2", "c s3 blue", "no brand cup B s4", "e no brands s5",
    ]  # fmt: skip


def test_joined_moves_padding_to_one_end(chapter):
    parts = [torch.tensor([[1, 2, 0], [3, 0, 0]]), torch.tensor([[4, 0], [5, 6]])]
    assert chapter.joined(parts).tolist() == [[1, 2, 4], [3, 5, 6]]
    parts.append(torch.tensor([[0], [7]]))
    assert chapter.joined(parts).tolist() == [[1, 2, 4, 0], [3, 5, 6, 7]]
    assert chapter.joined(parts, left=True).tolist() == [[0, 1, 2, 4], [3, 5, 6, 7]]


@pytest.fixture
def nets(chapter):
    """Untrained networks on random word vectors, and rows of a query and a product."""
    torch.manual_seed(0)
    start = F.layer_norm(torch.randn(WORDS + 2, 64), (64,))
    settings = chapter.RelevanceSettings.of("smoke")
    networks = {
        "mirrored": chapter.bert(settings, start, True).eval(),
        "plain": chapter.bert(settings, start, False).eval(),
        "judge": chapter.judge(settings, start).eval(),
    }
    rng, rows = np.random.default_rng(1), []
    for _ in range(60):  # three words in both texts, two in the query alone
        order = rng.permutation(WORDS)
        rows.append([words_of(rng.permutation(order[:5])), words_of(rng.permutation(order[2:14]))])
    queries, products = zip(*rows, strict=True)
    return networks, ids_of(queries, 6), ids_of(products, 14)


@pytest.mark.parametrize("name", ["mirrored", "judge"])
def test_a_score_does_not_depend_on_padding_or_company(nets, name):
    networks, query, product = nets
    query[::3, 3:], product[::2, 8:] = 0, 0  # now texts have several lengths
    with torch.inference_mode():
        scores = networks[name](query, product)
        padded = networks[name](F.pad(query, (0, 5)), F.pad(product, (0, 9)))
        alone = torch.cat([networks[name](query[i : i + 1], product[i : i + 1]) for i in range(9)])
    torch.testing.assert_close(padded, scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone, scores[:9], rtol=1e-4, atol=1e-4)
    assert scores.std() > 1e-2
    assert scores.shape == (60, 2)


class Reader(torch.nn.Module):
    """In place of a language model: keeps what it was given to read."""

    def __init__(self, size=99):
        super().__init__()
        self.table, self.given = torch.nn.Embedding(size, 1), {}
        self.table.weight.data = torch.arange(float(size))[:, None]  # a word's vector is its id

    def get_input_embeddings(self):
        return self.table

    def forward(self, **given):
        self.given = given
        return SimpleNamespace(logits=torch.arange(10.0).expand(2, 3, 10))


QUERY, PRODUCT = torch.tensor([[5, 6, 0], [7, 0, 0]]), torch.tensor([[8, 0, 0], [9, 10, 11]])


def test_bert_reads_the_query_first_and_marks_the_product(chapter):
    reader = Reader()
    chapter.Bert(reader, start=90, end=91)(QUERY, PRODUCT)
    given = {name: values.tolist() for name, values in reader.given.items()}
    assert given["input_ids"] == [[90, 5, 6, 91, 8, 91, 0], [90, 7, 91, 9, 10, 11, 91]]
    assert given["token_type_ids"] == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]]
    assert given["attention_mask"] == [[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]]


def test_a_published_judge_reads_the_prompt_and_answers_at_its_end(chapter):
    reader = Reader()
    answer = chapter.Judge(reader, ([20, 21], [22], [23]), (4, 7))(QUERY, PRODUCT)
    assert reader.given["inputs_embeds"][..., 0].tolist() == [
        [0, 20, 21, 5, 6, 22, 8, 23], [20, 21, 7, 22, 9, 10, 11, 23],
    ]  # fmt: skip
    assert reader.given["attention_mask"].tolist() == [[0] + [1] * 7, [1] * 8]
    assert answer.tolist() == [[4, 7], [4, 7]]  # no, yes


def test_a_toy_judge_reads_the_product_first_and_marks_both_texts(chapter):
    reader = Reader()
    sides = torch.tensor([[0.25], [0.5]])  # of query and product
    chapter.Judge(reader, ([20], [22], [23]), (4, 7), sides)(QUERY, PRODUCT)
    assert reader.given["inputs_embeds"][0, -5:, 0].tolist() == [8.5, 22.25, 5.25, 6.25, 23.25]
    assert reader.given["inputs_embeds"][1, :, 0].tolist() == [
        20.5, 9.5, 10.5, 11.5, 22.25, 7.25, 23.25,
    ]  # fmt: skip


def test_log_odds_are_yes_less_no_and_cost_what_the_formula_says(chapter):
    logits = torch.tensor([[0.5, 2.0], [1.0, -1.0]])
    model = chapter.PairClassifier(lambda query, product: logits)
    batch = {"query": None, "product": None, "label": torch.tensor([1, 0])}
    torch.testing.assert_close(model(batch), torch.tensor([1.5, -2.0]))
    torch.testing.assert_close(model.loss(batch), F.cross_entropy(logits, batch["label"]))


# --- the mirrored start ---


def found_in_the_other_text(net, attention, query, product):
    """How often a query word that the product repeats gets the largest query-key product there.

    Of all words of both texts; the logarithm of attention is that product, up to a constant.
    """
    kept = {}
    net.model.set_attn_implementation("eager")
    hook = attention.register_forward_hook(lambda _, __, out: kept.update(weights=out[1]))
    with torch.inference_mode():
        net(query, product)
    hook.remove()
    products = kept["weights"].log().sum(dim=1)  # (B, L, L), over the heads
    size, length = int((query[0] > 0).sum()), int((product[0] > 0).sum())
    assert products.shape[1] == size + length + 3
    start, other = 1, 2 + size
    if isinstance(net.model, LlamaForCausalLM):  # which reads the product first
        start, other = 2 + length, 1
    best = products[:, start : start + size].argmax(dim=2) - other  # (B, size), in the product
    hits = []
    for row, words, others in zip(best, query[:, :size], product, strict=True):
        twins = [(others == word).nonzero().flatten().tolist() for word in words]
        hits += [place.item() == twin[0] for place, twin in zip(row, twins, strict=True) if twin]
    assert len(hits) == 3 * len(query)
    return np.mean(hits)


def test_a_word_looks_for_itself_in_the_other_text_before_any_training(nets):
    networks, query, product = nets
    layers = {
        "mirrored": networks["mirrored"].model.bert.encoder.layer[0].attention.self,
        "plain": networks["plain"].model.bert.encoder.layer[0].attention.self,
        "judge": networks["judge"].model.model.layers[0].self_attn,
    }
    shares = {
        name: found_in_the_other_text(networks[name], layer, query, product)
        for name, layer in layers.items()
    }
    assert shares["mirrored"] > 0.85
    assert shares["judge"] > 0.75  # the turning of places takes a little away
    assert shares["plain"] < 0.2


def test_the_mirror_turns_one_direction_around_and_keeps_the_rest(chapter):
    torch.manual_seed(0)
    queries, keys = (torch.nn.Linear(16, 16, bias=False) for _ in range(2))
    for layer in (queries, keys):
        torch.nn.init.zeros_(layer.weight)
    sides = chapter.mirror(queries, keys, strength=3.0)
    u = sides[0] / 3
    torch.testing.assert_close(u.norm(), torch.tensor(1.0))
    torch.testing.assert_close(sides[1], -sides[0])
    torch.testing.assert_close(queries.weight, torch.eye(16))
    other = torch.randn(16)
    other = other - u * (other @ u)  # at a right angle to u
    torch.testing.assert_close(keys(other), other, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(keys(u), -u, atol=1e-5, rtol=1e-4)


# --- learning ---


@pytest.mark.parametrize("name", ["rel_cross", "rel_lm"])
def test_reading_both_texts_finds_the_word_and_its_absence(toy, held, name):
    scores = toy.train_pairs(name, held, settings_of(toy), 0)
    assert roc_auc_score(held.label[~held.training], scores) > 0.9
    assert len(toy.HISTORIES[name].column("loss")[0]) == 3 * (1600 // 32)


def test_without_the_mirrored_start_the_same_training_finds_little(toy, held):
    scores = toy.train_pairs("rel_plain", held, settings_of(toy), 0)
    assert roc_auc_score(held.label[~held.training], scores) < 0.8


def test_shuffled_judgements_teach_nothing(toy, held, monkeypatch, tmp_path):
    label, known = held.label.copy(), {"judged": held, "truth": None, "seed": 0}
    known |= {"relevance": settings_of(toy), "record": Recorder(tmp_path)}
    for name, value in known.items():
        monkeypatch.setattr(toy, name, value, raising=False)
    toy.run_relevance("rel_shuffled", {"epochs": 2})
    assert abs(toy.record.metrics["rel_shuffled/auc"] - 0.5) < 0.12
    assert np.array_equal(held.label, label)


def test_shuffling_moves_training_labels_alone_and_other_arms_keep_theirs(
    toy, held, monkeypatch, tmp_path
):
    seen = {}

    def train(name, task, settings, seed):
        seen[name] = task.label
        return np.random.default_rng(0).random((~task.training).sum())

    known = {"judged": held, "truth": None, "seed": 0, "relevance": settings_of(toy)}
    known |= {"record": Recorder(tmp_path), "train_pairs": train}
    for name, value in known.items():
        monkeypatch.setattr(toy, name, value, raising=False)
    toy.run_relevance("rel_bi", {})
    assert np.array_equal(seen["rel_bi"], held.label)
    toy.run_relevance("rel_shuffled", {})
    shuffled = seen["rel_cross"]
    assert np.array_equal(shuffled[~held.training], held.label[~held.training])
    assert shuffled.sum() == held.label.sum()
    assert 0.4 < (shuffled == held.label)[held.training].mean() < 0.6


def test_only_training_pairs_are_learnt_from(toy, held, monkeypatch):
    seen = []
    monkeypatch.setattr(toy, "fit", lambda model, batches, *_: seen.append(batches.tensors))
    scores = toy.train_pairs("rel_cross", held, settings_of(toy), 0)
    assert len(scores) == (~held.training).sum()
    expected = ids_of(np.array(held.queries)[held.training], 2)
    assert torch.equal(seen[0]["query"], expected)
    assert seen[0]["label"].tolist() == held.label[held.training].tolist()


# --- the bi-encoder ---


def test_the_contrastive_loss_by_hand(chapter):
    vectors = torch.tensor([[3.0, 0.0], [4.0, 3.0], [0.0, 2.0], [1.0, 0.0]], requires_grad=True)
    model = chapter.BiEncoder(lambda ids: vectors[ids[:, 0]], margin=0.5)
    batch = {"query": torch.tensor([[0], [0], [0]]), "product": torch.tensor([[1], [1], [2]])}
    batch["label"] = torch.tensor([1, 0, 0])
    torch.testing.assert_close(model(batch), torch.tensor([0.8, 0.8, 0.0]))
    # a positive at distance .2, a negative at .2 and one at 1, beyond the margin
    loss = model.loss(batch)
    assert loss.item() == pytest.approx((0.2**2 + 0.3**2 + 0) / 3 / 2)
    loss.backward()
    assert vectors.grad[:2].abs().max() > 0
    assert vectors.grad[2:].abs().max() == 0


def test_the_bi_encoder_learns_with_one_tower_for_both_texts(toy, held):
    model, encode = toy.pair_model("rel_bi", settings_of(toy), 0)
    ids = encode(held.products, 8)
    with torch.no_grad():
        same = model({"query": ids, "product": ids})
    torch.testing.assert_close(same, torch.ones(2000))
    scores = toy.train_pairs("rel_bi", held, settings_of(toy, epochs=4), 0)
    assert np.abs(scores).max() <= 1 + 1e-6
    assert roc_auc_score(held.label[~held.training], scores) > 0.8


@pytest.fixture
def clicked(chapter, monkeypatch):
    """The chapter after step 5 on a few clicks."""
    titles = [f"thing{n % 20} stuff{n % 7}" for n in range(80)]
    queries, rows = [f"want{n % 20}" for n in range(160)], np.arange(160) % 80
    task = Collection(titles, queries, rows, ["x"], Ragged.from_lists([[0]]), np.arange(1))
    monkeypatch.setattr(chapter, "collection", task, raising=False)
    recall = chapter.RecallSettings.of("smoke", batch_size=32, warmup_steps=0)
    monkeypatch.setattr(chapter, "settings", recall, raising=False)
    yield chapter
    chapter.train_dense.cache_clear()


def test_pair_models_start_from_the_words_that_clicks_taught(clicked):
    vectors, tower, encode = clicked.click_words(24, 0)
    ids = encode(["thing3", "want3"], max_words=2)
    with torch.no_grad():
        torch.testing.assert_close(tower(ids), vectors[ids[:, 0]])
    settings = settings_of(clicked, width=24)
    for name in ("rel_cross", "rel_plain", "rel_lm"):
        network = clicked.pair_model(name, settings, 0)[0].network.model
        table = network.get_input_embeddings().weight
        torch.testing.assert_close(table[1 : len(vectors)], vectors[1:])
    pairs = clicked.Judged(
        ["want3", "want4"] * 40, ["?"] * 80, ["thing3"] * 80, np.arange(80) % 2 == 0,
        np.arange(80) < 64,
    )  # fmt: skip
    before = {name: values.clone() for name, values in tower.state_dict().items()}
    clicked.train_pairs("rel_bi", pairs, settings, 0)
    for name, values in tower.state_dict().items():  # the arm trained a copy
        assert torch.equal(values, before[name])
    own, _ = clicked.pair_model("rel_bi", settings, 0)
    assert torch.equal(own.tower(ids), tower(ids))


@pytest.mark.parametrize("profile", ["smoke", "toy", "small"])
def test_the_longest_texts_of_a_profile_can_be_read(chapter, profile):
    settings = chapter.RelevanceSettings.of(profile, width=16)
    start = torch.randn(20, 16)
    query = torch.full((2, settings.query_words), 3)
    product = torch.full((2, settings.item_words), 4)
    for net in (chapter.bert(settings, start, True), chapter.judge(settings, start)):
        assert net(query, product).isfinite().all()


# --- references and measures ---


def test_references_by_hand(chapter):
    queries = ["red shoe", "red shoe", "red shoe", "hat", "hat", "lamp", "!"]
    products = ["shoe", "Red SHOE", "a red hat", "x", "hat hat", "y", "z"]
    label = np.array([1, 1, 0, 0, 1, 1, 0], bool)
    task = chapter.Judged(queries, products, products, label, np.array([1, 1, 0, 1, 0, 0, 0], bool))
    assert chapter.word_overlap(task).tolist() == [0.5, 1, 0, 0]
    base = 2 / 3
    expected = [(2 + base) / 3, base / 2, base, base]  # asked twice, once, and never
    np.testing.assert_allclose(chapter.query_rate(task), expected)


def judgements():
    """Scores with ties, labels that they know something of, and queries of many sizes."""
    rng = np.random.default_rng(0)
    query = rng.geometric(0.03, 600) % 60
    label = rng.random(600) < 0.4
    return (2 * rng.normal(size=600) + label).round(1), label, query


def test_pairs_within_a_query_are_compared(chapter):
    scores, label, query = judgements()
    better = [
        (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
        for i in np.flatnonzero(label)
        for j in np.flatnonzero(~label)
        if query[i] == query[j]
    ]
    assert chapter.within_queries(scores, label, query) == pytest.approx(np.mean(better))
    shifted = chapter.within_queries(scores + 10 * query, label, query)
    assert shifted == pytest.approx(np.mean(better))  # how easy a query is does not count


def test_measures_of_pairs_are_scikit_learns(chapter, monkeypatch, tmp_path):
    scores, label, query = judgements()
    monkeypatch.setattr(chapter, "record", Recorder(tmp_path), raising=False)
    monkeypatch.setattr(chapter, "truth", None, raising=False)
    names, titles = [f"q{q}" for q in query], [f"t{i % 3}" for i in range(600)]
    training = np.arange(600) < 200
    task = chapter.Judged(names, titles, titles, label, training)
    chapter.measure_pairs("rel_x", scores[200:], task)
    metrics, test = chapter.record.metrics, ~training
    assert metrics["rel_x/auc"] == pytest.approx(roc_auc_score(label[test], scores[test]))
    precision = average_precision_score(label[test], scores[test])
    assert metrics["rel_x/pr_auc"] == pytest.approx(precision)
    pairs = list(zip(names, titles, strict=True))
    for what, keys in {"judged query": names, "pair": pairs}.items():
        known = {keys[i] for i in range(200)}
        seen = np.array([key in known for key in keys]) & test
        for bucket, own in (("seen", seen), ("new", test & ~seen)):
            expected = roc_auc_score(label[own], scores[own])
            assert metrics[f"rel_x/auc/{what}: {bucket}"] == pytest.approx(expected)
    rows = pd.read_parquet(tmp_path / "rows" / "rel_x.parquet")
    assert rows["auc"].mean() == pytest.approx(metrics["rel_x/auc"], abs=1e-5)
    blocks = (rows["auc"].round(4) != rows["auc"].mode()[0].round(4)).sum()
    assert len(rows) == chapter.BLOCKS
    assert 10 < blocks <= len(set(query[test]))  # a block is made of whole queries


# --- `full`, whose checkpoints are tiny here ---

TEXTS = ["red shoe", "blue hat", "red hat", "blue shoe"]


def tokenizer_of(words, **special):
    """A tokeniser of whole words, numbered as given; with a [CLS] it adds marks as BERT's does."""
    numbers = {word: number for number, word in enumerate(words)}
    unknown = special["unk_token"]
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if "cls_token" in special:
        marks = [(mark, numbers[mark]) for mark in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture
def published(chapter, tmp_path, monkeypatch):
    """Settings of a folder with a tiny BERT and one with a tiny Qwen3, and eight pairs."""
    monkeypatch.setattr(chapter, "HISTORIES", {})
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "blue", "shoe", "hat"]
    marks = {f"{m.lower()}_token": f"[{m}]" for m in ("PAD", "UNK", "CLS", "SEP")}
    tokenizer_of(words, **marks).save_pretrained(tmp_path / "bert")
    BertModel(
        BertConfig(vocab_size=8, intermediate_size=16, max_position_embeddings=32, **sizes)
    ).save_pretrained(tmp_path / "bert")
    # as in Qwen's own, the padding is no 0, and 0 is a mark that texts use
    words = ["!", "<|endoftext|>", "<unk>", "red", "blue", "shoe", "hat", "yes", "no"]
    words += ["<Query>:", "<Document>:", "<|im_end|>"]
    special = {"pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    tokenizer_of(words, **special).save_pretrained(tmp_path / "qwen")
    config = Qwen3Config(
        vocab_size=len(words), intermediate_size=16, num_key_value_heads=1, head_dim=8, **sizes
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    bert, qwen = str(tmp_path / "bert"), str(tmp_path / "qwen")
    settings = settings_of(
        chapter, bi_model=bert, cross_model=bert, judge_model=qwen, lora_rank=2, query_words=6,
        item_words=7, batch_size=2, epochs=1, warmup_steps=0, learning_rate=1e-2,
    )  # fmt: skip
    label = np.arange(8) % 2 == 0
    task = chapter.Judged(TEXTS * 2, TEXTS * 2, TEXTS * 2, label, np.arange(8) < 6)
    return settings, task, tmp_path


def batch_of(settings, encode, queries=TEXTS, products=TEXTS[::-1]):
    ids = encode(queries, max_words=settings.query_words)
    others = encode(products, max_words=settings.item_words)
    return {"query": ids, "product": others, "label": torch.arange(len(ids)) % 2}


@pytest.mark.parametrize("name", ["rel_bi", "rel_cross", "rel_lm"])
def test_full_trains_pair_models_on_checkpoints(chapter, published, name):
    settings, task, _ = published
    scores = chapter.train_pairs(name, task, settings, 0)
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()
    assert len(chapter.HISTORIES[name].column("loss")[0]) == 3


@pytest.mark.parametrize("name", ["rel_bi", "rel_cross"])
def test_full_starts_from_the_checkpoint(chapter, published, name):
    settings, _, folder = published
    saved = BertModel.from_pretrained(folder / "bert").get_input_embeddings().weight
    model, _ = chapter.pair_model(name, settings, 0)
    inner = model.tower if name == "rel_bi" else model.network.model
    assert torch.equal(inner.get_input_embeddings().weight, saved)
    assert type(inner) is (TextTower if name == "rel_bi" else BertForSequenceClassification)


def test_in_full_a_text_alone_and_a_pair_have_the_marks_of_their_kind(chapter, published):
    settings, _, _ = published
    pad, start, end, red, blue, shoe, hat = 0, 2, 3, 4, 5, 6, 7
    model, encode = chapter.pair_model("rel_bi", settings, 0)
    assert model.tower.config.pooling == "cls"
    assert encode(["red shoe"], max_words=6).tolist() == [[start, red, shoe, end, pad, pad]]
    model, encode = chapter.pair_model("rel_cross", settings, 0)
    seen = []
    keep = model.network.model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given), with_kwargs=True
    )
    model(batch_of(settings, encode, ["red shoe"], ["blue hat"]))
    keep.remove()
    assert seen[0]["input_ids"].tolist() == [[start, red, shoe, end, blue, hat, end]]
    assert seen[0]["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]


def test_the_adapted_judge_is_asked_in_full_and_answers_yes_or_no(chapter, published):
    settings, _, folder = published
    judge = chapter.adapted_judge(settings)
    encode = AutoTokenizer.from_pretrained(folder / "qwen")
    texts = [chapter.ASK[0], "red shoe", chapter.ASK[1], "blue hat", chapter.ASK[2]]
    expected = [number for text in texts for number in encode(text)["input_ids"]]
    seen = []
    judge.model.get_input_embeddings().register_forward_hook(lambda _, ids, __: seen.append(ids[0]))
    ids = [chapter.token_ids(settings.judge_model, [text], 5, marks=False) for text in texts[1::2]]
    assert judge(*ids).shape == (1, 2)
    assert seen[0].tolist() == [expected]
    assert judge.answers == [8, 7]
    # the question is there, with the texts in their places
    assert [word in expected for word in (9, 10, 11)] == [True] * 3


def test_of_the_adapted_judge_the_adapters_alone_learn(chapter, published):
    settings, task, _ = published
    model, encode = chapter.pair_model("rel_lm", settings, 0)
    model.loss(batch_of(settings, encode)).backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None}
    assert touched
    assert all("lora_" in name for name in touched)
    assert len(touched) == 2 * 7  # two matrices for each linear map of the layer
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    columns = batch_of(settings, encode, task.queries, task.products)
    plan = chapter.Optimisation(settings.learning_rate)
    chapter.fit(model, chapter.Batches(columns, 4, 0), settings, plan)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == touched


def test_an_untrained_adapter_changes_nothing(chapter, published):
    settings, _, folder = published
    judge = chapter.adapted_judge(settings).eval()
    plain = chapter.Judge(
        Qwen3ForCausalLM.from_pretrained(folder / "qwen"), judge.prompt, judge.answers
    )
    batch = batch_of(settings, partial(chapter.token_ids, settings.judge_model, marks=False))
    pair = batch["query"], batch["product"]
    with torch.no_grad():
        torch.testing.assert_close(judge(*pair), plain.eval()(*pair))
        longer = [F.pad(ids, (0, 3)) for ids in pair]
        torch.testing.assert_close(judge(*longer), judge(*pair), rtol=1e-4, atol=1e-5)
