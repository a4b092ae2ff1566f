"""Attempts as HTML: complete, escaped, and readable without a kernel."""

from __future__ import annotations

import re

from toy_lm_example import tiny_lm

from minisearch.agents.trajectory import Segment, Trajectory, split_turn
from minisearch.agents.viewer import group_html

CORPUS = [
    {"id": "p1", "contents": '"Ann <Lee>"\nthe sister of Ann is Bea .'},
    {"id": "p2", "contents": '"Cy"\nCy is mayor .'},
]
QUESTION = {
    "id": "q", "question": "who is the sister of Ann & co ?", "golden_answers": ["Bea"],
    "metadata": {"hops": [{"question": "", "answer": "Bea", "gold_ids": ["p1"]}]},
}  # fmt: skip


def attempt(*turns: str, found=(), answer="") -> Trajectory:
    lm = tiny_lm("qwen2")
    row = Trajectory([Segment("prompt", lm.encode("<user> who ? <assistant>"))], answer=answer)
    for n, turn in enumerate(turns):
        ids = lm.encode(turn)
        row.segments += split_turn(lm, ids, [-1.0] * len(ids))
        if n < len(found):
            row.segments.append(Segment("documents", lm.encode("<information> </information>")))
            row.queries.append("q")
            row.retrieved.append(list(found[n]))
    return row


SEARCH = "<think> need sister </think> <search> sister mayor </search>"
ANSWER = "<think> found sister </think> <answer> sister </answer>"


def show(*rows: Trajectory, rewards=None, opened=1) -> str:
    rewards = rewards or [0.0] * len(rows)
    return group_html(tiny_lm("qwen2"), QUESTION, rows, rewards, CORPUS, opened)


def test_every_block_stands_there_in_order_without_tags():
    page = show(attempt(SEARCH, ANSWER, found=[["p2", "p1"]], answer="sister"))
    kinds = re.findall(r'class="ms-piece ms-(\w+)"', page)
    assert kinds == ["think", "query", "documents", "think", "answer"]
    assert "<b>query</b> sister mayor</div>" in page
    assert "&lt;think&gt;" not in page
    assert "reward 0 · 1 search · answer: sister" in page


def test_a_passage_that_a_step_needs_has_a_star_and_text_is_escaped():
    page = show(attempt(SEARCH, ANSWER, found=[["p2", "p1"]]))
    assert "<li>★ Ann &lt;Lee&gt;: the sister of Ann is Bea .</li>" in page
    assert "<li>Cy: Cy is mayor .</li>" in page
    assert "Ann &amp; co ?" in page
    assert "Right: Bea" in page


def test_a_search_that_found_nothing_says_so():
    assert "nothing found" in show(attempt(SEARCH, ANSWER, found=[[]]))


def test_what_is_no_block_is_shown_as_invalid_with_its_tags():
    page = show(attempt("<think> need <search> sister"))
    assert re.findall(r'class="ms-piece ms-(\w+)"', page) == ["invalid"]
    assert "&lt;search&gt; sister" in page
    assert "answer: none" in page


def test_the_best_attempt_is_first_and_open():
    rows = [attempt(ANSWER, answer=name) for name in ("wrong", "right", "none")]
    page = show(*rows, rewards=[0.0, 1.0, 0.0])
    assert re.findall(r"answer: (\w+)", page) == ["right", "wrong", "none"]
    assert re.findall(r"<details class=\"ms-try ms-(\w+)\"( open)?>", page) == [
        ("right", " open"), ("wrong", ""), ("wrong", ""),
    ]  # fmt: skip
    assert show(*rows, opened=0).count(" open>") == 0


def test_a_question_without_known_steps_names_its_answers():
    page = group_html(
        tiny_lm("qwen2"),
        {**QUESTION, "golden_answers": ["Bea", "B."], "metadata": {}},
        [attempt(ANSWER)], [0.5], [],
    )  # fmt: skip
    assert "Right: Bea or B." in page
    assert "reward 0.5 · 0 searches" in page
