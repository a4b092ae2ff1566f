"""Claims that any two of several arms are equivalent, on made-up logs of known truth."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import yaml

from minisearch import cards, logs, showing, stats
from minisearch.claims import Card
from minisearch.errors import InputError
from minisearch.verdicts import evaluate

CHAPTER, QUERIES = "01_tiny", 300
EXAMPLE = Path(__file__).with_name("example_card.yaml")
ARMS = ("dense", "two_towers", "bm25", "cross")
FACTS = ("key", "command", "abc", False, {}, {"cpu": "x"}, "2026-01-03T10:00:00Z", 1.0, 1.0)
MadeCard = Callable[..., Card]


@pytest.fixture
def made_card(project: Path) -> MadeCard:
    """The example card with a fourth arm and a secondary claim that its arms are all alike."""
    path = project / "book" / "cards" / f"{CHAPTER}.yaml"
    path.parent.mkdir(parents=True)

    def write(**changes: Any) -> Card:
        content = yaml.safe_load(EXAMPLE.read_text())
        content["arms"].append({"id": "cross", "label": "both", "seeds": "trained", "role": "main"})
        claim = content["claims"][1] | {"id": "alike", "type": "equivalence", "margin": 0.05}
        claim |= {"text": "All are alike.", "among": ["bm25", "cross"], **changes}
        content["claims"][1] = claim
        path.write_text(yaml.safe_dump(content))
        return Card.read(CHAPTER)

    return write


def made_log(card: Card, noise: float = 0.05, **quality: float) -> logs.Logs:
    """Every cell of the grid; an arm's values scatter around its quality, .5 by default."""
    records, frames = {}, []
    for cell in itertools.chain.from_iterable(card.cells(arm) for arm in card.arms):
        rng = np.random.default_rng([cell.world_seed, cell.seed, *cell.arm.encode()])
        values = quality.get(cell.arm, 0.5) + noise * rng.normal(size=QUERIES)
        values += 0.1 * noise * rng.normal()
        metrics = {f"{cell.arm}/recall@50": float(values.mean())}
        records[cell.folder_name] = logs.Record(cell, metrics, *FACTS)
        columns = {"cell": cell.folder_name, "query_row": np.arange(QUERIES), "recall@50": values}
        frames.append(pandas.DataFrame(columns))
    return logs.Logs(records, pandas.concat(frames, ignore_index=True))


def result_of(card: Card, log: logs.Logs) -> dict[str, Any]:
    return evaluate(card, log)["claims"]["alike"]


def edit(change: Callable[[dict[str, Any]], Any]) -> Card:
    """Change the card's file and read it again."""
    path = cards.cards_folder() / f"{CHAPTER}.yaml"
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))
    return Card.read(CHAPTER)


def test_arms_that_are_all_alike_support(made_card: MadeCard):
    card = made_card()
    found = result_of(card, made_log(card))
    assert found["verdict"] == "SUPPORTED"
    named = [(pair["treatment"], pair["baseline"]) for pair in found["pairs"]]
    assert named == list(itertools.combinations(ARMS, 2))
    assert {pair["verdict"] for pair in found["pairs"]} == {"SUPPORTED"}
    widest = max(found["pairs"], key=lambda pair: max(-pair["low"], pair["high"]))
    assert found["decisive"] == [widest["treatment"], widest["baseline"]]
    assert (found["estimate"], found["low"]) == (widest["estimate"], widest["low"])
    assert (found["seeds"], found["worlds"], found["queries"]) == (3, 3, 3 * QUERIES)
    json.dumps(found, allow_nan=False)


def test_the_p_of_a_supported_claim_is_the_largest_of_its_pairs(made_card: MadeCard):
    made_card()
    card = edit(lambda c: c["arms"][2].pop("seed_range"))  # every arm on the same seeds
    log = made_log(card, noise=0.2)
    found = result_of(card, log)
    assert found["verdict"] == "SUPPORTED"
    ps = []
    for a, b in itertools.combinations(ARMS, 2):
        two = {"treatment": a, "baseline": b, "among": []}
        ps.append(result_of(edit(lambda c, two=two: c["claims"][1].update(two)), log)["p"])
    assert min(ps) > 0
    assert found["p"] == pytest.approx(max(ps))
    assert found["p"] == found["p_holm"] < 0.05


def test_one_pair_that_may_be_too_far_apart_is_inconclusive(made_card: MadeCard):
    card = made_card()
    found = result_of(card, made_log(card, bm25=0.475, cross=0.525))
    assert found["verdict"] == "INCONCLUSIVE"
    assert found["decisive"] == ["bm25", "cross"]
    assert [pair["verdict"] for pair in found["pairs"]].count("INCONCLUSIVE") == 1
    assert found["p"] >= 0.05


def test_one_pair_that_is_far_apart_contradicts(made_card: MadeCard):
    card = made_card()
    found = result_of(card, made_log(card, cross=0.6))
    assert found["verdict"] == "CONTRADICTED"
    assert "cross" in found["decisive"]
    assert found["estimate"] == pytest.approx(-0.1, abs=0.02)
    assert [pair["verdict"] for pair in found["pairs"]].count("CONTRADICTED") == 3
    assert found["p"] < 0.05


def interval_at(distance: float) -> stats.Interval:
    """The interval of a pair whose two-sided p of lying beyond a margin of .05 is near .02."""
    return stats.Interval(distance, distance - 0.01, distance + 0.01, "made up", 1e6, 5, 1, 10)


@pytest.mark.parametrize(
    ("distance", "verdict"), [(0.062, "INCONCLUSIVE"), (0.066, "CONTRADICTED")]
)
def test_contradiction_is_corrected_for_the_number_of_pairs(
    made_card: MadeCard, monkeypatch, distance, verdict
):
    """Alone, a pair at .062 contradicts (p .019); as one of six it does not (.11)."""
    card = made_card()
    log = made_log(card, noise=1e-3, cross=0.6)
    monkeypatch.setattr(
        stats, "interval", lambda d: interval_at(distance if abs(d[0].mean()) > 0.09 else 0.0)
    )
    p = stats.p_value("equivalence", interval_at(distance), 0.05)
    found = result_of(card, log)
    assert stats.verdict("equivalence", interval_at(distance), 0.05) == "CONTRADICTED"
    assert p < 0.05
    assert found["verdict"] == verdict
    assert found["p"] == pytest.approx(6 * p)
    assert verdict in [pair["verdict"] for pair in found["pairs"]]
    assert "cross" in found["decisive"]


@pytest.mark.parametrize("arm", ARMS)
def test_one_missing_cell_of_any_arm_means_not_run(made_card: MadeCard, arm: str):
    card = made_card()
    log = made_log(card)
    name = card.cells(arm)[0].folder_name
    del log.records[name]
    log.rows = log.rows[log.rows["cell"] != name]
    assert result_of(card, log) == {"verdict": "NOT-RUN", "missing_cells": 1}


def test_rivals_are_held_against_the_baseline_alone(made_card: MadeCard):
    def make_primary(c: dict[str, Any]) -> None:
        c["claims"][0].pop("primary")
        c["claims"][1]["primary"] = True
        c["arms"][2]["seed_range"] = "0-4"

    made_card()
    card = edit(make_primary)
    found = evaluate(card, made_log(card))["rivals"]["shuffled"]
    assert found["wins"]
    assert "pairs" not in found
    assert not evaluate(card, made_log(card, shuffled=0.3))["rivals"]["shuffled"]["wins"]


WRONG = [
    ({"type": "non_inferiority"}, "among: found a non_inferiority claim; expected equivalence"),
    ({"among": ["bm25", "crss"]}, "did you mean 'cross'"),
    ({"among": ["bm25", "dense"]}, "found dense, two_towers, bm25, dense; expected each arm once"),
    ({"among": "bm25"}, r"claims\[1\]\.among: found str; expected a list"),
    ({"among": [1]}, r"claims\[1\]\.among\[0\]: found 1"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_use_is_named(made_card: MadeCard, changes: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        made_card(**changes)


def test_further_arms_need_seeds_in_common(made_card: MadeCard):
    assert made_card().common_seeds(made_card().claims["alike"]) == (0, 1, 2)
    with pytest.raises(InputError, match="alike, seeds: found 1; expected at least 3"):
        edit(lambda c: c["arms"][-1].update(seed_range="2-4"))


def test_rows_are_kept_for_every_arm(made_card: MadeCard):
    card = made_card(metric="hit_rate@50")
    kept = {arm: card.logged_metrics(card.cells(arm)[0]) for arm in card.arms}
    assert kept["cross"] == ["hit_rate@50"]
    assert kept["bm25"] == ["recall@50", "hit_rate@50"]
    assert kept["shuffled"] == ["recall@50"]


def test_the_digest_changes_with_the_arms_and_only_then(made_card: MadeCard):
    plain = made_card(among=[]).digest()
    assert edit(lambda c: c["claims"][1].pop("among")).digest() == plain
    assert len({plain, made_card().digest(), made_card(among=["bm25"]).digest()}) == 3


def test_pages_name_the_decisive_pair(made_card: MadeCard):
    card = made_card()
    logs.write_logs(made_log(card, cross=0.6), cards.cards_folder() / "logs", CHAPTER)
    found = cards.publish(CHAPTER)["claims"]["alike"]
    claim = showing.to_json(card)["claims"][1]
    assert claim["arms"] == {
        "treatment": "dense",
        "baseline": "two_towers",
        "among": ("bm25", "cross"),
    }
    assert (claim["decisive"], len(claim["pairs"])) == (found["decisive"], 6)
    assert f" in recall@50, decisive of 6 pairs: {' - '.join(found['decisive'])} |" in (
        table := showing.claims_markdown(CHAPTER)
    )
    assert "equivalence of any two (0.05)" in table
    assert showing.to_json(card)["claims"][0]["pairs"] is None
    assert table.count("decisive") == 1
    assert "dense against bm25" in showing.card_box(CHAPTER)
