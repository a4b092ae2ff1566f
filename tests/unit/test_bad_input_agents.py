"""What an agent may meet: no corpus, no hit, broken tags, a wrong tokenizer, a failing service."""

from __future__ import annotations

import random
import time

import pytest
import torch
from bpe_example import bpe_tokenizer
from rollout_example import WHO, Library, Script, kinds, parts, play, play_one
from tokenizers import Tokenizer, models, pre_tokenizers
from toy_lm_example import tiny_model, toy_tokenizer
from transformers import PreTrainedTokenizerFast

from minisearch.agents.protocol import ENGLISH, TOY, protocol_of
from minisearch.agents.rewards import exact_match_reward, f1_reward, format_reward, gold_recall
from minisearch.agents.rollout import RolloutConfig, rollout
from minisearch.agents.trajectory import Trajectory, collate
from minisearch.errors import InputError
from minisearch.models.lm import LanguageModel, load_lm
from minisearch.retriever import BM25Retriever, RemoteRetriever, serving

SEARCH = "<think> need employer </think> <search> {} </search>"
ANSWER = "<think> found employer </think> <answer> employer </answer>"
CORPUS = [
    {"id": "a", "contents": '"sister"\nthe sister of the mayor .'},
    {"id": "b", "contents": '"mayor"\nthe employer of the mayor .'},
]
QUESTION = {
    "id": "q",
    "question": "who ?",
    "golden_answers": ["employer"],
    "metadata": {"hops": [{"gold_ids": ["b"]}]},
}


def rewards(row: Trajectory) -> list[float]:
    scores = (exact_match_reward, f1_reward, format_reward, gold_recall)
    return [score(row, QUESTION) for score in scores]


# -- the corpus --------------------------------------------------------------------------------


def test_an_empty_corpus_is_refused_with_what_to_check():
    with pytest.raises(
        InputError, match="corpus: found no passage; expected at least one"
    ) as error:
        BM25Retriever([])
    assert "the filter" in error.value.remedy


def test_a_corpus_without_a_word_is_refused():
    with pytest.raises(InputError, match="2 documents without a word"):
        BM25Retriever([{"id": "a", "contents": ""}, {"id": "b", "contents": '"..."\n!'}])


@pytest.mark.parametrize("query", ["birthplace", "?", "who who who"])
def test_a_search_without_a_hit_brings_an_empty_block_and_counts(query):
    row = play_one(SEARCH.format(query), ANSWER, library=BM25Retriever(CORPUS))
    assert row.retrieved == [[]]
    assert row.queries == [query]
    assert parts(row)[5] == "<information> </information>"
    assert rewards(row) == [1.0, 1.0, 1.0, 0.0]


def test_rows_with_and_without_a_hit_go_on_side_by_side():
    turns = {
        WHO: [SEARCH.format("birthplace"), ANSWER],
        "<user> what ? <assistant>": [SEARCH.format("employer"), ANSWER],
    }
    rows, _ = play(turns, library=BM25Retriever(CORPUS))
    assert [row.retrieved for row in rows] == [[[]], [["b"]]]
    assert [rewards(row)[-1] for row in rows] == [0.0, 1.0]


# -- what the model writes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "turn",
    [
        "<end>",
        "employer",
        "<think> employer",
        "<search> employer",  # unclosed
        "<search> </search>",
        "<search> <search> </search>",
        "<search> employer </answer>",
        "<answer> employer </think>",
        "<answer> employer",
        "<answer> </answer>",
        "</answer> </search> <answer>",
        "employer </answer>",
        "<information> <answer> employer </information>",
    ],
)
def test_broken_tags_cost_the_reward_and_nothing_else(turn):
    library = Library()
    row = play_one(turn, library=library)
    assert rewards(row) == [0.0, 0.0, 0.0, 0.0]
    assert not library.asked
    batch = collate([row], 0)
    assert batch.policy[0].tolist() == [False] * 4 + [True] * (len(row.ids) - 4)
    assert (batch.search == -1).all()


class Noise(Script):
    """Writes blocks, tags and words at random."""

    fragments = (
        *("<search> {} </search>", "<search>sister?</search>.", "<think> {} </think>"),
        *("<answer> {} </answer>", "<think>{}</think><answer>{}</answer>", "<search> </search>"),
        *("<search>", "</search>", "<answer>", "</answer>", "<think>", "</think>"),
        *("<information>", "</information>", "employer", "mayor", "?", "\n", "<end>"),
    )

    def __init__(self, tokenizer) -> None:
        super().__init__({}, tokenizer)
        self.chosen = random.Random(0)
        self.pending: dict[str, list[int]] = {}  # by prompt

    def next_token(self, ids):
        row = self.pending.setdefault(self.tokenizer.decode(ids).replace(" ", "")[:2], [])
        if not row:
            word = self.chosen.choice(["sister", "mayor", "employer"])
            row += self.encode(self.chosen.choice(self.fragments).replace("{}", word))
            row += [] if row else self.encode(word)  # one tokenizer drops white space
        return row.pop(0)


@pytest.mark.parametrize("tokenizer", [toy_tokenizer, bpe_tokenizer])
def test_whatever_a_model_writes_an_attempt_adds_up(tokenizer):
    prompts = [f"{n % 9 + 1} {n // 9 + 1} " for n in range(60)]
    config = RolloutConfig(temperature=0, searches=2, turn_tokens=30, tokens=250, block_tokens=60)
    model, library = Noise(tokenizer()), Library(nothing_for="mayor")
    rows, _ = play(dict.fromkeys(prompts, ()), config, library, model=model)
    for row in rows:
        found = kinds(row)
        asked = found.count("query")
        assert asked == found.count("documents") == len(row.queries) == len(row.retrieved) <= 2
        assert found[0] == "prompt"
        assert "prompt" not in found[1:]
        assert len(row.ids) <= 250
        assert all(s.sampled for s in row.segments[1:] if s.kind not in ("documents", "answer"))
        assert all(not s.sampled for s in row.segments if s.kind in ("prompt", "documents"))
        assert not row.answer or found[-1] == "answer"
        assert row.answer in row.text
        if format_reward(row, QUESTION):
            step = ["think", "search", "query", "search", "documents"]
            assert found == ["prompt", *step * asked, "think", "answer"]
    carried_out = sum(len(row.queries) for row in rows)
    assert 10 < carried_out <= sum(map(len, library.asked))
    assert sum(bool(row.answer) for row in rows) > 3
    assert any(format_reward(row, QUESTION) for row in rows)
    assert sum("invalid" in kinds(row) for row in rows) > 10
    batch = collate(rows, 0)
    response = batch.real.clone()
    for n, row in enumerate(rows):
        response[n, : row.prompt_length] = False
        assert int(batch.search[n].max()) == len(row.queries) - 1
    assert torch.equal(batch.policy ^ batch.observation, response)


def test_an_attempt_that_grows_beyond_the_models_positions_is_ended_with_an_answer():
    long = [{"id": str(n), "contents": f'"mayor"\n{"employer " * 300}'} for n in range(2)]
    row = play_one(SEARCH.format("mayor"), "employer </answer>", library=BM25Retriever(long))
    assert row.answer == "employer"  # 512 positions; the block alone would take 512 tokens
    assert row.queries == []
    config = RolloutConfig(temperature=0, block_tokens=200)
    turns = [SEARCH.format("mayor")] * 3
    row = play_one(*turns, "employer </answer>", library=BM25Retriever(long), config=config)
    assert row.queries == ["mayor"] * 2
    assert [len(s.ids) for s in row.segments if s.kind == "documents"] == [200, 200]
    assert row.answer == "employer"
    assert len(row.ids) <= 512


# -- the tokenizer -----------------------------------------------------------------------------


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    tiny_model("qwen2", 100).save_pretrained(tmp_path)
    bpe_tokenizer().save_pretrained(tmp_path)
    size = len(bpe_tokenizer())
    with pytest.raises(InputError, match=f"a tokenizer of {size} tokens with a model of 100"):
        load_lm(str(tmp_path))


def test_a_tokenizer_whose_tags_are_several_tokens_is_fine(tmp_path):
    tiny_model("qwen2", len(bpe_tokenizer())).save_pretrained(tmp_path)
    bpe_tokenizer().save_pretrained(tmp_path)
    lm = load_lm(str(tmp_path))
    assert protocol_of(lm.tokenizer) is ENGLISH
    assert len(lm.encode("<answer>")) > 1
    config = RolloutConfig(turn_tokens=12, answer_at_once=True)
    (row,) = rollout(lm, Library(), ENGLISH, ["Who? "], config)
    assert lm.decode(row.ids).startswith("Who? <answer>")
    assert sum(len(s.ids) for s in row.segments if s.sampled) == 12


def test_a_tokenizer_that_cannot_write_the_tags_is_refused():
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "who": 1, "<search>": 2}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    with pytest.raises(InputError, match=r"tokenizer: found .* as '<search> <unk>") as caught:
        rollout(
            LanguageModel(tiny_model("qwen2"), tokenizer), Library(), TOY, ["who"], RolloutConfig()
        )
    assert "give it the tags" in caught.value.remedy


# -- the score of an answer --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefixes", "answers", "error"),
    [(["who"], [""], InputError), (["who"], ["who"], RuntimeError)],
)
def test_a_score_that_fails_gives_the_models_mode_back(prefixes, answers, error):
    model = tiny_model("qwen2").train()

    def fails(*_):
        raise RuntimeError("out of memory")

    model.register_forward_pre_hook(fails)
    with pytest.raises(error):
        LanguageModel(model, toy_tokenizer()).answer_log_prob(prefixes, answers)
    assert model.training


# -- a service across the network --------------------------------------------------------------


class Failing:
    """A retriever that fails in its own way for the first requests, then works."""

    def __init__(self, times: int, failure) -> None:
        self.times, self.failure, self.requests = times, failure, 0

    def batch_search(self, queries, topk):
        self.requests += 1
        if self.requests <= self.times:
            return self.failure()
        return Library().batch_search(queries, topk)


def slow():
    time.sleep(1.5)
    return []


def broken():
    raise ZeroDivisionError("by zero")


def remote(url: str, failure=None) -> RemoteRetriever:
    timeout = 0.7 if failure is slow else 10.0
    return RemoteRetriever(url, timeout=timeout, retries=2, backoff=0.01)


@pytest.mark.parametrize(("failure", "times"), [(slow, 1), (broken, 2)])
def test_a_service_that_recovers_in_time_costs_an_attempt_nothing(failure, times):
    service = Failing(times, failure)
    with serving(service) as url:
        row = play_one(SEARCH.format("sister"), ANSWER, library=remote(url, failure))
    assert service.requests == times + 1
    assert row.retrieved == [["sister/0", "sister/1"]]
    assert row.answer == "employer"


@pytest.mark.parametrize(
    ("failure", "found", "requests"),
    [
        (slow, "timed out", 3),
        (broken, "status 500.*ZeroDivisionError", 3),
        (lambda: [], "0 results", 1),
        (lambda: [["text"]], "the hit 'text'", 1),
        (lambda: [[{"document": {"id": "a"}, "score": 1.0}]], "the hit {'document'", 1),
        (lambda: None, "{'result': None}", 1),
    ],
)
def test_a_service_that_stays_away_or_gives_garbage_ends_the_rollout(failure, found, requests):
    service = Failing(9, failure)
    model = Script({WHO: [SEARCH.format("sister"), ANSWER]}).train()
    with serving(service) as url, pytest.raises(InputError, match=found) as error:
        play({WHO: ()}, library=remote(url, failure), model=model)
    assert error.value.where == url
    assert service.requests == requests
    assert model.training


def test_the_waits_between_the_requests_of_a_rollout_grow(monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with serving(Failing(9, broken)) as url:
        service = RemoteRetriever(url, timeout=5.0, retries=3, backoff=0.5)
        with pytest.raises(InputError, match="4 attempts"):
            play_one(SEARCH.format("sister"), ANSWER, library=service)
    assert [wait for wait in waits if wait] == [0.5, 1.0, 2.0]


def test_a_service_that_has_gone_away_is_named():
    with serving(Library()) as url:
        assert len(remote(url).batch_search(["sister"], 2)[0]) == 2
    model = Script({WHO: [SEARCH.format("sister"), ANSWER]})
    with pytest.raises(InputError, match=r"[Rr]efused.*start the service") as error:
        play({WHO: ()}, library=remote(url), model=model)
    assert error.value.where == url
