"""Tasks, training and measures that the chapters on search agents share."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas
import pytest
import torch
from grpo_example import ATTEMPTS, Shelf, searching_lm

from minisearch.agents.grpo import GRPO, GRPOConfig
from minisearch.agents.protocol import TOY
from minisearch.agents.rewards import f1_reward
from minisearch.agents.study import (
    AgentSettings,
    Task,
    answers,
    chosen,
    groups_of,
    invented_task,
    judged,
    open_world,
    questions_in,
    real_task,
    record_answers,
    record_training,
    train,
)
from minisearch.agents.trajectory import Segment, Trajectory
from minisearch.data.qa import write_jsonl
from minisearch.errors import InputError
from minisearch.profiles import dial
from minisearch.recorder import Recorder
from minisearch.retriever import RemoteRetriever


def always(value):
    return dial(value, value, value, value, source="ours")


@dataclass(frozen=True, kw_only=True)
class Small(AgentSettings):
    questions_a_step: int = always(2)
    group: int = always(3)
    steps: int = always(2)
    minibatches: int = always(2)
    learning_rate: float = always(0.01)
    warmup: float = always(0.0)
    clip_low: float = always(0.1)
    clip_high: float = always(0.3)
    kl: float = always(0.0)
    searches: int = always(2)
    passages: int = always(1)
    turn_tokens: int = always(8)
    block_tokens: int = always(64)
    row_tokens: int = always(256)
    one_hop: int = always(3)
    multi_hop: int = always(8)


SETTINGS = Small.of("smoke")


@pytest.fixture
def record(tmp_path) -> Recorder:
    return Recorder(tmp_path / "run")


def names_in(questions):
    return {name for q in questions for name in (q["metadata"]["entity"], *q["golden_answers"])}


def hops_of(questions):
    return [len(q["metadata"]["hops"]) for q in questions]


def asked(*hops: int, **more) -> Task:
    """A task without training whose test questions have so many hops; the answer is `right`."""
    test = [
        {"id": str(n), "question": f"number {n} ?", "golden_answers": ["right"]}
        | {"metadata": {"hops": [{"gold_ids": [f"p{step}"]} for step in range(count)], **more}}
        for n, count in enumerate(hops)
    ]
    return Task([], Shelf(), [], test, Shelf(), [])


# -- invented tasks --------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [None, lambda q: q["metadata"]["relations"][0] != "mentor"])
def test_the_seed_decides_what_is_trained_on_and_not_what_is_asked(wanted):
    one, again, other = (invented_task(SETTINGS, "blank", 1, seed, wanted) for seed in (1, 1, 2))
    assert one.test == other.test
    assert one.training == again.training
    assert one.training != other.training
    assert not names_in(one.training + other.training) & names_in(one.test)


def test_training_has_several_hops_and_the_test_first_those_of_one():
    task = invented_task(SETTINGS, "blank", 1, 1)
    assert Counter(hops_of(task.training)) == {2: 2, 3: 2}
    assert hops_of(task.test)[:3] == [1] * 3
    assert Counter(hops_of(task.test)) == {1: 3, 2: 4, 3: 4}


def test_each_half_of_a_task_has_the_passages_and_the_search_engine_of_its_world():
    task = invented_task(SETTINGS, "blank", 1, 1)
    for questions, passages, library, other in (
        (task.training, task.passages, task.library, task.test_library),
        (task.test, task.test_passages, task.test_library, task.library),
    ):
        ids = {document["id"] for document in passages}
        for question in questions:
            assert all(set(hop["gold_ids"]) <= ids for hop in question["metadata"]["hops"])
        name = [questions[0]["metadata"]["entity"]]
        assert library.batch_search(name, 1)[0][0]["document"]["id"] in ids
        assert other.batch_search(name, 1)[0][0]["document"]["id"] not in ids


def test_worlds_differ_by_kind_and_seed():
    tasks = [
        invented_task(SETTINGS, *key, 1) for key in (("blank", 1), ("blank", 2), ("knowing", 1))
    ]
    for half in ("test", "training"):
        texts = [{q["question"] for q in getattr(task, half)} for task in tasks]
        assert len(set.union(*texts)) == sum(map(len, texts))
    assert any(any(q["metadata"]["known"]) for q in tasks[2].test)
    assert not any(any(q["metadata"]["known"]) for q in tasks[0].test)


def test_wanted_questions_are_trained_on_and_asked():
    def wanted(question):
        return question["metadata"]["relations"][-1] == "mayor"

    task = invented_task(SETTINGS, "blank", 1, 1, wanted)
    assert len(task.training) == SETTINGS.steps * SETTINGS.questions_a_step
    assert all(map(wanted, task.training))
    assert set(hops_of(task.training)) <= {2, 3}
    several = task.test[SETTINGS.one_hop :]
    assert len(several) == SETTINGS.multi_hop
    assert all(map(wanted, several))
    everything = invented_task(SETTINGS, "blank", 1, 1)
    assert task.test[: SETTINGS.one_hop] == everything.test[: SETTINGS.one_hop]
    assert not all(map(wanted, everything.test[SETTINGS.one_hop :]))
    assert not all(map(wanted, everything.training))


def test_chosen_questions_are_different_and_as_many_as_asked_for():
    world, _ = open_world("blank", 1)
    found = chosen(world, 500, 3, lambda q: len(q["metadata"]["hops"]) == 3)
    assert len(found) == len({q["question"] for q in found}) == len({q["id"] for q in found}) == 500
    assert set(hops_of(found)) == {3}
    assert chosen(world, 20, 3, lambda q: len(q["metadata"]["hops"]) == 3) == found[:20]
    assert chosen(world, 20, 4, lambda q: len(q["metadata"]["hops"]) == 3) != found[:20]


def test_too_few_wanted_questions_are_an_error_that_says_how_many_there_are():
    world, _ = open_world("blank", 1)
    name = world.entities["person"][0]

    def wanted(question):
        return question["metadata"]["entity"] == name and len(question["metadata"]["hops"]) == 2

    with pytest.raises(InputError) as caught:
        chosen(world, 100, 0, wanted)
    found = re.fullmatch(r"(\d+) wanted ones", caught.value.found)
    assert 0 < int(found[1]) < 100
    assert caught.value.where == "questions"
    assert caught.value.expected == "100"
    assert len(chosen(world, int(found[1]), 0, wanted)) == int(found[1])


# -- files -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Files as FlashRAG names them, two of them with the same ids."""
    rows = {
        "nq/train.jsonl": [("train_0", "who ?"), ("train_1", "when ?")],
        "hotpotqa/train.jsonl": [("train_0", "which ?")],
        "nq/test.jsonl": [("test_0", "where ?")],
        "musique/dev.jsonl": [("2hop__1_2", "whose ?")],
        "musique/other.jsonl": [("3hop__1_2", "why ?")],
    }
    for name, questions in rows.items():
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [{"id": i, "question": q, "golden_answers": ["x"]} for i, q in questions]
        path.write_text("\n".join(map(json.dumps, lines)))
    write_jsonl(tmp_path / "files" / "corpus.jsonl", [{"id": "0", "contents": '"Who"\nis who .'}])
    return tmp_path / "files"


def test_questions_of_files_are_named_by_their_set(folder):
    found = questions_in(folder, "train.jsonl")
    names = [(q["id"], q["question"], q["metadata"]["set"]) for q in found]
    assert names == [
        ("hotpotqa/train_0", "which ?", "hotpotqa"),
        ("nq/train_0", "who ?", "nq"),
        ("nq/train_1", "when ?", "nq"),
    ]
    both = [q["id"] for q in questions_in(folder, "test.jsonl", "dev.jsonl")]
    assert both == ["musique/2hop__1_2", "nq/test_0"]


def test_files_in_flashrags_format_are_a_task(folder):
    task = real_task(SETTINGS, str(folder), "", 3)
    assert {q["id"] for q in task.training} == {"nq/train_0", "nq/train_1", "hotpotqa/train_0"}
    assert len(task.training) == SETTINGS.steps * SETTINGS.questions_a_step
    assert groups_of(task).tolist() == ["musique", "nq"]
    assert task.passages == task.test_passages == [{"id": "0", "contents": '"Who"\nis who .'}]
    for library in (task.library, task.test_library):
        assert library.batch_search(["who"], 1)[0][0]["document"]["id"] == "0"


def test_every_question_of_the_files_comes_before_one_comes_again(folder):
    many = Small.of("smoke", steps=5)  # 10 of 3
    tasks = [real_task(many, str(folder), "", seed) for seed in range(8)]
    for task in tasks:
        assert sorted(Counter(q["id"] for q in task.training).values()) == [3, 3, 4]
        assert len({q["id"] for q in task.training[:3]}) == 3
    assert len({task.training[0]["id"] for task in tasks}) > 1
    assert all(task.test == tasks[0].test for task in tasks)


def test_a_service_stands_in_for_the_corpus(folder):
    (folder / "corpus.jsonl").unlink()
    address = "http://127.0.0.1:9/retrieve"
    task = real_task(SETTINGS, str(folder), address, 3)
    assert isinstance(task.library, RemoteRetriever)
    assert task.test_library is task.library
    assert task.library.url == address
    assert task.passages == task.test_passages == []
    with pytest.raises(InputError, match=r"corpus\.jsonl"):
        real_task(SETTINGS, str(folder), "", 3)


def test_without_a_folder_the_factbook_is_asked():
    task = real_task(SETTINGS, "", "", 1)
    assert {q["metadata"]["split"] for q in task.training} == {"train"}
    assert min(hops_of(task.training)) > 1
    assert {q["metadata"]["split"] for q in task.test} == {"test"}
    assert hops_of(task.test)[:3] == [1] * 3
    assert len(task.test) == 3 + 8
    assert min(hops_of(task.test)[3:]) > 1
    ids = {document["id"] for document in task.passages}
    assert all(set(hop["gold_ids"]) <= ids for q in task.test for hop in q["metadata"]["hops"])
    other = real_task(SETTINGS, "", "", 2)
    assert other.test == task.test
    assert other.training != task.training


# -- training --------------------------------------------------------------------------------------


def shelf_task() -> Task:
    words = ["sister", "mayor", "employer", "mentor"]
    questions = [
        {"id": str(n), "question": f"the {word} of the mayor ?", "golden_answers": [word]}
        | {"metadata": {}}
        for n, word in enumerate(words)
    ]
    return Task(questions, Shelf(), [], [], Shelf(), [])


def test_settings_and_options_reach_grpo_and_the_weights_move():
    lm, start = searching_lm(), searching_lm()
    shown, parts = [], []

    def bonus(step):
        shown.append(step)
        return torch.ones_like(step.advantages)

    def further(step, part):
        parts.append(part)
        return 0.01 * (part.log_probs * part.weights).sum()

    settings = Small.of("smoke", kl=0.1, warmup=0.5)
    module = train(
        lm, shelf_task(), settings, 5, standardise=False, mask_observations=False,
        reward=f1_reward, extra_advantage=bonus, extra_loss=further,
    )  # fmt: skip
    assert module.config == GRPOConfig(
        group=3, minibatches=2, clip_low=0.1, clip_high=0.3, kl=0.1,
        standardise=False, mask_observations=False,
    )  # fmt: skip
    assert module.attempts == settings.attempts()
    assert module.reward is f1_reward
    assert module.seed == 5
    assert module.model is lm.model
    assert len(shown) == settings.steps
    assert parts
    assert all(len(step.attempts) == 2 * 3 for step in shown)
    used = [q["id"] for step in shown for q in step.questions[::3]]
    assert sorted(used) == ["0", "1", "2", "3"]
    for column in ("reward", "em", "format"):
        assert len(module.history.column(column)[1]) == settings.steps
    triples = zip(*(m.parameters() for m in (lm.model, start.model, module.reference)), strict=True)
    assert any(not torch.equal(new, old) for new, old, _ in triples)
    assert all(
        torch.equal(old, kept)
        for old, kept in zip(start.model.parameters(), module.reference.parameters(), strict=True)
    )
    schedule = module.optimisation
    assert (schedule.learning_rate, schedule.warmup_steps) == (0.01, 2)  # of 4 updates
    assert (schedule.schedule, schedule.clip) == ("constant", None)


def test_attempts_go_as_far_as_the_settings_say():
    settings = Small.of("smoke", searches=4, passages=3, turn_tokens=9, block_tokens=50)
    found = settings.attempts(temperature=0.0)
    assert (found.temperature, found.searches, found.topk) == (0.0, 4, 3)
    assert (found.turn_tokens, found.block_tokens, found.tokens) == (9, 50, 256)
    assert settings.attempts().temperature == 1.0


# -- answers and measures --------------------------------------------------------------------------


def test_every_test_question_has_an_attempt_from_its_own_prompt_or_the_given_one():
    lm, task = searching_lm(), asked(1, 2, 2)
    for number, question in enumerate(task.test):
        question["question"] = f"the {['sister', 'mayor', 'mentor'][number]} ?"
    own = [TOY.prompt(lm.tokenizer, q["question"]) for q in task.test]
    found = answers(lm, task, ATTEMPTS)
    assert [lm.decode(row.segments[0].ids) for row in found] == own
    torch.manual_seed(1)
    assert answers(lm, task, ATTEMPTS) == found
    others = [f"{prompt} <think>" for prompt in own]
    assert [row.segments[0].ids for row in answers(lm, task, ATTEMPTS, others)] == [
        lm.encode(prompt) for prompt in others
    ]


def test_answers_come_with_the_passages_of_the_test_library():
    class Other(Shelf):
        def batch_search(self, queries, topk):
            raise AssertionError("the training library was asked")

    lm, task = searching_lm(), asked(*[2] * 12)
    found = answers(lm, Task([], Other(), [], task.test, task.test_library, []), ATTEMPTS)
    assert any(row.queries for row in found)


def attempt(answer: str, *found: str, text: str = "") -> Trajectory:
    """An answer after one search for each passage that was found."""
    return Trajectory(
        [Segment("prompt", [2]), Segment("answer", [3], [-1.0])],
        queries=["q"] * len(found), retrieved=[[i] for i in found], answer=answer, text=text,
    )  # fmt: skip


def test_groups_are_hops_or_the_set_where_there_is_one():
    assert groups_of(asked(1, 3, 2)).tolist() == ["hops: 1", "hops: 3", "hops: 2"]
    assert groups_of(asked(1, 3, set="popqa")).tolist() == ["popqa", "popqa"]


def test_attempts_are_judged_each_by_its_own_question():
    task = asked(1, 2, 2)
    text = "<think> a </think> <answer> right </answer>"
    rows = [attempt("right", "p0", text=text), attempt("right one", "p0", "p9"), attempt("x")]
    found = judged(rows, task)
    assert {name: values.tolist() for name, values in found.items()} == {
        "em": [1, 0, 0],
        "f1": [1, pytest.approx(2 / 3), 0],
        "format": [1, 0, 0],
        "searches": [1, 2, 0],
        "gold": [1, 0.5, 0],
    }
    with pytest.raises(ValueError, match="longer"):
        judged(rows[:2], task)


def test_passages_are_judged_only_where_the_right_ones_are_known():
    task = asked(1)
    task.test[0]["metadata"] = {"set": "nq"}
    assert list(judged([attempt("right")], task)) == ["em", "f1", "format", "searches"]


def test_means_are_over_questions_of_several_hops_and_rows_average_to_them(record):
    task = asked(1, 2, 3, 3, 1, 2)
    hops = np.array(hops_of(task.test))
    columns = {"em_greedy": hops == 3, "em_sampled": (hops - 1.0) / 4, "other": hops * 1.0}
    record_answers(record, "cold", columns, task)
    metrics = record.metrics
    assert metrics["cold/em_greedy"] == 0.5
    assert metrics["cold/em_greedy/hops: 1"] == metrics["cold/em_greedy/hops: 2"] == 0
    assert metrics["cold/em_greedy/hops: 3"] == 1
    assert metrics["cold/other"] == 2.5
    assert metrics["cold/other/hops: 1"] == 1
    rows = pandas.read_parquet(record.folder / "rows" / "cold.parquet")
    assert list(rows) == ["query_row", "em_greedy", "em_sampled"]
    assert rows["query_row"].tolist() == [1, 2, 3, 5]
    assert rows["em_greedy"].tolist() == [0, 1, 1, 0]
    assert rows["em_sampled"].mean() == metrics["cold/em_sampled"] == 0.375


@pytest.mark.parametrize("name", ["nq", "triviaqa", "popqa"])
def test_sets_of_one_hop_are_not_in_the_mean(record, name):
    task = asked(2, 2, 2)
    for question, of in zip(task.test, ("musique", name, "musique"), strict=True):
        question["metadata"]["set"] = of
    record_answers(record, "cold", {"em_greedy": np.array([1.0, 0.0, 1.0])}, task)
    assert record.metrics["cold/em_greedy"] == record.metrics["cold/em_greedy/musique"] == 1
    assert record.metrics[f"cold/em_greedy/{name}"] == 0
    rows = pandas.read_parquet(record.folder / "rows" / "cold.parquet")
    assert rows["query_row"].tolist() == [0, 2]


# -- the learning curve ----------------------------------------------------------------------------


def trained(steps: int) -> GRPO:
    """A module as after so many steps with eight attempts each, with a made-up history."""
    task = shelf_task()
    module = GRPO(searching_lm(), Shelf(), task.training, GRPOConfig(), ATTEMPTS)
    module.history.rows = [
        {"step": 2 * n, "rollouts": 8 * (n + 1), "em": n / 10, "dead groups": float(n > 1)}
        | {"seconds generate": 1, "seconds retrieve": 2, "seconds score": 3, "seconds update": n}
        for n in range(steps)
    ]
    return module


def test_the_learning_curve_is_exact_match_in_parts_named_by_the_attempts_so_far(record):
    record_training(record, "grpo", trained(6), points=3)
    metrics = record.metrics
    curve = {k: v for k, v in metrics.items() if k.startswith("grpo/em_training/")}
    assert curve == {
        "grpo/em_training/rollouts: 16": pytest.approx(0.05),
        "grpo/em_training/rollouts: 32": pytest.approx(0.25),
        "grpo/em_training/rollouts: 48": pytest.approx(0.45),
    }
    assert metrics["grpo/em_training"] == pytest.approx(0.25)
    assert metrics["grpo/dead_groups"] == pytest.approx(4 / 6)
    assert metrics["grpo/live_at_start"] == 1  # of the first step
    seconds = [metrics[f"seconds/grpo/{p}"] for p in ("generate", "retrieve", "score", "update")]
    assert seconds == [6, 12, 18, 15]


def test_a_short_run_has_a_point_a_step_and_a_long_one_ten(record):
    record_training(record, "short", trained(4))
    record_training(record, "long", trained(32))
    curves = {
        name: [k for k in record.metrics if k.startswith(f"{name}/em_training/")]
        for name in ("short", "long")
    }
    assert [k.rpartition(" ")[2] for k in curves["short"]] == ["8", "16", "24", "32"]
    assert len(curves["long"]) == 10
    assert curves["long"][-1] == "long/em_training/rollouts: 256"
    # The first eighth are four steps, of which two are dead.
    assert record.metrics["long/live_at_start"] == 0.5
    assert all(math.isfinite(value) for value in record.metrics.values())
