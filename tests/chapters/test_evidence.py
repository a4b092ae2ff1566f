"""What is published is what the logs say, and the logs are what the code computes."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from minisearch import cards, showing
from minisearch.claims import Card
from minisearch.runs import fresh_folder
from minisearch.verdicts import evaluate

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted(path.stem for path in (ROOT / "book" / "cards").glob("*.yaml"))
# Arms, of no claim, that were registered and have not run yet; their rows are empty on the page.
STILL_TO_RUN: dict[str, tuple[str, ...]] = {
    "03_onesearch_v2": (
        "hard", "plain", "distilled_blank", "distilled_clicks", "distilled_alone", "distilled_ema",
        "distilled_rdrop", "distilled_fgm", "distilled_focal", "leaking", "errorless",
        "grpo_no_rel", "grpo_ctr", "tpma_released", "tpma_printed", "tpma_strict", "tpma_no_item",
        "dpo", "dpo_then_tpma",
    ),
    "06_csmcir": (
        "generic", "flat", "random", "low", "no_ageing", "ageing", "one_sum", "sum",
        "concat",
    ),
    "09_search_e1": (
        "grpo_updates", "masked", "no_privilege", "stranger", "longest", "reverse", "uncapped",
        "no_answers", "one_round", "four_rounds", "ends_with_grpo", "new_questions", "unlabelled",
        "reused", "too_fast",
    ),
}  # fmt: skip

# Claims whose arms had runs when the cited commit fixed them; the card's history tells the rest.
RUN_EARLY: dict[str, tuple[str, ...]] = {
    "01_kuaisearch": (
        "dense-over-lexical", "one-encoder", "click-models-tie", "numbers-lose-new-products",
    ),
}  # fmt: skip


@pytest.fixture(params=CHAPTERS)
def card(request) -> Card:
    return Card.read(request.param)


def test_every_chapter_has_a_card_and_every_card_a_chapter():
    assert sorted(path.stem for path in (ROOT / "chapters").glob("*.py")) == CHAPTERS


def test_published_results_follow_from_the_committed_log(card):
    published = json.loads((ROOT / "book/cards" / f"{card.chapter}.results.json").read_text())
    assert evaluate(card, cards.logs_of(card.chapter)) == published


def test_the_log_holds_every_registered_cell_and_its_key_is_current(card):
    logged = cards.logs_of(card.chapter).records
    later = STILL_TO_RUN.get(card.chapter, ())
    for arm in card.arms:
        missing = [cell for cell in card.cells(arm) if cell.folder_name not in logged]
        assert bool(missing) == (arm in later), f"{arm} misses {len(missing)} cells"
    assert not set(later) & {arm for claim in card.claims.values() for arm in claim.arms}
    flags = {claim["id"]: claim["flags"] for claim in showing.to_json(card)["claims"]}
    early = {name: ["RUN-BEFORE-REGISTRATION"] for name in RUN_EARLY.get(card.chapter, ())}
    assert {name: told for name, told in flags.items() if told} == early
    assert card.changes or not early


def test_a_registration_has_the_time_of_its_commit(card):
    for entry in card.registrations:
        assert entry.date.endswith("Z"), "a day alone does not tell what ran before"
        command = ["git", "-C", str(ROOT), "show", "-s", "--format=%ct", entry.commit]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:  # a copy without the history has no commits to compare with
            told = datetime.fromtimestamp(int(done.stdout), UTC)
            assert entry.date == told.strftime("%Y-%m-%dT%H:%M:%SZ")


def test_the_readme_shows_the_published_verdicts():
    assert showing.readme_table() in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_a_random_cheap_cell_computes_what_its_log_says(card, tmp_path, monkeypatch):
    monkeypatch.setenv("MINISEARCH_BUILD", str(tmp_path))
    rows = cards.recheck(card, cards.logs_of(card.chapter), fresh_folder, np.random.default_rng())
    assert rows
    assert not [row for row in rows if row.outcome == "different"]
