"""The scripted searcher: every habit shows in what it writes, and nothing else goes wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from minisearch.agents.demonstrator import UNKNOWN, Demonstrator, Habits, remembered
from minisearch.agents.protocol import TOY
from minisearch.agents.rewards import exact_match, is_well_formed, last_tagged
from minisearch.retriever import BM25Retriever
from minisearch.worlds.wiki import Wiki, WikiConfig
from minisearch.worlds.wiki_relations import BY_NOUN

NEVER_ERRS = Habits(keywords=(0, 0, 0, 1), drift=0, misread=0, believe=0, retry=1, searches=8)


def demonstrator(world: Wiki) -> Demonstrator:
    return Demonstrator(world, remembered(BM25Retriever(world.corpus), 2), TOY)


@pytest.fixture(scope="module")
def blank() -> Demonstrator:
    return demonstrator(Wiki(WikiConfig(), 100))


@pytest.fixture(scope="module")
def knowing() -> Demonstrator:
    return demonstrator(Wiki(WikiConfig(kind="knowing"), 100))


def attempts(by: Demonstrator, habits: Habits, count=150, hops=(1, 2, 3), seed=0, **kwargs):
    """(question, attempt) pairs."""
    rng = np.random.default_rng(seed)
    rows = by.world.questions(count, hops=hops)
    return [(row, by.attempt(row, rng, habits, **kwargs)) for row in rows]


def notes_of(done) -> list[str]:
    return [n for p in done.pieces if p.kind == "think" for n in p.text.split(" ; ") if n]


def gold_found(by: Demonstrator, row, query: str) -> bool:
    gold = {i for hop in row["metadata"]["hops"] for i in hop["gold_ids"]}
    return any(document["id"] in gold for document in by.search(query))


# -- what it writes --------------------------------------------------------------------------


def test_an_attempt_is_written_in_the_protocol_with_the_passages_that_were_found(blank):
    for row, done in attempts(blank, Habits()):
        kinds = [piece.kind for piece in done.pieces]
        steps = len(done.queries)
        assert kinds == ["think", "search", "information"] * steps + ["think", "answer"]
        text = "".join(map(str, done.pieces))
        assert is_well_formed(text)
        assert last_tagged(text, "answer") == done.answer
        assert done.correct == exact_match(done.answer, row["golden_answers"])
        queries = [piece.text for piece in done.pieces if piece.kind == "search"]
        assert queries == done.queries
        assert done.attempt == (tuple(queries), done.correct)
        shown = [piece.text for piece in done.pieces if piece.kind == "information"]
        assert shown == [TOY.render(blank.search(query)) for query in queries]
        first = row["metadata"]
        assert notes_of(done)[0] == f"need {first['relations'][0]} of {first['entity']}"


def test_the_same_rng_is_the_same_attempt(blank):
    first, again, other = (attempts(blank, Habits(), 30, seed=s) for s in (3, 3, 4))
    assert [d.pieces for _, d in first] == [d.pieces for _, d in again]
    assert [d.pieces for _, d in first] != [d.pieces for _, d in other]


def test_without_faults_it_is_right_whenever_it_finds_the_passages(blank):
    rights = []
    for row, done in attempts(blank, NEVER_ERRS, 300):
        hops = row["metadata"]["hops"]
        assert len(done.useful) <= len(hops)
        if len(done.useful) == len(hops):
            assert done.correct
            assert done.answer == row["golden_answers"][0]
            answers = [n.removeprefix("found ") for n in notes_of(done) if n.startswith("found")]
            assert answers == [hop["answer"] for hop in hops]
        for query, hop in zip(done.useful, hops, strict=False):
            found = [document["id"] for document in blank.search(query)]
            assert set(found) & set(hop["gold_ids"])
        rights.append(done.correct)
    assert np.mean(rights) > 0.8


def test_useful_queries_are_those_that_found_the_passage_of_their_step(blank):
    habits = replace(Habits(), misread=0, believe=0)  # so that it stays on the chain
    for row, done in attempts(blank, habits):
        assert done.useful == [q for q in done.queries if q in done.useful]
        hops = row["metadata"]["hops"]
        assert len(done.useful) <= len(hops)
        for query, hop in zip(done.useful, hops, strict=False):
            assert {d["id"] for d in blank.search(query)} & set(hop["gold_ids"])
        one_hop = len(hops) == 1
        if one_hop:  # nothing that found it is left out
            assert done.useful == [q for q in done.queries if gold_found(blank, row, q)]


# -- habits ----------------------------------------------------------------------------------


def test_number_of_keywords(blank):
    def words_after_the_name(habits):
        return {
            (tuple(q.split()[2:]), row["metadata"]["relations"][0])
            for row, done in attempts(blank, habits, 60, hops=(1,))
            for q in done.queries
        }

    plain = replace(Habits(), drift=0)
    for count in range(4):
        weights = tuple(float(n == count) for n in range(4))
        for words, noun in words_after_the_name(replace(plain, keywords=weights)):
            assert len(words) == len(set(words)) == count
            assert set(words) <= set(BY_NOUN[noun].keywords)


@pytest.mark.parametrize(("drift", "low", "high"), [(0.0, 1, 1), (1.0, 0.02, 0.2)])
def test_drift_searches_for_another_relation(blank, drift, low, high):
    own = [
        set(query.split()[2:]) == set(BY_NOUN[row["metadata"]["relations"][0]].keywords)
        for row, done in attempts(blank, replace(NEVER_ERRS, drift=drift), hops=(1,))
        for query in done.queries[:1]
    ]
    assert low <= np.mean(own) <= high


def test_misread_takes_another_name_of_the_kind_from_the_passages(blank):
    changed = 0
    for row, done in attempts(blank, replace(NEVER_ERRS, misread=1), 200, hops=(1,)):
        hop, noun = row["metadata"]["hops"][0], row["metadata"]["relations"][0]
        if not done.useful:
            continue
        text = done.pieces[-3].text
        others = {
            name
            for name in blank.world.entities[BY_NOUN[noun].object]
            if name in text and name not in (hop["answer"], row["metadata"]["entity"])
        }
        in_titles_only = {name for name in others if text.count(name) == text.count(f"( {name} )")}
        if others - in_titles_only:
            assert done.answer in others
            changed += 1
        assert done.answer in others | {hop["answer"]}
    assert changed > 20


def test_believing_takes_a_name_from_passages_that_do_not_state_the_fact(blank):
    habits = replace(NEVER_ERRS, keywords=(1, 0, 0, 0), retry=0)
    believed = 0
    for row, done in attempts(blank, replace(habits, believe=1), 200, hops=(1,)):
        if not done.useful and "missing" not in notes_of(done):
            assert f"found {done.answer}" in notes_of(done)
            assert done.answer in done.pieces[-3].text
            assert done.answer != row["golden_answers"][0]
            kind = BY_NOUN[row["metadata"]["relations"][0]].object
            assert done.answer in blank.world.entities[kind]
            believed += 1
    assert believed > 40
    for _, done in attempts(blank, habits, 200, hops=(1,)):
        found = any(note.startswith("found") for note in notes_of(done))
        assert found == bool(done.useful) == ("missing" not in notes_of(done))


def test_retry(blank):
    habits = replace(NEVER_ERRS, keywords=(0.25, 0.25, 0.25, 0.25), searches=4)
    gave_up = 0
    for _, done in attempts(blank, replace(habits, retry=0), 200, hops=(1,)):
        assert len(done.queries) == 1
        gave_up += not done.useful
    assert gave_up > 30
    went_on = 0
    for _, done in attempts(blank, replace(habits, retry=1), 200, hops=(1,)):
        assert done.useful or len(done.queries) == 4
        went_on += len(done.queries) > 1
    assert went_on > 30


def test_a_new_search_is_rarely_one_it_made_already(blank):
    habits = replace(NEVER_ERRS, keywords=(0.25, 0.25, 0.25, 0.25))
    queries = [done.queries for _, done in attempts(blank, habits)]
    assert sum(len(q) - len(set(q)) for q in queries) < 0.02 * sum(map(len, queries))


@pytest.mark.parametrize("searches", [0, 1, 2, 5])
def test_at_most_so_many_searches(blank, searches):
    habits = replace(Habits(), retry=1, believe=0, searches=searches)
    made = [len(done.queries) for _, done in attempts(blank, habits)]
    assert max(made) == searches
    follow = [f"nothing {n}" for n in range(9)]
    made = [len(done.queries) for _, done in attempts(blank, habits, 20, follow=follow)]
    assert set(made) == {searches}


def test_what_is_not_found_is_guessed_from_what_was_read_or_admitted(blank):
    habits = replace(NEVER_ERRS, keywords=(1, 0, 0, 0), retry=0)
    admitted = guessed = 0
    for row, done in attempts(blank, habits, 300, hops=(1,)):
        if done.useful:
            continue
        kind = BY_NOUN[row["metadata"]["relations"][0]].object
        text = " ".join(p.text for p in done.pieces if p.kind == "information")
        if done.answer == UNKNOWN:
            bodies = " ".join(d["contents"].split("\n")[1] for d in blank.search(done.queries[0]))
            assert not any(name in bodies for name in blank.world.entities[kind])
            admitted += 1
        else:
            assert done.answer in blank.world.entities[kind]
            assert done.answer in text
            guessed += 1
    assert admitted > 5
    assert guessed > 20


def test_it_recalls_what_is_known_and_nothing_else(knowing):
    for row, done in attempts(knowing, replace(NEVER_ERRS, recall=1)):
        recalled = [n.removeprefix("recall ") for n in notes_of(done) if n.startswith("recall")]
        meta = row["metadata"]
        if all(meta["known"]):
            assert not done.queries
            assert done.correct
            assert recalled == [hop["answer"] for hop in meta["hops"]]
        if not any(meta["known"]):
            assert done.queries
            assert not recalled
    for _, done in attempts(knowing, replace(NEVER_ERRS, recall=0)):
        assert done.queries
        assert not any(note.startswith("recall") for note in notes_of(done))


def test_nothing_of_a_blank_world_is_recalled(blank):
    for _, done in attempts(blank, replace(NEVER_ERRS, recall=1)):
        assert done.queries
        assert not any(note.startswith("recall") for note in notes_of(done))


# -- hints -----------------------------------------------------------------------------------


def test_queries_to_follow_come_first(blank):
    habits = replace(NEVER_ERRS, keywords=(1, 0, 0, 0))
    rng = np.random.default_rng(0)
    for row in blank.world.questions(60, hops=(1,)):
        name, noun = row["metadata"]["entity"], row["metadata"]["relations"][0]
        good = f"{name} {' '.join(BY_NOUN[noun].keywords)}"
        done = blank.attempt(row, rng, habits, follow=["nothing here", good])
        assert done.queries[:2] == ["nothing here", good]
        if gold_found(blank, row, good):
            assert done.queries == ["nothing here", good]
            assert done.correct
        else:
            assert done.queries[2] == name  # then its own


def test_patience_lasts_as_long_as_there_are_queries_to_follow(blank):
    habits, follow = replace(NEVER_ERRS, retry=0), ["nothing here", "nor here", "nor there"]
    for _, done in attempts(blank, habits, 20, hops=(1,), follow=follow):
        assert done.queries == follow


def test_following_the_useful_queries_of_a_right_attempt_is_right_without_detours(blank):
    habits = replace(Habits(), misread=0, believe=0)
    rng = np.random.default_rng(0)
    checked = detours = 0
    for row, done in attempts(blank, habits, 300):
        if len(done.useful) < len(row["metadata"]["hops"]):
            continue
        after = blank.attempt(row, rng, habits, follow=done.useful)
        assert after.queries == after.useful == done.useful
        assert after.correct
        checked += 1
        detours += len(done.queries) > len(done.useful)
    assert checked > 60
    assert detours > 20


def test_queries_to_avoid_are_avoided_if_another_comes_to_mind(blank):
    habits = replace(NEVER_ERRS, keywords=(0.5, 0.5, 0, 0), retry=0)
    rows = blank.world.questions(150, hops=(1,))
    rng = np.random.default_rng(0)
    for shunned, low, high in ((False, 0.4, 0.6), (True, 0.0, 0.12)):
        used = []
        for row in rows:
            name = row["metadata"]["entity"]
            avoid = frozenset([name] if shunned else [])
            used.append(blank.attempt(row, rng, habits, avoid=avoid).queries[0] == name)
        assert low <= np.mean(used) <= high
    only = replace(habits, keywords=(1, 0, 0, 0))
    name = rows[0]["metadata"]["entity"]
    assert blank.attempt(rows[0], rng, only, avoid=frozenset([name])).queries == [name]
    planned = blank.attempt(rows[0], rng, only, follow=["x"], avoid=frozenset(["x"]))
    assert planned.queries == [name]


# -- as a teacher ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2, 100, 101])
def test_with_its_usual_habits_it_is_of_mixed_quality(seed):
    by = demonstrator(Wiki(WikiConfig(), seed))
    done = attempts(by, Habits(), 300)
    right = np.array([d.correct for _, d in done])
    assert 0.30 <= right.mean() <= 0.45
    by_hops = [right[n::3].mean() for n in range(3)]
    assert by_hops == sorted(by_hops, reverse=True)
    assert by_hops[0] > 0.42
    assert by_hops[2] > 0.12


def test_each_query_reaches_the_retriever_once():
    asked = []

    class Counting:
        def batch_search(self, queries, topk):
            asked.append((list(queries), topk))
            return [
                [{"document": {"id": q, "contents": f'"{q}"\n{q}'}, "score": 1.0}] for q in queries
            ]

    search = remembered(Counting(), 7)
    assert [search(q)[0]["id"] for q in ("a", "b", "a", "a")] == ["a", "b", "a", "a"]
    assert asked == [(["a"], 7), (["b"], 7)]
