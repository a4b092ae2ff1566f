"""The tables on the toy models say what the measured files say, and no more."""

from __future__ import annotations

import pytest

from minisearch import book
from minisearch.agents import report
from minisearch.models.lm import TOY_MODELS


def test_met_follows_the_rule_and_nothing_else():
    by_text = {c.text: c for c in report.PRECONDITIONS}
    band = by_text["EM without help, blank worlds, T=1"]
    assert [band.met(v, 0, 1) for v in (0.14, 0.15, 0.40, 0.41)] == [False, True, True, False]
    gain = by_text["EM gained by one right sibling, T=1"]
    assert not gain.met(0.30, 0.20, 0.40)
    assert gain.met(0.30, 0.21, 0.40)
    plans = by_text["share of attempts that write a plan, T=1"]
    assert not plans.met(0.0, 0.0, 0.01)


def test_an_unmeasured_value_is_a_dash_and_meets_nothing():
    assert report.shown([None, None, None, 0]) == "–"


@pytest.mark.parametrize("name", TOY_MODELS)
def test_every_precondition_was_measured(name):
    found = {name: report.measured(name)}
    table = report.preconditions_markdown(found)
    assert table.count("\n") == len(report.PRECONDITIONS) + 1
    for condition in report.PRECONDITIONS:
        value = report._at(found[name], condition.path)
        verdict = "met" if condition.met(*value[:3]) else "**not met**"
        assert (
            f"| {condition.text} | {condition.wanted} | {report.shown(value)} {verdict} |" in table
        )
    assert report.measured(name)["questions"] == 1000


@pytest.mark.parametrize("name", TOY_MODELS)
def test_what_the_page_says_of_the_tables_is_what_they_say(name):
    found = report.measured(name)
    unmet = [c.text for c in report.PRECONDITIONS if not c.met(*report._at(found, c.path)[:3])]
    assert all("bridge, rest known" in text for text in unmet), unmet
    closed = found["closed book"]
    assert closed["knowing"]["1-hop, all known"][0] > 0.9  # "remembers nearly all"
    assert closed["knowing"]["2-hop, all known"][0] < 0.1  # "does not put two of them together"
    assert closed["knowing, for training"]["2-hop, all known"][0] > 0.8  # "answers such chains"
    assert found["retrieval"]["2"]["and all three words"][0] > 0.9  # "nearly always succeeds"
    texts = found["perplexity"]
    assert texts["shuffled"][1] > texts["in order"][2]


@pytest.mark.parametrize("name", TOY_MODELS)
def test_the_card_beside_the_weights_shows_the_same_tables(name):
    card = (report.ASSETS / f"toy_lm_{name[-1]}" / "README.md").read_text(encoding="utf-8")
    found = {name: report.measured(name)}
    for make in (
        report.preconditions_markdown,
        report.hops_markdown,
        report.hints_markdown,
        report.evidence_markdown,
        report.ceiling_markdown,
        report.perplexity_markdown,
    ):
        assert make(found) in card


def test_every_block_the_page_asks_for_exists():
    page = (book.project_root() / "book" / "toy_world.md").read_text(encoding="utf-8")
    asked = [match[2] for match in book._GENERATED.finditer(page)]
    assert sorted(asked) == sorted(report.page_blocks())
    filled = book._GENERATED.sub(book._generated, page)
    assert "% generated" not in filled
    assert "| hops | question |" in filled


def test_attempts_are_escaped_and_named():
    shown = report.attempt_html("<think> a < b </think> <search> c </search> stray")
    assert shown == (
        '<div class="ms-attempt"><div class="ms-piece ms-think"><b>think</b> a &lt; b</div>'
        '<div class="ms-piece ms-search"><b>search</b> c</div></div>'
    )
