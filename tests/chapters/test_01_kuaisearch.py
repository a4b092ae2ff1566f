"""Chapter 1: its definitions against known answers, its bad and odd data, and `full` for real."""

from __future__ import annotations

import ast
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minisearch import chapters, runs
from minisearch.data.kuaisearch import KuaiSearch
from minisearch.errors import InputError
from minisearch.models import describe
from minisearch.profiles import trainer_arguments
from minisearch.records import Ragged
from minisearch.tasks import core_filter, ranking_task, recall_task
from minisearch.worlds.shop import make_shop
from minisearch.worlds.shop_catalogue import ShopConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from kuaisearch_example import put, rows

CHAPTER = "01_kuaisearch"


@pytest.fixture(scope="module")
def chapter():
    return chapters.load(CHAPTER)


@pytest.fixture
def settings(chapter):
    return chapter.RecallSettings.of("smoke")


def collection_of(chapter, titles, clicks, tests):
    queries, rows = zip(*clicks, strict=True)
    asked, wanted = zip(*tests, strict=True)
    numbers = np.arange(len(asked))
    positives = Ragged.from_lists(wanted)
    return chapter.Collection(
        titles, list(queries), np.array(rows), list(asked), positives, numbers
    )


def test_translation_finds_the_word_behind_each_query_word(chapter):
    titles = ["red shoe", "red hat", "blue shoe", "blue hat"]
    clicks = ["crimson sneaker", "crimson cap", "azure sneaker", "azure cap"]
    written = {w: i for i, w in enumerate(["red", "blue", "shoe", "hat"])}
    spoken = {w: i for i, w in enumerate(["crimson", "azure", "sneaker", "cap"])}
    counts = chapter.count_matrix
    table = chapter.translation_table(counts(titles, written), counts(clicks, spoken), 20)
    table = table.toarray()
    np.testing.assert_allclose(table.sum(1), 1)
    assert (table.argmax(1) == np.arange(4)).all()
    assert (table.max(1) > 0.9).all()


def test_predicted_words_reach_a_product_that_nobody_clicked(chapter):
    settings = chapter.RecallSettings.of("smoke", expansion=1)
    titles = ["red shoe", "blue shoe", "green hat", "red lamp", *(f"cup {i}" for i in range(60))]
    clicks = [("crimson", 0), ("crimson", 0), ("azure", 1), ("lime", 2)] * 5
    task = collection_of(chapter, titles, clicks, [("crimson", [3])])
    assert chapter.translated_words(task, settings)[:5] == [
        ["crimson"], ["azure"], ["lime"], ["crimson"], [],
    ]  # fmt: skip
    assert 3 not in chapter.bm25(task, settings, 0).ids[0, :3]
    assert 3 not in chapter.bm25_clicks(task, settings, 0).ids[0, :1]
    assert 3 in chapter.doc2query(task, settings, 0).ids[0, :2]


def test_clicked_queries_come_from_the_training_clicks_alone(chapter):
    documents = [["a"], ["b"]]
    task = collection_of(chapter, ["a", "b"], [("x y", 1)], [("secret", [0])])
    chapter.add_clicked_queries(documents, task)
    assert documents == [["a"], ["b", "x", "y"]]


def test_training_reaches_neither_the_truth_nor_the_test_requests(chapter):
    """What trains may name neither the simulator's truth nor the test side of any stage."""
    tree = ast.parse(chapters.find(CHAPTER).read_text())
    recall = {
        "train_dense", "build_encoder", "translated_words", "translation_table",
        "add_clicked_queries", "QueryWriter", "written_queries", "text_encoder", "popularity",
        "token_ids",
    }  # fmt: skip
    recall |= {
        "Names", "identifiers_of", "Generator", "new_generator", "plan_for", "train_dsi", "written",
        "rank_loss", "log_probabilities", "RankedGenerator", "compared", "train_ltrgr",
    }  # fmt: skip
    ranking = {
        "features", "text_vectors", "histories_of", "numbered", "embedding_tables", "embedded",
        "Features", "Inputs", "MeanPool", "TargetAttention", "CrossLayers", "hidden_layer",
        "ClickModel", "train_clicks", "item_click_rate",
    }  # fmt: skip
    relevance = {
        "pair_model", "train_pairs", "bert", "judge", "mirror", "click_words", "BiEncoder",
        "PairClassifier", "Bert", "Judge", "joined", "column", "adapted_judge", "query_rate",
    }  # fmt: skip
    trained = recall | ranking | relevance
    bodies = [n for n in tree.body if getattr(n, "name", None) in trained]
    assert {n.name for n in bodies} == trained
    # They turn rows of the log into inputs; other tests say which: no click of the test part.
    reads_the_log = {"features", "histories_of", "item_click_rate"}
    # Queries: one row of answers for each; vectors of their words; pairs of both parts, of which
    # `train_pairs` selects.
    reads_queries = {"popularity", "features", "Features", "Inputs", "train_pairs", "query_rate"}
    reads_queries |= {"mirror"}  # its linear layer of that name
    secret = {"truth", "open_truth", "oracle_ranking", "expected_outcomes", "click_probability"}
    measuring = {"buckets", "shown", "judged", "request_labels", "bucket_labels", "record"}
    for body in bodies:
        names = {n.id for n in ast.walk(body) if isinstance(n, ast.Name)}
        own = {n.arg for n in ast.walk(body) if isinstance(n, ast.arg)}
        fields = {n.attr for n in ast.walk(body) if isinstance(n, ast.Attribute)}
        assert not (names - own) & (secret | measuring), body.name
        assert "log" not in names - own or body.name in reads_the_log, body.name
        assert not fields & {"positives", "query_rows"}, body.name
        assert body.name in reads_queries or "queries" not in fields, body.name


def learnt(chapter, monkeypatch, collection, log):
    """The rows that every stage hands to its training, and the features of the click models."""
    seen = []
    monkeypatch.setattr(chapter, "fit", lambda _, batches, *__, **___: seen.append(batches))
    known = {"log": log, "collection": collection, "settings": chapter.RecallSettings.of("smoke")}
    known |= {"ranking": chapter.RankingSettings.of("smoke")}
    for name, value in known.items():
        monkeypatch.setattr(chapter, name, value, raising=False)
    for function in (chapter.features, chapter.train_dense, chapter.train_dsi):
        function.cache_clear()
    chapter.train_ltrgr(collection, chapter.GenerativeSettings.of("smoke"), 0)
    chapter.train_clicks("rank_din", ranking_task(log), known["ranking"], 0)
    task = chapter.judged_pairs(log.relevance)
    chapter.train_pairs("rel_cross", task, chapter.RelevanceSettings.of("smoke"), 0)
    rows = [{name: v.tolist() for name, v in batches.tensors.items()} for batches in seen]
    words = chapter.translated_words(collection, known["settings"])
    histories = chapter.features().histories
    for function in (chapter.features, chapter.train_dense, chapter.train_dsi):
        function.cache_clear()
    return rows, words, histories


def test_answers_of_the_test_part_change_nothing_that_is_learnt(chapter, monkeypatch):
    """Clicks, orders and judgements of the test part are turned over; training stays as it was."""
    log = make_shop(ShopConfig.of("smoke", test_share=0.25, rank_share=0.2), 3)[0]
    test = log.recall["split"] == "test"
    shown, clicked = (log.recall[f"{kind}_item_ids"] for kind in ("impressed", "clicked"))
    parts = zip(shown, clicked, test, strict=True)
    turned = Ragged.from_lists(
        np.setdiff1d(row, found) if other else found for row, found, other in parts
    )
    score = log.relevance["score"].copy()
    score[log.relevance["split"] == "test"] = 3
    recall = log.recall | {"clicked_item_ids": turned}
    other = replace(log, recall=recall, relevance=log.relevance | {"score": score})
    (rows, words, histories), (rows_2, words_2, histories_2) = (
        learnt(chapter, monkeypatch, recall_task(of, 1.0, 0), of) for of in (log, other)
    )
    # the dual encoder, DSI and LTRGR; ranking; twice for relevance, which learns words first
    assert len(rows) == 6
    assert rows == rows_2
    assert words == words_2
    assert np.array_equal(histories[~test], histories_2[~test])
    assert not np.array_equal(histories[test], histories_2[test])  # a later request may look back


def test_tally_counts_in_the_order_of_the_known_ids_and_ignores_others(chapter):
    counts = chapter.tally(np.array([7, 5, 7, 99]), np.array([5, 6, 7]))
    assert counts.tolist() == [1, 0, 2]


def small_log():
    """Eleven requests of five users; every third query string is the same."""
    asked = [  # user, impressed, clicked, purchased, split
        (1, [10, 11, 12], [10, 11], [], "train"),
        (1, [10, 11, 14], [11, 10], [10], "train"),
        (2, [10, 13], [10], [], "train"),
        (2, [11, 15], [], [11], "test"),
        (3, [12, 10], [12], [], "train"),
        (3, [14, 11], [14], [], "train"),
        (4, [14, 10], [14], [], "train"),
        (4, [10, 14, 13], [10], [], "train"),
        (4, [11, 12], [11], [], "test"),
        (1, [10, 11], [], [15], "test"),
        (5, [13], [], [], "train"),
    ]
    user, impressed, clicked, purchased, split = zip(*asked, strict=True)
    recall = {
        "user_id": np.array(user),
        "impressed_item_ids": Ragged.from_lists(impressed),
        "clicked_item_ids": Ragged.from_lists(clicked),
        "purchased_item_ids": Ragged.from_lists(purchased),
        "time_index": np.arange(len(asked)),
        "query": np.array([f"{'Qq'[n % 2]}uery {n % 3}" for n in range(len(asked))], object),
        "split": np.array(split, object),
    }
    items = {"item_id": np.array([15, 10, 14, 11, 13, 12])}
    return KuaiSearch({"user_id": np.array([5, 4, 3, 2, 1])}, items, recall)


def test_the_portrait_of_a_small_log(chapter):
    facts = chapter.portrait(small_log(), 0)
    assert (facts["products"], facts["users"], facts["requests"]) == (6, 5, 11)
    assert (facts["distinct queries"], facts["test requests"]) == (3, 3)  # case is no difference
    # without history: the first request of each of the five users
    assert facts["requests of users without history"] == pytest.approx(5 / 11)
    assert facts["clicks an impression (CTR)"] == pytest.approx(10 / 24)
    assert facts["products shown at most 5 times in training"] == pytest.approx(5 / 6)
    assert facts["test positives never shown in training"] == pytest.approx(1 / 3)  # 15
    # requests a user 3, 3, 2, 2, 1: the mean difference of two users over twice the mean
    assert facts["Gini, requests a user"] == pytest.approx(20 / 25 / (2 * 2.2))
    assert np.isnan(facts["exponent, requests a user"])


def test_four_counts_in_the_order_of_their_tables(chapter):
    counts = chapter.tallies(small_log())
    assert counts["impressions a product"].tolist() == [1, 7, 4, 6, 3, 3]
    assert counts["clicks a product"].tolist() == [0, 4, 2, 3, 0, 1]
    assert counts["requests a user"].tolist() == [1, 3, 2, 2, 3]
    assert sorted(counts["requests a query"]) == [3, 4, 4]


def test_an_empty_log_and_a_tail_of_too_few_are_said_not_raised(chapter):
    empty = core_filter(small_log(), 50)
    assert chapter.portrait(empty, 0)["requests"] == 0
    assert chapter.tail_row(None, None) == {"from": "too few"}


@pytest.mark.parametrize(
    ("p", "z", "said"),
    [(0.02, 3, ("rejected", "power law")), (0.3, 0, ("not rejected", "cannot tell")),
     (0.1, -3, ("not rejected", "log-normal"))],
)  # fmt: skip
def test_a_tail_in_words(chapter, p, z, said):
    fit = chapter.TailFit(7, 0.25, 2.5, 0.1, 1.4, p, z)
    row = chapter.tail_row(fit, replace(fit, p=0.0))
    assert tuple(row[name].split(", ")[1] for name in ("p", "Vuong's z")) == said
    assert (row["from"], row["in the tail"], row["exponent"]) == ("7", "25.0%", "2.50 ± 0.10")
    assert (row["by line"], row["p of all counts"]) == ("1.40", "0.00")


def test_shuffled_clicks_teach_nothing_and_clicks_do(chapter):
    titles = [f"thing{i} stuff" for i in range(80)]
    clicks = [(f"want{i}", i) for i in range(80)] * 8
    task = collection_of(chapter, titles, clicks, [(f"want{i}", [i]) for i in range(80)])
    settings = chapter.RecallSettings.of("smoke", epochs=12, learning_rate=2e-2, batch_size=40)
    scores = {
        arm: chapter.evaluate(chapter.ARMS[arm](task, settings, 0), task.positives)["recall@10"]
        for arm in ("dense_shared", "dense_two", "dense_random", "dense_shuffled")
    }
    means = {arm: values.mean() for arm, values in scores.items()}
    assert means["dense_shuffled"] < 0.4
    assert min(means[a] for a in means if a != "dense_shuffled") > 0.8


def test_generators_learn_which_product_answers_and_write_only_what_exists(chapter, monkeypatch):
    titles = [f"thing{i} stuff" for i in range(80)]
    clicks = [(f"want{i}", i) for i in range(80)] * 8
    task = collection_of(chapter, titles, clicks, [(f"want{i}", [i]) for i in range(80)])
    dense = chapter.RecallSettings.of("smoke", epochs=12, learning_rate=2e-2, batch_size=40)
    monkeypatch.setattr(chapter, "settings", dense, raising=False)
    chosen = chapter.GenerativeSettings.of("smoke", epochs=15, batch_size=40, weight=1.0)
    losses = {}

    def fit(module, *given, **named):
        result = chapter.fit_as_it_is(module, *given, **named)
        losses[type(module).__name__] = module.history.column("loss")[1]
        return result

    monkeypatch.setattr(chapter, "fit_as_it_is", chapter.fit, raising=False)
    monkeypatch.setattr(chapter, "fit", fit)
    for arm in ("dsi", "ltrgr"):
        hits = chapter.ARMS[arm](task, chosen, 0)
        assert hits.ids.shape == (80, 50)
        assert all(len(set(row)) == 50 for row in hits.ids.tolist())  # each a product, none twice
        assert (np.diff(hits.scores, axis=1) <= 0).all()
        assert chapter.evaluate(hits, task.positives)["recall@10"].mean() > 0.8, arm
    assert losses["Generator"][-5:].mean() < losses["Generator"][:5].mean() / 2
    assert losses["RankedGenerator"][-5:].mean() < losses["RankedGenerator"][:5].mean()
    # what training scores is what the search adds up, token by token
    model, names = chapter.train_dsi(task, chosen, 0)
    found = chapter.written(model, names, ["want3", "want5"], 50)
    with torch.no_grad():
        targets = torch.from_numpy(names.items[found.ids[:, :4]])
        scores = chapter.log_probabilities(model, names.sources(["want3", "want5"]), targets)
    np.testing.assert_allclose(scores.numpy(), found.scores[:, :4], atol=1e-4)


def test_identifiers_name_each_product_once(chapter):
    vectors = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    vectors[40:] = vectors[0]  # twenty-one products that nothing tells apart
    codes, centroids = chapter.identifiers_of(vectors, (4, 4), 1)
    assert codes.shape == (60, 3)
    assert len(np.unique(codes, axis=0)) == 60
    assert codes[40:, :2].tolist() == [codes[0, :2].tolist()] * 20
    assert codes[40:, 2].tolist() == sorted(codes[40:, 2].tolist())
    assert [level.shape for level in centroids] == [(4, 4), (4, 4)]


def test_rank_loss_by_hand(chapter):
    scores = torch.tensor([[-2.0, -3.0, -4.0, -3.9], [-1.0, -1.1, -5.0, -2.0]])
    # what is missing at .25: 0 and .1 + .25 for one query, .25 - .1 and 3 + .25 for the other
    assert chapter.rank_loss(scores, 0.25).item() == pytest.approx((0.35 + 0.15 + 3.25) / 2)
    assert chapter.rank_loss(scores[:, [1, 0, 3, 2]], 0.0).item() == pytest.approx(1.1 / 2)


def test_rivals_are_what_was_retrieved_and_not_clicked(chapter):
    lists = np.array([[4, 7, 5, 1], [2, 3, 0, 6], [8, 9, 8, 9]])
    clicked, which = np.array([5, 6, 1, 2, 8, 9]), np.array([0, 1, 0, 0, 2, 2])
    kept, rows = chapter.compared(lists, clicked, which, 0)
    assert kept.tolist() == [0, 1, 2, 3]  # all that the third query found was clicked
    best, rival, own, other = rows.T.tolist()
    assert best == [5, 6, 5, 5]  # the first of the clicked ones in the list
    assert rival == [4, 2, 4, 4]
    assert own == [5, 6, 1, 2]
    assert set(other) <= {4, 7, 2, 3, 0}
    alone = chapter.compared(lists[:1], np.array([2]), np.array([0]), 0)[1]
    assert alone[0, 0] == 2  # none of the list was clicked: the click itself


def test_one_tower_is_shared_and_two_are_not(chapter, settings):
    one, two = (chapter.build_encoder(settings, 50, shared) for shared in (True, False))
    weights = [sum(p.numel() for p in encoder.parameters()) for encoder in (one, two)]
    assert one.query_tower is one.item_tower
    assert weights[1] == 2 * weights[0]


def test_full_builds_on_the_meta_device_and_its_trainer_starts(chapter):
    import lightning

    full = chapter.RecallSettings.of("full")
    for name, factory in chapter.full_models().items():
        size = describe(factory)
        print(f"{name}: {size}")
        assert size["weight_bytes"] >= 2 * size["parameters"] > 150e6
    arguments = trainer_arguments(full)
    assert (arguments["devices"], arguments["strategy"]) == (8, "ddp_notebook")
    # The same arguments, on what this machine has.
    here = {**arguments, "accelerator": "cpu", "devices": 1}
    assert lightning.Trainer(**here).strategy.__class__.__name__ == "DDPStrategy"


def test_the_chapter_reads_files_in_the_true_schema(chapter, tmp_path, monkeypatch):
    put(tmp_path, rows())
    monkeypatch.setattr(chapter, "schema_only", False, raising=False)
    log, truth = chapter.open_log("full", 0, str(tmp_path), {})
    task = recall_task(log, 1.0, 0)
    assert truth is None
    assert len(task.titles) == len(log.items["item_id"])
    assert len(task.queries) == (task.positives.lengths > 0).sum() > 0
    first = set(task.positives[0])
    row = task.query_rows[0]
    bought = {*log.recall["clicked_item_ids"][row], *log.recall["purchased_item_ids"][row]}
    assert {int(log.items["item_id"][r]) for r in first} == {int(item) for item in bought}
    assert set(log.recall["split"][task.query_rows]) == {"test"}


def test_full_trains_its_query_writer_on_a_tiny_checkpoint(chapter, tmp_path):
    """`full` differs in the checkpoint's name alone, so a tiny mT5 runs the same lines."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import MT5ForConditionalGeneration, PreTrainedTokenizerFast

    from minisearch.models.seq2seq import toy_t5_config

    words = ["<pad>", "</s>", "<unk>", "red", "blue", "shoe", "hat"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path)
    torch.manual_seed(0)
    MT5ForConditionalGeneration(toy_t5_config(16, 16)).save_pretrained(tmp_path)
    titles = ["red shoe", "blue hat", *(f"shoe {i}" for i in range(60))]
    task = collection_of(
        chapter, titles, [("red shoe", 0), ("blue hat", 1)] * 8, [("red shoe", [0])]
    )
    settings = chapter.RecallSettings.of(
        "smoke", query_writer=str(tmp_path), writer_epochs=1, expansion=2
    )
    written = chapter.written_queries(task, settings, 0)
    assert len(written) == len(titles)
    assert chapter.doc2query(task, settings, 0).ids.shape == (1, 50)


@pytest.mark.slow
def test_a_folder_of_files_runs_through_the_whole_chapter(tmp_path, monkeypatch):
    """Written by the simulator, read back as a user's folder: every arm runs, nothing is known."""
    make_shop(ShopConfig.of("smoke"), 7)[0].write(tmp_path / "files")
    monkeypatch.setenv("MINISEARCH_BUILD", str(tmp_path / "build"))
    cell = runs.page_cell(CHAPTER, profile="smoke", data=str(tmp_path / "files"))
    result = runs.run_cell(cell, "page")
    assert result.status == "ran", result.failure
    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert metrics["bm25/recall@50"] > metrics["popularity/recall@50"]
    assert not [name for name in metrics if "query type" in name or name.startswith("oracle")]


@pytest.mark.slow
def test_the_real_demo_files_are_read_and_audited(tmp_path, monkeypatch):
    folder = os.environ.get("MINISEARCH_KUAISEARCH")
    if not folder:
        pytest.skip("MINISEARCH_KUAISEARCH does not name the folder of the authors' demo files")
    monkeypatch.setenv("MINISEARCH_BUILD", str(tmp_path))
    named = {"profile": "smoke", "data": folder}
    result = runs.run_cell(runs.page_cell(CHAPTER, **named, schema_only=True), "page")
    assert result.status == "ran", result.failure
    text = (result.folder / "notebook.ipynb").read_text()
    assert "schema-only: the files were read and audited" in text
    refused = runs.run_cell(runs.page_cell(CHAPTER, **named), "page")
    assert "schema_only" in str(refused.failure)


def test_settings_refuse_what_they_do_not_know(chapter):
    with pytest.raises(InputError, match="did you mean 'toy'"):
        chapter.RecallSettings.of("toys")
    with pytest.raises(InputError, match=r"learning_rate.*str.*expected float"):
        chapter.RecallSettings.of("toy", learning_rate="fast")
