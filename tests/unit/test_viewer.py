"""Attempts as HTML: complete, escaped, and readable without a kernel."""

from __future__ import annotations

import re

import pytest
from bpe_example import bpe_tokenizer
from toy_lm_example import tiny_lm

from minisearch.agents.trajectory import Segment, Trajectory, split_turn
from minisearch.agents.viewer import group_html, tokens_html
from minisearch.errors import InputError
from minisearch.models.lm import LanguageModel

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


# -- values of tokens --------------------------------------------------------------------------

WRITTEN = re.compile(
    r'<span title="([^"]*)" style="background: rgba\(([^)]*), ([.\d]+)\)">([^<]*)</span>'
    r"(?:<sub>([^<]*)</sub>)?"
)
BLUE, ORANGE = "0, 114, 178", "213, 94, 0"


def letters(*segments: tuple[str, str], prompt="who ?") -> tuple[LanguageModel, Trajectory]:
    """An attempt of byte tokens; what is in documents was read."""
    lm = LanguageModel(None, bpe_tokenizer())
    row = Trajectory([Segment("prompt", lm.encode(prompt))])
    for kind, text in segments:
        ids = lm.encode(text)
        log_probs = None if kind == "documents" else [-1.0] * len(ids)
        row.segments.append(Segment(kind, ids, log_probs))
    return lm, row


def test_every_written_token_is_a_span_with_its_value_and_what_was_read_is_grey():
    lm, row = letters(("query", "abc"), ("documents", "xy"), ("answer", "d"), prompt="pqr")
    page = tokens_html(lm, row, [9.0, 9.0, 9.0, 0.5, 0.5, -0.25, 9.0, 9.0, 10.0])
    found = WRITTEN.findall(page)
    assert [(title, text) for title, _, _, text, _ in found] == [
        ("+0.500", "a"), ("+0.500", "b"), ("-0.250", "c"), ("+10.000", "d"),
    ]  # fmt: skip
    assert [label for *_, label in found] == ["+0.50", "", "-0.25", "+10.00"]
    assert re.findall(r'<span style="opacity:.55">(.)</span>', page) == ["x", "y"]
    assert page.count("<span") == page.count("</span>") == 6
    assert re.sub(r"<sub>.*?</sub>|<[^>]*>", "", page) == "abcxyd"  # without the prompt, in order


def test_the_sign_decides_the_colour_and_the_size_how_strong_it_is():
    lm, row = letters(("think", "abcd"), prompt="")
    found = WRITTEN.findall(tokens_html(lm, row, [2.0, -4.0, 0.0, -1.0]))
    assert [colour for _, colour, *_ in found] == [BLUE, ORANGE, ORANGE, ORANGE]
    assert [strength for _, _, strength, *_ in found] == ["0.33", "0.65", "0.00", "0.16"]
    reverse = WRITTEN.findall(tokens_html(lm, row, [-2.0, 4.0, 0.0, 1.0]))
    assert [colour for _, colour, *_ in reverse] == [ORANGE, BLUE, ORANGE, BLUE]


def test_tokens_that_look_like_html_are_escaped():
    lm, row = letters(("think", "<b> & </b>"), ("documents", "<i>&"))
    page = tokens_html(lm, row, [0.0] * len(row.ids))
    assert not re.search(r"</?[bi]>", page)
    assert not re.search(r"&(?!\w+;)", page)
    spans = re.findall(r"<span [^>]*>([^<]*)</span>", page)
    assert "".join(spans) == "&lt;b&gt; &amp; &lt;/b&gt;&lt;i&gt;&amp;"


def test_without_any_value_nothing_has_a_colour():
    lm, row = letters(("think", "ab"), ("documents", "c"))
    page = tokens_html(lm, row, [0.0] * len(row.ids))
    assert [strength for _, _, strength, *_ in WRITTEN.findall(page)] == ["0.00", "0.00"]
    assert "<sub>" not in page
    assert "<span" not in tokens_html(*letters(prompt=""), [])


@pytest.mark.parametrize(("count", "further"), [(6, []), (0, []), (7, [0.5]), (7, [0.0, -1.0])])
def test_values_of_another_number_of_tokens_are_an_error(count, further):
    lm, row = letters(("think", "ab"))
    assert len(row.ids) == 7
    values = [0.0] * count + further
    with pytest.raises(InputError) as caught:
        tokens_html(lm, row, values)
    assert caught.value.found == f"values of {len(values)} tokens"
    assert caught.value.expected.startswith("7, the attempt's")


def test_what_fills_up_a_row_of_a_batch_is_not_shown():
    lm, row = letters(("think", "ab"))
    values = [0.0] * 5 + [1.0, -2.0]
    assert tokens_html(lm, row, [*values, 0.0, 0.0]) == tokens_html(lm, row, values)
