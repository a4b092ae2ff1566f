"""Training questions chosen by how the untrained policy does on them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from minisearch.agents import screening
from minisearch.agents.screening import composed, hard_task, knows_the_rest, screened
from minisearch.agents.study import AgentSettings, open_world
from minisearch.errors import InputError
from minisearch.models.lm import load_lm
from minisearch.profiles import dial


def always(value):
    return dial(value, value, value, value, source="ours")


@dataclass(frozen=True, kw_only=True)
class Small(AgentSettings):
    questions_a_step: int = always(5)
    group: int = always(2)
    steps: int = always(2)
    minibatches: int = always(2)
    learning_rate: float = always(0.01)
    warmup: float = always(0.0)
    clip_low: float = always(0.2)
    clip_high: float = always(0.2)
    kl: float = always(0.0)
    searches: int = always(2)
    passages: int = always(1)
    turn_tokens: int = always(32)
    block_tokens: int = always(64)
    row_tokens: int = always(256)
    one_hop: int = always(3)
    multi_hop: int = always(8)


SETTINGS = Small.of("smoke")


def test_only_the_first_fact_is_new():
    assert knows_the_rest([False, True, True])
    assert not knows_the_rest([True, True])
    assert not knows_the_rest([False, True, False])
    assert composed({"metadata": {"known": [False, True]}})


def test_hard_questions_are_those_that_no_first_attempt_answered():
    home, _ = open_world("blank", 200)
    rows = [(q, n % 3) for n, q in enumerate(home.questions(30, hops=(3,), seed=1))]
    right = {q["id"]: n for q, n in rows}
    for share, hard in ((0.0, 0), (0.5, 5), (0.95, 10), (1.0, 10)):
        task = hard_task(rows, SETTINGS, 0, 7, share)
        found = [right[q["id"]] for q in task.training]
        assert len(found) == 10 == len({q["id"] for q in task.training})
        assert found.count(0) == hard
    assert (
        hard_task(rows, SETTINGS, 0, 7, 0.5).training
        != hard_task(rows, SETTINGS, 0, 8, 0.5).training
    )
    with pytest.raises(InputError, match="screen more candidates"):
        hard_task(rows[:12], SETTINGS, 0, 7, 0.95)


def test_screening_is_done_once_for_each_start(monkeypatch, tmp_path):
    monkeypatch.setenv("MINISEARCH_BUILD", str(tmp_path))
    lm = load_lm("toy-0")
    first = screened(lm, "toy-0", SETTINGS, 0, 3)
    assert len(first) == 3
    assert all(len(q["metadata"]["hops"]) == 3 and 0 <= right <= 8 for q, right in first)
    monkeypatch.setattr(screening, "rollout", None)
    assert screened(lm, "toy-0", SETTINGS, 0, 3) == first
    with pytest.raises(TypeError):  # another start is another key
        screened(lm, "toy-1", SETTINGS, 0, 3)
