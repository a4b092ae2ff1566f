"""Chapter 7: what its arms are, and that its plain loop is the module that the grid trains."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from minisearch import chapters
from minisearch.agents.protocol import TOY
from minisearch.agents.rewards import exact_match_reward
from minisearch.agents.rollout import RolloutConfig, rollout
from minisearch.agents.trajectory import Trajectory
from minisearch.data.qa import write_jsonl
from minisearch.models.lm import load_lm
from minisearch.recorder import Recorder
from minisearch.retriever import RemoteRetriever


@pytest.fixture(scope="module")
def chapter():
    return chapters.load("07_search_agent")


@pytest.fixture
def page(chapter, monkeypatch, tmp_path):
    """The chapter as it stands after its parameters, at smoke."""
    settings = chapter.SearchSettings.of("smoke")
    attempts = RolloutConfig(searches=settings.searches, turn_tokens=settings.turn_tokens)
    names = {
        "profile": "smoke", "seed": 7, "world_seed": 0, "init_seed": 0, "data": "", "service": "",
        "settings": settings, "record": Recorder(tmp_path / "run"), "ATTEMPTS": attempts,
        "GREEDY": replace(attempts, temperature=0.0), "MODULES": {},
    }  # fmt: skip
    for name, value in names.items():
        monkeypatch.setattr(chapter, name, value, raising=False)
    return chapter


def names_in(questions):
    return {name for q in questions for name in (q["metadata"]["entity"], *q["golden_answers"])}


# -- what is trained on and asked ----------------------------------------------------------------


def test_test_questions_are_the_same_for_every_seed_and_share_no_name_with_training(page):
    one, other = page.open_task("blank", 1), page.open_task("blank", 2)
    assert one.test == other.test
    assert one.training != other.training
    assert not names_in(one.training) & names_in(one.test)
    assert len(one.training) == page.settings.steps * page.settings.questions_a_step
    groups = page.groups_of(one).tolist()
    assert groups.count("hops: 1") == page.settings.one_hop
    assert groups.count("hops: 2") == groups.count("hops: 3") == page.settings.multi_hop // 2
    assert {len(q["metadata"]["hops"]) for q in one.training} == {2, 3}


def test_knowing_encyclopedias_are_other_ones(page):
    blank, knowing = page.open_task("blank", 1), page.open_task("knowing", 1)
    assert not names_in(blank.test) & names_in(knowing.test)
    assert any(any(q["metadata"]["known"]) for q in knowing.test)
    assert not any(any(q["metadata"]["known"]) for q in blank.test)


def test_a_folder_and_a_service_take_the_place_of_the_worlds(page, monkeypatch, tmp_path):
    for name in ("train", "test"):
        (tmp_path / "nq").mkdir(exist_ok=True)
        line = json.dumps({"id": "0", "question": f"{name} ?", "golden_answers": ["x"]})
        (tmp_path / "nq" / f"{name}.jsonl").write_text(line)
    write_jsonl(tmp_path / "corpus.jsonl", [{"id": "0", "contents": '"Who"\nis who .'}])
    monkeypatch.setattr(page, "data", str(tmp_path))
    task = page.open_task("blank", 3)
    assert [q["question"] for q in task.test] == ["test ?"]
    assert {q["question"] for q in task.training} == {"train ?"}
    assert [document["id"] for document in task.passages] == ["0"]
    monkeypatch.setattr(page, "service", "http://127.0.0.1:9/retrieve")
    assert isinstance(page.open_task("blank", 3).library, RemoteRetriever)


# -- the loop ------------------------------------------------------------------------------------


def test_the_plain_loop_and_the_module_give_the_same_weights(page):
    task = page.open_task("blank", 5)
    few = replace(page.settings, minibatches=1)
    start, by_hand, by_module = (load_lm("toy-1") for _ in range(3))
    rewards = page.plain_loop(by_hand, task, 2, few.questions_a_step, few.group, 3e-4, 5)
    module = page.train(by_module, task, few, 5)
    assert module.history.column("reward")[1].tolist() == pytest.approx(rewards)
    triples = zip(*(lm.model.parameters() for lm in (start, by_hand, by_module)), strict=True)
    gaps = [((b - a).abs().max().item(), (b - c).abs().max().item()) for a, b, c in triples]
    assert max(gap for _, gap in gaps) < 1e-4
    if 0 < sum(rewards) < len(rewards):
        assert max(moved for moved, _ in gaps) > 1e-4


# -- arms ----------------------------------------------------------------------------------------


def test_one_retrieval_is_read_before_the_answer_and_nothing_more_is_searched(page):
    task, lm = page.open_task("blank", 1), load_lm("toy-0")
    attempts = page.answers_of(lm, task, "rag", page.GREEDY)
    for attempt, question, hits in zip(
        attempts, task.test, page.whole_question(task, page.settings.passages), strict=True
    ):
        before = lm.decode(attempt.segments[0].ids)
        assert f"<search> {question['question']} </search>" in before
        assert before.endswith("</information>")
        assert TOY.render([hit["document"] for hit in hits]) in before
        assert attempt.queries == []


def test_a_direct_answer_reads_nothing(page):
    task, lm = page.open_task("blank", 1), load_lm("toy-0")
    for attempt in page.answers_of(lm, task, "direct", page.GREEDY):
        assert {s.kind for s in attempt.segments[1:]} <= {"answer", "invalid"}


def test_the_perfect_reader_finds_what_stands_in_as_many_passages_as_all_searches_bring(page):
    task = page.open_task("blank", 1)
    page.record_perfect_reader("rag_oracle", task)
    found = page.whole_question(task, page.settings.passages * page.settings.searches)
    assert {len(hits) for hits in found} == {10}
    several = [n for n, q in enumerate(task.test) if len(q["metadata"]["hops"]) > 1]
    right = [
        any(task.test[n]["golden_answers"][0] in hit["document"]["contents"] for hit in found[n])
        for n in several
    ]
    assert page.record.metrics["rag_oracle/em_greedy"] == pytest.approx(np.mean(right))
    assert 0.5 < page.record.metrics["rag_oracle/chained_searches"] <= 1


def test_more_passages_are_counted_as_the_perfect_reader_counts_ten(page):
    task = page.open_task("blank", 1)
    page.record_perfect_reader("rag_oracle", task)
    places = page.first_places(task)
    several = np.array([len(q["metadata"]["hops"]) > 1 for q in task.test])
    assert np.mean(places[several] < 10) == page.record.metrics["rag_oracle/em_greedy"]
    every = page.whole_question(task, 60)
    for question, hits, place in zip(task.test, every, places, strict=True):
        name = question["golden_answers"][0]
        assert not any(name in hit["document"]["contents"] for hit in hits[:place])
        assert place == 60 or name in hits[place]["document"]["contents"]


def test_without_a_run_the_spread_is_that_of_the_others(page, monkeypatch):
    from types import SimpleNamespace

    def logged(world, value):
        cell = SimpleNamespace(world_seed=world, init_seed=0, overrides=())
        return SimpleNamespace(cell=cell, metrics={"a/m": value})

    runs = [logged(0, v) for v in (0.5, 0.6, 0.1)] + [logged(1, v) for v in (0.7, 0.9)]
    monkeypatch.setattr(page, "load_cells", lambda chapter: runs)
    squares = [np.var([0.5, 0.6]) * 2, np.var([0.7, 0.9]) * 2]
    assert page.spread("any", "a", "m")[1] == 3
    assert page.spread("any", "a", "m", out=1) == (pytest.approx(np.sqrt(sum(squares) / 2)), 2)


def test_blind_searches_bring_any_passages_and_the_same_ones_again(page):
    task = page.open_task("blank", 1)
    blind = page.BlindLibrary(task.test_passages)
    queries = [q["question"] for q in task.test]
    first, again = (blind.batch_search(queries, 3) for _ in range(2))
    ids = [[hit["document"]["id"] for hit in hits] for hits in first]
    assert ids == [[hit["document"]["id"] for hit in hits] for hits in again]
    assert all(len(set(row)) == 3 for row in ids)
    gold = [{i for hop in q["metadata"]["hops"] for i in hop["gold_ids"]} for q in task.test]
    hit = np.mean([bool(g & set(row)) for g, row in zip(gold, ids, strict=True)])
    assert hit < 0.2


def test_blind_searches_bring_passages_of_the_encyclopedia_that_is_asked_about(page, monkeypatch):
    task, used = page.open_task("blank", page.seed), []

    class Seen(Exception):
        """Raised in place of training."""

    def train(lm, task, settings, seed):
        used.append(task)
        raise Seen

    monkeypatch.setattr(page, "train", train)
    with pytest.raises(Seen):
        page.run_arm("grpo_blind")
    (blind,) = used
    for library, seeing, questions in (
        (blind.library, task.library, blind.training),
        (blind.test_library, task.test_library, blind.test),
    ):
        (every,) = library.batch_search(["anything"], len(library.passages))
        passages = " ".join(hit["document"]["contents"] for hit in every)
        assert all(question["golden_answers"][0] in passages for question in questions)
        (hit,) = seeing.batch_search([questions[0]["metadata"]["entity"]], 1)[0]
        assert hit["document"] in library.passages


def test_f1_is_of_the_attempts_that_its_name_says(page):
    task, lm = page.open_task("blank", 1), load_lm("toy-0")
    page.measure_attempts("rag", lm, task, "rag")
    metrics = page.record.metrics
    attempts = page.answers_of(lm, task, "rag", page.ATTEMPTS)
    several = [n for n, q in enumerate(task.test) if len(q["metadata"]["hops"]) > 1]
    scores = [page.f1_reward(attempts[n], task.test[n]) for n in several]
    assert metrics["rag/f1_sampled"] == pytest.approx(np.mean(scores))
    assert metrics["rag/f1_sampled"] >= metrics["rag/em_sampled"]


def test_the_coin_falls_for_a_fifth_of_all_texts_right_or_wrong(page):
    question = {"id": "q", "question": "", "golden_answers": ["x"], "metadata": {}}
    rows = [Trajectory([], answer="xy"[n % 2], text=f"text {n}") for n in range(4000)]
    coin = np.array([page.coin_reward(row, question) for row in rows])
    right = np.array([exact_match_reward(row, question) for row in rows])
    assert 0.18 < coin.mean() < 0.22
    assert abs(coin[right == 1].mean() - coin[right == 0].mean()) < 0.04


def test_an_unknown_reward_or_mask_reaches_the_module(page):
    task = page.open_task("blank", 1)
    for name, options in page.TRAINED.items():
        module = page.train(load_lm("toy-0"), task, page.settings, 1, **options)
        assert module.config.mask_observations is (name != "no_mask")
        expected = {"grpo_f1": page.f1_reward, "grpo_coin": page.coin_reward}
        assert module.reward is expected.get(name, exact_match_reward)


def test_the_sampled_start_is_right_sometimes_and_training_has_live_groups():
    """What the chapter needs of the shipped models before it can teach anything."""
    chapter = chapters.load("07_search_agent")
    world, library = chapter.open_world("blank", 100)
    questions = world.questions(24, hops=(2, 3))
    for name in ("toy-0", "toy-1"):
        lm = load_lm(name)
        prompts = [TOY.prompt(lm.tokenizer, q["question"]) for q in questions for _ in range(4)]
        with torch.random.fork_rng():
            tries = rollout(lm, library, TOY, prompts, RolloutConfig(), seed=0)
        right = np.array([exact_match_reward(a, questions[n // 4]) for n, a in enumerate(tries)])
        assert 0.05 < right.mean() < 0.5
        means = right.reshape(-1, 4).mean(1)
        assert ((means > 0) & (means < 1)).mean() > 0.2
