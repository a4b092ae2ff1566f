"""Chapter 1: its definitions against known answers, its bad and odd data, and `full` for real."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from minisearch import chapters, runs
from minisearch.errors import InputError
from minisearch.models import describe
from minisearch.profiles import trainer_arguments
from minisearch.records import Ragged

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
    """What trains may name neither the simulator's truth nor a collection's test side."""
    tree = ast.parse(chapters.find(CHAPTER).read_text())
    trained = {
        "train_dense", "DenseRetriever", "build_encoder", "translated_words", "translation_table",
        "add_clicked_queries", "QueryWriter", "written_queries", "text_encoder", "popularity",
    }  # fmt: skip
    bodies = [n for n in tree.body if getattr(n, "name", None) in trained]
    assert {n.name for n in bodies} == trained
    queries_only = {"popularity"}  # its answer has one row a test query
    for body in bodies:
        names = {n.id for n in ast.walk(body) if isinstance(n, ast.Name)}
        fields = {n.attr for n in ast.walk(body) if isinstance(n, ast.Attribute)}
        assert not names & {"truth", "open_truth", "oracle_ranking", "log"}, body.name
        assert not fields & {"positives", "query_rows"}, body.name
        assert body.name in queries_only or "queries" not in fields, body.name


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
    log, truth = chapter.open_log(chapter.RecallSettings.of("full"), 0, str(tmp_path), -1.0)
    task = chapter.as_collection(log, 1.0, 0)
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
    from minisearch.worlds.shop import make_shop
    from minisearch.worlds.shop_catalogue import ShopConfig

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
