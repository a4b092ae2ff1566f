"""The probes of a search policy: intervals, controls, and which searches count as found."""

from __future__ import annotations

import numpy as np
import pytest
from toy_lm_example import tiny_model, toy_tokenizer

from minisearch.agents.evidence import _searches, evidence
from minisearch.agents.probes import (
    Exam,
    Score,
    closed_book,
    document_texts,
    hints,
    perplexity,
    policy,
    retrieval_ceiling,
)
from minisearch.agents.protocol import Piece
from minisearch.agents.rollout import RolloutConfig
from minisearch.agents.trajectory import Segment, Trajectory
from minisearch.models.lm import LanguageModel


@pytest.fixture(scope="module")
def exam() -> Exam:
    return Exam(LanguageModel(tiny_model("qwen2"), toy_tokenizer()), "blank", (100, 101), 12)


def oracle(exam: Exam, number: int, blocks=(), miss: int = -1) -> Trajectory:
    """A faultless attempt, but for one step whose search brings nothing."""
    question, lm = exam.questions[number], exam.lm
    corpus = {d["id"]: d for d in exam.worlds[exam.world_of[number]].corpus}
    row = Trajectory([Segment("prompt", lm.encode(exam.prompt(number, blocks)))])

    def write(kind: str, text: str) -> None:
        ids = lm.encode(text)
        row.segments.append(Segment(kind, ids, [-1.0] * len(ids)))

    for n, hop in enumerate(question["metadata"]["hops"]):
        found = [] if n == miss else hop["gold_ids"][:1]
        thought = "missing" if n == miss else f"found {hop['answer']}"
        block = Piece("information", exam.protocol.render([corpus[i] for i in found]))
        for kind, text in (("search", "<search>"), ("query", "name"), ("search", "</search>")):
            write(kind, text)
        row.segments.append(Segment("documents", lm.encode(str(block))))
        write("think", f"<think> {thought} </think>")
        row.queries.append("name")
        row.retrieved.append(found)
    row.answer = question["golden_answers"][0] if miss < 0 else "unknown"
    row.text = lm.decode([i for s in row.segments[1:] for i in s.ids])
    return row


def test_the_interval_covers_the_mean_at_its_rate():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        score = Score.of(rng.random(60) < 0.3, seed=trial, samples=400)
        covered += score.low <= 0.3 <= score.high
    assert 0.90 <= covered / 300 <= 0.98


def test_no_value_is_said_to_be_none():
    assert Score.of(np.array([])).count == 0
    assert np.isnan(Score.of(np.array([])).mean)


def test_an_exam_asks_every_length_equally_often_on_every_world(exam):
    assert np.bincount(exam.hops).tolist() == [0, 4, 4, 4]
    assert np.bincount(exam.world_of).tolist() == [6, 6]
    assert len({q["id"] for q in exam.questions}) == 12


def test_exact_match_is_counted_by_hops(exam):
    done = [oracle(exam, n, miss=0 if exam.hops[n] == 3 else -1) for n in range(12)]
    found = exam.by_hops(exam.correct(done))
    means = {name: score.mean for name, score in found.items()}
    assert means == {"all": pytest.approx(8 / 12), "1-hop": 1.0, "2-hop": 1.0, "3-hop": 0.0}


def test_attempts_come_back_in_the_order_of_the_questions(exam):
    only = np.array([1, 4, 7, 11])
    done = exam.attempts(RolloutConfig(turn_tokens=2, answer_at_once=True), seed=0, only=only)
    prompts = [exam.lm.encode(exam.prompt(int(n))) for n in only]
    assert [row.segments[0].ids for row in done] == prompts


def test_a_search_counts_as_found_when_it_brings_the_hop_that_is_due(exam):
    number = int(np.flatnonzero(exam.hops == 3)[0])
    for miss in (-1, 0, 1, 2):
        searches = _searches(exam, [oracle(exam, n, miss=miss) for n in range(12)])
        own = [s for s in searches if s.number == number]
        # A hop that was missed stays due: later passages are then for hops that are not.
        assert [s.found for s in own] == [n < miss if miss >= 0 else True for n in range(3)]
        assert [s.says_found for s in own] == [n != miss for n in range(3)]
        assert own[0].last is False
        assert own[2].last is (miss in (-1, 2))
        row = oracle(exam, number, miss=miss)
        assert [s.before + s.block for s in own] == [row.prefix(n) for n in range(3)]
        assert all(exam.lm.decode(s.block) == s.shown for s in own)
        assert all(s.shown.startswith("<information>") for s in own)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ([("think", "<think> found name </think>")], True),
        ([("invalid", "who"), ("think", "<think> found name </think>")], True),
        ([("invalid", "<think> found name")], True),  # cut short
        ([("think", "<think> missing </think>"), ("answer", "<answer> found </answer>")], False),
        (
            [("invalid", "<think> missing"), (None, "<answer>"), ("answer", "found </answer>")],
            False,
        ),
        (
            [("search", "<search>"), (None, "<information> </information>"), ("think", "found")],
            False,
        ),
        ([], False),
    ],
)
def test_the_next_thought_is_what_the_model_itself_says_next(exam, after, expected):
    row = oracle(exam, 0)
    place = next(n for n, s in enumerate(row.segments) if s.kind == "documents")
    del row.segments[place + 1 :], row.retrieved[1:]
    for kind, text in after:
        ids = exam.lm.encode(text)
        row.segments.append(Segment(kind or "answer", ids, [-1.0] * len(ids) if kind else None))
    assert [s.says_found for s in _searches(exam, [row])] == [expected]


def test_the_gain_of_a_reader_that_sees_the_answer_is_a_perfect_detector(exam, monkeypatch):
    done = [oracle(exam, n, miss=n % 3 if n % 2 else -1) for n in range(12)]
    monkeypatch.setattr(exam, "attempts", lambda *_a, **_k: done)

    def reads(prefixes, answers, batch_size=64):
        import torch

        last = [exam.lm.decode(p).rpartition("<information>")[2] for p in prefixes]
        return torch.tensor([float(a in p) for a, p in zip(answers, last, strict=True)])

    monkeypatch.setattr(LanguageModel, "answer_log_prob", lambda self, *a: reads(*a))
    table = evidence(exam, RolloutConfig())
    assert table["last hop"]["AUC of the gain"].mean == 1.0
    assert table["last hop"]["found, gain"].mean == 1.0
    assert abs(table["bridge hop"]["found, gain"].mean) < 1e-9
    assert table["all"]["AUC of the next thought"].mean > 0.8


def test_every_probe_runs_on_a_model_that_knows_nothing(exam):
    config = RolloutConfig(turn_tokens=4, searches=1)
    assert policy(exam, config)["exact match"]["all"].mean == 0.0
    assert closed_book(exam, config)["2-hop, all known"].count == 0  # nothing of a blank world
    table = hints(exam, {"T=1": config}, siblings=1)
    assert table["T=1"]["without help"].count == 0  # no sibling was right


def test_hints_show_the_sibling_and_its_controls(exam, monkeypatch):
    seen: list[tuple[str, ...]] = []

    def attempts(config, seed, blocks=lambda n: (), only=None):
        numbers = range(12) if only is None else only.tolist()
        if only is not None:
            seen.append(tuple(str(b) for b in blocks(numbers[0])))
        return [oracle(exam, n) for n in numbers]

    monkeypatch.setattr(exam, "attempts", attempts)
    table = hints(exam, {"T=1": RolloutConfig()}, siblings=1)
    assert table["T=1"]["gain: one right sibling"].mean == 0.0
    alone, right, wrong, other, reference, plan = (" ".join(blocks) for blocks in seen)
    assert alone == ""
    assert right.startswith("<attempts> right : name")
    assert wrong == right.replace("right :", "wrong :")
    assert other.startswith("<attempts> right :")
    assert table["T=1"]["gain: the verdict"].mean == 0.0
    assert exam.questions[0]["golden_answers"][0] in reference
    assert plan.startswith("<plan> ")


def test_perplexity_is_that_of_the_tokens(exam):
    import torch

    text = "( name ) the mayor of name is name ."
    ids = torch.tensor([exam.lm.encode(text)])
    loss = exam.lm.model(input_ids=ids, labels=ids).loss
    assert perplexity(exam.lm, [text, text]).mean == pytest.approx(loss.exp().item(), rel=1e-4)


def test_shuffled_passages_have_the_same_words_in_another_order(exam):
    world = exam.worlds[0]
    plain, mixed = document_texts(world, False), document_texts(world, True)
    assert [sorted(t.split()) for t in plain] == [sorted(t.split()) for t in mixed]
    assert np.mean([a != b for a, b in zip(plain, mixed, strict=True)]) > 0.9


def test_the_ceiling_rises_with_the_words_of_a_query(exam):
    found = retrieval_ceiling(exam, 2)
    names = ("the entity alone", "and the question's word", "and two words", "and all three words")
    means = [found[name].mean for name in names]
    assert means == sorted(means)
    assert means[-1] > 0.85
