"""An attempt seen query by query."""

from __future__ import annotations

import pytest

from minisearch.agents.queries import due_steps, query_tokens, scored, written_tokens
from minisearch.agents.trajectory import Segment, Trajectory
from minisearch.models.lm import load_lm


def due_of(gold, retrieved):
    question = {"metadata": {"hops": [{"gold_ids": ids, "answer": "x"} for ids in gold]}}
    return due_steps(Trajectory([], retrieved=retrieved), question)


def test_the_step_that_is_due_by_hand():
    gold = [["a"], ["b", "B"], ["c"]]
    in_order = due_of(gold, [["x"], ["a"], ["B"], ["c"], ["a"]])
    assert in_order == [(0, False), (0, True), (1, True), (2, True), (-1, False)]
    assert due_of(gold, [["b"], ["a"], ["c"]]) == [(0, False), (0, True), (2, True)]
    assert due_of(gold, [["a", "b"], ["a"], ["c"]]) == [(0, True), (2, False), (2, True)]
    assert due_of(gold, []) == []


def attempt(*parts, answer=""):
    """Segments of (kind, tokens, written by the model)."""
    segments = [
        Segment(kind, list(range(1, count + 1)), [-1.0] * count if own else None)
        for kind, count, own in parts
    ]
    return Trajectory(segments, answer=answer)


def test_tokens_of_queries_and_of_all_that_was_written():
    one = attempt(
        ("prompt", 9, False), ("think", 4, True), ("query", 2, True), ("documents", 30, False),
        ("query", 5, True), ("documents", 30, False), ("answer", 3, True),
    )  # fmt: skip
    assert query_tokens(one) == 3.5
    assert written_tokens(one) == 14
    silent = attempt(("prompt", 9, False), ("answer", 3, True))
    assert query_tokens(silent) == 0
    assert written_tokens(silent) == 3


def test_attempts_are_scored_within_their_group():
    lm = load_lm("toy-0")
    rows = [
        attempt(("prompt", 2, False), ("answer", 1 + n % 2, True), answer=name)
        for n, name in enumerate(("ann", "bob", "cat", "cat"))
    ]
    question = {"golden_answers": ["ann"]}
    step = scored(lm, rows, [question] * 4, 2)
    assert step.rewards.tolist() == [1, 0, 0, 0]
    assert step.advantages.sum(1).tolist() == pytest.approx([2**-0.5, -(2**0.5), 0, 0], rel=1e-4)
    assert not step.advantages[:, :2].any()  # none for a prompt
    assert step.mask.sum(1).tolist() == [1, 2, 1, 2]
