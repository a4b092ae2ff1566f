"""Chapter 11: gains by hand, fair comparisons, where a bonus goes, controls, rivals, bad input."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minisearch import chapters
from minisearch.agents.objective import clipped_loss
from minisearch.agents.trajectory import Segment, Trajectory, collate
from minisearch.errors import InputError
from minisearch.models.lm import load_lm
from minisearch.recorder import Recorder

CHAPTER = "11_ig_search"
TABLES = (
    "BONUSES",
    "SIGNALS",
    "OWN",
    "SWEPT",
)  # plain but for their calls, so that `load` leaves them


@pytest.fixture(scope="module")
def lm():
    return load_lm("toy-0")


@pytest.fixture
def page(monkeypatch, tmp_path):
    """The chapter as it stands after its definitions, at smoke."""
    chapter = chapters.load(CHAPTER)
    names = {
        "profile": "smoke", "seed": 7, "world_seed": 0, "init_seed": 0, "data": "", "service": "",
        "settings": chapter.GainSettings.of("smoke"), "record": Recorder(tmp_path / "run"),
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


def attempt_of(lm, question, turns, answer="unknown"):
    """An attempt with these queries, passages (ids, text) and thoughts, as if sampled."""

    def own(kind, text):
        ids = lm.encode(text)
        return Segment(kind, ids, [-1.0] * len(ids))

    segments = [Segment("prompt", lm.encode(f"user {question['question']} assistant"))]
    segments.append(own("think", "<think> need mayor </think>"))
    retrieved, queries = [], []
    for query, (ids, text), thought in turns:
        segments += [own("search", " <search>"), own("query", f" {query}")]
        segments += [own("search", " </search>")]
        segments.append(Segment("documents", lm.encode(f" <information> {text} </information>")))
        segments.append(own("think", f" <think> {thought} </think>"))
        retrieved.append(list(ids))
        queries.append(query)
    segments.append(own("answer", f" <answer> {answer} </answer>"))
    text = lm.decode([token for s in segments[1:] for token in s.ids])
    return Trajectory(segments, queries, retrieved, answer, text)


@pytest.fixture
def step(page, lm, world):
    """Two attempts at each of two questions: searches that found something, and that did not."""
    wiki, _ = world
    passage = {d["id"]: d["contents"].partition("\n")[2] for d in wiki.corpus}
    ids = list(passage)

    def shown(name):
        return [name], f"( {name} ) {passage[name]}"

    one, two = wiki.questions(2, hops=(2,), seed=3)
    attempts, asked = [], []
    for question in (one, two):
        first, last = (hop["gold_ids"][0] for hop in question["metadata"]["hops"])
        other = next(i for i in ids if i not in (first, last))
        bridge, answer = (hop["answer"] for hop in question["metadata"]["hops"])
        here = question["metadata"]["entity"]
        attempts.append(
            attempt_of(
                lm, question,
                [(f"{here} mayor", shown(first), f"found {bridge} ; need mayor of {bridge}"),
                 (f"{bridge} mayor", shown(last), f"found {answer}")],
                answer,
            )
        )  # fmt: skip
        attempts.append(attempt_of(lm, question, [(here, shown(other), "missing")]))
        asked += [question, question]
    return page.scored(lm, attempts, asked, 2)


# -- searches, and what they are compared with -----------------------------------------------------


def test_searches_know_where_their_passages_stand(page, lm, step):
    searches = page.searches_of(lm, step.attempts)
    assert [(s.row, s.number) for s in searches] == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (3, 0)]
    for search in searches:
        ids = step.attempts[search.row].ids
        after = search.start + len(search.block)
        assert ids[search.start : after] == search.block
        assert ids[after : after + len(search.thought)] == search.thought
        assert "information" in lm.decode(search.block)
        assert lm.decode(ids[: search.start]).rstrip().endswith("</search>")
    assert "missing" in searches[2].opinion
    assert "found" in searches[1].opinion


def test_a_comparison_is_with_other_questions_and_never_has_the_name(page, lm, step):
    searches = page.searches_of(lm, step.attempts)
    asked = [q["question"] for q in step.questions]
    names = [step.questions[s.row]["golden_answers"] for s in searches]
    for seed in range(20):
        others = page.strangers(searches, asked, names, 3, np.random.default_rng(seed))
        for search, drawn in zip(searches, others, strict=True):
            assert len(drawn) == 3
            assert all(asked[searches[n].row] != asked[search.row] for n in drawn)


@pytest.mark.parametrize("where", ["shown", "opinion"])
def test_a_block_or_thought_with_the_name_is_no_comparison(page, lm, step, where):
    searches = page.searches_of(lm, step.attempts)
    asked = [q["question"] for q in step.questions]
    name = "Zora  Quill."
    searches = [
        replace(s, **{where: f"the mayor is zora quill of {getattr(s, where)}"}) if n != 5 else s
        for n, s in enumerate(searches)
    ]
    names = [[name]] * len(searches)
    others = page.strangers(searches, asked, names, 3, np.random.default_rng(0))
    assert [set(drawn) for drawn in others] == [{5}, {5}, {5}, set(), set(), set()]
    part = [["quil"]] * len(searches)  # a part of a word is not the word
    others = page.strangers(searches, asked, part, 3, np.random.default_rng(0))
    assert all(len(drawn) == 3 for drawn in others)


def test_comparisons_come_from_different_questions_as_far_as_there_are_so_many(page, lm, step):
    searches = [replace(page.searches_of(lm, step.attempts)[0], row=n // 2) for n in range(10)]
    asked = [f"question {n}" for n in range(5)]
    for seed in range(10):
        drawn = page.strangers(searches, asked, [[]] * 10, 4, np.random.default_rng(seed))
        for number, numbers in enumerate(drawn):
            assert sorted(n // 2 for n in numbers) == [n for n in range(5) if n != number // 2]


# -- the gain --------------------------------------------------------------------------------------


def belief(lm, step, search, block, name, opening="<answer>"):
    """Mean log-probability of a name, from the whole text read at once."""
    before = step.attempts[search.row].ids[: search.start] + block + lm.encode(f" {opening}")
    end = lm.encode(f" {name}")
    logits = lm.model(torch.tensor([before + end])).logits[0].log_softmax(-1)
    return float(np.mean([logits[len(before) - 1 + n, t].item() for n, t in enumerate(end)]))


@torch.no_grad()
@pytest.mark.parametrize("thought", [False, True])
def test_a_gain_is_the_belief_less_the_mean_belief_after_other_blocks(page, lm, step, thought):
    searches = page.searches_of(lm, step.attempts)
    names = [step.questions[s.row]["golden_answers"][:1] for s in searches]
    others = [[3, 4, 5]] * 3 + [[0, 1, 2]] * 3
    found = page.gains(lm, step.attempts, searches, names, others, page.Gain(thought=thought))
    for search, drawn, value in zip(searches, others, found.tolist(), strict=True):
        name = step.questions[search.row]["golden_answers"][0]
        unit = [s.block + s.thought if thought else s.block for s in searches]
        own = unit[searches.index(search)]
        random = [belief(lm, step, search, unit[n], name) for n in drawn]
        expected = belief(lm, step, search, own, name) - np.mean(random)
        assert value == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_an_empty_comparison_has_no_passages(page, lm, step):
    searches = page.searches_of(lm, step.attempts)
    names = [step.questions[s.row]["golden_answers"][:1] for s in searches]
    found = page.gains(lm, step.attempts, searches, names, [[]] * 6, page.Gain(empty=True))
    for search, value in zip(searches, found.tolist(), strict=True):
        name = step.questions[search.row]["golden_answers"][0]
        expected = belief(lm, step, search, search.block, name) - belief(lm, step, search, [], name)
        assert value == pytest.approx(expected, abs=1e-4)


def test_without_the_mean_a_gain_is_that_of_the_whole_name(page, lm, step):
    searches = page.searches_of(lm, step.attempts)
    names = [step.questions[s.row]["golden_answers"][:1] for s in searches]
    others = [[3, 4, 5]] * 3 + [[0, 1, 2]] * 3
    mean, whole = (
        page.gains(lm, step.attempts, searches, names, others, page.Gain(mean=m))
        for m in (True, False)
    )
    lengths = torch.tensor([float(len(lm.encode(f" {own[0]}"))) for own in names])
    assert torch.allclose(whole, mean * lengths, atol=1e-4)
    assert (lengths > 1).all()


def test_of_several_names_the_one_that_gained_most_counts(page, lm, step):
    searches = page.searches_of(lm, step.attempts)[:2]
    gold = step.questions[0]["golden_answers"][0]
    opened = page.Gain("<think> found")
    both, one, other = (
        page.gains(lm, step.attempts, searches, [own, own], [[0], [0]], opened)
        for own in (["unknown", gold], [gold], ["unknown"])
    )
    assert torch.allclose(both, torch.maximum(one, other), atol=1e-6)


def test_nothing_to_ask_or_to_compare_with_is_no_gain(page, lm, step):
    searches = page.searches_of(lm, step.attempts)
    gold = [step.questions[s.row]["golden_answers"][:1] for s in searches]
    no_name = page.gains(lm, step.attempts, searches, [[]] * 6, [[3]] * 6, page.Gain())
    no_block = page.gains(lm, step.attempts, searches, gold, [[]] * 6, page.Gain())
    assert no_name.tolist() == no_block.tolist() == [0.0] * 6


def test_stabilisers_by_hand(page):
    gain = torch.tensor([0.049, -0.049, 0.05, -0.05, 1.0, -1.0, 3.0, 0.0])
    found = page.stabilised(gain, dead_zone=0.05, damping=0.5, scale=2.0)
    expected = [0, 0, 2 * np.log(1.025), -2 * np.log(1.0125), 2 * np.log(1.5)]
    expected += [-2 * np.log(1.25), 2 * np.log(2.5), 0]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


# -- on the tokens that asked ----------------------------------------------------------------------


def fixed(page, monkeypatch, values, **bonus):
    """A bonus whose values are given."""
    monkeypatch.setattr(page, "raw_values", lambda *_: torch.tensor(values))
    settings = replace(page.settings, alpha=0.3, group=2)
    return page.QueryBonus(None, settings, page.Bonus(stabilise=False, **bonus), 0)


VALUES = [1.0, 2.0, -1.0, 0.5, 0.0, 4.0]


def test_a_bonus_is_on_the_query_and_nowhere_else(page, lm, step, monkeypatch):
    bonus = fixed(page, monkeypatch, VALUES)
    bonus.lm = lm
    extra = bonus(step)
    place = step.batch.search
    assert (extra[place < 0] == 0).all()
    for (row, number), value in zip(
        [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (3, 0)], VALUES, strict=True
    ):
        own = extra[row][place[row] == number]
        assert own.tolist() == pytest.approx([0.3 * value / len(own)] * len(own))


def test_a_bonus_without_a_share_grows_with_the_query(page, lm, step, monkeypatch):
    bonus = fixed(page, monkeypatch, VALUES, share=False)
    bonus.lm = lm
    extra = bonus(step)
    assert extra[0][step.batch.search[0] == 1].tolist() == pytest.approx(
        [0.6] * int((step.batch.search[0] == 1).sum())
    )


def test_a_bonus_of_a_turn_is_on_all_that_was_written_for_the_search(page, lm, step, monkeypatch):
    bonus = fixed(page, monkeypatch, VALUES, tokens="turn")
    bonus.lm = lm
    extra, turns = bonus(step), page.turns_of(step)
    assert extra[0].sum().item() == pytest.approx(0.3 * (1 + 2))
    assert (extra[turns < 0] == 0).all()
    last = turns[0] == 2  # written after the last search: thought and answer
    assert last.any()
    assert (extra[0][last] == 0).all()
    assert ((turns >= 0) == step.batch.policy).all()


def test_a_group_that_failed_teaches_nothing_without_the_bonus_and_its_queries_with_it(
    page, lm, step
):
    step.rewards[:] = 0
    plain = page.group_advantages(step.rewards.view(-1, 2)).view(-1, 1) * step.batch.policy
    settings = replace(page.settings, group=2)
    extra = page.QueryBonus(lm, settings, page.BONUSES["ig"], 0)(step)
    for advantages, teaches in ((plain, False), (plain + extra, True)):
        mask = step.batch.policy
        logits = page_logits(lm, step).detach().requires_grad_()
        taken = logits.log_softmax(-1).gather(1, step.batch.ids[mask][:, None])[:, 0]
        loss, _ = clipped_loss(taken, taken.detach(), advantages[mask], 0.2, 0.28)
        loss.sum().backward()
        moved = logits.grad.abs().sum(1) > 0
        assert moved.any() == teaches
        assert not (moved & (step.batch.search[mask] < 0)).any()


def page_logits(lm, step):
    from minisearch.agents.scoring import logits_before

    with torch.no_grad():
        return logits_before(lm.model, step.batch.ids, step.batch.policy)


# -- controls --------------------------------------------------------------------------------------


def test_controls_hand_out_the_same_amounts(page):
    values = torch.arange(60.0)
    places = [(f"q{n % 3}", n % 2) for n in range(60)]
    random = np.random.default_rng(0)
    within = page.controlled(values, places, "within", random)
    every = page.controlled(values, places, "all", random)
    for found in (within, every):
        assert sorted(found.tolist()) == values.tolist()
        assert not torch.equal(found, values)
    for n, value in enumerate(within.tolist()):
        assert places[int(value)] == places[n]
    assert any(places[int(value)] != places[n] for n, value in enumerate(every.tolist()))
    constant = page.controlled(values, places, "constant", random)
    assert constant.tolist() == pytest.approx([29.5] * 60)


def test_a_control_is_of_the_values_after_everything_else(page, lm, step):
    searches = page.searches_of(lm, step.attempts)
    settings, raw = replace(page.settings, group=2), torch.tensor(VALUES)

    def treated(**bonus):
        random = np.random.default_rng(0)
        return page.treated(raw, step, searches, page.Bonus(**bonus), settings, random)

    plain = treated()
    assert not torch.equal(plain, raw)  # stabilised
    assert treated(control="constant").tolist() == pytest.approx([float(plain.mean())] * 6)
    assert torch.allclose(treated(centre=True), plain - plain.mean())
    assert sorted(treated(control="all").tolist()) == sorted(plain.tolist())


def test_only_a_value_that_is_alone_stays_in_its_place(page):
    values, random = torch.arange(7.0), np.random.default_rng(0)
    places = [("q", 0)] * 4 + [("q", 1)] * 2 + [("r", 0)]
    for _ in range(20):
        found = page.controlled(values, places, "within", random)
        assert (found != values).tolist() == [True] * 6 + [False]


def test_real_questions_have_no_kind(page, lm, monkeypatch):
    monkeypatch.setattr(page, "data", "somewhere")
    with pytest.raises(InputError, match="leave out what follows"):
        page.open_task("hard95", lm, page.settings)


def test_the_weights_of_the_sweep_are_those_of_the_toy(page, monkeypatch):
    assert page.settings_of("turn_rewards").alpha == page.SWEPT["turn_rewards"]["alpha"]
    monkeypatch.setattr(page, "profile", "full")
    assert page.settings_of("turn_rewards").alpha == page.settings.alpha
    assert page.settings_of("turn_rewards_full").alpha == page.settings_of("step_groups").alpha == 1


# -- names, steps, verdicts ------------------------------------------------------------------------


def test_names_that_thoughts_found_and_not_those_of_passages(page, lm, step):
    bridge, answer = (hop["answer"] for hop in step.questions[0]["metadata"]["hops"])
    assert page.found_names(lm, step.attempts[0]) == [bridge, answer]
    assert page.found_names(lm, step.attempts[1]) == []
    told = replace(step.attempts[1], text="<information> found ann lee </information>")
    assert page.found_names(lm, told) == []


def test_whose_names_a_search_ought_to_raise(page, lm, step):
    searches = page.searches_of(lm, step.attempts)
    bridge, answer = (hop["answer"] for hop in step.questions[0]["metadata"]["hops"])
    assert step.rewards.tolist() == [1, 0, 1, 0]

    def names(of):
        return page.wanted_names(lm, step, searches, of, 2)[:3]

    assert names("answer") == [[answer]] * 3
    assert names("siblings") == [[], [], [bridge, answer]]  # not one's own
    assert names("steps") == [[bridge], [answer], [bridge]]


def test_verdicts_that_need_no_belief(page, lm, step):
    searches = page.searches_of(lm, step.attempts)
    assert page.verdicts(step, searches, "thought").tolist() == [1, 1, -1, 1, 1, -1]
    assert page.verdicts(step, searches, "good").tolist() == [1, 1, 0, 1, 1, 0]
    contains = page.verdicts(step, searches, "contains").tolist()
    assert contains[1] == contains[4] == 1
    assert contains[2] == contains[5] == 0


# -- rivals ----------------------------------------------------------------------------------------


def test_turns_that_began_with_the_same_passages_are_compared(page, lm, step):
    one = step.attempts[0]
    step.attempts[1] = one  # both attempts saw the same passages, one is right
    step.rewards[:] = torch.tensor([1.0, 0.0, 1.0, 0.0])
    step.batch = collate(step.attempts, lm.pad_id)
    step.advantages = torch.zeros(step.batch.ids.shape)
    extra, turns = page.step_groups(step, 2, gamma=0.5), page.turns_of(step)
    half = 1 / 2**0.5  # of two values the standardised ones
    for turn in (0, 1, 2):
        assert extra[0][turns[0] == turn].tolist() == pytest.approx(
            [half] * int((turns[0] == turn).sum()), abs=1e-4
        )
        assert extra[1][turns[1] == turn].tolist() == pytest.approx(
            [-half] * int((turns[1] == turn).sum()), abs=1e-4
        )
    assert extra[2][turns[2] == 0].tolist() != [0.0] * int((turns[2] == 0).sum())
    assert (extra[2][turns[2] >= 1] == 0).all()  # alone with its passages
    assert (extra[turns < 0] == 0).all()


def test_step_groups_discount_by_turns_to_go(page, lm, step):
    step.rewards[:] = 1  # the longer attempt of two right ones is worth less at the start
    extra, turns = page.step_groups(step, 2, gamma=0.5), page.turns_of(step)
    assert extra[0][turns[0] == 0].max() < 0 < extra[1][turns[1] == 0].min()


@torch.no_grad()
def test_turn_rewards_are_standardised_changes_of_belief_and_of_what_follows(page, lm, step):
    extra, turns = page.turn_rewards(lm, step, 2), page.turns_of(step)
    changes = []
    for row, attempt in enumerate(step.attempts[:2]):
        gold = step.questions[row]["golden_answers"][0]
        cuts = [attempt.ids[: attempt.prompt_length]]
        cuts += [attempt.prefix(n) for n in range(len(attempt.queries))]
        beliefs = lm.answer_log_prob(cuts, [gold] * len(cuts))
        changes.append((beliefs[1:] - beliefs[:-1]).tolist())
    every = torch.tensor([value for own in changes for value in own])
    score = ((every - every.mean()) / (every.std() + 1e-6)).tolist()
    expected = {(0, 0): score[0] + score[1], (0, 1): score[1], (1, 0): score[2], (0, 2): 0.0}
    for (row, turn), value in expected.items():
        own = extra[row][turns[row] == turn]
        assert own.tolist() == pytest.approx([value] * len(own), abs=1e-3)


def test_leave_one_out_compares_with_the_mean_of_the_others(page):
    own = page.added("leave_one_out", None, replace(page.settings, group=4), 0)
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    grouped = page.group_advantages(rewards, own["standardise"])

    class Like:
        advantages = grouped

    found = grouped + own["extra_advantage"](Like)
    assert found[0].tolist() == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])


# -- tasks and arms --------------------------------------------------------------------------------


def test_where_the_rest_is_known_only_the_first_fact_is_new(page, lm):
    task = page.open_task("knowing", lm, page.settings)
    for question in [*task.training, *task.test[page.settings.one_hop :]]:
        first, *rest = question["metadata"]["known"]
        assert not first
        assert rest
        assert all(rest)


@pytest.mark.parametrize("arm", ["grpo", "ig", "turn_rewards", "step_groups", "leave_one_out"])
def test_an_arm_trains_and_is_measured(page, arm):
    page.run_arm(arm)
    metrics = page.record.metrics
    assert 0 <= metrics[f"{arm}/em_training"] <= 1
    assert 0 <= metrics[f"{arm}/em_greedy"] <= 1
    assert metrics[f"{arm}/query_tokens_sampled"] > 0
    assert (f"{arm}/bonus value" in metrics) == (arm == "ig")


def test_answering_costs_what_it_costs_without_the_bonus(page, lm, monkeypatch):
    def never(*_):
        raise AssertionError("a belief was asked for")

    task = page.open_task("blank", lm, page.settings)
    monkeypatch.setattr(page, "branch_log_probs", never)
    page.record_test(page.record, "ig", lm, task, page.settings)
    page.record_test(page.record, "grpo", lm, task, page.settings)
    metrics = page.record.metrics
    for name in ("written", "searches", "em"):
        assert metrics[f"ig/{name}_sampled"] == metrics[f"grpo/{name}_sampled"]


# -- what may be missing ---------------------------------------------------------------------------


def test_attempts_without_a_search_get_no_bonus(page, lm, step):
    silent = [attempt_of(lm, q, []) for q in step.questions]
    quiet = page.scored(lm, silent, step.questions, 2)
    for name in page.BONUSES:
        bonus = page.QueryBonus(lm, replace(page.settings, group=2), page.BONUSES[name], 0)
        assert (bonus(quiet) == 0).all()
    assert (page.turn_rewards(lm, quiet, 2) == 0).all()


def test_an_empty_answer_is_no_name(page, lm, step):
    for question in step.questions:
        question["golden_answers"] = [" "]
    bonus = page.QueryBonus(lm, replace(page.settings, group=2), page.BONUSES["ig"], 0)
    assert (bonus(step) == 0).all()


def test_a_batch_of_one_question_has_nothing_to_compare_with(page, lm, step):
    asked, attempts = step.questions[:2], step.attempts[:2]
    alone = page.scored(lm, attempts, asked, 2)
    bonus = page.QueryBonus(lm, replace(page.settings, group=2), page.BONUSES["ig"], 0)
    assert (bonus(alone) == 0).all()


def test_where_every_block_has_the_answer_there_is_no_gain(page, lm, step):
    searches = page.searches_of(lm, step.attempts)
    names = [step.questions[s.row]["golden_answers"] for s in searches]
    every = " ".join(name for own in names for name in own)
    told = [replace(s, shown=f"{s.shown} {every}") for s in searches]
    asked = [q["question"] for q in step.questions]
    assert page.strangers(told, asked, names, 3, np.random.default_rng(0)) == [[]] * 6


# -- what signals see ------------------------------------------------------------------------------


def looked(page, due, good, bridge):
    n = len(due)
    return page.Looked(
        {}, np.array(due, bool), np.array(good, bool), np.array(bridge, bool),
        np.zeros(n, bool), np.zeros(n, bool), np.arange(n),
    )  # fmt: skip


def test_cases_leave_out_searches_with_nothing_due(page):
    seen = looked(page, due=[1, 1, 1, 0], good=[1, 0, 1, 0], bridge=[0, 0, 1, 0])
    cases = page.cases_of(seen)
    assert cases["last step"].tolist() == [True, True, False, False]
    assert cases["bridge"].tolist() == [False, False, True, False]
    brought = page.brought(seen)
    assert {name: rows.sum() for name, rows in brought.items()} == {
        "last passage": 1, "bridge passage": 1, "answer by accident": 0, "useless": 1,
    }  # fmt: skip


def test_the_area_by_hand(page):
    seen = looked(page, due=[1] * 5, good=[1, 1, 0, 0, 0], bridge=[0] * 5)
    values, every = np.array([3.0, 1.0, 2.0, 0.0, 1.0]), np.ones(5, bool)
    assert page.area(values, seen, every)[0] == pytest.approx((3 + 1.5) / 6)
    assert np.isnan(page.area(values, seen, seen.good)[0])
