"""Chapter 9: pairs by hand, capped divergences, adapters, rounds and what they cost, bad input."""

from __future__ import annotations

import ast
import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import rel_entr

from minisearch import chapters
from minisearch.agents.trajectory import Segment, Trajectory
from minisearch.errors import InputError
from minisearch.models.lm import load_lm
from minisearch.recorder import Recorder

CHAPTER = "09_search_e1"
TABLES = ("ROUNDS", "SWEPT", "SIZES")  # plain but for their calls, so that `load` leaves them


@pytest.fixture(scope="module")
def lm():
    return load_lm("toy-0")


@pytest.fixture
def fresh(lm):
    """A copy that may be trained."""
    return replace(lm, model=deepcopy(lm.model))


@pytest.fixture
def page(monkeypatch, tmp_path):
    """The chapter as it stands after its definitions, at smoke."""
    chapter = chapters.load(CHAPTER)
    names = {
        "profile": "smoke", "seed": 7, "world_seed": 0, "init_seed": 0, "data": "", "service": "",
        "settings": chapter.DistilSettings.of("smoke"), "record": Recorder(tmp_path / "run"),
        "RUNS": {},
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


QUESTION = {
    "id": "0",
    "question": "who is the mayor of Luth Velloa ?",
    "golden_answers": ["Bo Tarn"],
    "metadata": {},
}


def attempt_of(lm, searches, answer="Bo Tarn", word="mayor"):
    """An attempt with so many searches, as if sampled."""

    def own(kind, text):
        ids = lm.encode(text)
        return Segment(kind, ids, [-1.0] * len(ids))

    segments = [Segment("prompt", lm.encode(f"user {QUESTION['question']} assistant"))]
    segments.append(own("think", "<think> need mayor </think>"))
    for _ in range(searches):
        segments += [own("search", " <search>"), own("query", f" Luth Velloa {word}")]
        segments += [own("search", " </search>")]
        segments.append(Segment("documents", lm.encode(" <information> found </information>")))
        segments.append(own("think", " <think> missing </think>"))
    segments.append(own("answer", f" <answer> {answer} </answer>"))
    text = lm.decode([token for s in segments[1:] for token in s.ids])
    queries = [f"Luth Velloa {word}"] * searches
    return Trajectory(segments, queries, [[]] * searches, answer, text)


def group(page, lm, *attempts):
    """A group of attempts: (searches, right) each."""
    made = [attempt_of(lm, n, "Bo Tarn" if right else "unknown") for n, right in attempts]
    return page.group_of(QUESTION, made, labelled=True)


def picked(page, found, which="fewest"):
    return page.picked(found, which, np.random.default_rng(0))


# -- pairs -----------------------------------------------------------------------------------------


def test_the_reference_is_right_with_fewest_searches_and_the_student_wrong(page, lm):
    found = group(page, lm, (3, True), (1, False), (2, True), (4, False))
    assert found.right == [True, False, True, False]
    assert picked(page, found) == (2, 3)  # 4 searches differ from 2 by more than 1 does


def test_without_a_wrong_attempt_the_student_is_the_right_one_that_differs_most(page, lm):
    assert picked(page, group(page, lm, (2, True), (1, True), (5, True))) == (1, 2)


def test_no_right_sibling_and_identical_siblings_give_no_pair(page, lm):
    assert picked(page, group(page, lm, (1, False), (2, False))) is None
    assert picked(page, group(page, lm, (2, True), (2, True), (2, True))) is None


def test_of_wrong_attempts_with_as_many_searches_edits_decide(page, lm):
    right = attempt_of(lm, 1)
    near, far = attempt_of(lm, 1, "unknown"), attempt_of(lm, 1, "unknown", "missing found need")
    found = page.group_of(QUESTION, [right, near, far], labelled=True)
    assert picked(page, found) == (0, 2)


def test_other_references_leave_the_student_the_same(page, lm):
    found = group(page, lm, (1, True), (3, True), (4, False), (2, True))
    assert picked(page, found, "longest") == (1, 2)
    drawn = {page.picked(found, "random", np.random.default_rng(n)) for n in range(40)}
    assert drawn == {(1, 2), (3, 2)}
    assert picked(page, group(page, lm, (1, True), (2, False)), "random") == (0, 1)


@pytest.mark.parametrize(
    ("one", "other", "count"),
    [("", "", 0), ("abc", "abc", 0), ("", "ab", 2), ("kitten", "sitting", 3), ("abc", "c", 2)],
)
def test_edits_by_hand(page, one, other, count):
    one, other = list(map(ord, one)), list(map(ord, other))
    assert page.edits(one, other) == page.edits(other, one) == count


def test_a_vote_needs_two_who_agree_and_no_rival(page):
    assert page.agreed(["Bo Tarn", "bo tarn.", "Ann", ""]) == [True, True, False, False]
    assert page.agreed(["Bo", "Bo", "Ann", "Ann"]) == [False] * 4
    assert page.agreed(["Bo", "Ann"]) == [False] * 2
    assert page.agreed(["unknown"] * 3 + [""] * 4 + ["Bo", "Bo"]) == [False] * 7 + [True] * 2


def test_a_vote_does_not_look_at_the_right_answer(page, lm):
    attempts = [attempt_of(lm, 1, name) for name in ("Ann Lee", "Ann Lee", "Bo Tarn")]
    assert page.group_of(QUESTION, attempts, labelled=False).right == [True, True, False]
    assert page.group_of(QUESTION, attempts, labelled=True).right == [False, False, True]


def test_pairs_of_strangers_and_of_nothing(page, lm):
    pool = [group(page, lm, (n, True), (1, False)) for n in (2, 3)]
    random = np.random.default_rng(0)
    plain, odd, none = (
        page.pairs_of(lm, pool, which, 1024, random) for which in ("fewest", "stranger", "none")
    )
    assert [len(p.reference.queries) for p in plain] == [2, 3]
    assert [len(p.reference.queries) for p in odd] == [3, 2]
    assert [p.reference for p in none] == [None, None]
    assert page.pairs_of(lm, pool[:1], "stranger", 1024, random) == []


def test_pairs_show_the_sibling_that_they_are_asked_for(page, lm):
    pool = [group(page, lm, (1, True), (3, True), (4, False))]
    random = np.random.default_rng(0)
    found = {
        which: page.pairs_of(lm, pool, which, 1024, random)[0]
        for which in ("fewest", "longest", "random")
    }
    assert {which: len(pair.reference.queries) for which, pair in found.items()} == {
        "fewest": 1, "longest": 3, "random": 3,
    }  # fmt: skip
    assert {which: pair.extra for which, pair in found.items()} == {
        "fewest": 0, "longest": 2, "random": 2,
    }  # fmt: skip


def test_a_teacher_reads_the_answer_alone_or_all_but_the_answer(page, lm):
    text = "<think> found Bo Tarn </think> <answer> bo tarn </answer>"
    reference = replace(attempt_of(lm, 2), text=text)
    pair = page.Pair(QUESTION, attempt_of(lm, 1, "unknown"), reference)
    answer, masked = (page.instead(pair, what).reference for what in ("answer", "masked"))
    assert answer.text == "<answer> Bo Tarn </answer>"
    assert masked.text == "<think> found unknown </think> <answer> unknown </answer>"
    assert page.instead(pair, "fewest").reference.text == text
    assert page.instead(pair, "none").reference is None


def test_a_pair_needs_room_for_any_sibling(page, lm):
    pool = [group(page, lm, (n, True), (1, False)) for n in (2, 5)]
    random = np.random.default_rng(0)
    pair = page.pairs_of(lm, pool, "fewest", 1024, random)[1]
    response = len(pair.student.ids) - pair.student.prompt_length
    row = len(page.told(lm, QUESTION, pair.reference)) + response
    for which in ("fewest", "random", "none", "answer"):  # the same pairs for all
        assert len(page.pairs_of(lm, pool, which, row, random)) == 2
        assert len(page.pairs_of(lm, pool, which, row - 1, random)) == 1


# -- the divergence --------------------------------------------------------------------------------


def test_a_divergence_is_that_of_scipy(page):
    random = np.random.default_rng(0)
    p, q = random.dirichlet(np.ones(6), 4), random.dirichlet(np.ones(6), 4)
    logits = [torch.tensor(x).log() for x in (p, q)]
    assert page.divergence(*logits).tolist() == pytest.approx(rel_entr(p, q).sum(1))
    found = page.divergence(*logits, reverse=True)
    assert found.tolist() == pytest.approx(rel_entr(q, p).sum(1))


def test_a_cap_is_on_each_term_and_the_sum_can_be_negative(page):
    p, q = torch.tensor([[0.5, 0.4, 0.1]]), torch.tensor([[0.1, 0.1, 0.8]])
    found = page.divergence(p.log(), q.log(), cap=0.2)
    assert found.item() == pytest.approx(0.2 + 0.2 + 0.1 * math.log(1 / 8))
    low = page.divergence(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.1, 0.9]]).log(), 0.1)
    assert low.item() < 0


def test_a_term_at_the_cap_has_no_gradient(page):
    teacher = torch.tensor([[0.98, 0.01, 0.01]]).log()
    student = torch.tensor([[1e-6, 0.5, 0.5]]).log().requires_grad_()
    page.divergence(teacher, student).sum().backward()
    free, student.grad = student.grad.abs().max().item(), None
    page.divergence(teacher, student, cap=1.0).sum().backward()
    assert free > 0.9
    assert student.grad.abs().max().item() < 0.03


def test_a_silent_token_is_pushed_down_as_its_formula_says(page):
    teacher, student = torch.tensor([[0.6, 0.3, 0.1]]), torch.tensor([[0.05, 0.8, 0.15]])
    logits = student.log().requires_grad_()
    page.divergence(teacher.log(), logits, cap=1.0).sum().backward()
    assert logits.grad[0, 0].item() == pytest.approx(0.05 * 0.4, rel=1e-4)
    found = page.silenced(teacher.log(), student.log(), 1.0)
    assert found.tolist() == [1.0]  # .6 log 12 is 1.49
    assert page.silenced(teacher.log(), student.log(), 1.5).tolist() == [0.0]


# -- adapters, and the loss ------------------------------------------------------------------------


@pytest.fixture
def pairs(page, lm):
    pool = [group(page, lm, (1, True), (n, False)) for n in (2, 3)]
    return page.pairs_of(lm, pool, "fewest", 1024, np.random.default_rng(0))


def test_tokens_are_the_same_ones_under_either_prompt(page, lm, pairs):
    pair = pairs[0]
    logits = page.logits_under(lm, [pair.student], [page.told(lm, QUESTION, pair.reference)])
    ids = page.told(lm, QUESTION, pair.reference)
    ids = ids + pair.student.ids[pair.student.prompt_length :]
    with torch.no_grad():
        whole = lm.model(torch.tensor([ids])).logits[0]
    place, expected = len(ids) - len(pair.student.ids) + pair.student.prompt_length, []
    for segment in pair.student.segments[1:]:
        if segment.sampled:  # a token's own distribution stands one row before it
            expected.append(whole[place - 1 : place - 1 + len(segment.ids)])
        place += len(segment.ids)
    assert torch.allclose(logits, torch.cat(expected), atol=1e-4)
    assert len(page.places_of(pair.student)) == len(logits)


def test_a_prompt_holds_the_whole_reference_or_nothing(page, lm, pairs):
    helped = lm.decode(page.told(lm, QUESTION, pairs[0].reference))
    assert "<reference>" in helped
    assert (
        pairs[0].reference.text.split()
        == helped.partition("<reference>")[2].split()[: len(pairs[0].reference.text.split())]
    )
    assert "<reference>" not in lm.decode(page.told(lm, QUESTION))


def test_an_adapter_by_hand(page):
    layer = torch.nn.Linear(3, 2)
    adapter = page.LowRank(layer, rank=2, alpha=6.0, random=torch.Generator().manual_seed(0))
    x = torch.randn(4, 3)
    assert torch.equal(adapter(x), layer(x))  # bit for bit, as long as nothing is learnt
    adapter.up.data.normal_()
    expected = layer(x) + 3 * x @ adapter.down.T @ adapter.up.T
    assert torch.allclose(adapter(x), expected, atol=1e-6)
    with page.switched_off([adapter]):
        assert torch.equal(adapter(x), layer(x))
    assert torch.allclose(adapter.merged()(x), expected, atol=1e-5)


def test_only_adapters_learn_and_merging_takes_them_away(page, fresh):
    names = [name for name, _ in fresh.model.named_parameters()]
    adapters = page.adapt(fresh.model, 4, 8.0, 0)
    learning = [p for p in fresh.model.parameters() if p.requires_grad]
    assert len(learning) == 2 * len(adapters) == 2 * 4 * 7  # four layers of seven matrices
    for adapter in adapters:
        adapter.up.data.normal_(std=0.02)
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        before = fresh.model(ids).logits
        page.merge(fresh.model)
        assert torch.allclose(fresh.model(ids).logits, before, atol=1e-3)
    assert [name for name, _ in fresh.model.named_parameters()] == names
    assert all(p.requires_grad for p in fresh.model.parameters())


def loss_of(page, lm, pairs, **how):
    module = page.Distil(lm, pairs, page.Round(**how), page.settings, 0)
    return module, module.loss({"pair": torch.arange(len(pairs))})


def test_nothing_to_read_is_a_loss_of_exactly_0(page, fresh, pairs):
    empty = [replace(pair, reference=None) for pair in pairs]
    _, found = loss_of(page, fresh, empty)
    assert found["loss"].item() == found["whole"].item() == 0.0
    page.merge(fresh.model)
    assert loss_of(page, fresh, pairs)[1]["whole"].item() > 0.001


def test_the_teacher_has_no_gradient_and_does_not_move(page, fresh, pairs):
    module, found = loss_of(page, fresh, pairs)
    assert found["loss"].requires_grad
    assert not found["whole"].requires_grad
    teacher, student = page.compared_logits(fresh, pairs, module.adapters)
    for adapter in module.adapters:
        adapter.up.data.normal_(std=0.02)
    again, moved = page.compared_logits(fresh, pairs, module.adapters)
    assert torch.equal(teacher, again)
    assert not torch.allclose(student, moved)


def test_the_cap_is_the_settings_and_can_be_left_out(page, fresh, pairs, monkeypatch):
    monkeypatch.setattr(page, "settings", replace(page.settings, cap=1e-3))
    _, held = loss_of(page, fresh, pairs)
    page.merge(fresh.model)
    _, free = loss_of(page, fresh, pairs, capped=False)
    assert held["loss"].item() < 0.5 * held["whole"].item()
    assert free["loss"].item() == pytest.approx(free["whole"].item())


def test_a_reverse_round_has_the_reverse_divergence(page, fresh, pairs):
    module, found = loss_of(page, fresh, pairs, loss="reverse", capped=False)
    teacher, student = page.compared_logits(fresh, pairs, module.adapters)
    expected = page.divergence(teacher, student, reverse=True).mean().item()
    assert found["loss"].item() == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(page.divergence(teacher, student).mean().item(), rel=0.01)


def test_the_inside_of_answers_can_be_left_out(page, fresh, pairs):
    module, _ = loss_of(page, fresh, pairs)
    teacher, student = page.compared_logits(fresh, pairs, module.adapters)
    places = [place for pair in pairs for place in page.places_of(pair.student)]
    own = torch.tensor([place != "answer" for place in places])
    assert 0 < own.sum() < len(own)
    expected = page.divergence(teacher[own], student[own]).mean().item()
    page.merge(fresh.model)
    _, found = loss_of(page, fresh, pairs, answers=False)
    assert found["whole"].item() == pytest.approx(expected, rel=1e-4)


def test_sft_is_the_mean_log_probability_of_the_reference(page, lm, pairs):
    references = [pair.reference for pair in pairs]
    with torch.no_grad():
        found = page.sft_loss(lm, pairs).item()
        logits = page.logits_under(lm, references, [page.told(lm, QUESTION)] * len(pairs))
    tokens = torch.tensor([t for a in references for t in page.written(a)])
    expected = -logits.log_softmax(-1).gather(1, tokens[:, None]).mean().item()
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", ["forward", "reverse", "sft"])
def test_a_round_learns_what_it_is_given(page, fresh, pairs, loss):
    settings = replace(page.settings, updates=6, distil_rate=3e-3)
    history = page.distil(fresh, pairs, page.Round(loss=loss), settings, 0)
    values = history.column("loss")[1]
    assert len(values) == 6
    assert values[-1] < values[0]
    assert not any(isinstance(m, page.LowRank) for m in fresh.model.modules())


def test_a_round_without_a_pair_or_without_updates_leaves_the_policy(page, fresh, pairs):
    before = [p.detach().clone() for p in fresh.model.parameters()]
    assert page.distil(fresh, [], page.Round(), page.settings, 0).rows == []
    assert page.distil(fresh, pairs, page.Round(loss="nothing"), page.settings, 0).rows == []
    assert all(map(torch.equal, before, fresh.model.parameters()))


# -- where the teacher differs ---------------------------------------------------------------------


def test_places_by_hand(page, lm):
    attempt = attempt_of(lm, 1)
    places = page.places_of(attempt)
    counts = {place: places.count(place) for place in dict.fromkeys(places)}
    words = sum(len(s.ids) for s in attempt.segments if s.kind == "think")
    assert counts == {
        "thought": words, "search or answer": 2, "query, first token": 1, "query, later": 2,
        "end of a query": 1, "answer": len(attempt.segments[-1].ids) - 1,
    }  # fmt: skip


def test_a_forced_answer_has_no_decision(page, lm):
    """After the last search the environment opens the answer; its first word is no choice."""
    attempt = attempt_of(lm, 1)
    opened = Segment("answer", lm.encode(" <answer>"))
    ids = lm.encode(" Bo Tarn </answer>")
    attempt = replace(
        attempt,
        segments=[*attempt.segments[:-1], opened, Segment("answer", ids, [-1.0] * len(ids))],
    )
    places = page.places_of(attempt)
    assert places.count("search or answer") == 1  # the search's
    assert places.count("answer") == len(ids)


def test_surplus_searches_by_hand(page, monkeypatch):
    hops = [2, 3, 2]
    test = [QUESTION | {"metadata": {"hops": [{}] * n}} for n in hops]
    task = page.Task([], None, [], test, None, [])
    found = {"em": np.array([1.0, 1.0, 0.0]), "searches": np.array([2.0, 5.0, 5.0])}
    assert page.surplus(found, task) == pytest.approx((0 + 2) / 2)
    assert math.isnan(page.surplus(found | {"em": np.zeros(3)}, task))


def test_spare_searches_by_hand(page, lm):
    pool = [
        group(page, lm, (1, True), (3, True), (5, False)),  # 2 - 1
        group(page, lm, (2, True), (0, False)),  # 0
        group(page, lm, (2, False), (0, False)),  # nobody is right
    ]
    assert page.spare_searches(pool) == pytest.approx(0.5)
    assert math.isnan(page.spare_searches(pool[2:]))


# -- rounds ----------------------------------------------------------------------------------------


def test_rounds_share_what_pools_leave(page):
    toy = page.DistilSettings.of("toy")
    assert page.shares(toy, page.Round()) == [8, 8]
    assert page.shares(replace(toy, rounds=3), page.Round()) == [5, 5, 4]
    assert page.shares(toy, page.Round(closing=True)) == [6, 5, 5]
    assert page.shares(toy, page.Round(reused=True)) == [10, 10]
    with pytest.raises(InputError, match="raise steps"):
        page.shares(replace(toy, steps=5), page.Round())


def test_arms_make_equally_many_attempts_or_updates(page, monkeypatch):
    monkeypatch.setattr(page, "settings", page.DistilSettings.of("toy"))
    monkeypatch.setattr(page, "profile", "toy")
    base = page.settings_of("search_e1")
    for name, how in page.ROUNDS.items():
        own = page.settings_of(name)
        taken = 0 if how.reused else own.rounds * own.pool_steps
        assert sum(page.shares(own, how)) + taken == base.steps
        assert own.rounds * own.updates == base.rounds * base.updates
    assert page.settings_of("one_round").rounds == 1
    assert page.settings_of("four_rounds").rounds == 4
    assert page.settings_of("too_fast").distil_rate == pytest.approx(10 * base.distil_rate)
    distilled = base.rounds * base.updates
    steps = sum(page.shares(base, page.Round()))
    assert page.settings_of("grpo_updates").steps * 2 == steps * 2 + distilled
    assert page.settings_of("grpo").steps == base.steps


def test_what_was_swept_holds_for_all_variants_of_a_round(page, monkeypatch):
    monkeypatch.setattr(page, "SWEPT", {"search_e1": {"cap": 0.3}, "sft": {"distil_rate": 2e-3}})
    monkeypatch.setattr(page, "profile", "toy")
    assert page.settings_of("random").cap == page.settings_of("search_e1").cap == 0.3
    assert page.settings_of("sft").distil_rate == 2e-3
    monkeypatch.setattr(page, "profile", "small")
    assert page.settings_of("search_e1").cap == page.settings.cap


def test_each_arm_is_the_round_that_its_name_says(page):
    how = page.ROUNDS
    plain = page.Round()
    assert {name for name, own in how.items() if own == plain} == {
        "search_e1", "one_round", "four_rounds", "too_fast",
    }  # fmt: skip
    reads = {"random": "random", "longest": "longest", "stranger": "stranger", "masked": "masked"}
    reads |= {"answer_only": "answer", "no_privilege": "none"}
    for name, what in reads.items():
        assert how[name] == replace(plain, reference=what)


def test_all_arms_attempt_equally_much_and_only_in_the_training_world(page, monkeypatch):
    made, libraries, real = [], [], page.rollout

    def counted(lm, library, protocol, prompts, config, seed):
        made.append(len(prompts))
        libraries.append(library)
        return real(lm, library, protocol, prompts, config, seed)

    task = page.open_task(page.settings)
    monkeypatch.setattr(page, "rollout", counted)
    monkeypatch.setattr(page, "from_here", lambda *a: 0.0)
    monkeypatch.setattr(page, "watch", lambda *a: None)
    lm = page.starting_model()
    run = page.evolve("search_e1", lm, task, page.settings, page.Round())
    own = page.settings
    grpo = len(run.history.rows) * own.questions_a_step * own.group
    assert sum(made) + grpo == own.steps * own.questions_a_step * own.group
    assert all(library is task.library for library in libraries)


def test_pools_ask_what_the_round_asked_or_what_it_did_not(page):
    toy = page.DistilSettings.of("toy")
    task = page.open_task(toy)
    trained_on = task.training[64:128]
    seen = page.pool_questions(task, trained_on, toy, page.Round(), 1)
    new = [
        page.pool_questions(task, trained_on, toy, page.Round(questions="new"), n) for n in (0, 1)
    ]
    assert len(seen) == len(new[0]) == len(new[1]) == 16
    assert all(any(q is other for other in trained_on) for q in seen)
    assert [*new[0], *new[1]] == task.training[128:]


@pytest.mark.parametrize("arm", ["grpo", "search_e1", "reused", "unlabelled", "pool_only"])
def test_an_arm_trains_and_is_measured(page, arm):
    page.run_arm(arm)
    metrics = page.record.metrics
    assert 0 <= metrics[f"{arm}/em_greedy"] <= 1
    made = metrics[f"{arm}/searches_greedy"]
    if made:
        expected = metrics[f"{arm}/em_greedy"] / made
        assert metrics[f"{arm}/right_per_search_greedy"] == pytest.approx(expected)
    attempts = page.settings.questions_a_step * page.settings.group
    rollouts = page.RUNS[arm].history.column("rollouts")[1]
    steps = {"grpo": [1, 2, 3, 4, 5, 6], "reused": [1, 2, 3, 4, 5, 6]}.get(arm, [1, 2, 4, 5])
    assert rollouts.tolist() == [attempts * n for n in steps]
    if arm != "grpo":
        for number in (1, 2):
            assert 0 <= metrics[f"{arm}/part {number}, OFSD/em"] <= 1
    if arm == "pool_only":
        for metric in ("em", "searches"):
            name = f"{arm}/part 2, {{}}/{metric}"
            assert metrics[name.format("GRPO")] == metrics[name.format("OFSD")]


def test_the_look_says_what_the_teacher_knows(page):
    page.run_arm("look")
    metrics = page.record.metrics
    assert 0 < metrics["look/pairs"] <= 1
    for what in ("none", "fewest", "answer", "masked", "stranger"):
        assert 0 <= metrics[f"look/em {what}"] <= 1
    assert metrics["look/kl/thought"] >= 0
    shares = [v for name, v in metrics.items() if name.startswith("look/share of kl/")]
    assert sum(shares) == pytest.approx(1)


def test_gone_on_with_from_the_students_first_passages(page, lm, pairs, monkeypatch):
    seen = []

    def answered(lm, library, protocol, prompts, config, seed):
        seen.extend(prompts)
        return [pair.reference for pair in pairs]

    monkeypatch.setattr(page, "rollout", answered)
    assert page.from_here(lm, None, pairs, page.settings, 0) == 1.0
    for prompt, pair in zip(seen, pairs, strict=True):
        assert prompt.startswith(lm.decode(page.told(lm, QUESTION, pair.reference)))
        assert prompt.endswith("</information>")
        _, _, own = prompt.rpartition("</reference>")
        assert own.count("</search>") == 1
    assert math.isnan(page.from_here(lm, None, [], page.settings, 0))
