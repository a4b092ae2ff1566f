"""Beams as HTML: merged by prefix, escaped, and switched by a script that needs nothing else."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from math import log

import pytest

from minisearch.beam_viewer import BeamView, beams_html
from minisearch.errors import InputError

POSITIONS = ["category", "colour & shade", "scene"]
AFTER = BeamView(
    query="red <clogs>",
    state="after",
    asked=["shoes", "red", ""],
    paths=[["shoes", "red", ""], ["shoes", "red", "beach"], ["shoes", "crocs", ""]],
    scores=[log(0.4), log(0.35), log(0.05)],
    products=["Clogs & co", "Red shoes"],
    marked=[True, False],
    reserved=["crocs"],
)
BEFORE = replace(AFTER, state="before", paths=AFTER.paths[:1], scores=[-0.5], marked=[False, False])
BOOTS = replace(AFTER, query="winter boots")


def tree_of(page: str) -> str:
    return page.split('class="ms-beam-names">')[1].split("</div>")[1]


def boxes(page: str) -> list[tuple[str, str, str]]:
    """Class, share and text of each box, in the order of the tree."""
    found = re.findall(r'<li(.*?) style="--p:([\d.]+)"><span>(.*?)</span>(?=<ul>| <em>)', page)
    return [
        (re.sub(r' class="|"', "", kind), share, re.sub(r"<.*?>", "", text))
        for kind, share, text in found
    ]


class Balance(HTMLParser):
    """Every element that opens is closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in {"br", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_beams_are_merged_by_prefix_and_shaded_by_their_share():
    assert boxes(tree_of(beams_html([AFTER], POSITIONS, "t"))) == [
        ("ms-beam-same", "1.00", "shoes"),
        ("ms-beam-same", "0.94", "red 94 %"),
        ("ms-beam-same ms-beam-empty", "0.50", "– 50 %"),
        ("", "0.44", "beach 44 %"),
        ("ms-beam-new", "0.06", "★ crocs 6 %"),
        ("ms-beam-same ms-beam-empty", "0.06", "–"),
    ]


def test_a_leaf_has_rank_and_score_also_where_two_beams_read_the_same():
    page = beams_html([replace(AFTER, paths=[AFTER.paths[0]] * 2 + AFTER.paths[2:])], POSITIONS, "")
    assert re.findall(r"<em>(<b>.*?)</em>", page) == [
        "<b>1</b> −0.92<br><b>2</b> −1.05", "<b>3</b> −3.00",
    ]  # fmt: skip


def test_very_improbable_beams_have_shares_too():
    page = beams_html([replace(AFTER, scores=[-2000.0, -2000.0, -2010.0])], POSITIONS, "")
    shares = [text for *_, text in boxes(tree_of(page))]
    assert shares[2:5] == ["– 50 %", "beach 50 %", "★ crocs &lt;1 %"]


def test_the_querys_identifier_names_positions_and_marks_new_words():
    view = replace(AFTER, asked=["shoes", "crocs", ""])
    chips = beams_html([view], POSITIONS, "").split('"ms-beam-asked">')[1].split("</ol>")[0]
    assert "<li><small>category</small> <span>shoes</span></li>" in chips
    assert '<li class="ms-beam-new"><small>colour &amp; shade</small> <span><span' in chips
    assert "★</span> crocs</span></li>" in chips
    assert '<li class="ms-beam-empty"><small>scene</small> <span>–</span></li>' in chips


def test_products_are_escaped_and_marked():
    page = beams_html([BEFORE, AFTER], POSITIONS, "<Edit>")
    assert re.findall(r'<li class="ms-beam-bound">.*?★</span> (.*?)</li>', page) == [
        "Clogs &amp; co"
    ]
    assert page.count("<li>Clogs &amp; co</li>") == 1  # before the edit
    assert "<figcaption>&lt;Edit&gt;</figcaption>" in page
    assert "red &lt;clogs&gt;</button>" in page
    assert "<clogs>" not in page


def test_the_summary_counts_what_is_bound():
    page = beams_html([BEFORE, AFTER], POSITIONS, "")
    start = "“red &lt;clogs&gt;” {}: {} of the 2 products shown {} bound to ★ crocs."
    said = re.findall(r'data-say="(.*?)"', page)
    assert said == [
        start.format("before the edit", 0, "are"),
        start.format("after the edit", 1, "is"),
    ]
    assert f'role="status">{said[0]}</p>' in page


def test_nothing_found_is_said():
    nothing = replace(AFTER, paths=[], scores=[], products=[], marked=[], reserved=[])
    page = beams_html([nothing], POSITIONS, "")
    assert "<p>no beam</p>" in page
    assert "<li>nothing found</li>" in page
    assert "no product is bound to a new word" in page


def test_without_the_script_the_first_view_stands_alone():
    page = beams_html([BEFORE, AFTER, BOOTS], POSITIONS, "")
    views = re.findall(
        r'<div class="ms-beam-view" data-query="(\d)" data-state="(\w+)" .*?"( hidden)?>', page
    )
    assert views == [("0", "before", ""), ("0", "after", " hidden"), ("1", "after", " hidden")]
    assert '<div class="ms-beam-controls" hidden>' in page
    assert re.findall(r'class="ms-beam-ask" data-query="(\d)"', page) == ["0", "1"]


def test_the_page_is_well_formed_asks_nobody_and_is_small():
    words = [[f"position {n} word {m}" for n in range(6)] for m in range(8)]
    view = BeamView("q", "before", words[0], words, [-1.0] * 8, ["a title " * 8] * 8, [True] * 8)
    views = [
        replace(view, query=f"query {n}", state=s) for n in range(12) for s in ("before", "after")
    ]
    page = beams_html(views, [f"position {n}" for n in range(6)], "t")
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r"https?:|src=|@import|fetch\(", page)
    assert len(page.encode()) < 250_000


def test_only_the_first_eight_are_drawn():
    paths = [["shoes", "red", f"scene {n}"] for n in range(10)]
    view = replace(
        AFTER, paths=paths, scores=[-1.0] * 10, products=list("abcdefghij"), marked=[True] * 10
    )
    page = beams_html([view], POSITIONS, "")
    assert "scene 7 12 %" in re.sub("<.*?>", "", page)
    assert "scene 8" not in page
    assert "8 of the 8 products" in page


@pytest.mark.parametrize(
    ("views", "said"),
    [
        ([], "0 views"),
        ([replace(AFTER, state="aftr")], "did you mean 'after'?"),
        ([AFTER, AFTER], "'after' twice"),
        ([replace(AFTER, asked=["shoes"])], "identifiers of 1, 3 words"),
        ([replace(AFTER, scores=[-1.0])], "scores: found 1 for 3"),
        ([replace(AFTER, marked=[])], "marked: found 0 for 2"),
        ([replace(AFTER, scores=[-1.0, -2.0, float("-inf")])], "leave places without a beam out"),
    ],
)
def test_what_does_not_fit_is_refused(views, said):
    with pytest.raises(InputError, match=re.escape(said)):
        beams_html(views, POSITIONS, "")


@pytest.mark.browser
def test_a_reader_types_picks_and_switches():
    found = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if found is None:
        pytest.skip("no browser: neither chromium nor google-chrome is installed")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = chromium.new_page()
        page.set_content(beams_html([BEFORE, AFTER, BOOTS], POSITIONS, "t") * 2)  # two figures
        figure = page.locator(".ms-beam").last
        search, status = figure.get_by_role("searchbox"), figure.locator(".ms-beam-status")
        button = figure.get_by_role("button", name="after the edit")
        button.focus()
        page.keyboard.press("Enter")
        assert "1 of the 2" in status.inner_text()
        assert button.get_attribute("aria-pressed") == "true"
        search.fill("WINTER b")
        assert "winter boots" in status.inner_text()
        assert figure.get_by_role("button", name="before the edit").is_disabled()
        assert figure.locator(".ms-beam-ask:visible").all_inner_texts() == ["winter boots"]
        search.fill("zebra")
        assert "None of the 2 sample queries" in figure.locator(".ms-beam-none").inner_text()
        search.press("Escape")
        figure.get_by_role("button", name="red <clogs>").click()
        shown = figure.locator(".ms-beam-view:visible")
        assert [view.get_attribute("data-state") for view in shown.all()] == ["after"]
        assert "before the edit" in page.locator(".ms-beam-status").first.inner_text()
        chromium.close()
