"""The invented encyclopedia: formats, answers that can be found, dials that do what they say."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from minisearch.data.qa import body_of, title_of
from minisearch.errors import InputError
from minisearch.retriever import BM25Retriever
from minisearch.worlds.wiki import (
    KNOWING_SEEDS,
    ROLES,
    Wiki,
    WikiConfig,
    name_parts,
    role_of,
)
from minisearch.worlds.wiki_relations import BY_NOUN, RELATIONS, ask


@pytest.fixture(scope="module")
def world() -> Wiki:
    return Wiki(WikiConfig(), 0)


def written(config: WikiConfig, seed: int = 0) -> list[tuple]:
    """(fact, its passage) for every passage that states a fact."""
    wiki = Wiki(config, seed)
    passages = {document["id"]: document for document in wiki.corpus}
    return [(fact, passages[i]) for fact, ids in wiki.gold_ids.items() for i in ids]


def names_of(wiki: Wiki) -> set[str]:
    return {name for names in wiki.entities.values() for name in names}


# -- formats ---------------------------------------------------------------------------------


def test_ids_are_unique_over_worlds_and_contents_begin_with_the_quoted_title(world):
    others = [
        Wiki(WikiConfig(), 1),
        Wiki(WikiConfig(), 100),
        Wiki(WikiConfig(kind="knowing"), 0),
        Wiki(WikiConfig(kind="knowing"), 1),
    ]
    corpora = [world.corpus, *(other.corpus for other in others)]
    ids = [document["id"] for corpus in corpora for document in corpus]
    assert len(set(ids)) == len(ids)
    for wiki in (world, *others):
        names = names_of(wiki)
        for document in wiki.corpus:
            assert set(document) == {"id", "contents"}
            title, body = document["contents"].split("\n")
            assert title[0] == title[-1] == '"'
            assert title[1:-1] in names
            assert (title_of(document), body_of(document)) == (title[1:-1], body)
            assert body.endswith(" .")
            assert title[1:-1] in body


def test_questions_are_rows_of_flashrag(world):
    rows = world.questions(90)
    for row in rows:
        assert set(row) == {"id", "question", "golden_answers", "metadata"}
        meta = row["metadata"]
        assert {"type", "hops", "entity", "relations", "known"} == set(meta)
        hops = len(meta["hops"])
        assert meta["type"] == f"{hops}-hop"
        assert len(meta["relations"]) == len(meta["known"]) == hops
        assert all(set(hop) == {"question", "answer", "gold_ids"} for hop in meta["hops"])
    assert len({row["id"] for row in rows}) == 90
    assert json.loads(json.dumps(rows)) == rows
    counts = [sum(row["metadata"]["type"] == f"{n}-hop" for row in rows) for n in (1, 2, 3)]
    assert counts == [30, 30, 30]
    assert {row["metadata"]["type"] for row in world.questions(5, hops=(2,))} == {"2-hop"}


def test_three_wordings_of_a_question():
    assert ask(["mentor"], "x y", 0) == "who is the mentor of x y ?"
    assert ask(["mentor", "birthplace"], "x y", 0) == (
        "what is the birthplace of the mentor of x y ?"
    )
    assert ask(["mentor", "birthplace"], "x y", 1) == "name the birthplace of the mentor of x y ."
    assert ask(["mentor"], "x y", 2) == "tell me the mentor of x y ."


# -- answers can be found ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["blank", "knowing"])
@pytest.mark.parametrize("copies", [1, 3])
def test_gold_passages_hold_both_ends_and_hops_lead_to_the_answer(kind, copies):
    wiki = Wiki(WikiConfig(kind=kind, copies=copies, inverse=0.5), 0)
    passages = {document["id"]: document for document in wiki.corpus}
    for row in wiki.questions(150, seed=1):
        meta, here = row["metadata"], row["metadata"]["entity"]
        assert here in row["question"]
        for noun, hop in zip(meta["relations"], meta["hops"], strict=True):
            assert noun in row["question"]
            assert hop["question"] == ask([noun], here, 0)
            assert len(hop["gold_ids"]) == copies
            for found in hop["gold_ids"]:
                text = passages[found]["contents"]
                assert here in text
                assert hop["answer"] in text
                assert any(word in text.split() for word in BY_NOUN[noun].keywords)
            assert wiki.fact_of[noun, here].object == hop["answer"]
            here = hop["answer"]
        assert row["golden_answers"] == [here]
        assert here not in row["question"]


def test_questions_differ_and_the_seed_chooses_them(world):
    rows = world.questions(300)
    keys = [(row["metadata"]["entity"], *row["metadata"]["relations"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert world.questions(300) == rows
    others = world.questions(300, seed=1)
    assert sum(a["question"] == b["question"] for a, b in zip(rows, others, strict=True)) < 10


def test_too_many_questions_are_an_error(world):
    count = len(world.facts)
    assert len(world.questions(count // 2, hops=(1,))) == count // 2
    with pytest.raises(InputError, match="ask for fewer"):
        world.questions(count + 1, hops=(1,))


def test_every_subject_has_one_object_of_the_right_kind(world):
    for relation in RELATIONS:
        objects = world.entities[relation.object]
        for subject in world.entities[relation.subject]:
            fact = world.fact_of[relation.noun, subject]
            assert fact.object in objects
            assert fact.object != subject
    assert len(world.facts) == 3 * 40 + 3 * 20 + 3 * 20 + 4 * 20


def test_known_flags_follow_the_known_facts(world):
    wiki = Wiki(WikiConfig(kind="knowing"), 1)
    flags = []
    for row in wiki.questions(120):
        facts = wiki.chain(row["metadata"]["entity"], row["metadata"]["relations"])
        assert row["metadata"]["known"] == [fact in wiki.known for fact in facts]
        flags += row["metadata"]["known"]
    assert 0.4 < np.mean(flags) < 0.6
    assert not any(any(row["metadata"]["known"]) for row in world.questions(60))


# -- dials -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("mismatch", "low", "high"), [(0, 1, 1), (1, 0, 0), (0.67, 0.25, 0.41)])
def test_mismatch_is_the_share_without_the_word_of_the_question(mismatch, low, high):
    rows = written(WikiConfig(mismatch=mismatch))
    share = np.mean([fact.noun in body_of(passage).split() for fact, passage in rows])
    assert low <= share <= high


@pytest.mark.parametrize(("inverse", "low", "high"), [(0, 0, 0), (1, 1, 1), (0.2, 0.13, 0.27)])
def test_inverse_is_the_share_titled_by_the_object(inverse, low, high):
    rows = written(WikiConfig(inverse=inverse))
    for fact, passage in rows:
        assert title_of(passage) in (fact.subject, fact.object)
        first = min((body_of(passage).index(name), name) for name in (fact.subject, fact.object))
        if BY_NOUN[fact.noun].noun not in body_of(passage):  # "the noun of s is o" begins with s
            assert first[1] == title_of(passage)
    share = np.mean([title_of(passage) == fact.object for fact, passage in rows])
    assert low <= share <= high


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 2.0])
def test_distractors_are_further_passages_that_state_no_fact(share):
    wiki = Wiki(WikiConfig(distractors=share), 0)
    gold = {i for ids in wiki.gold_ids.values() for i in ids}
    others = [document for document in wiki.corpus if document["id"] not in gold]
    assert len(others) == share * 100
    keywords = {word for relation in RELATIONS for word in relation.keywords}
    assert all(not keywords & set(body_of(document).split()) for document in others)


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_copies_are_passages_in_wordings_of_their_own(copies):
    wiki = Wiki(WikiConfig(copies=copies, distractors=0), 0)
    passages = {document["id"]: body_of(document) for document in wiki.corpus}
    assert len(passages) == copies * len(wiki.facts)
    for fact, ids in wiki.gold_ids.items():
        words = [
            {word for word in BY_NOUN[fact.noun].keywords if word in passages[i].split()}
            for i in ids
        ]
        assert len(ids) == copies
        assert all(len(found) == 1 for found in words)
        assert len(set.union(*words)) == copies


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_known_share_of_a_knowing_world(share):
    wiki = Wiki(WikiConfig(kind="knowing", known_share=share), 0)
    assert len(wiki.known) == share * len(wiki.facts)
    assert wiki.known <= set(wiki.facts)
    assert not Wiki(WikiConfig(known_share=share), 0).known


@pytest.mark.parametrize(
    "changes",
    [
        {"mismatch": 0.0},
        {"inverse": 1.0},
        {"distractors": 3.0},
        {"copies": 3},
        {"known_share": 0.9},
    ],
)
@pytest.mark.parametrize("kind", ["blank", "knowing"])
def test_other_dials_leave_names_and_facts_alone(kind, changes):
    base = WikiConfig(kind=kind)
    plain, changed = Wiki(base, 2), Wiki(replace(base, **changes), 2)
    assert changed.entities == plain.entities
    assert changed.facts == plain.facts
    if "known_share" not in changes:
        assert changed.known == plain.known
        assert changed.corpus != plain.corpus
    assert changed.questions(30)[0]["question"] == plain.questions(30)[0]["question"]


def test_sizes_kind_and_seed_change_the_facts(world):
    for other in (
        Wiki(WikiConfig(people=41), 0),
        Wiki(WikiConfig(), 1),
        Wiki(WikiConfig(kind="knowing"), 0),
    ):
        assert other.facts != world.facts


def test_a_world_without_films():
    wiki = Wiki(WikiConfig(films=0), 0)
    assert len(wiki.facts) == 3 * 40 + 3 * 20 + 3 * 20
    assert wiki.questions(30)


# -- seeds -----------------------------------------------------------------------------------

_DIGEST = """
import hashlib, json
from minisearch.worlds.wiki import Wiki, WikiConfig
for kind in ("blank", "knowing"):
    w = Wiki(WikiConfig(kind=kind), 100)
    known = sorted(map(str, w.known))
    text = json.dumps([w.corpus, w.questions(60), known], sort_keys=True)
    print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_the_same_seed_is_the_same_bytes_in_another_process():
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    found = subprocess.run(
        [sys.executable, "-c", _DIGEST], capture_output=True, text=True, check=True, env=environment
    )
    here = []
    for kind in ("blank", "knowing"):
        wiki = Wiki(WikiConfig(kind=kind), 100)
        text = json.dumps(
            [wiki.corpus, wiki.questions(60), sorted(map(str, wiki.known))], sort_keys=True
        )
        here.append(hashlib.sha256(text.encode()).hexdigest())
    assert found.stdout.split() == here
    assert here[0] != here[1]


@pytest.mark.parametrize(
    ("seed", "role"),
    [
        (0, "evaluation"),
        (99, "evaluation"),
        (100, "development"),
        (199, "development"),
        (200, "training"),
        (299, "training"),
        (1000, "pretraining"),
        (999_999, "pretraining"),
    ],
)
def test_what_a_seed_is_for(seed, role):
    assert role_of(seed) == role
    assert Wiki(WikiConfig(), seed).role == role


@pytest.mark.parametrize("seed", [-1, 300, 999, 1_000_000])
def test_a_seed_outside_every_range(seed):
    with pytest.raises(InputError, match=r"world_seed.*development 100-199"):
        Wiki(WikiConfig(), seed)


def test_roles_do_not_overlap():
    seeds = [seed for role, seeds in ROLES.items() for seed in (seeds.start, seeds.stop - 1)]
    assert seeds == sorted(seeds)


@pytest.mark.parametrize("seed", [3, 101, 203, 1002])
def test_a_knowing_world_needs_a_seed_that_the_models_have_read(seed):
    assert Wiki(WikiConfig(), seed).facts
    with pytest.raises(InputError, match="no model has read another one"):
        Wiki(WikiConfig(kind="knowing"), seed)


def test_more_entities_than_names_are_an_error():
    assert len(Wiki(WikiConfig(people=600, cities=266), 0).entities["person"]) == 600
    with pytest.raises(InputError, match=r"kind person: found 601.*at most 600 in a blank world"):
        Wiki(WikiConfig(people=601), 0)
    with pytest.raises(InputError, match=r"kind city: found 60.*at most 59 in a knowing world"):
        Wiki(WikiConfig(kind="knowing", cities=60), 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "blnk"},
        {"known_share": 1.1},
        {"mismatch": -0.1},
        {"inverse": float("nan")},
        {"people": 1},
        {"cities": 1},
        {"companies": 0},
        {"films": -1},
        {"copies": 0},
        {"copies": 4},
    ],
)
def test_dials_out_of_range_are_errors_that_name_the_dial(changes):
    with pytest.raises(InputError, match=f"parameter {next(iter(changes))}"):
        WikiConfig(**changes)


def test_name_parts_serve_one_kind_and_place_and_are_no_word_of_a_sentence():
    halves = [half for both in name_parts().values() for half in both]
    parts = [part for half in halves for part in half]
    assert len(set(parts)) == len(parts) == 360
    words = {w for r in RELATIONS for _, *both in r.wordings for s in both for w in s.split()}
    assert not words & set(parts)
    assert not {word for r in RELATIONS for word in (*r.keywords, r.noun)} & set(parts)


# -- retrieval -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "seed"),
    [("blank", 0), ("blank", 1), ("blank", 101), *[("knowing", s) for s in (0, 1)]],
)
def test_all_words_of_a_relation_find_its_passage_the_noun_half_and_the_name_a_quarter(kind, seed):
    wiki = Wiki(WikiConfig(kind=kind), seed)
    retriever = BM25Retriever(wiki.corpus)

    def found(words_of) -> float:
        queries = [" ".join([fact.subject, *words_of(fact)]) for fact in wiki.facts]
        hits = retriever.batch_search(queries, 2)
        return float(
            np.mean(
                [
                    any(hit["document"]["id"] in wiki.gold_ids[fact] for hit in row)
                    for fact, row in zip(wiki.facts, hits, strict=True)
                ]
            )
        )

    everything = found(lambda fact: BY_NOUN[fact.noun].keywords)
    noun = found(lambda fact: [fact.noun])
    name = found(lambda fact: [])
    assert 0.88 <= everything <= 0.99
    assert 0.45 <= noun <= 0.65
    assert 0.18 <= name <= 0.35


def test_without_mismatch_the_noun_is_enough():
    wiki = Wiki(WikiConfig(mismatch=0), 0)
    retriever = BM25Retriever(wiki.corpus)
    queries = [f"{fact.subject} {fact.noun}" for fact in wiki.facts]
    hits = retriever.batch_search(queries, 2)
    found = [
        any(hit["document"]["id"] in wiki.gold_ids[fact] for hit in row)
        for fact, row in zip(wiki.facts, hits, strict=True)
    ]
    assert np.mean(found) > 0.78


def test_knowing_seeds_cover_three_roles_and_both_shown_worlds():
    roles = [role_of(seed) for seed in KNOWING_SEEDS]
    assert [roles.count(role) for role in ROLES] == [3, 1, 3, 2]


def test_questions_of_another_seed_have_ids_of_their_own():
    world = Wiki(WikiConfig(), 100)
    ids = [{q["id"] for q in world.questions(30, seed=seed)} for seed in (0, 1)]
    assert not ids[0] & ids[1]


def test_a_negative_number_of_distractors_is_refused():
    with pytest.raises(InputError, match="distractors"):
        WikiConfig(distractors=-1)
