"""Whatever the world: names keep to their role and kind, and no question comes back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from minisearch.worlds.wiki import KNOWING_SEEDS, ROLES, Wiki, WikiConfig, role_of

share = st.floats(0, 1)
dials = {
    "people": st.integers(2, 59),
    "cities": st.integers(2, 59),
    "companies": st.integers(2, 59),
    "films": st.integers(0, 59),
    "known_share": share,
    "mismatch": share,
    "inverse": share,
    "distractors": st.floats(0, 3),
    "copies": st.integers(1, 3),
}
blank_seeds = st.one_of([st.integers(r.start, r.stop - 1) for r in ROLES.values()])
blank = st.builds(Wiki, st.builds(WikiConfig, **dials), blank_seeds)
knowing = st.builds(
    Wiki, st.builds(WikiConfig, kind=st.just("knowing"), **dials), st.sampled_from(KNOWING_SEEDS)
)
largest = {"people": 600, "cities": 266, "companies": 266, "films": 266}
largest_knowing = {"people": 133, "cities": 59, "companies": 59, "films": 59}


def names(wiki: Wiki) -> set[str]:
    return {name for names in wiki.entities.values() for name in names}


@settings(max_examples=30, deadline=None)
@given(blank, blank, knowing, knowing)
def test_names_are_of_one_role(one, other, known, another):
    if one.role != other.role:
        assert not names(one) & names(other)
    if known.world_seed != another.world_seed:
        assert not names(known) & names(another)
    for wiki in (one, other):
        assert not names(wiki) & (names(known) | names(another))


def test_even_the_largest_worlds_share_no_name():
    worlds = [Wiki(WikiConfig(**largest), seeds.start) for seeds in ROLES.values()]
    worlds += [Wiki(WikiConfig(kind="knowing", **largest_knowing), s) for s in KNOWING_SEEDS]
    everyone = [name for wiki in worlds for name in names(wiki)]
    assert len(set(everyone)) == len(everyone) == 4 * 1398 + 9 * 310


@settings(max_examples=20, deadline=None)
@given(st.one_of(blank, knowing), st.one_of(blank, knowing))
def test_names_of_one_kind_never_serve_another(one, other):
    kinds = {}
    for wiki in (one, other):
        for kind, entities in wiki.entities.items():
            assert len(set(entities)) == len(entities)
            for name in entities:
                first, second = name.split()
                assert kinds.setdefault(name, kind) == kind
                assert kinds.setdefault((0, first), kind) == kind
                assert kinds.setdefault((1, second), kind) == kind
                assert (0, second) not in kinds
                assert (1, first) not in kinds


@settings(max_examples=20, deadline=None)
@given(st.one_of(blank, knowing), st.integers(0, 100))
def test_no_question_visits_an_entity_twice(wiki, seed):
    if min(len(wiki.entities[kind]) for kind in ("person", "city", "company")) < 5:
        hops = (1, 2)
    else:
        hops = (1, 2, 3)
    for row in wiki.questions(12, hops=hops, seed=seed):
        meta = row["metadata"]
        visited = [meta["entity"], *(hop["answer"] for hop in meta["hops"])]
        assert len(set(visited)) == len(visited)
        assert row["golden_answers"] == [visited[-1]]
        assert not any(name in row["question"] for name in visited[1:])
        assert wiki.role == role_of(wiki.world_seed)


@settings(max_examples=15, deadline=None)
@given(st.one_of(blank, knowing))
def test_each_fact_has_its_passages_and_each_passage_its_title(wiki):
    passages = {document["id"]: document["contents"] for document in wiki.corpus}
    assert len(passages) == len(wiki.corpus)
    for fact, ids in wiki.gold_ids.items():
        assert len(ids) == wiki.config.copies
        for i in ids:
            assert fact.subject in passages[i].split("\n")[1]
            assert fact.object in passages[i].split("\n")[1]
    entities = names(wiki)
    assert all(text.split("\n")[0].strip('"') in entities for text in passages.values())
