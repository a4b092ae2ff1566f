"""Chapter 8: plans read, paid in order, filtered, taught; three conditions; bad input."""

from __future__ import annotations

import ast
import math
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from minisearch import chapters
from minisearch.agents.queries import scored
from minisearch.agents.trajectory import Segment, Trajectory
from minisearch.claims import Card
from minisearch.errors import InputError
from minisearch.models.lm import load_lm
from minisearch.recorder import Recorder

CHAPTER = "08_plan"
TABLES = ("READY", "RECIPES")  # plain but for their calls, so that `load` leaves them


@pytest.fixture(scope="module")
def lm():
    return load_lm("toy-0")


@pytest.fixture
def page(monkeypatch, tmp_path):
    """The chapter as it stands after its definitions, at smoke."""
    chapter = chapters.load(CHAPTER)
    names = {
        "profile": "smoke", "seed": 7, "world_seed": 0, "init_seed": 0, "data": "", "service": "",
        "settings": chapter.PlanSettings.of("smoke"), "record": Recorder(tmp_path / "run"),
        "MODULES": {},
    }  # fmt: skip
    for name, value in names.items():
        monkeypatch.setattr(chapter, name, value, raising=False)
    for node in ast.parse(Path(chapter.__file__).read_text(encoding="utf-8")).body:
        target = getattr(node, "target", None) or getattr(node, "targets", [None])[0]
        if getattr(target, "id", "") in TABLES:
            monkeypatch.setattr(chapter, target.id, None, raising=False)
            exec(compile(ast.Module([node], []), CHAPTER, "exec"), vars(chapter))
    monkeypatch.setenv("MINISEARCH_BUILD", str(tmp_path / "build"))
    return chapter


@pytest.fixture
def world(page):
    return page.open_world("blank", 100)


@pytest.fixture
def question(world):
    return world[0].questions(1, hops=(3,), seed=4)[0]


def names_of(question):
    """The entity and the answer of every step."""
    return [question["metadata"]["entity"], *(h["answer"] for h in question["metadata"]["hops"])]


def pieces_of(page, question, plan=None, queries=None, answer=None):
    """A right attempt in text blocks; a given plan or queries in place of the right ones."""
    names, nouns = names_of(question), question["metadata"]["relations"]
    lines = page.steps_of(question) if plan is None else plan
    asked = [f"{n} {noun}" for n, noun in zip(names, nouns, strict=False)]
    asked = asked if queries is None else queries
    pieces = [page.plan_block(lines)] if lines else []
    said = ""
    for n, query in enumerate(asked):
        pieces += [
            page.Piece("think", f"{said}need {nouns[min(n, len(nouns) - 1)]} of {names[n]}"),
            page.Piece("search", query),
            page.Piece("information", "( x )"),
        ]
        said = f"found {names[n + 1]} ; "
    pieces += [page.Piece("think", said.strip(" ;") or "missing")]
    return [*pieces, page.Piece("answer", answer or names[-1])]


def attempt_of(page, lm, question, **changes):
    return page.written_by_hand(lm, pieces_of(page, question, **changes))


# -- reading a plan --------------------------------------------------------------------------------


def test_the_steps_of_a_question_of_any_length(page, world):
    for hops in (1, 2, 3, 4):
        (asked,) = world[0].questions(1, hops=(hops,), seed=1)
        nouns = asked["metadata"]["relations"]
        expected = [f"{nouns[0]} of {asked['metadata']['entity']}"]
        expected += [f"{noun} of #{n}" for n, noun in enumerate(nouns[1:], 1)]
        assert page.steps_of(asked) == expected


def test_lines_come_with_numbers_or_semicolons(page):
    assert page.lines_of("1. mayor of Ada\n 2. twin of #1 \n") == ["mayor of Ada", "twin of #1"]
    assert page.lines_of("mayor of Ada ; twin of #1 ;") == ["mayor of Ada", "twin of #1"]
    assert page.lines_of(" ; ") == []


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("<plan> a of b </plan> <think> x </think> <answer> y </answer>", ["a of b"]),
        ("<think> x </think> <plan> a of b </plan> <search> q </search>", ["a of b"]),
        ("<search> q </search> <plan> a of b </plan>", []),  # too late
        ("<plan> a </plan> <plan> b </plan>", []),  # two
        ("<plan> a of b <search> q </search>", []),  # never closed
        ("<plan> </plan> <search> q </search>", []),
        ("<think> x </think> <answer> y </answer>", []),
        ("", []),
    ],
)
def test_a_plan_is_the_only_one_and_before_the_first_search(page, text, lines):
    assert page.plan_in(Trajectory([Segment("prompt", [1])], text=text)) == lines


def test_references_are_filled_with_the_names_found(page):
    assert page.filled("mayor of #1", ["Luth"]) == "mayor of Luth"
    assert page.filled("#2 of #1", ["Ada", "#1"]) == "#1 of Ada"  # once, not again
    assert "unresolved" in page.filled("mayor of #2", ["Luth"])
    assert "unresolved" in page.filled("mayor of #0", ["Luth"])
    assert page.filled("twin of #12", [f"n{n}" for n in range(1, 13)]) == "twin of n12"


def test_found_names_are_those_that_thoughts_say(page, lm, question):
    attempt = attempt_of(page, lm, question)
    assert page.found_in(attempt) == names_of(question)[1:]


# -- the reward ------------------------------------------------------------------------------------


def test_a_match_by_hand(page):
    line = "mayor of luth velloa"
    assert page.match("Luth Velloa mayor", line) == 1
    assert page.match("luth velloa governed", line) == pytest.approx(2 / 3)
    assert page.match("luth velloa mayor governed elected", line) == 1
    assert page.match("luth velloa mayor governed elected", line, "f1") == pytest.approx(6 / 8)
    assert page.match("luth velloa mayor", line, "f1") == 1
    assert page.match("of the", line) == page.match("of the", line, "f1") == 0
    assert page.match("mayor mayor", "mayor of mayor") == 1  # words count as often as they come
    assert page.match("mayor", "mayor of mayor") == pytest.approx(1 / 2)
    assert page.match("anything", "of the") == 0


def brute(matches):
    """The best claims that do not cross, by trying all."""
    lines, searches = matches.shape
    best = 0.0

    def go(line, first, total):
        nonlocal best
        best = max(best, total)
        if line < lines:
            go(line + 1, first, total)
            for t in range(first, searches):
                go(line + 1, t + 1, total + matches[line, t])

    go(0, 0, 0.0)
    return best / lines


def any_order(matches):
    """The best claims, each search claimed once, by trying all orders of the searches."""
    lines, searches = matches.shape
    wide = np.pad(matches, ((0, 0), (0, max(0, lines - searches))))
    orders = permutations(range(wide.shape[1]), lines)
    return max(sum(wide[k, t] for k, t in enumerate(order)) for order in orders) / lines


def test_coverage_is_the_best_claims_in_order(page):
    random = np.random.default_rng(0)
    for _ in range(60):
        matches = random.random((random.integers(1, 5), random.integers(1, 6)))
        assert page.coverage(matches) == pytest.approx(brute(matches))
        assert page.coverage(matches, False) == pytest.approx(any_order(matches))
        assert page.coverage(matches) <= page.coverage(matches, False) + 1e-12


def test_coverage_by_hand(page):
    there, back = np.eye(2), np.eye(2)[::-1]
    assert (page.coverage(there), page.coverage(back)) == (1, 0.5)
    assert page.coverage(back, order=False) == 1
    all_at_once = np.ones((3, 1))
    assert page.coverage(all_at_once) == pytest.approx(1 / 3)
    assert page.coverage(all_at_once, order=False) == pytest.approx(1 / 3)
    assert page.coverage(np.zeros((0, 2))) == page.coverage(np.zeros((2, 0))) == 0


def reward(page, attempt, question, **rules):
    return page.PlanReward(0.1, 0.2, page.Rules(**rules))(attempt, question)


def test_a_right_attempt_along_its_plan_gets_everything(page, lm, question):
    assert reward(page, attempt_of(page, lm, question), question) == pytest.approx(1.3)


def test_a_wrong_answer_never_beats_a_right_one(page, lm, question):
    wrong = attempt_of(page, lm, question, answer="nobody")
    bare = attempt_of(page, lm, question, plan=[])
    assert reward(page, wrong, question) == pytest.approx(0.3)
    assert reward(page, bare, question) == 1
    for weights in ((0.5, 0.5), (1.0, 0.2), (-0.1, 0.2)):
        with pytest.raises(InputError, match="weights"):
            page.PlanReward(*weights)


def test_searches_in_another_order_are_paid_less(page, lm, question):
    queries = attempt_of(page, lm, question).queries
    turned = attempt_of(page, lm, question, queries=queries[::-1])
    assert reward(page, turned, question) < 1.3
    free = reward(page, turned, question, order=False)
    assert free > reward(page, turned, question)


def test_copying_the_plan_into_the_searches_does_not_fill_it_in(page, lm, question):
    copied = attempt_of(page, lm, question, queries=page.steps_of(question))
    right = attempt_of(page, lm, question)
    assert page.read(copied, question, page.Rules()).covered < 0.75
    assert page.read(right, question, page.Rules()).covered == 1


def bad_plans(page, question):
    steps = page.steps_of(question)
    return {
        "one line": steps[:1],
        "longer than the searches allowed": [f"mayor of a{n}" for n in range(9)],
        "the same line twice": [steps[0], steps[0]],
        "a reference to a later line": [steps[1], steps[0]],
        "a reference to itself": [steps[0], "mayor of #2"],
        "the answer in it": [steps[0], f"mayor of {question['golden_answers'][0]}"],
    }


def test_a_plan_in_bad_form_is_not_paid(page, lm, question):
    for what, plan in bad_plans(page, question).items():
        attempt = attempt_of(page, lm, question, plan=plan)
        assert page.plan_in(attempt) == plan, what
        assert reward(page, attempt, question) == 1, what


def test_a_plan_without_a_search_and_a_search_without_a_plan(page, lm, question):
    silent = attempt_of(page, lm, question, queries=[])
    bare = attempt_of(page, lm, question, plan=[])
    assert reward(page, silent, question) == reward(page, bare, question) == 1
    assert page.read(silent, question, page.Rules()).covered == 0
    assert not page.read(bare, question, page.Rules()).planned


def test_a_plan_after_the_first_search_is_not_paid(page, lm, question):
    pieces = pieces_of(page, question)
    late = page.written_by_hand(lm, [*pieces[1:4], pieces[0], *pieces[4:]])
    assert reward(page, late, question) == 1


def test_an_answer_that_was_opened_by_the_environment_is_not_well_formed(page, lm, question):
    attempt = attempt_of(page, lm, question)
    assert page.rest_is_formed(attempt)
    attempt.segments[-1] = replace(attempt.segments[-1], log_probs=None)
    assert not page.rest_is_formed(attempt)


def test_running_out_of_searches_is_no_broken_form(page, lm, question):
    whole = attempt_of(page, lm, question)
    words = attempt_of(page, lm, question)
    words.segments.insert(2, Segment("invalid", lm.encode("mayor"), [0.0]))
    assert (page.is_broken(whole), page.is_broken(words)) == (0, 1)
    words.queries = [f"q{n}" for n in range(page.settings.searches)]
    assert page.is_broken(words) == 0


# -- sub-skills and what is watched ----------------------------------------------------------------


def test_the_order_of_needs(page, lm, question):
    nouns = ["star", "mentor", "chief"]
    question = question | {"metadata": question["metadata"] | {"relations": nouns}}

    def needs(*order):
        text = " ".join(f"<think> need {noun} of x </think> <search> q </search>" for noun in order)
        return page.in_order(Trajectory([Segment("prompt", [1])], text=text), question)

    assert needs(*nouns) == needs(nouns[0]) == needs(nouns[0], nouns[0], nouns[1]) == 1
    assert needs(nouns[2], nouns[1]) == needs() == needs(*nouns, "zzz") == 0


def test_a_step_asked_of_another_name_is_no_second_try(page, question):
    facts = question["metadata"] | {"relations": ["mentor", "mentor", "chief"]}
    twice = question | {"metadata": facts}

    def needs(*thoughts):
        text = " ".join(f"<think> need {thought} </think>" for thought in thoughts)
        attempt = Trajectory([Segment("prompt", [1])], text=text)
        return page.in_order(attempt, twice), page.to_the_end(attempt, twice)

    assert needs("mentor of x", "found y ; need mentor of y", "need chief of z") == (1, True)
    assert needs("mentor of x", "need mentor of x", "need mentor of y") == (1, False)
    assert needs("mentor of x", "need chief of y") == (0, False)
    assert needs("mentor of x", "need mentor of x", "need chief of y") == (0, False)


def test_a_search_is_on_course_with_the_name_of_the_open_step(page, lm, question):
    names, hops = names_of(question), question["metadata"]["hops"]
    attempt = attempt_of(page, lm, question, queries=[names[0], names[0], f"{names[1]} born"])
    first = hops[0]["gold_ids"]
    attempt.retrieved = [["nothing"], first, ["nothing"]]
    assert page.on_course(attempt, question) == 1
    attempt.retrieved = [first, ["nothing"], ["nothing"]]  # the second search is late
    assert page.on_course(attempt, question) == pytest.approx(2 / 3)
    silent = attempt_of(page, lm, question, queries=[])
    assert page.on_course(silent, question) == 0


def test_filling_in_is_seen_where_a_name_was_just_found(page, lm, question):
    right = attempt_of(page, lm, question)
    assert page.filled_in(right) == [True, True]
    assert page.filled_in(page.unfilled(lm, right)) == [False, False]


def test_everything_but_the_answer(page, lm, world):
    wiki, _ = world
    (asked,) = wiki.questions(1, hops=(4,), seed=3)
    text = page.all_but_the_answer(lm, asked, {d["id"]: d for d in wiki.corpus})
    assert [tag for tag, _ in page.closed_blocks(text)] == ["plan", *["think", "search"] * 4]
    assert text.count("<information>") == 4
    assert asked["golden_answers"][0] in text.rpartition("<information>")[2]


def log_of(**columns):
    ends = {"planned": (0, 0), "right": (0.2, 0.4), "formed": (1, 1), **columns}
    return [
        {n: first + (last - first) * k / 7 for n, (first, last) in ends.items()} for k in range(8)
    ]


@pytest.mark.parametrize(
    ("columns", "verdict"),
    [
        ({}, "never explores"),
        ({"planned": (0.3, 1.0)}, "plans"),
        ({"planned": (1.0, 1.0), "right": (0.2, 0.2)}, "plans but cannot execute"),
        ({"planned": (0.3, 1.0), "right": (0.3, 0.0)}, "collapses"),
        ({"planned": (0.3, 1.0), "formed": (1.0, 0.0)}, "collapses"),
        ({"planned": (0.3, 0.5)}, "undecided"),
        ({"right": (0.08, 0.03)}, "never explores"),
    ],
)
def test_a_run_is_given_a_name(page, columns, verdict):
    assert page.verdict_of(log_of(**columns)) == verdict


def test_watching_changes_nothing_and_counts(page, lm, question):
    asked = lm.encode(question["question"])
    attempts = [attempt_of(page, lm, question), attempt_of(page, lm, question, plan=[])]
    attempts = [attempt.with_prompt(asked) for attempt in attempts]
    watch = page.Watch(lm, page.Rules())
    extra = watch(scored(lm, attempts, [question] * 2, 2))
    assert (extra == 0).all()
    row = watch.log[0]
    assert row["planned"] == row["valid"] == row["planned_right"] == 0.5
    assert row["right"] == row["formed"] == 1


def test_the_divergence_from_the_start_is_0_at_the_start_and_grows(page, question):
    lm = load_lm("toy-0")
    prompt = page.protocol_of(lm.tokenizer).prompt(lm.tokenizer, question["question"])
    watch, library = page.Watch(lm, page.Rules()), page.open_world("blank", 100)[1]

    def moved():
        config = page.settings.attempts()
        made = page.rollout(lm, library, page.protocol_of(lm.tokenizer), [prompt] * 2, config, 1)
        return watch.moved(made)

    assert moved() == pytest.approx(0, abs=1e-4)
    with torch.no_grad():
        lm.model.get_decoder().norm.weight.mul_(0.5)  # the policy moves, the start stays
    assert moved() > 0.01


# -- lessons ---------------------------------------------------------------------------------------


def test_a_lesson_learns_what_the_model_wrote_under_the_plain_prompt(page, lm, question):
    attempt = attempt_of(page, lm, question)
    ids, learn = page.lesson(lm, question, attempt)
    assert len(ids) == len(learn)
    text = lm.decode([i for i, flag in zip(ids, learn, strict=True) if flag])
    assert text.startswith("<plan>")
    assert "information" not in text
    before = lm.decode([i for i, flag in zip(ids, learn, strict=True) if not flag])
    assert question["question"] in before
    assert "<plan>" not in before


def test_plans_are_cut_out_put_in_and_exchanged(page, lm, question):
    attempt = attempt_of(page, lm, question)
    bare = page.with_plan(lm, attempt, [])
    assert "plan" not in bare.text
    assert [s.kind for s in bare.segments] == [s.kind for s in attempt.segments if s.kind != "plan"]
    again = page.with_plan(lm, bare, page.steps_of(question))
    assert again.text == attempt.text
    assert again.ids == attempt.ids
    assert attempt.text.startswith("<plan>")  # the original is as it was


def test_a_shuffled_plan_has_the_same_lines_in_another_order(page, lm, question):
    attempt = attempt_of(page, lm, question)
    for seed in range(10):
        found = page.plan_in(page.shuffled_plan(lm, attempt, seed))
        assert sorted(found) == sorted(page.steps_of(question))
        assert found != page.steps_of(question)
    bare = attempt_of(page, lm, question, plan=[])
    assert page.shuffled_plan(lm, bare, 0) is bare


def test_the_unskilled_never_fill_a_name_into_a_search_and_differ_in_nothing_else(
    page, lm, question
):
    attempt = attempt_of(page, lm, question)
    poor = page.unfilled(lm, attempt)
    for before, after in zip(attempt.segments, poor.segments, strict=True):
        assert before.kind == after.kind
        assert before.sampled == after.sampled
        assert before.kind == "query" or before.ids == after.ids
    asked = [lm.decode(s.ids) for s in poor.segments if s.kind == "query"]
    nouns = question["metadata"]["relations"]
    assert asked[1:] == [f"#1 {nouns[1]}", f"#2 {nouns[2]}"]
    assert asked[0] == attempt.queries[0]


def test_runs_of_tokens_are_exchanged(page):
    assert page.exchanged([1, 2, 3, 1, 2], [1, 2], [9]) == [9, 3, 9]
    assert page.exchanged([1, 1, 1], [1, 1], [7]) == [7, 1]
    assert page.exchanged([1, 2], [], [7]) == [1, 2]
    assert page.exchanged([], [1], [7]) == []


def test_attempts_survive_the_disk(page, lm, question):
    attempt = attempt_of(page, lm, question)
    attempt.retrieved = [["a"], ["b"], ["c"]]
    again = page.restored(page.json.loads(page.json.dumps(page.stored(attempt))))
    assert again == attempt


# -- the filter ------------------------------------------------------------------------------------


def test_the_filter_keeps_what_is_right_planned_and_in_order(page, lm, question):
    right = attempt_of(page, lm, question)
    assert page.keeps(question, right)
    queries = right.queries
    refused = {
        "wrong": attempt_of(page, lm, question, answer="nobody"),
        "no plan": attempt_of(page, lm, question, plan=[]),
        "a query twice": attempt_of(page, lm, question, queries=[queries[0], *queries[:2]]),
        "in another order": attempt_of(page, lm, question, queries=queries[::-1]),
        "plan in bad form": attempt_of(page, lm, question, plan=page.steps_of(question)[:1]),
    }
    for what, attempt in refused.items():
        assert not page.keeps(question, attempt), what
        assert page.keeps(question, attempt, "none")
        assert page.keeps(question, attempt, "answer") == (what != "wrong")
    short = page.steps_of(question)[:2]
    names = names_of(question)
    names = [*names, *names]
    many = pieces_of(page, question, plan=short)
    more = [(page.Piece("think", "x"), page.Piece("search", f"more {n}"), many[3]) for n in (0, 1)]
    long = [*many[:-2], *more[0], *more[1], *many[-2:]]
    assert not page.keeps(question, page.written_by_hand(lm, long))


def test_an_unknown_filter_is_named(page, lm, question):
    with pytest.raises(InputError, match="filter"):
        page.keeps(question, attempt_of(page, lm, question), "best")


def test_as_many_are_drawn_as_asked_for(page, lm, question):
    right = (question, attempt_of(page, lm, question))
    other = (question, attempt_of(page, lm, question, answer="nobody"))
    assert page.drawn([right], 3, 0) == [right] * 3
    drawn = page.drawn([right, other] * 4, 8, 0)
    assert sorted(map(id, (a for _, a in drawn))) == sorted(
        map(id, [right[1]] * 4 + [other[1]] * 4)
    )
    assert drawn != page.drawn([right, other] * 4, 8, 1)
    with pytest.raises(InputError, match="none passes"):
        page.drawn([], 3, 0)


def test_an_opening_ends_before_anything_was_found(page, lm, question):
    attempt = attempt_of(page, lm, question)
    begun = page.opening(attempt)
    assert [s.kind for s in begun.segments[1:]] == page.OPENED
    assert [s.kind for s in attempt.segments].count("documents") == 3  # the original is whole
    ids, learn = page.lesson(lm, question, begun)
    learnt = lm.decode([i for i, flag in zip(ids, learn, strict=True) if flag])
    assert learnt.startswith("<plan>")
    assert learnt.endswith("</think>")
    ids, learn = page.lesson(lm, question, page.with_plan(lm, begun, []))
    learnt = lm.decode([i for i, flag in zip(ids, learn, strict=True) if flag])
    assert learnt == f"<think> need {page.steps_of(question)[0]} </think>"
    silent = attempt_of(page, lm, question, queries=[])
    assert page.opening(silent).ids == silent.ids


def test_an_opening_is_kept_for_its_form_and_not_for_its_answer(page, lm, question):
    wrong = attempt_of(page, lm, question, answer="nobody")
    assert page.opens(question, wrong)
    assert not page.keeps(question, wrong)
    refused = {
        "no plan": attempt_of(page, lm, question, plan=[]),
        "no search": attempt_of(page, lm, question, queries=[]),
        "plan in bad form": attempt_of(page, lm, question, plan=page.steps_of(question)[:1]),
    }
    broken = attempt_of(page, lm, question)
    broken.segments.insert(2, Segment("invalid", lm.encode("mayor"), [0.0]))
    for what, attempt in (refused | {"words outside": broken}).items():
        assert not page.opens(question, attempt), what
        assert page.opens(question, attempt, "none"), what


def test_the_first_opening_is_written_by_hand(page, lm, question):
    attempt = page.opened_by_hand(lm, question)
    steps = page.steps_of(question)
    assert attempt.text == f"{page.plan_block(steps)} <think> need {steps[0]} </think>"
    assert [s.kind for s in attempt.segments[1:]] == ["plan", "think"]


def test_twins_see_the_same_lessons_but_for_their_plans(page, lm):
    tag = lm.encode("<plan>")[0]
    own, cut, turned = (
        page.lessons_of(name, lm, page.RECIPES[name]) for name in ("plan", "no_plan", "shuffled")
    )
    both = page.settings.kept + page.settings.openings
    assert len(own) == len(cut) == len(turned) == both
    assert all(tag in ids for ids, _ in own + turned)
    assert not any(tag in ids for ids, _ in cut)
    for (with_it, flags), (without, others) in zip(own, cut, strict=True):
        assert sum(flags) > sum(others) > 0
        assert [i for i, f in zip(without, others, strict=True) if not f] == [
            i for i, f in zip(with_it, flags, strict=True) if not f
        ]
    assert all(sorted(a[0]) == sorted(b[0]) for a, b in zip(own, turned, strict=True))
    assert any(a[0] != b[0] for a, b in zip(own, turned, strict=True))
    mixed = page.lessons_of("ready", lm, page.RECIPES["ready"])
    planned = sum(tag in ids for ids, _ in mixed)
    assert planned / len(mixed) == pytest.approx(page.settings.share, abs=0.02)


# -- teaching and the three conditions -------------------------------------------------------------


def first_token(lm, page, question, text):
    prompt = page.protocol_of(lm.tokenizer).prompt(lm.tokenizer, question["question"])
    with torch.no_grad():
        logits = lm.model(torch.tensor([lm.encode(prompt)])).logits[0, -1]
    return float(logits.log_softmax(-1)[lm.encode(text)[0]])


@pytest.mark.parametrize("name", ["toy-0", "toy-1"])
def test_no_shipped_model_plans(page, question, name):
    assert first_token(load_lm(name), page, question, "<plan>") < -10


def test_tuning_teaches_to_plan(page, question):
    lm = load_lm("toy-0")
    lessons = [page.lesson(lm, question, attempt_of(page, lm, question))] * 2
    before = first_token(lm, page, question, "<plan>")
    module = page.tune(lm, lessons, 1e-3, 4, 0)
    assert first_token(lm, page, question, "<plan>") > before + 2
    losses = module.history.column("loss")[1]
    assert losses[-1] < losses[0]


def test_nothing_to_learn_from_is_an_error(page, lm):
    with pytest.raises(InputError, match="lessons"):
        page.tune(lm, [], 1e-3, 1, 0)


def test_padding_and_parts_do_not_change_the_loss(page, lm, world):
    asked = world[0].questions(4, hops=(2, 4), seed=3)
    lessons = [page.lesson(lm, q, attempt_of(page, lm, q)) for q in asked]
    lessons += [page.lesson(lm, q, page.opened_by_hand(lm, q)) for q in asked]
    with torch.no_grad():
        module = page.Tuning(lm, lessons)
        found = float(module.loss({"lesson": torch.arange(len(lessons))}))
        sums, count = 0.0, 0
        for ids, learn in lessons:
            logits = lm.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            own = logits.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            sums -= float(own[torch.tensor(learn[1:])].sum())
            count += sum(learn)
    assert found == pytest.approx(sums / count, rel=1e-4)


def test_what_is_taken_away_is_one_setting_of_training(page):
    own = {name: vars(page.starved(page.RECIPES[name])) for name in ("ready", "sharp", "unstable")}
    changed = {
        name: {key: value for key, value in own[name].items() if value != own["ready"][key]}
        for name in ("sharp", "unstable")
    }
    assert changed["sharp"] == {"drawn_at": 0.125}
    assert changed["unstable"] == {"learning_rate": pytest.approx(6e-3)}
    assert page.starved(page.RECIPES["sharp"]).attempts().temperature == 0.125
    assert page.starved(page.RECIPES["ready"]).attempts().temperature == 1
    assert page.starved(page.RECIPES["sharp"]).attempts(0.0).temperature == 0


def test_hints_are_one_token_and_as_many_as_the_share_asks(page, lm, question):
    planned = [page.lesson(lm, question, attempt_of(page, lm, question))] * 3
    hints = page.hints_not_to_plan(lm, planned, [question], 0.3)
    assert len(hints) == 7
    for ids, learn in hints:
        assert sum(learn) == 1
        assert learn[-1]
        assert lm.decode(ids[-1:]) == "<think>"


def test_the_conditions_differ_from_ready_in_one_field_each(page):
    ready = vars(page.RECIPES["ready"])
    for arm, fields in {"sharp": "sharp", "unstable": "fast", "unskilled": "unfilled"}.items():
        other = vars(page.RECIPES[arm])
        assert [name for name in ready if ready[name] != other[name]] == [fields]


# -- the library with distractors ------------------------------------------------------------------


def test_distractors_come_after_what_was_found_and_state_nothing_asked_for(page, monkeypatch):
    task = page.open_task()
    other = page.distracted(task)
    needed = {i for q in task.test for hop in q["metadata"]["hops"] for i in hop["gold_ids"]}
    queries = [names_of(q)[0] for q in task.test]
    queries += [f"{names_of(q)[0]} {q['metadata']['relations'][0]}" for q in task.test]
    plain = task.test_library.batch_search(queries, 2)
    more = other.test_library.batch_search(queries, 2)
    for few, many in zip(plain, more, strict=True):
        assert many[: len(few)] == few
        added = [hit["document"]["id"] for hit in many[len(few) :]]
        assert len(added) <= 2
        assert not needed & set(added)
        shown = [hit["document"]["id"] for hit in many]
        assert len(set(shown)) == len(shown)
    assert any(len(many) > 2 for many in more)


def test_the_task_asks_two_to_four_steps_and_tests_in_another_world(page):
    task = page.open_task()
    hops = [len(q["metadata"]["hops"]) for q in task.training]
    assert sorted(set(hops)) == [2, 3, 4][: len(set(hops))]
    assert {len(q["metadata"]["hops"]) for q in task.test} == {1, 2, 3, 4}
    names = {names_of(q)[0] for q in task.training} & {names_of(q)[0] for q in task.test}
    assert not names


# -- whole arms ------------------------------------------------------------------------------------


ARMS = [
    "cold", "told", "grpo", "no_plan", "plan", "plan_answer", "tuned", "direct",
    "answer_filter", "no_filter", "shuffled", "distilled", "ready_start", "ready", "sharp",
    "unstable", "unskilled",
]  # fmt: skip


def test_the_card_and_the_chapter_have_the_same_arms(page):
    assert set(ARMS) == {*page.RECIPES, "told"} == set(Card.read(CHAPTER).arms)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_at_smoke(page, monkeypatch, arm):
    few = {"one_hop": 1, "multi_hop": 3, "steps": 1, "looked_at": 1}
    monkeypatch.setattr(page, "settings", replace(page.settings, **few))
    page.run_arm(arm)
    metrics = page.record.metrics
    for name in ("em_greedy", "planned_sampled", "planned_right_sampled", "em_distracted"):
        assert math.isfinite(metrics[f"{arm}/{name}"])
    loss = metrics[f"{arm}/em_distracted"] - metrics[f"{arm}/em_sampled"]
    assert metrics[f"{arm}/em_by_distraction"] == pytest.approx(loss, abs=1e-6)
    assert (f"{arm}/planned_training" in metrics) == (arm in page.MODULES)
    assert (f"{arm}/S2 a plan" in metrics) == (arm in ("cold", "tuned"))
    if arm == "told":
        assert metrics["told/planned_greedy"] == metrics["told/planned_sampled"] == 1
        assert metrics["told/the_plan_sampled"] == 1


def test_an_unknown_arm_is_named(page):
    with pytest.raises(InputError, match="arm"):
        page.run_arm("planner")


def test_lessons_need_an_invented_world(page, lm, monkeypatch):
    monkeypatch.setattr(page, "data", "somewhere")
    for of in (page.demonstrated, page.first_lessons):
        with pytest.raises(InputError, match="plans by hand"):
            of(lm)


def test_what_the_demonstrator_writes_passes_the_filter_or_is_wrong(page, lm):
    pairs = page.demonstrated(lm)
    assert any(page.keeps(*pair) for pair in pairs)
    for question, attempt in pairs:
        assert page.plan_in(attempt) == page.steps_of(question)
        assert page.rest_is_formed(attempt)
