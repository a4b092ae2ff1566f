"""Judging answers and form, by hand-computed cases."""

from __future__ import annotations

import time

import pytest

from minisearch.agents.rewards import exact_match, is_well_formed, last_tagged, normalise_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The U.S.  dollar", "us dollar"),
        ("a cat, an ant; the end!", "cat ant end"),
        ("Theatre of Athens", "theatre of athens"),
        ("an", ""),
        ("A.N.", ""),  # punctuation goes before the articles, as in SQuAD
        ("the-end", "theend"),
        ("«L'été»", "«lété»"),  # ASCII punctuation alone
        ("  BEIJING\n", "beijing"),
        ("42", "42"),
        ("...", ""),
        ("北京", "北京"),
    ],
)
def test_normalised_answers(text, expected):
    assert normalise_answer(text) == expected


@pytest.mark.parametrize(
    ("answer", "golden", "expected"),
    [
        ("The Beatles", ["Beatles"], True),
        ("beatles!", ["The Beatles"], True),
        ("Beatles", ["Rolling Stones", "the beatles"], True),
        ("Beatles band", ["Beatles"], False),
        ("Beat", ["Beatles"], False),
        ("", ["Beatles"], False),
        ("", [""], False),
        ("the", ["the"], False),
        ("x", [], False),
        ("1,000", ["1000"], True),
    ],
)
def test_exact_match(answer, golden, expected):
    assert exact_match(answer, golden) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer> one </answer>", "one"),
        ("<answer>one</answer> then <answer>two</answer>", "two"),
        ("<answer> one </answer> <answer> two", "one"),  # an open one does not count
        ("<answer> one <answer> two </answer>", "two"),  # not "one <answer> two"
        ("<answer> one </answer> two </answer>", "one"),
        ("one </answer>", ""),
        ("<answer> one", ""),
        ("<answer></answer>", ""),
        ("<answer> one </answer> <answer>  </answer>", ""),  # the last one counts, though empty
        ("< answer > one </ answer >", ""),
        ("<ANSWER> one </ANSWER>", ""),
        ("<answer>\n two\nlines \n</answer>", "two\nlines"),
        ("<search> one </search>", ""),
        ("", ""),
    ],
)
def test_last_tagged(text, expected):
    assert last_tagged(text, "answer") == expected


def test_the_example_in_the_prompt_is_no_answer_of_the_response():
    prompt = "Write <answer> Beijing </answer>, for example. Question: where ?"
    response = "<think> hm </think> I do not know"
    assert last_tagged(response, "answer") == ""
    assert last_tagged(prompt + response, "answer") == "Beijing"  # why the prompt is left out
    assert last_tagged(f"{prompt} <answer> Rome </answer>", "answer") == "Rome"


def test_tags_are_told_apart():
    text = "<search> a </search> <answer> b </answer> <search> c </search>"
    assert (last_tagged(text, "search"), last_tagged(text, "answer")) == ("c", "b")


def test_many_open_tags_take_no_time():
    start = time.perf_counter()
    assert last_tagged("<answer> x " * 3000, "answer") == ""
    is_well_formed("<think> a </think><search> b </search><information> " * 300)
    assert time.perf_counter() - start < 5


STEP = "<think> a </think> <search> b </search> <information> c </information>"
LAST = "<think> d </think> <answer> e </answer>"


@pytest.mark.parametrize(
    "response",
    [
        LAST,
        STEP + LAST,
        f"  {STEP}\n{STEP} {LAST} \n",
        STEP + STEP + STEP + LAST,
        "<think></think><answer>e</answer>",
        f"<think> a </think><search>b</search><information></information>{LAST}",
        f"<think> a\nb </think><search>c</search><information> x < y & z > 0 </information>{LAST}",
        STEP.replace(" c ", " Doc 1(Title: <i>) ... ") + LAST,
    ],
)
def test_well_formed(response):
    assert is_well_formed(response)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "e",
        "<answer> e </answer>",  # no thought
        "<think> d </think>",  # no answer
        STEP,
        STEP + "<answer> e </answer>",
        "<think> d </think> <answer></answer>",
        "<think> d <answer> e </answer>",  # unclosed
        "<think> d </think> <answer> e",
        LAST + " and more",
        "so: " + LAST,
        LAST + LAST,  # two answers
        LAST + STEP,
        f"<search> b </search> <information> c </information> {LAST}",
        f"<think> a </think> <search> b </search> {LAST}",  # nothing came back
        f"<think> a </think> <search></search> <information> c </information> {LAST}",
        f"<think> a </think> <information> c </information> {LAST}",
        f"<think> a </think> {LAST}",
        f"<plan> p </plan> {LAST}",
        f"{STEP} text {LAST}",
        "<think> d </think> <answer> e <answer> f </answer>",
        f"<think> a <think> b </think> <search> b </search> <information> c </information> {LAST}",
    ],
)
def test_not_well_formed(response):
    assert not is_well_formed(response)


@pytest.mark.parametrize(
    "middle",
    [
        "<search> b </search> <information> c </information>",  # a second search without a thought
        "<think> a </think> <information> c </information>",
        "garbage <information> c </information>",
        f"{LAST} {STEP}",  # an answer, then on and on
        f"<plan> p </plan> {STEP}",
    ],
)
def test_passages_end_at_their_first_closing_tag(middle):
    assert not is_well_formed(f"{STEP} {middle} {LAST}")
