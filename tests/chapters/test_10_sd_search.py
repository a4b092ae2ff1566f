"""Chapter 10: what a block holds, tokens side by side, divergences by hand, loss and rivals."""

from __future__ import annotations

import ast
import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from minisearch import chapters
from minisearch.agents import grpo, study
from minisearch.agents.grpo import Part
from minisearch.agents.protocol import Attempt, Piece, Protocol
from minisearch.agents.scoring import log_prob_of, logits_before
from minisearch.agents.trajectory import Segment, Trajectory
from minisearch.errors import InputError
from minisearch.models.lm import load_lm
from minisearch.recorder import Recorder
from minisearch.worlds.wiki import Wiki, WikiConfig

CHAPTER = "10_sd_search"
TABLES = ("TEACHERS", "SWEPT")  # plain but for their calls, so that `load` leaves them
BLOCKS = ("group", "shuffled", "unlabelled", "own", "others")
DIVERGENCES = ("jsd", "forward", "reverse", "mse")


@pytest.fixture(scope="module")
def lm():
    return load_lm("toy-0")


@pytest.fixture(scope="module")
def chapter():
    """The chapter as it stands after its definitions."""
    found = chapters.load(CHAPTER)
    for node in ast.parse(Path(found.__file__).read_text(encoding="utf-8")).body:
        target = getattr(node, "target", None) or getattr(node, "targets", [None])[0]
        if getattr(target, "id", "") in TABLES:
            exec(compile(ast.Module([node], []), CHAPTER, "exec"), vars(found))
    return found


@pytest.fixture
def page(chapter, monkeypatch, tmp_path):
    """The chapter at smoke, with groups of two."""
    names = {
        "profile": "smoke", "seed": 7, "world_seed": 0, "init_seed": 0, "data": "", "service": "",
        "settings": chapter.HindsightSettings.of("smoke", group=2),
        "record": Recorder(tmp_path / "run"), "MODULES": {},
    }  # fmt: skip
    for name, value in names.items():
        monkeypatch.setattr(chapter, name, value, raising=False)
    monkeypatch.setenv("MINISEARCH_BUILD", str(tmp_path / "build"))
    return chapter


@pytest.fixture(scope="module")
def questions():
    return Wiki(WikiConfig(kind="blank"), 100).questions(2, hops=(2,), seed=3)


def attempt_of(lm, question, turns, answer="unknown", lost=""):
    """An attempt with these queries and passages (id, text), as if sampled.

    `lost` is a search that was not carried out.
    """

    def own(kind, text):
        ids = lm.encode(text)
        return Segment(kind, ids, [-1.0] * len(ids))

    segments = [Segment("prompt", lm.encode(f"<user> {question['question']} <assistant>"))]
    queries, retrieved = [], []
    for query, name, text in turns:
        segments += [own("think", "<think> need mayor </think>"), own("search", "<search>")]
        segments += [own("query", query), own("search", "</search>")]
        segments.append(Segment("documents", lm.encode(f"<information> {text} </information>")))
        queries.append(query)
        retrieved.append([name])
    segments.append(own("think", "<think> found </think>"))
    if lost:
        segments.append(own("invalid", f"<search> {lost} </search>"))
    segments.append(own("answer", f"<answer> {answer} </answer>"))
    text = lm.decode([token for s in segments[1:] for token in s.ids])
    return Trajectory(segments, queries, retrieved, answer, text)


@pytest.fixture
def step(page, lm, questions):
    """Two attempts at each of two questions, the right ones first and last; three useless searches.

    Row 1 has a search that was not carried out; the last search of row 3 comes when all is found.
    """
    attempts = []
    for n, question in enumerate(questions):
        first, last = (hop["gold_ids"][0] for hop in question["metadata"]["hops"])
        bridge, answer = (hop["answer"] for hop in question["metadata"]["hops"])
        here, nouns = question["metadata"]["entity"], question["metadata"]["relations"]
        turns = [
            (f"{here} {nouns[0]}", first, f"( {here} ) the {nouns[0]} of {here} is {bridge} ."),
            (f"{bridge} {nouns[1]}", last, f"( {bridge} ) the {nouns[1]} is {answer} ."),
            ("danka", "useless", "( oslo ) near danka ."),
        ][: 2 + n]
        right = attempt_of(lm, question, turns, answer)
        other = (here, "nothing", f"( {here} ) admires lodor .")
        wrong = attempt_of(lm, question, [other], lost=("", f"once {answer}")[n == 0])
        attempts += (right, wrong) if n == 0 else (wrong, right)
    return page.scored(lm, attempts, [q for q in questions for _ in range(2)], 2)


def hints_of(page, lm, step, kind="group", group=2, threshold=0.0, seed=0):
    return page.hints_of(lm, step, group, kind, threshold, np.random.default_rng(seed))


def prompts_of(page, lm, step, hints):
    return [page.hinted(lm, step, hint).segments[0].ids for hint in hints]


# -- what hindsight may see ------------------------------------------------------------------------

GROUP = [
    Attempt(("oslo mayor", "ann lee"), True),
    Attempt(("oslo",), False),
    Attempt((), False),
]
LINES = ("right : oslo mayor | ann lee", "wrong : oslo", "wrong :")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("group", [" ; ".join(LINES)] * 3),
        ("unlabelled", ["oslo mayor | ann lee ; oslo ; "] * 3),
        ("own", list(LINES)),
        ("others", [" ; ".join(LINES[n] for n in range(3) if n != row) for row in range(3)]),
    ],
)
def test_blocks_as_they_are_written(chapter, kind, expected):
    found = chapter.hindsight_blocks(GROUP, kind, np.random.default_rng(0))
    assert list(map(str, found)) == [f"<attempts> {text} </attempts>" for text in expected]


def test_shuffled_labels_are_as_many_and_the_queries_stay(chapter):
    random, holders = np.random.default_rng(0), set()
    for _ in range(60):
        found = chapter.hindsight_blocks(GROUP, "shuffled", random)
        assert len(found) == 3
        assert len(set(found)) == 1  # siblings read the same
        lines = [line.split(" :") for line in found[0].text.split(" ; ")]
        assert [queries.strip() for _, queries in lines] == ["oslo mayor | ann lee", "oslo", ""]
        labels = [label for label, _ in lines]
        assert sorted(labels) == ["right", "wrong", "wrong"]
        holders.add(labels.index("right"))
    assert holders == {0, 1, 2}
    assert [attempt.correct for attempt in GROUP] == [True, False, False]


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_hint_is_about_the_own_question_in_the_order_of_the_attempts(page, lm, step, kind):
    hints = hints_of(page, lm, step, kind)
    assert [hint.row for hint in hints] == [0, 1, 2, 3]
    assert {hint.search for hint in hints} == {-1}
    for hint in hints:
        group = range(hint.row // 2 * 2, hint.row // 2 * 2 + 2)
        shown = {"own": [hint.row], "others": [n for n in group if n != hint.row]}
        rows = shown.get(kind, list(group))
        lines = [line.split(" : ")[-1] for line in hint.block.text.split(" ; ")]
        assert lines == [" | ".join(step.attempts[n].queries) for n in rows]


def test_true_labels_are_those_of_the_answers(page, lm, step):
    labels = [
        [line.split(" ")[0] for line in hint.block.text.split(" ; ")]
        for hint in hints_of(page, lm, step)
    ]
    assert labels == [["right", "wrong"]] * 2 + [["wrong", "right"]] * 2


def test_every_group_is_shuffled_for_itself(page, lm, step):
    seen = set()
    for seed in range(20):
        hints = hints_of(page, lm, step, "shuffled", seed=seed)
        seen.add(tuple(hints[row].block.text.startswith("right") for row in (0, 2)))
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("answer", "threshold", "right"),
    [
        ("lodor", 0.0, False),
        ("", 0.0, False),
        ("the kamar of lodor", 0.0, True),  # one common word
        ("kamar lodor", 0.5, False),  # F1 is .5, and has to be above
        ("kamar lodor", 0.49, True),
        ("danka kamar", 0.99, True),
        ("danka kamar", 1.0, False),
    ],
)
def test_right_is_an_f1_strictly_above_the_threshold(page, lm, questions, answer, threshold, right):
    attempt = attempt_of(lm, questions[0], [("danka", "x", "near")], answer)
    question = questions[0] | {"golden_answers": ["danka kamar"]}
    assert page.seen(attempt, question, threshold) == Attempt(("danka",), right)


def changed(lm, attempt, what):
    """The same attempt with other thoughts, passages, answer (as wrong), lost search or text."""
    if what == "text":
        return replace(attempt, text="<search> solri </search> <answer> solri </answer>")
    ids = lm.encode(f"<{what}> found right : solri | solri ; </{what}>")
    segments = [
        replace(s, ids=ids, log_probs=s.log_probs and [-1.0] * len(ids)) if s.kind == what else s
        for s in attempt.segments
    ]
    assert segments != attempt.segments
    own = {"documents": {"retrieved": [["solri"]]}, "answer": {"answer": "solri"}}.get(what, {})
    return replace(attempt, segments=segments, **own)


@pytest.mark.parametrize("what", ["think", "documents", "answer", "invalid", "text"])
def test_nothing_but_queries_and_labels_reaches_a_block(page, lm, step, what):
    attempts = list(step.attempts)
    attempts[1] = changed(lm, attempts[1], what)
    other = replace(step, attempts=attempts)
    for kind in BLOCKS:
        before, after = (
            prompts_of(page, lm, s, hints_of(page, lm, s, kind)) for s in (step, other)
        )
        assert before == after


def test_queries_and_labels_do_reach_a_block(page, lm, step):
    asked, answered = list(step.attempts), list(step.attempts)
    asked[1] = replace(asked[1], queries=["solri"])
    answered[1] = replace(answered[1], answer=step.questions[1]["golden_answers"][0])
    before, query, label = (
        [hints_of(page, lm, replace(step, attempts=a), kind)[0].block for kind in BLOCKS]
        for a in (step.attempts, asked, answered)
    )
    assert [a != b for a, b in zip(before, query, strict=True)] == [True, True, True, False, True]
    assert [a != b for a, b in zip(before, label, strict=True)] == [True, True, False, False, True]


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_has_no_word_but_those_of_queries_that_were_carried_out(page, lm, step, kind):
    assert "once" in step.attempts[1].text.split()  # asked, and not carried out
    for hint in hints_of(page, lm, step, kind):
        group = step.attempts[hint.row // 2 * 2 :][:2]
        asked = {word for a in group for query in a.queries for word in query.split()}
        assert set(hint.block.text.split()) <= asked | {"right", "wrong", ":", "|", ";"}


def test_documents_are_those_that_the_query_is_going_to_bring(page, lm, step):
    hints = hints_of(page, lm, step, "documents")
    assert [(h.row, h.search) for h in hints] == [
        (0, 0), (0, 1), (1, 0), (2, 0), (3, 0), (3, 1), (3, 2),
    ]  # fmt: skip
    for hint in hints:
        own = [s for s in step.attempts[hint.row].segments if s.kind == "documents"]
        assert str(hint.block) == lm.decode(own[hint.search].ids)
    assert str(hints[-1].block) == "<information> ( <unk> ) near danka . </information>"


@pytest.mark.parametrize(
    ("answers", "shown"),
    [("gold unknown", 0), ("unknown gold", 1), ("gold gold", 0), ("unknown unknown", 0)],
)
def test_whole_is_the_first_right_attempt_or_the_first(page, lm, step, answers, shown):
    gold = step.questions[0]["golden_answers"][0]
    attempts = [
        replace(a, answer=given.replace("gold", gold), text=f"{a.text} <end>\n<answer> {n} <end>")
        for n, (a, given) in enumerate(zip(step.attempts[:2], answers.split(), strict=True))
    ]
    one = replace(step, attempts=attempts, questions=step.questions[:2])
    hints = hints_of(page, lm, one, "whole")
    text = f"{step.attempts[shown].text} <answer> {shown}"
    assert [(h.row, h.search) for h in hints] == [(0, -1), (1, -1)]
    assert [str(h.block) for h in hints] == [f"<reference> {text} </reference>"] * 2


# -- one network, two prompts ----------------------------------------------------------------------


@torch.no_grad()
def alone(lm, attempt, prompt, kinds=("query",)):
    """Logits before each token of each segment of these kinds, from a pass over this row alone."""
    ids = lm.encode(prompt)
    place, found = len(ids), []
    logits = lm.model(torch.tensor([[*ids, *attempt.ids[attempt.prompt_length :]]])).logits[0]
    for segment in attempt.segments[1:]:
        if segment.kind in kinds:
            found.append(logits[place - 1 : place - 1 + len(segment.ids)])
        place += len(segment.ids)
    return found


def both_alone(lm, step, hints):
    """Logits of student and teacher at query tokens, row by row through the plain model."""
    student, teacher = [], []
    for hint in hints:
        attempt, asked = step.attempts[hint.row], step.questions[hint.row]["question"]
        own = slice(None) if hint.search < 0 else slice(hint.search, hint.search + 1)
        student += alone(lm, attempt, f"<user> {asked} <assistant>")[own]
        teacher += alone(lm, attempt, f"<user> {asked} {hint.block} <assistant>")[own]
    return torch.cat(student), torch.cat(teacher)


def part_of(lm, step, rows, of=None):
    """A pass over these rows, a part of the minibatch `of`; no gradient goes beyond its logits."""
    chosen = torch.tensor(rows)
    batch = step.batch.select(chosen)
    mask = step.mask[chosen, : batch.ids.shape[1]]
    with torch.no_grad():
        logits = logits_before(lm.model, batch.ids, mask)
    logits.requires_grad_()
    weights = torch.full((len(logits),), 1 / int(step.mask[of or rows].sum()))
    return Part(chosen, mask, logits, log_prob_of(logits, batch.ids[mask]), weights)


@torch.no_grad()
@pytest.mark.parametrize("everywhere", [False, True])
def test_without_a_block_the_teacher_is_the_student_bit_for_bit(page, lm, step, everywhere):
    same = [page.Hint(row, "") for row in range(4)]
    where = step.batch.policy if everywhere else step.batch.search >= 0
    student = logits_before(lm.model, step.batch.ids, where)
    teacher = page.teacher_logits(lm, step, same, everywhere)
    assert len(set(step.batch.real.sum(1).tolist())) == 4  # rows of four lengths
    assert torch.equal(student, teacher)


@pytest.mark.parametrize("rows", [[3, 1, 0, 2], [2, 0], [1]])
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_part_in_another_order_has_its_teacher_in_that_order(page, lm, step, rows, everywhere):
    part, hints = part_of(lm, step, rows), [page.Hint(row, "") for row in rows]
    where = page.positions(step, [page.Hint(row, "") for row in range(4)], everywhere)
    student = part.logits[part.of(where)]
    teacher = page.teacher_logits(lm, step, hints, everywhere)
    assert student.shape == teacher.shape
    assert torch.allclose(student, teacher, atol=1e-4)


@pytest.mark.parametrize("kind", ["group", "whole", "documents"])
def test_teacher_logits_are_those_of_single_rows_through_the_plain_model(page, lm, step, kind):
    hints = hints_of(page, lm, step, kind)
    student, expected = both_alone(lm, step, hints)
    found = page.teacher_logits(lm, step, hints)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-3)
    for other in (student, expected.roll(1, 0), expected.roll(-1, 0)):  # what a slip would give
        assert (found - other).abs().amax(1).median() > 0.5


def test_a_hint_for_one_search_is_for_its_query_alone(page, lm, step):
    block = Piece("information", "danka kamar")
    for search in range(3):
        hint = page.Hint(3, block, search)
        found = page.positions(step, [hint])
        assert torch.equal(found[3], step.batch.search[3] == search)
        assert not found[:3].any()
        _, expected = both_alone(lm, step, [hint])
        logits = page.teacher_logits(lm, step, [hint])
        assert logits.shape == expected.shape
        assert torch.allclose(logits, expected, atol=1e-3)


@pytest.mark.parametrize("everywhere", [False, True])
def test_positions_are_those_of_queries_or_of_all_that_was_written(page, lm, step, everywhere):
    hints = hints_of(page, lm, step)
    found = page.positions(step, [hints[0], hints[3]], everywhere)
    for row, attempt in enumerate(step.attempts):
        kinds = [s.kind for s in attempt.segments for _ in s.ids]
        wanted = [
            row in (0, 3) and (k == "query" or (everywhere and k not in ("prompt", "documents")))
            for k in kinds
        ]
        assert found[row, : len(kinds)].tolist() == wanted
        assert not found[row, len(kinds) :].any()
    assert not page.positions(step, [], everywhere).any()


def test_a_hinted_attempt_has_another_prompt_and_the_same_response(page, lm, step):
    for hint in hints_of(page, lm, step):
        attempt, found = step.attempts[hint.row], page.hinted(lm, step, hint)
        asked = step.questions[hint.row]["question"]
        assert lm.decode(found.segments[0].ids) == f"<user> {asked} {hint.block} <assistant>"
        assert found.segments[1:] == attempt.segments[1:]


def test_without_hints_there_are_no_logits(page, lm, step):
    assert page.teacher_logits(lm, step, []).shape == (0, lm.model.config.vocab_size)


def test_the_teacher_has_no_gradient(page, lm, step):
    assert next(lm.model.parameters()).requires_grad
    logits = page.teacher_logits(lm, step, hints_of(page, lm, step))
    assert not logits.requires_grad


# -- how far apart ---------------------------------------------------------------------------------


def logits_of(*probabilities):
    return torch.tensor([probabilities], dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("jsd", 0.101749), ("forward", 0.510826), ("reverse", 0.368064), ("mse", 0.32)],
)
def test_divergences_by_hand(chapter, kind, expected):
    found = chapter.divergence(logits_of(0.9, 0.1), logits_of(0.5, 0.5), kind)
    assert found.tolist() == pytest.approx([expected], abs=1e-5)


@pytest.mark.parametrize(("kind", "expected"), [("jsd", math.log(2) / 2), ("mse", 0.5)])
def test_half_of_each_has_a_token_that_the_other_rules_out(chapter, kind, expected):
    teacher, student = logits_of(0.5, 0.5, 1e-12), logits_of(1e-12, 0.5, 0.5)
    assert chapter.divergence(student, teacher, kind).tolist() == pytest.approx([expected])


def test_forward_weighs_by_the_teacher_and_reverse_by_the_student(chapter):
    student, teacher = logits_of(0.25, 0.5, 0.25), logits_of(0.5, 0.25, 0.25)
    lopsided = logits_of(0.8, 0.1, 0.1)
    half = math.log(2) / 4  # of .5 ln 2 + .25 ln .5
    for kind in ("forward", "reverse"):
        assert chapter.divergence(student, teacher, kind).item() == pytest.approx(half)
    forward = 0.8 * math.log(3.2) + 0.1 * math.log(0.2) + 0.1 * math.log(0.4)
    reverse = 0.25 * math.log(1 / 3.2) + 0.5 * math.log(5) + 0.25 * math.log(2.5)
    assert chapter.divergence(student, lopsided, "forward").item() == pytest.approx(forward)
    assert chapter.divergence(student, lopsided, "reverse").item() == pytest.approx(reverse)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_what_is_equal_is_not_apart_and_what_is_not_is(chapter, kind):
    logits = torch.randn(5, 60, generator=torch.Generator().manual_seed(0))
    assert chapter.divergence(logits, logits + 3.0, kind).tolist() == pytest.approx(
        [0.0] * 5, abs=1e-6
    )
    assert (chapter.divergence(logits, logits.roll(1, 0), kind) > 1e-3).all()


@given(
    seed=st.integers(0, 10**6), size=st.integers(2, 40), top=st.integers(1, 60),
    scale=st.sampled_from([0.0, 1.0, 10.0, 1e3]),
)  # fmt: skip
@examples(max_examples=60, deadline=None)
def test_the_jsd_is_at_most_ln_2(chapter, seed, size, top, scale):
    source = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(3, size, generator=source) for _ in range(2))
    found = chapter.divergence(student.requires_grad_(), teacher, top=top)
    assert (found <= math.log(2) + 1e-6).all()
    assert (found >= -1e-6).all()
    found.sum().backward()
    assert student.grad.isfinite().all()


def test_with_nothing_in_common_the_jsd_is_ln_2_and_the_others_have_no_such_bound(chapter):
    student, teacher = torch.tensor([[40.0, 0.0]]), torch.tensor([[0.0, 40.0]])
    assert chapter.divergence(student, teacher).item() == pytest.approx(math.log(2))
    for kind in ("forward", "reverse"):
        assert chapter.divergence(student, teacher, kind).item() == pytest.approx(40, rel=1e-3)


def test_over_all_tokens_roles_may_be_changed(chapter):
    a, b = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(1))
    for kind, other in zip(DIVERGENCES, ("jsd", "reverse", "forward", "mse"), strict=True):
        assert torch.allclose(
            chapter.divergence(a, b, kind, 9), chapter.divergence(b, a, other, 9), atol=1e-6
        )


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_only_the_teachers_likeliest_tokens_count_and_are_made_to_sum_to_one(chapter, kind):
    teacher = logits_of(0.04, 0.48, 0.0001, 0.48)
    student = logits_of(0.5, 0.09, 0.4, 0.01)  # its own two likeliest are the others
    inside = chapter.divergence(logits_of(0.9, 0.1), logits_of(0.5, 0.5), kind)
    assert torch.allclose(chapter.divergence(student, teacher, kind, top=2), inside)
    assert not torch.allclose(chapter.divergence(student, teacher, kind, top=3), inside)
    moved = student + torch.tensor([[5.0, 0.0, -7.0, 0.0]])
    assert torch.allclose(chapter.divergence(moved, teacher, kind, top=2), inside)


def test_the_students_gradient_of_the_forward_divergence_is_the_difference(chapter):
    student, teacher = logits_of(0.7, 0.2, 0.1).requires_grad_(), logits_of(0.1, 0.4, 0.5)
    chapter.divergence(student, teacher, "forward").sum().backward()
    assert student.grad[0].tolist() == pytest.approx([0.6, -0.2, -0.4])


# -- a loss beside GRPO's --------------------------------------------------------------------------


def hindsight(page, lm, how=None, seed=0, **changes):
    own = replace(page.settings, **{"waits": 0, "alpha": 0.3, **changes})
    return page.Hindsight(lm, own, how or page.Distillation(), seed)


def js(student, teacher, top=50):
    """The divergence as the formula says, of probabilities in double precision."""
    best = teacher.topk(top).indices
    p, q = (x.double().gather(1, best).softmax(1) for x in (student, teacher))
    m = (p + q) / 2
    return ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)) / 2


def evened(page, lm, step):
    """The same with as many written tokens in rows 0 and 2 as in rows 1 and 3."""
    counts = step.mask.sum(1).tolist()
    more = counts[1] + counts[3] - counts[0] - counts[2]
    attempts = list(step.attempts)
    row = 0 if more > 0 else 3
    ids = lm.encode("need " * abs(more))
    segments = [*attempts[row].segments, Segment("invalid", ids, [-1.0] * abs(more))]
    attempts[row] = replace(attempts[row], segments=segments)
    return page.scored(lm, attempts, step.questions, 2)


@pytest.mark.parametrize("block", ["group", "own", "documents"])
def test_the_loss_is_alpha_times_the_mean_over_all_query_tokens(page, lm, step, block):
    loss = hindsight(page, lm, page.Distillation(block))
    found = loss(step, part_of(lm, step, [2, 0, 3, 1]))
    expected = js(*both_alone(lm, step, hints_of(page, lm, step, block))).mean().item()
    assert expected > 0.01
    assert found.item() == pytest.approx(0.3 * expected, rel=1e-3)


def test_two_minibatches_of_several_parts_average_to_that_mean(page, lm, step):
    step = evened(page, lm, step)
    loss, half = hindsight(page, lm), ([0, 2], [1, 3])
    assert step.mask[half[0]].sum() == step.mask[half[1]].sum()
    assert (step.batch.search[half[0]] >= 0).sum() != (step.batch.search[half[1]] >= 0).sum()
    parts = [part_of(lm, step, rows, of) for of in half for rows in ([of[1]], [of[0]])]
    found = sum(loss(step, part).item() for part in parts) / 2
    values = js(*both_alone(lm, step, hints_of(page, lm, step)))
    assert found == pytest.approx(0.3 * values.mean().item(), rel=1e-3)
    assert len(loss.log) == 1  # a row a step, and not a part
    assert loss.log[0] == {
        "divergence": pytest.approx(values.mean().item(), rel=1e-3),
        "tokens": len(values),
        "too long": 0,
    }


def test_what_else_the_average_is_taken_over_does_not_matter(page, lm, step):
    one = hindsight(page, lm)(step, part_of(lm, step, [0, 1, 2, 3]))
    wide = replace(step, mask=step.batch.policy | step.batch.observation)
    other = hindsight(page, lm)(wide, part_of(lm, wide, [0, 1, 2, 3]))
    assert other.item() == pytest.approx(one.item(), rel=1e-4)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 1], [2]])
def test_a_block_without_text_costs_nothing(page, lm, step, monkeypatch, rows):
    part = part_of(lm, step, rows)
    assert hindsight(page, lm)(step, part) > 1e-3
    monkeypatch.setattr(page, "hints_of", lambda *_: [page.Hint(row, "") for row in range(4)])
    assert abs(hindsight(page, lm)(step, part).item()) < 1e-7


def test_nothing_is_taught_before_the_waiting_is_over(page, lm, step):
    loss, found = hindsight(page, lm, waits=2), []
    for _ in range(4):
        one = replace(step)
        found.append([loss(one, part_of(lm, one, rows)).item() for rows in ([0, 1], [2, 3])])
    assert found[:2] == [[0.0, 0.0]] * 2
    assert all(value > 0 for values in found[2:] for value in values)
    assert [row["divergence"] > 0 for row in loss.log] == [False, False, True, True]


@pytest.mark.parametrize("name", ["sd", "labels_none", "unmasked", "documents", "surer"])
def test_attempts_that_never_searched_teach_nothing(page, lm, questions, name):
    asked = [q for q in questions for _ in range(2)]
    quiet = page.scored(lm, [attempt_of(lm, q, [], lost="danka") for q in asked], asked, 2)
    loss, part = hindsight(page, lm, page.TEACHERS[name]), part_of(lm, quiet, [0, 1, 2, 3])
    found = loss(quiet, part)
    assert found.item() == 0
    found.backward()
    assert torch.equal(part.logits.grad, torch.zeros_like(part.logits))
    assert loss.log == [{"divergence": 0, "tokens": 0, "too long": 0}]


def test_an_attempt_without_a_search_leaves_the_others_their_teacher(page, lm, step):
    attempts = [attempt_of(lm, step.questions[0], []), *step.attempts[1:]]
    some = page.scored(lm, attempts, step.questions, 2)
    part = part_of(lm, some, [0, 1, 2, 3])
    values = js(*both_alone(lm, some, hints_of(page, lm, some)[1:]))
    found = hindsight(page, lm)(some, part).item()
    assert found == pytest.approx(0.3 * values.mean().item(), rel=1e-3)
    assert hints_of(page, lm, some)[1].block.text == f"wrong : ; wrong : {attempts[1].queries[0]}"


def test_hints_that_are_too_long_are_left_out_and_counted(page, lm, step, monkeypatch):
    hints = hints_of(page, lm, step)
    lengths = [len(page.hinted(lm, step, hint).ids) for hint in hints]
    longest = max(lengths)
    assert lengths[3] == longest > sorted(lengths)[-2]
    monkeypatch.setattr(lm.model.config, "max_position_embeddings", longest)
    assert page.readable(lm, step, hints) == hints
    monkeypatch.setattr(lm.model.config, "max_position_embeddings", longest - 1)
    assert page.readable(lm, step, hints) == hints[:3]
    loss, part = hindsight(page, lm), part_of(lm, step, [0, 1, 2, 3])
    values = js(*both_alone(lm, step, hints[:3]))
    found = loss(step, part)
    assert found.item() == pytest.approx(0.3 * values.mean().item(), rel=1e-3)
    assert (loss.log[0]["tokens"], loss.log[0]["too long"]) == (len(values), 1)
    found.backward()
    taught = part.logits.grad.abs().sum(1) > 0
    row = torch.arange(4)[:, None].expand(step.mask.shape)[step.mask]
    assert set(row[taught].tolist()) == {0, 1, 2}


def test_where_no_hint_fits_nothing_is_taught(page, lm, step, monkeypatch):
    monkeypatch.setattr(lm.model.config, "max_position_embeddings", 5)
    loss, part = hindsight(page, lm), part_of(lm, step, [0, 1, 2, 3])
    assert loss(step, part).item() == 0
    assert loss.log == [{"divergence": 0, "tokens": 0, "too long": 4}]
    own = hindsight(page, lm, page.TEACHERS["surer"])  # reads no hint, so that all of them fit
    assert own(step, part).item() > 0
    assert own.log[0]["too long"] == 0


@pytest.mark.parametrize("name", ["sd", "surer", "mse", "all_positions"])
def test_the_gradient_is_at_queries_or_at_all_that_was_written_and_nowhere_else(
    page, lm, step, name
):
    step.mask = step.batch.policy | step.batch.observation  # to see that passages get none
    part = part_of(lm, step, [3, 0, 1, 2])
    hindsight(page, lm, page.TEACHERS[name])(step, part).backward()
    moved = part.logits.grad.abs().sum(1) > 0
    own = step.batch.policy if name == "all_positions" else step.batch.search >= 0
    assert not moved[~part.of(own)].any()
    assert moved[part.of(own)].float().mean() > 0.95


def test_the_gradient_reaches_the_weights(page, lm, step):
    own = replace(lm, model=deepcopy(lm.model).train())
    logits = logits_before(own.model, step.batch.ids, step.mask)
    part = part_of(lm, step, [0, 1, 2, 3])
    part.logits = logits
    hindsight(page, own)(step, part).backward()
    grads = {name: p.grad for name, p in own.model.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
    assert all(grads[n].abs().max() > 0 for n in grads if "q_proj.weight" in n)


def test_the_divergence_its_tokens_the_weight_and_the_threshold_are_those_of_the_arm(
    page, lm, step
):
    part = part_of(lm, step, [0, 1, 2, 3])
    both = both_alone(lm, step, hints_of(page, lm, step))
    for kind in DIVERGENCES:
        found = hindsight(page, lm, page.Distillation(kind=kind))(step, part).item()
        expected = 0.3 * page.divergence(*both, kind).mean().item()
        assert found == pytest.approx(expected, rel=1e-3)
    five = hindsight(page, lm, top=5)(step, part).item()
    assert five == pytest.approx(0.3 * js(*both, top=5).mean().item(), rel=1e-3)
    assert hindsight(page, lm, top=1)(step, part).item() == pytest.approx(0, abs=1e-7)
    three = hindsight(page, lm, alpha=0.9)(step, part).item()
    assert three == pytest.approx(3 * hindsight(page, lm)(step, part).item())
    strict = hindsight(page, lm, threshold=1.0)
    strict(step, part)
    blocks = [h.block.text for own in strict.lesson.hints.values() for h in own]
    assert [text.count("wrong") for text in blocks] == [2] * 4


def test_the_same_seed_shuffles_alike_and_every_step_anew(page, lm, step):
    parts = [part_of(lm, step, [1]), part_of(lm, step, [2])]

    def drawn(seed):
        loss, found = hindsight(page, lm, page.Distillation("shuffled"), seed, waits=9), []
        for _ in range(6):
            one, kept = replace(step), []
            for part in parts:  # of one step, with the same blocks
                loss(one, part)
                kept.append(tuple(own[0].block for own in loss.lesson.hints.values()))
            assert kept[0] == kept[1]
            found.append(kept[0])
        return found

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert len(set(drawn(0))) > 1


def test_a_surer_self_needs_no_hint(page, lm, step, monkeypatch):
    monkeypatch.setattr(page, "teacher_logits", None)
    part = part_of(lm, step, [1, 3, 0, 2])
    student, _ = both_alone(lm, step, hints_of(page, lm, step))
    found = hindsight(page, lm, page.TEACHERS["surer"])(step, part)
    assert found.item() == pytest.approx(0.3 * js(student, student / 0.4).mean().item(), rel=1e-3)
    assert found.item() > 1e-3
    plain = hindsight(page, lm, page.Distillation("", temperature=1.0))(step, part)
    assert plain.item() == pytest.approx(0, abs=1e-7)


def test_a_surer_self_has_no_gradient_as_a_teacher(page, lm, step):
    part = part_of(lm, step, [0, 1, 2, 3])
    hindsight(page, lm, page.TEACHERS["surer"])(step, part).backward()
    where = part.of(step.batch.search >= 0)
    student = part.logits.detach()[where].requires_grad_()
    (0.3 * page.divergence(student, student.detach() / 0.4).mean()).backward()
    assert torch.allclose(part.logits.grad[where], student.grad, atol=1e-7)


def test_a_policy_that_is_taught_comes_closer_to_the_teacher_it_had(page, lm, step):
    own = replace(lm, model=deepcopy(lm.model))
    hints = hints_of(page, lm, step)
    student, teacher = both_alone(lm, step, hints)
    before = js(student, teacher).mean().item()
    optimiser = torch.optim.AdamW(own.model.parameters(), lr=1e-4)
    loss = hindsight(page, own, alpha=1.0)
    part = part_of(own, step, [0, 1, 2, 3])
    for _ in range(8):
        part.logits = logits_before(own.model, step.batch.ids, step.mask)
        optimiser.zero_grad()
        loss(step, part).backward()
        optimiser.step()
    student, _ = both_alone(own, step, hints)
    assert js(student, teacher).mean().item() < 0.8 * before


# -- rivals ----------------------------------------------------------------------------------------


def test_sft_is_the_mean_surprise_at_the_queries_of_right_attempts(page, lm, step):
    step = evened(page, lm, step)
    values = []
    for row in (0, 3):
        attempt, asked = step.attempts[row], step.questions[row]["question"]
        logits = torch.cat(alone(lm, attempt, f"<user> {asked} <assistant>"))
        tokens = torch.tensor([t for s in attempt.segments if s.kind == "query" for t in s.ids])
        values += (-logits.log_softmax(1)[range(len(tokens)), tokens]).tolist()
    loss, half = page.query_sft(0.7), ([0, 2], [1, 3])
    parts = [part_of(lm, step, rows, of) for of in half for rows in ([of[1]], [of[0]])]
    found = [loss(step, part) for part in parts]
    assert sum(found).item() / 2 == pytest.approx(0.7 * np.mean(values), rel=1e-3)
    sum(found).backward()
    for part, (row,) in zip(parts, ([2], [0], [3], [1]), strict=True):
        right = step.rewards[row] > 0
        own = part.of(step.batch.search >= 0) & right
        assert torch.equal(part.logits.grad.abs().sum(1) > 0, own)


def test_sft_has_nothing_to_say_where_nothing_was_right(page, lm, step):
    step.rewards[:] = 0
    part = part_of(lm, step, [0, 1, 2, 3])
    found = page.query_sft(0.7)(step, part)
    found.backward()
    assert found.item() == 0
    assert not part.logits.grad.any()


def test_heavier_queries_have_their_advantage_once_more(page, step):
    extra = page.heavier_queries(1.5)(step)
    asking = step.batch.search >= 0
    assert (extra[~asking] == 0).all()
    for row, sign in enumerate((1, -1, -1, 1)):  # two rewards, 1 and 0, standardised
        own = extra[row][asking[row]]
        assert own.tolist() == pytest.approx([sign * 1.5 / 2**0.5] * len(own), abs=1e-4)


# -- arms and their settings -----------------------------------------------------------------------


def test_what_an_arm_changes_in_the_teacher_of_the_paper(page):
    plain = vars(page.Distillation())
    assert plain == {"block": "group", "kind": "jsd", "everywhere": False, "temperature": 1.0}
    changes = {
        name: {k: v for k, v in vars(how).items() if v != plain[k]}
        for name, how in page.TEACHERS.items()
    }
    assert changes == {
        "sd": {}, "sd_10x": {}, "sd_now": {},
        "labels_shuffled": {"block": "shuffled"}, "labels_none": {"block": "unlabelled"},
        "own_only": {"block": "own"}, "leave_one_out": {"block": "others"},
        "unmasked": {"block": "whole"}, "documents": {"block": "documents"},
        "forward_kl": {"kind": "forward"}, "reverse_kl": {"kind": "reverse"},
        "mse": {"kind": "mse"}, "all_positions": {"everywhere": True},
        "surer": {"block": "", "temperature": 0.4},
    }  # fmt: skip


def test_what_an_arm_adds_to_grpo(page, lm, step):
    assert page.added("grpo", lm, page.settings) == {}
    for name, how in page.TEACHERS.items():
        own = replace(page.settings, alpha=0.11)
        (found,) = page.added(name, lm, own).values()
        assert set(page.added(name, lm, own)) == {"extra_loss"}
        assert (found.how, found.settings, found.lm) == (how, own, lm)
    part = part_of(lm, step, [0, 1, 2, 3])
    one, two = (
        page.added("sft", lm, replace(page.settings, alpha=a))["extra_loss"](step, part).item()
        for a in (0.1, 0.2)
    )
    assert two == pytest.approx(2 * one)
    assert one > 0
    more = page.added("heavier", lm, replace(page.settings, alpha=0.2))
    assert set(more) == {"extra_advantage"}
    assert torch.equal(more["extra_advantage"](step), page.heavier_queries(0.2)(step))


def test_arms_shuffle_by_the_seed_of_the_run(page, lm, monkeypatch):
    first = page.added("labels_shuffled", lm, page.settings)["extra_loss"].random.random(3)
    again = page.added("labels_shuffled", lm, page.settings)["extra_loss"].random.random(3)
    monkeypatch.setattr(page, "seed", 8)
    other = page.added("labels_shuffled", lm, page.settings)["extra_loss"].random.random(3)
    assert first.tolist() == again.tolist() != other.tolist()


@pytest.mark.parametrize("profile", ["smoke", "toy", "small", "full"])
def test_the_weights_of_the_sweep_are_those_of_the_toy(page, monkeypatch, profile):
    plain = page.HindsightSettings.of(profile)
    monkeypatch.setattr(page, "profile", profile)
    monkeypatch.setattr(page, "settings", plain)
    swept = profile in ("smoke", "toy")
    for method in page.SWEPT:
        expected = page.SWEPT[method]["alpha"] if swept else plain.alpha
        assert page.settings_of(method) == replace(plain, alpha=expected)
    for method in ("grpo", "sd", "mse", "labels_shuffled"):
        assert page.settings_of(method) == plain
    assert plain.alpha == (0.3 if swept else 1e-3)
    assert page.settings_of("sd_10x") == replace(plain, alpha=10 * plain.alpha)
    assert page.settings_of("sd_now") == replace(plain, waits=0)


@pytest.mark.parametrize("where", ["data", "model"])
def test_real_questions_have_no_kind(page, lm, monkeypatch, where):
    if where == "data":
        monkeypatch.setattr(page, "data", "somewhere")
    else:
        monkeypatch.setattr(page, "settings", replace(page.settings, model="smollm2"))
    monkeypatch.setattr(page, "real_task", lambda *given: given)
    assert page.open_task("", lm) == (page.settings, page.data, "", 7)
    with pytest.raises(InputError, match="leave out what follows"):
        page.open_task("hard95", lm)


def test_tasks_of_the_toy_are_invented_or_screened(page, lm, monkeypatch):
    monkeypatch.setattr(page, "invented_task", lambda *given: ("invented", *given))
    monkeypatch.setattr(page, "screened", lambda *given: given)
    monkeypatch.setattr(page, "hard_task", lambda *given: ("hard", *given))
    own = page.settings
    assert page.open_task("", lm) == ("invented", own, "blank", 0, 7)
    found = (lm, "toy-0", own, 0, own.candidates)
    assert page.open_task("hard95", lm) == ("hard", found, own, 0, 7, 0.95)


def test_a_group_of_one_has_nobody_to_learn_from(page, lm):
    with pytest.raises(InputError, match="parameter group"):
        page.train(lm, None, replace(page.settings, group=1), 0)


# -- is the teacher better -------------------------------------------------------------------------


def test_types_of_groups(page, step):
    step.rewards = torch.tensor([0.0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 1, 1])
    assert page.types_of(step, 3).tolist() == [0] * 3 + [1] * 6 + [2] * 3
    assert page.TYPES == ("all wrong", "mixed", "all right")


SEARCHES = [(0, 0), (0, 1), (1, 0), (2, 0), (3, 0), (3, 1), (3, 2)]


def test_means_over_the_tokens_of_a_query(page, step):
    tokens = [(3, 2), (0, 1), (1, 0), (0, 1), (0, 0), (0, 1)]
    found = page.by_query(step, tokens, np.array([6.0, 1, 5, 2, 4, 6]), np.arange(6.0))
    assert found.row.tolist() == [0, 0, 1, 3]
    assert found.good.tolist() == [True, True, False, False]
    assert found.due.tolist() == [True, True, True, False]  # all was found before the last
    assert found.ratio.tolist() == [4, 3, 5, 6]
    assert found.apart.tolist() == pytest.approx([4, 3, 2, 0])


@pytest.mark.parametrize("kind", ["group", "others"])
def test_an_opinion_by_single_rows(page, lm, step, kind):
    found = page.opinion(lm, step, kind, 2)
    hints = hints_of(page, lm, step, kind)
    assert found.row.tolist() == [row for row, _ in SEARCHES]
    assert found.good.tolist() == [True, True, False, False, True, True, False]
    assert found.due.tolist() == [True] * 6 + [False]
    for n, (row, search) in enumerate(SEARCHES):
        student, teacher = both_alone(lm, step, [replace(hints[row], search=search)])
        tokens = step.batch.ids[row][step.batch.search[row] == search]
        gap = log_prob_of(teacher, tokens) - log_prob_of(student, tokens)
        assert found.ratio[n] == pytest.approx(gap.mean().item(), abs=1e-3)
        assert found.apart[n] == pytest.approx(js(student, teacher).mean().item(), abs=1e-4)


def test_an_opinion_of_many_attempts_is_that_of_each(page, lm, step):
    many = page.scored(lm, step.attempts * 5, step.questions * 5, 2)  # more than a pass
    one, found = page.opinion(lm, step, "group", 2), page.opinion(lm, many, "group", 2)
    assert found.row.tolist() == [4 * n + row for n in range(5) for row, _ in SEARCHES]
    assert found.ratio == pytest.approx(np.tile(one.ratio, 5), abs=1e-3)
    assert found.apart == pytest.approx(np.tile(one.apart, 5), abs=1e-4)


def test_nobody_has_an_opinion_where_nobody_searched(page, lm, questions):
    asked = [q for q in questions for _ in range(2)]
    quiet = page.scored(lm, [attempt_of(lm, q, []) for q in asked], asked, 2)
    found = page.opinion(lm, quiet, "group", 2)
    assert all(len(values) == 0 for values in vars(found).values())


def test_first_attempts_are_side_by_side_and_from_plain_prompts(page, lm, questions, monkeypatch):
    asked = []
    world = Wiki(WikiConfig(kind="blank"), 205)

    def opened(*which):
        asked.append(which)
        return world, None

    def silent(lm, library, protocol, prompts, *_):
        asked.append(prompts)
        return [attempt_of(lm, questions[0], []) for _ in prompts]

    monkeypatch.setattr(page, "world_seed", 5)
    monkeypatch.setattr(page, "open_world", opened)
    monkeypatch.setattr(page, "rollout", silent)
    found = page.first_attempts(lm)
    assert asked[0] == ("blank", 205)
    texts = [q["question"] for q in found.questions]
    assert asked[1] == [f"<user> {text} <assistant>" for text in texts]
    assert len(texts) == 2 * page.settings.looked_at == 8
    assert texts[::2] == texts[1::2]
    assert len(set(texts)) == 4


@pytest.mark.parametrize("kind", ["", "group", "own"])
def test_new_attempts_have_the_block_of_their_question(page, lm, step, monkeypatch, kind):
    asked = []

    def answered(lm, library, protocol, prompts, *_):
        asked.extend(prompts)
        golds = [q["golden_answers"][0] for q in step.questions[::2] for _ in range(3)]
        right = (1, 0, 0, 1, 1, 0)
        return [
            replace(step.attempts[0], answer=gold if ok else "unknown")
            for gold, ok in zip(golds, right, strict=True)
        ]

    monkeypatch.setattr(page, "settings", replace(page.settings, tries=3))
    monkeypatch.setattr(page, "open_world", lambda *_: (None, None))
    monkeypatch.setattr(page, "rollout", answered)
    assert page.helped(lm, step, kind) == pytest.approx([1 / 3, 2 / 3])
    blocks = [f" {h.block}" for h in hints_of(page, lm, step, kind)] if kind else [""] * 4
    assert asked == [
        f"<user> {step.questions[row]['question']}{blocks[row]} <assistant>"
        for row in (0, 0, 0, 2, 2, 2)
    ]


def test_what_is_recorded_of_the_teacher(page, lm, step, monkeypatch):
    rates = {"": [0.25, 0.5], "group": [1.0, 0.5], "shuffled": [0.0, 0.25], "unlabelled": [1, 1]}
    opinion, told = page.opinion, {}
    monkeypatch.setattr(page, "starting_model", lambda: lm)
    monkeypatch.setattr(page, "first_attempts", lambda _: step)
    monkeypatch.setattr(
        page, "opinion", lambda lm, step, kind, n: told.setdefault(kind, opinion(lm, step, kind, n))
    )
    monkeypatch.setattr(page, "helped", lambda lm, step, kind: np.array(rates[kind]))
    page.run_arm("look")
    found = page.record.metrics
    assert found["look/em gain group/mixed"] == pytest.approx(0.375)
    assert found["look/em gain shuffled/mixed"] == pytest.approx(-0.25)
    assert not any("all wrong" in name or "all right" in name for name in found)
    assert tuple(told) == BLOCKS
    for kind, own in told.items():
        good, bad = own.ratio[[0, 1, 4, 5]].mean(), own.ratio[[2, 3]].mean()
        assert found[f"look/jsd {kind}/mixed"] == pytest.approx(own.apart.mean())
        assert found[f"look/ratio good {kind}/mixed"] == pytest.approx(good)
        assert found[f"look/ratio bad {kind}/mixed"] == pytest.approx(bad)
        assert found[f"look/prefers {kind}/mixed"] == pytest.approx(good - bad)


# -- training --------------------------------------------------------------------------------------


def test_what_is_recorded_of_the_loss(page):
    columns = {"dead groups": [0.0, 0.5, 1.0, 0.5], "entropy": [1.0, 2.0, 3.0, 4.0]}
    log = [{"divergence": v, "too long": n} for n, v in enumerate((0.1, 0.2, 0.3, 0.4))]
    module = SimpleNamespace(
        history=SimpleNamespace(column=lambda name: (None, np.array(columns[name]))),
        extra_loss=SimpleNamespace(log=log),
    )
    page.record_hindsight("sd", module, parts=2)
    module.extra_loss = None
    page.record_hindsight("grpo", module, parts=2)
    shared = {"mixed_groups": 0.5, "entropy/quarter 1": 1.5, "entropy/quarter 2": 3.5}
    own = {"too_long": 6, "divergence/quarter 1": 0.15, "divergence/quarter 2": 0.35}
    expected = {f"sd/{k}": v for k, v in (shared | own).items()}
    expected |= {f"grpo/{k}": v for k, v in shared.items()}
    assert page.record.metrics == pytest.approx(expected)


@pytest.mark.parametrize("name", ["cold", "grpo", "sd_10x", "heavier@hard50"])
def test_an_arm_opens_its_task_and_trains_with_its_own_settings(page, lm, monkeypatch, name):
    method, _, kind = name.partition("@")
    calls = []

    def note(what):
        return lambda *given, **more: calls.append((what, given, more)) or what

    monkeypatch.setattr(page, "starting_model", lambda: lm)
    for what in ("open_task", "train", "record_training", "record_hindsight", "record_test"):
        monkeypatch.setattr(page, what, note(what))
    page.run_arm(name)
    called = {what: (given, more) for what, given, more in calls}
    assert called["open_task"][0] == (kind, lm)
    assert called["record_test"][0][1:] == (name, lm, "open_task", page.settings)
    assert ("train" in called) == (method != "cold")
    if method != "cold":
        given, more = called["train"]
        assert given == (lm, "open_task", page.settings_of(method), 7)
        assert set(more) == set(page.added(method, lm, page.settings))
        assert list(page.MODULES.items()) == [(name, "train")]


def test_a_trained_arm_answers_from_the_plain_prompt(page, monkeypatch):
    small = {"steps": 2, "questions_a_step": 1, "waits": 1, "one_hop": 1, "multi_hop": 2}
    monkeypatch.setattr(page, "settings", replace(page.settings, **small))
    read, asked, write = [], [], Protocol.prompt
    for module in (study, grpo):
        run = module.rollout
        monkeypatch.setattr(
            module, "rollout",
            lambda lm, library, protocol, prompts, *rest, run=run: (
                asked.extend(prompts) or run(lm, library, protocol, prompts, *rest)
            ),
        )  # fmt: skip

    def spy(self, *given):
        read.append(write(self, *given))
        return read[-1]

    monkeypatch.setattr(Protocol, "prompt", spy)
    page.run_arm("sd")
    assert any("<attempts>" in prompt for prompt in read)  # teachers read them
    assert len(asked) == 2 * 2 + 2 * 3  # two steps of two attempts; the test, twice
    assert not any("<attempts>" in prompt for prompt in asked)
    log, metrics = page.MODULES["sd"].extra_loss.log, page.record.metrics
    assert log[0]["divergence"] == 0 < log[1]["divergence"]
    assert metrics["sd/divergence/quarter 2"] == pytest.approx(log[1]["divergence"])
    assert 0 <= metrics["sd/em_greedy"] <= 1
