"""The questions' and corpus's script on small files in the true formats, the network replaced."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import socket
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from minisearch.data.qa import read_corpus, read_questions, write_jsonl
from minisearch.errors import InputError
from minisearch.retriever import BM25Retriever, RemoteRetriever, serving

SCRIPTS = Path(__file__).parents[2] / "data_scripts"
PASSAGES = 41
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ":", '"', "query", "passage", "title"]


@pytest.fixture
def script(monkeypatch):
    """The script as `python data_scripts/qa.py` sees it, with a small corpus's figures."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("qa")
    monkeypatch.setattr(module, "PASSAGES", PASSAGES)
    monkeypatch.setattr(module, "WIDTH", 8)
    return module


@pytest.fixture
def index(script):
    return importlib.import_module("qa_index")


def passages() -> list[dict]:
    texts = [" ".join(f"w{n * k % 23}" for k in range(1, 4 + n % 7)) for n in range(PASSAGES)]
    return [{"id": str(n), "contents": f'"Title {n}"\n{text}'} for n, text in enumerate(texts)]


@pytest.fixture
def corpus(tmp_path) -> Path:
    path = tmp_path / "wiki-18.jsonl.gz"
    write_jsonl(path, passages())
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch, script, corpus) -> Path:
    """A folder that plays the hub; each set of questions has three rows."""
    import faiss

    folder = tmp_path / "hub"
    monkeypatch.setattr(script, "ROWS", dict.fromkeys(script.ROWS, 3))
    for name in script.ROWS:
        rows = [{"id": f"q{n}", "question": "who", "golden_answers": [str(n)]} for n in range(3)]
        write_jsonl(folder / "RUC-NLPIR/FlashRAG_datasets" / name, rows)
    (folder / "PeterJinGo/wiki-18-corpus").mkdir(parents=True)
    shutil.copy(corpus, folder / "PeterJinGo/wiki-18-corpus/wiki-18.jsonl.gz")
    flat = faiss.IndexFlatIP(8)
    flat.add(np.random.default_rng(0).normal(size=(PASSAGES, 8)).astype(np.float32))
    faiss.write_index(flat, str(tmp_path / "whole"))
    content = (tmp_path / "whole").read_bytes()
    (folder / "PeterJinGo/wiki-18-e5-index").mkdir()
    (folder / "PeterJinGo/wiki-18-e5-index/part_aa").write_bytes(content[:700])
    (folder / "PeterJinGo/wiki-18-e5-index/part_ab").write_bytes(content[700:])

    def fetch(repository, name, *, repo_type, revision, local_dir):
        assert (repo_type, revision) == ("dataset", "main")
        target = Path(local_dir, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        return shutil.copyfile(folder / repository / name, target)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    return folder


@pytest.fixture
def encoder(tmp_path) -> Path:
    """A tiny BERT with random weights, saved as the hub's models are."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path / "encoder"
    folder.mkdir()
    vocabulary = [*WORDS, *(f"w{n}" for n in range(23)), *map(str, range(PASSAGES))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(vocabulary), intermediate_size=16, **sizes)
    BertModel(config).save_pretrained(folder)
    return folder


def run(script, *arguments):
    return CliRunner().invoke(script.app, [str(argument) for argument in arguments])


def left(folder: Path) -> list[str]:
    """The files that have their final names, hidden ones aside."""
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(str(path) for path in files if not path.parts[0].startswith("."))


def test_the_figures_are_those_of_the_papers(script):
    train = [rows for name, rows in script.ROWS.items() if "train" in name]
    test = [rows for name, rows in script.ROWS.items() if "train" not in name]
    assert train == [79_168, 90_447]
    assert len(test) == 7
    assert sum(test) == 51_713


def test_seven_sets_of_questions_are_fetched_and_verified(tmp_path, script, hub):
    done = run(script, "questions", tmp_path / "qa")
    assert done.exit_code == 0, done.output
    assert "bamboogle/test.jsonl: verified, 3 rows" in done.output
    assert left(tmp_path / "qa") == sorted(script.ROWS)
    assert len(read_questions(tmp_path / "qa/musique/dev.jsonl")) == 3
    assert not (tmp_path / "qa" / script.STAGING).exists()


def test_a_second_run_fetches_nothing_but_checks_again(tmp_path, script, hub, monkeypatch):
    assert run(script, "questions", tmp_path / "qa").exit_code == 0
    assert run(script, "corpus", tmp_path / "wiki").exit_code == 0
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    assert run(script, "corpus", tmp_path / "wiki").exit_code == 0
    assert run(script, "questions", tmp_path / "qa").exit_code == 0
    (tmp_path / "qa/nq/test.jsonl").write_text("{}\n")
    done = run(script, "questions", tmp_path / "qa")
    assert done.exit_code == 2
    assert "nq/test.jsonl, row 1, column id" in done.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "found 2 rows; expected 3 rows"),
        (lambda lines: [*lines[:-1], lines[0]], "'q0', which row 1 has already"),
        (lambda lines: [*lines[:-1], lines[2][:20]], "cut off or no JSON"),
    ],
)
def test_a_damaged_file_never_gets_its_name(tmp_path, script, hub, change, message):
    path = hub / "RUC-NLPIR/FlashRAG_datasets/nq/train.jsonl"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    done = run(script, "questions", tmp_path / "qa")
    assert done.exit_code == 2
    assert message in done.output
    assert left(tmp_path / "qa") == []
    assert not list((tmp_path / "qa").rglob("train.jsonl"))


def test_an_interrupted_download_says_how_to_go_on(tmp_path, script, hub, monkeypatch):
    complete = huggingface_hub.hf_hub_download

    def interrupted(repository, name, *, local_dir, **options):
        Path(local_dir, "part.incomplete").write_bytes(b"half")
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", interrupted)
    done = run(script, "corpus", tmp_path / "wiki")
    assert done.exit_code == 2
    assert "wiki-18-corpus/wiki-18.jsonl.gz: found the download stopped" in done.output
    assert "run the same command again" in done.output
    assert left(tmp_path / "wiki") == []
    assert list((tmp_path / "wiki").rglob("*.incomplete"))  # what the client resumes from
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", complete)
    assert run(script, "corpus", tmp_path / "wiki").exit_code == 0
    assert left(tmp_path / "wiki") == ["wiki-18.jsonl.gz"]


def test_the_published_index_is_joined_from_its_pieces(tmp_path, script, hub):
    import faiss

    done = run(script, "corpus", tmp_path / "wiki", "--e5")
    assert done.exit_code == 0, done.output
    assert left(tmp_path / "wiki") == ["e5_Flat.index", "wiki-18.jsonl.gz"]
    assert (tmp_path / "wiki/e5_Flat.index").read_bytes() == (tmp_path / "whole").read_bytes()
    assert faiss.read_index(str(tmp_path / "wiki/e5_Flat.index")).ntotal == PASSAGES


def test_an_index_of_another_size_is_refused(tmp_path, script, hub):
    with open(hub / "PeterJinGo/wiki-18-e5-index/part_ab", "ab") as piece:
        piece.write(b"x")
    done = run(script, "corpus", tmp_path / "wiki", "--e5")
    assert done.exit_code == 2
    assert "e5_Flat.index: found 1,358 bytes; expected 1,357 bytes" in done.output
    assert left(tmp_path / "wiki") == ["wiki-18.jsonl.gz"]


def test_a_corpus_that_is_cut_short_is_refused(tmp_path, script, hub):
    write_jsonl(hub / "PeterJinGo/wiki-18-corpus/wiki-18.jsonl.gz", passages()[:-1])
    done = run(script, "corpus", tmp_path / "wiki")
    assert done.exit_code == 2
    assert "found 40 rows; expected 41 rows" in done.output
    assert left(tmp_path / "wiki") == []


def test_a_disk_without_room_stops_before_the_download(tmp_path, script, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    done = run(script, "corpus", tmp_path / "wiki")
    assert done.exit_code == 2
    assert "found 0.0 GB free; expected 5.2 GB of room" in done.output


@pytest.mark.parametrize("shard", [1, 7, 41, 1000])
@pytest.mark.parametrize("topk", [1, 5, 100])
def test_bm25_in_shards_finds_what_bm25_in_memory_finds(tmp_path, index, corpus, shard, topk):
    index.build_bm25(read_corpus(corpus), tmp_path / "bm25", shard)
    found = index.ShardedBM25(passages(), tmp_path / "bm25")
    assert len(list((tmp_path / "bm25").glob("*/"))) == math.ceil(PASSAGES / shard)
    queries = ["title 7", "w3 w5 w3", "xyzzy", "", "title w0 w1 w2 w21"]
    expected = BM25Retriever(passages()).batch_search(queries, topk)
    for ours, theirs in zip(found.batch_search(queries, topk), expected, strict=True):
        assert [h["document"] for h in ours] == [h["document"] for h in theirs]
        scores = [h["score"] for h in theirs]
        assert [h["score"] for h in ours] == pytest.approx(scores, rel=1e-5)


def test_the_shards_stay_on_disk(tmp_path, index, corpus):
    index.build_bm25(read_corpus(corpus), tmp_path / "bm25", 10)
    shards = index.ShardedBM25(passages(), tmp_path / "bm25")._shards
    assert all(isinstance(shard.scores["data"], np.memmap) for shard in shards)


def test_building_asks_for_passages_one_at_a_time(tmp_path, index):
    alive = 0

    class Counted(dict):
        def __init__(self, *arguments):
            nonlocal alive
            super().__init__(*arguments)
            alive += 1

        def __del__(self):
            nonlocal alive
            alive -= 1

    def stream():
        for passage in passages():
            yield Counted(passage)
            assert alive <= 2

    index.build_bm25(stream(), tmp_path / "bm25", 10)


def test_an_interrupted_build_leaves_no_index(tmp_path, index):
    def stream():
        yield from passages()[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.build_bm25(stream(), tmp_path / "bm25", 2)
    assert not (tmp_path / "bm25").exists()


def test_vectors_are_means_over_the_tokens_with_the_prefix(index, encoder):
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(encoder).eval()
    inputs = AutoTokenizer.from_pretrained(encoder)("passage: w1 w2", return_tensors="pt")
    with torch.no_grad():
        mean = model(**inputs).last_hidden_state[0].mean(0).numpy()
    encode = index.E5(str(encoder))
    alone, padded = encode(["w1 w2"], "passage: "), encode(["w1 w2", "w3 " * 9], "passage: ")
    np.testing.assert_allclose(alone[0], mean / np.linalg.norm(mean), atol=1e-5)
    np.testing.assert_allclose(padded[0], alone[0], atol=1e-5)
    assert abs(encode(["w1 w2"], "query: ") - alone).max() > 1e-3
    short = index.E5(str(encoder), max_length=5)
    np.testing.assert_allclose(short(["w1 w2 w3"], "query: "), short(["w1"], "query: "), atol=1e-5)


def test_an_unknown_encoder_is_named(tmp_path, script, corpus):
    done = run(script, "dense", corpus, tmp_path / "e5", "--encoder", tmp_path / "none")
    assert done.exit_code == 2
    assert "option --encoder: found" in done.output


@pytest.mark.parametrize("kind", ["Flat", "SQ8", "IVF2,SQ8"])
def test_dense_search_finds_the_nearest_passages(tmp_path, script, index, corpus, encoder, kind):
    options = ["--encoder", encoder, "--kind", kind, "--batch", 4, "--part", 10]
    done = run(script, "dense", corpus, tmp_path / "e5", *options)
    assert done.exit_code == 0, done.output
    assert f"in memory as {kind}" in done.output
    path = tmp_path / "e5" / f"{kind.replace(',', '_')}.index"
    found = script.retriever_of(corpus, None, path, str(encoder))
    encode = index.E5(str(encoder))
    vectors = encode([p["contents"] for p in passages()], "passage: ")
    exact = encode(["w3 w6", "title 7"], "query: ") @ vectors.T
    hits = found.batch_search(["w3 w6", "title 7"], 5)
    for scores, ours in zip(exact, hits, strict=True):
        rows = [int(hit["document"]["id"]) for hit in ours]
        assert 0 < len(rows) <= 5
        assert [hit["score"] for hit in ours] == pytest.approx(scores[rows].tolist(), abs=0.02)
        assert ours[0]["document"] == passages()[rows[0]]
        if kind == "Flat":
            assert scores[rows].min() >= np.sort(scores)[-5] - 1e-3
    assert found.batch_search([], 5) == []


def test_encoding_goes_on_after_the_last_complete_part(tmp_path, index, corpus):
    texts: list[str] = []

    def encode(batch, prefix):
        assert prefix == "passage: "
        if len(texts) == 30:
            raise KeyboardInterrupt
        texts.extend(batch)
        return np.full((len(batch), 8), len(texts), np.float32)

    with pytest.raises(KeyboardInterrupt):
        index.encode_corpus(read_corpus(corpus), tmp_path, encode, batch=5, part=20)
    del texts[20:]
    again = texts.copy()
    texts.clear()
    paths = index.encode_corpus(read_corpus(corpus), tmp_path, encode, batch=5, part=20)
    assert again + texts == [passage["contents"] for passage in passages()]
    assert [np.load(path).shape for path in paths] == [(20, 8), (20, 8), (1, 8)]
    assert np.load(paths[0]).dtype == np.float16


def test_vectors_of_another_encoder_are_not_mixed_in(tmp_path, script, corpus, encoder):
    options = ["--encoder", encoder, "--part", 10]
    assert run(script, "dense", corpus, tmp_path / "e5", *options).exit_code == 0
    done = run(script, "dense", corpus, tmp_path / "e5", "--encoder", "other", "--part", 10)
    assert done.exit_code == 2
    assert "settings.json: found" in done.output


def test_the_arithmetic_of_the_full_corpus(index):
    flat = index.dense_arithmetic(21_015_324, 768, "Flat")
    assert "x 3,072 bytes = 64.6 GB in memory as Flat" in flat
    assert "x 768 x 2 bytes = 32.3 GB" in flat
    assert "x 776 bytes = 16.3 GB" in index.dense_arithmetic(21_015_324, 768, "IVF4096,SQ8")
    with pytest.raises(InputError, match="option --kind"):
        index.dense_arithmetic(1, 768, "nonsense")


@pytest.mark.parametrize("sharded", [False, True])
def test_a_corpus_is_served_in_the_wire_format(tmp_path, script, corpus, monkeypatch, sharded):
    options = []
    if sharded:
        done = run(script, "bm25", corpus, tmp_path / "bm25", "--shard", 10)
        assert done.exit_code == 0, done.output
        assert "41 passages" in done.output
        assert "5 shards" in done.output
        options = ["--bm25", tmp_path / "bm25"]
    served = []
    original = script.server
    monkeypatch.setattr(script, "server", lambda *a: served.append(a[0]) or original(*a))

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ThreadingHTTPServer, "serve_forever", interrupted)
        done = run(script, "serve", corpus, "--port", 0, *options)
    assert done.exit_code == 0, done.output
    assert "serving http://127.0.0.1:" in done.output
    with serving(served[0]) as url:
        (hits,) = RemoteRetriever(url, retries=0).batch_search(["title 7"], 2)
    assert hits[0]["document"] == passages()[7]


def test_serving_names_what_is_wrong(tmp_path, script, corpus):
    done = run(script, "serve", tmp_path / "none.jsonl")
    assert done.exit_code == 2
    assert "none.jsonl: found No such file" in done.output
    done = run(script, "serve", corpus, "--dense", tmp_path / "none.index")
    assert "option --dense" in done.output
    done = run(script, "serve", corpus, "--bm25", tmp_path / "none")
    assert "none: found 0 rows; expected the corpus's 41" in done.output
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run(script, "serve", corpus, "--port", taken.getsockname()[1])
    assert "option --port" in done.output


def test_vocabulary_and_figures_are_written_beside_the_shards(tmp_path, index, corpus):
    text = index.build_bm25(read_corpus(corpus), tmp_path / "bm25", 10)
    vocabulary = json.loads((tmp_path / "bm25/vocabulary.json").read_text())
    assert f"{len(vocabulary):,} words" in text
    assert not list((tmp_path / "bm25").rglob("counts.npz"))
