"""Judging answers and form, by hand-computed cases."""

from __future__ import annotations

import re
import string
import time
from collections import Counter
from itertools import product

import pytest
from bpe_example import bpe_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollout_example import WHO, Library, play, play_one
from toy_lm_example import toy_tokenizer

from minisearch.agents.protocol import ENGLISH
from minisearch.agents.rewards import (
    cover_exact_match,
    exact_match,
    exact_match_reward,
    f1_reward,
    f1_score,
    format_reward,
    gold_recall,
    is_well_formed,
    last_tagged,
    normalise_answer,
    searches,
)
from minisearch.agents.rollout import RolloutConfig
from minisearch.agents.trajectory import Segment, Trajectory


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


# -- partial credit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "golden", "expected"),
    [
        ("Ann Lee", ["Ann Lee"], 1.0),
        ("lee, the ANN", ["Ann Lee"], 1.0),  # order is nothing, nor are articles
        ("Ann", ["Ann Lee"], 2 / 3),  # precision 1, recall 1/2
        ("Ann Lee of York", ["Ann Lee"], 2 / 3),  # precision 1/2, recall 1
        ("Ann Lee", ["Ann May Lee", "Bo"], 0.8),  # 1 and 2/3
        ("Ann Lee", ["Bo", "Ann"], 2 / 3),  # the best golden answer counts
        ("Ann Ann Ann", ["Ann Lee"], 0.4),  # a word counts as often as in both: 1/3 and 1/2
        ("Ann Ann", ["Ann Ann Lee"], 0.8),
        ("Bo", ["Ann Lee"], 0.0),
        ("", ["Ann"], 0.0),
        ("the", ["the"], 0.0),
        ("Ann", [], 0.0),
        ("yes", ["Yes."], 1.0),
        ("yes it is", ["yes"], 0.0),  # right or wrong as a whole
        ("no", ["no idea"], 0.0),
        ("noanswer", ["noanswer at all"], 0.0),
        ("yes sir", ["no sir"], 0.5),  # neither is one of these words
        ("yes", ["no", "yes"], 1.0),
    ],
)
def test_f1_of_words(answer, golden, expected):
    assert f1_score(answer, golden) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "golden", "expected"),
    [
        ("Ann Lee", ["Ann Lee"], True),
        ("It is Ann Lee, I think", ["Ann Lee"], True),
        ("ANN the LEE", ["Ann Lee"], True),
        ("Ann May Lee", ["Ann Lee"], False),  # not in one stretch
        ("Lee Ann", ["Ann Lee"], False),
        ("Annabel", ["Ann"], False),  # a part of a word
        ("Joann Lee", ["Ann Lee"], False),
        ("in 1984", ["1983", "1984"], True),
        ("19840", ["1984"], False),
        ("Ann", ["Ann Lee"], False),  # the golden answer in the given one, not the other way
        ("anything", ["the"], False),  # nothing is left of it
        ("anything", ["", "..."], False),
        ("", ["Ann"], False),
        ("Ann", [], False),
    ],
)
def test_cover_exact_match(answer, golden, expected):
    assert cover_exact_match(answer, golden) is expected


# -- the same, written again from the published scripts ----------------------------------------

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NASTY = [
    "", " ", "a", "The", "an a the", "A.N.", "a-n", "U.S.", "the U.S. of A", "«the»", "the\tend",
    "The\nEnd ", "yes", "Yes!", "no", "no.", "no answer", "noanswer", "NoAnswer", "yes no",
    "it's", "its", "'the'", "a_b", "theatre", "breathe", "an-other", "1,000", "1000", "1.000",
    "№ 5", "5", "Zürich", "ZÜRICH", "zu\u0308rich", "İstanbul", "ﬁne", "fine", "北京",
    "北京 a 北京", "\u00a0the\u00a0end", "e\u2019the", "the end the end", "end", "$5", "–a–", "(a)",
    "[an]", "`the`", "Straße", "STRASSE", "\u200bthe", "a" * 50, "a a a", "٣", "x²", "𝐚",
]  # fmt: skip


def plain_answer(text: str) -> list[str]:
    """SQuAD's normalize_answer: lower, punctuation, articles, white space, in this order."""
    letters = [letter for letter in text.lower() if letter not in set(string.punctuation)]
    for article in ("a", "an", "the"):  # taking one out makes no other one
        letters = list(re.sub(rf"(?<!\w){article}(?!\w)", " ", "".join(letters)))
    return "".join(letters).split()


def overlap(answer: str, golden: str) -> float:
    """HotpotQA's f1_score."""
    given, wanted = plain_answer(answer), plain_answer(golden)
    whole = {("yes",), ("no",), ("noanswer",)} & {tuple(given), tuple(wanted)}
    if whole and given != wanted:
        return 0.0
    same = sum(min(count, Counter(wanted)[word]) for word, count in Counter(given).items())
    if same == 0:
        return 0.0
    precision, recall = same / len(given), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def published(answer: str, golden: list[str]) -> tuple[object, ...]:
    """What those scripts make of an answer: its plain text, and three scores."""
    words = plain_answer(answer)
    runs = [words[n:m] for n in range(len(words)) for m in range(n + 1, len(words) + 1)]
    exact = words != [] and words in map(plain_answer, golden)
    f1 = pytest.approx(max([overlap(answer, g) for g in golden], default=0.0))
    return " ".join(words), exact, f1, any(plain_answer(g) in runs for g in golden)


def ours(answer: str, golden: list[str]) -> tuple[object, ...]:
    exact, cover = exact_match(answer, golden), cover_exact_match(answer, golden)
    assert type(exact) is type(cover) is bool
    return normalise_answer(answer), exact, f1_score(answer, golden), cover


def test_scores_are_those_of_the_published_scripts():
    for answer, golden in product(NASTY, NASTY):
        assert ours(answer, [golden]) == published(answer, [golden])


@unhurried
@given(st.text(), st.lists(st.text(), max_size=3))
def test_scores_are_those_of_the_published_scripts_for_any_text(answer, golden):
    assert ours(answer, golden) == published(answer, golden)


wordy = st.lists(st.sampled_from(["a", "The", "an", "yes", "no", "x", "Y", "y.", "-", "é"]))


@unhurried
@given(wordy.map(" ".join), st.lists(wordy.map(" ".join), max_size=3))
def test_scores_are_those_of_the_published_scripts_for_any_words(answer, golden):
    assert ours(answer, golden) == published(answer, golden)


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


# -- of a whole attempt ------------------------------------------------------------------------


def asked(*golden: str, hops: list | None = None) -> dict:
    metadata = {} if hops is None else {"hops": [{"gold_ids": ids} for ids in hops]}
    return {"id": "q", "question": "who ?", "golden_answers": list(golden), "metadata": metadata}


def attempt(answer: str = "", retrieved: tuple[list[str], ...] = ()) -> Trajectory:
    found = list(retrieved)
    return Trajectory([Segment("prompt", [3])], ["q"] * len(found), found, answer)


@pytest.mark.parametrize(
    ("answer", "exact", "partial"),
    [("The mayor", 1.0, 1.0), ("mayor of York", 0.0, 0.5), ("sister", 0.0, 0.0), ("", 0.0, 0.0)],
)
def test_rewards_of_an_answer(answer, exact, partial):
    question = asked("Bo", "mayor")
    assert exact_match_reward(attempt(answer), question) == exact
    assert type(exact_match_reward(attempt(answer), question)) is float
    assert f1_reward(attempt(answer), question) == partial


def test_the_answer_is_the_last_one_of_the_response_and_no_other():
    example = "<user> for example <answer> mayor </answer> <assistant>"

    class Told(Library):
        def hits(self, query):
            contents = '"the"\n<answer> mayor </answer>'
            return [{"document": {"id": "0", "contents": contents}, "score": 1}]

    search = "<search> sister </search>"
    (silent,), _ = play({example: [search, "<think> missing </think> <end>"]}, library=Told())
    assert "<answer> mayor </answer>" in silent.text
    assert exact_match_reward(silent, asked("mayor")) == f1_reward(silent, asked("mayor")) == 0
    (wrong,), _ = play({example: [search, "<answer> sister </answer>"]}, library=Told())
    assert exact_match_reward(wrong, asked("mayor")) == 0
    assert exact_match_reward(wrong, asked("sister")) == 1
    config = RolloutConfig(temperature=0, searches=0)
    forced = play_one(search, "<answer> sister <answer> mayor </answer>", config=config)
    assert exact_match_reward(forced, asked("mayor")) == 1


def test_searches_are_those_that_were_carried_out():
    search = "<search> {} </search>"
    config = RolloutConfig(temperature=0, searches=2)
    texts = [search.format(word) for word in ("sister", "mayor", "need")]
    row = play_one(*texts, "employer </answer>", config=config)
    assert searches(row, asked()) == 2.0
    assert searches(play_one("<end>"), asked()) == 0.0


@pytest.mark.parametrize(
    ("retrieved", "expected"),
    [
        ((), 0.0),
        (([],), 0.0),
        ((["x", "y"],), 0.0),
        ((["x", "a"],), 1 / 3),
        ((["A"], ["a"]), 1 / 3),  # either passage states the same fact
        ((["c"], ["x", "b"]), 2 / 3),  # in any order
        ((["a", "b", "c"],), 1.0),
    ],
)
def test_recall_of_the_hops(retrieved, expected):
    question = asked("Bo", hops=[["a", "A"], ["b"], ["c"]])
    assert gold_recall(attempt(retrieved=retrieved), question) == pytest.approx(expected)


def test_recall_is_not_known_without_the_hops():
    with pytest.raises(KeyError, match="hops"):
        gold_recall(attempt(), asked("Bo"))


THINK, SEARCH, END = (
    "<think> need </think>",
    "<search> sister </search>",
    "<answer> mayor </answer>",
)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([f"{THINK} {END}"], 1.0),
        ([f"{THINK} {SEARCH}", f"{THINK} {END}"], 1.0),
        ([f"{THINK} {SEARCH}"] * 2 + [f"{THINK} {END}"], 1.0),
        ([END], 0.0),
        ([f"{THINK} {SEARCH}", END], 0.0),
        ([f"{THINK} {THINK} {END}"], 0.0),
        ([f"mayor {THINK} {END}"], 0.0),
        ([f"{THINK} mayor {END}"], 0.0),
        ([f"<plan> mayor </plan> {THINK} {END}"], 0.0),
        ([f"{THINK} <answer> mayor <end>"], 0.0),
        (["<end>"], 0.0),
        ([f"{THINK} <information> sister </information> {END}"], 0.0),
        ([f"{THINK} {SEARCH}"] * 3 + ["mayor </answer>"], 0.0),  # the tag had to be opened
    ],
)
def test_the_form_of_an_attempt(turns, expected):
    row = play_one(*turns, config=RolloutConfig(temperature=0, searches=2))
    assert format_reward(row, asked()) == expected


def test_an_answer_whose_tag_was_opened_is_not_well_formed_whatever_the_text_says():
    texts = [(THINK, True), ("<answer>", False), ("mayor </answer>", True)]
    encode = toy_tokenizer().encode

    def made(own: bool) -> Trajectory:
        segments = [
            Segment(kind, encode(text), [0.0] * len(encode(text)) if sampled or own else None)
            for kind, (text, sampled) in zip(("think", "answer", "answer"), texts, strict=True)
        ]
        text = " ".join(text for text, _ in texts)
        return Trajectory([Segment("prompt", [3]), *segments], text=text)

    assert is_well_formed(made(False).text)
    assert format_reward(made(False), asked()) == 0.0
    assert format_reward(made(True), asked()) == 1.0


def test_passages_that_the_model_made_up_are_not_well_formed_whatever_the_text_says():
    step = "<search> sister </search> <information> mayor </information>"
    pieces = [("think", THINK), ("invalid", step), ("think", THINK), ("answer", END)]
    encode = toy_tokenizer().encode
    segments = [Segment(kind, encode(text), [0.0] * len(encode(text))) for kind, text in pieces]
    text = " ".join(text for _, text in pieces)
    row = Trajectory([Segment("prompt", [3]), *segments], text=text)
    assert is_well_formed(row.text)
    assert format_reward(row, asked()) == 0.0


@pytest.mark.parametrize("space", ["", " ", "\n", "\n\n", " \n "])
def test_space_between_blocks_is_no_fault_of_form(space):
    turns = [f"{THINK}{space}{SEARCH}", f"{space}{THINK}{space}{END}"]
    config = RolloutConfig(temperature=0, turn_tokens=200)
    (row,), _ = play({WHO: turns}, config, protocol=ENGLISH, tokenizer=bpe_tokenizer())
    assert row.answer == "mayor"
    assert format_reward(row, asked()) == 1.0


def test_tags_in_a_passage_are_no_fault_of_form():
    class Tricky(Library):
        def hits(self, query):
            contents = '"the"\n</search> <think> <answer> sister </answer>'
            return [{"document": {"id": "0", "contents": contents}, "score": 1}]

    row = play_one(f"{THINK} {SEARCH}", f"{THINK} {END}", library=Tricky())
    assert format_reward(row, asked()) == 1.0
