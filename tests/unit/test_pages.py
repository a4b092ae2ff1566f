"""The results section of a chapter, on a made-up log whose means are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot

from minisearch import cards, logs, pages
from minisearch.cells import Cell
from minisearch.plots import InteractiveLines

CHAPTER = "01_tiny"
EXAMPLE = Path(__file__).with_name("example_card.yaml")
FACTS = ("key", "command", "abc", False, {}, {"cpu": "x"}, "2026-01-03T10:00:00Z", 1.0, 1.0)
BUCKETS = {"zero": 0.1, "few": 0.2, "many": 0.3}  # not in alphabetical order
RUN = {
    "dense/recall@50": 0.61234,
    "dense/orders": 2.0,
    "bm25/recall@50": 0.5,
    "bm25/orders": None,
    **{f"dense/recall@50/{name}": value for name, value in BUCKETS.items()},
    **{f"bm25/recall@50/{name}": 0.2 for name in ("many", "zero", "odd")},
    "ranker/auc": 0.75,
}
CHART = {"x_label": "rate", "y_label": "R@50", "title": "Recall against rate", "alt": "Lines."}


def record(arm: str, world: int, seed: int, **settings: float) -> logs.Record:
    """A cell whose recall is .5 + world / 10 + seed / 100, less the dial `rate`."""
    recall = 0.5 + world / 10 + seed / 100 - settings.get("rate", 0.0)
    numbers = {f"{arm}/recall@50": recall}
    if arm == "two_towers":  # another stage, with metrics of its own
        numbers = {f"{arm}/auc": 0.75}
    elif arm == "dense":
        numbers |= {f"{arm}/recall@50/{b}": v + world / 10 for b, v in BUCKETS.items()}
        if world == 0:
            numbers.pop(f"{arm}/recall@50/few")  # an empty bucket of one world
    cell = Cell(CHAPTER, "toy", arm, world, 0, seed, tuple(settings.items()))
    return logs.Record(cell, numbers, *FACTS)


@pytest.fixture
def grid(card_file: Path) -> None:
    """Two worlds; the dial turned at seed 0 alone, a second dial too; `shuffled` never run."""
    records = [record("bm25", world, 0) for world in (0, 1)]
    for world in (0, 1):
        records += [record("dense", world, seed) for seed in range(5)]
        records += [record("two_towers", world, 0), record("two_towers", world, 0, rate=0.2)]
        records += [record("dense", world, 0, rate=rate) for rate in (0.3, 0.1)]
        records += [record("dense", world, 0, rate=0.9, other=1.0)]
    kept = logs.Logs({r.cell.folder_name: r for r in records})
    logs.write_logs(kept, cards.cards_folder() / "logs", CHAPTER)


def test_a_score_table_has_a_row_an_arm_and_dashes():
    table = pages.score_table(RUN, ["dense", "bm25", "ranker", "nobody"], ("recall@50", "orders"))
    assert list(table.index) == ["dense", "bm25"]
    assert table.to_numpy().tolist() == [["0.612", "2.000"], ["0.500", "-"]]
    assert pages.score_table({}, ["dense"], ("recall@50",)).empty


def test_bucket_scores_keep_their_order():
    assert list(pages.bucket_scores(RUN, "dense", "recall@50").items()) == list(BUCKETS.items())
    assert pages.bucket_scores(RUN, "ranker", "recall@50") == {}
    assert pages.bucket_scores({"dense/recall@50/few": None}, "dense", "recall@50") == {}


def test_a_bucket_plot_joins_two_arms_where_both_have_a_score():
    fig = pages.bucket_plot(RUN, ("bm25", "dense"), "recall@50", "R@50 (share)")
    assert fig is not None
    (ax,) = fig.axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["zero", "many"]
    segments = ax.collections[0].get_segments()
    assert [line[:, 0].tolist() for line in segments] == [[0.2, 0.1], [0.2, 0.3]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["bm25", "dense"]
    assert ax.get_xlabel() == "R@50 (share)"
    pyplot.close(fig)
    assert pages.bucket_plot(RUN, ("bm25", "ranker"), "recall@50", "R@50") is None


def test_the_table_of_arms_averages_the_registered_cells(grid):
    table = pages.arm_table(CHAPTER, ("recall@50", "ndcg@10"))
    assert list(table.columns) == ["role", "runs", "recall@50", "ndcg@10"]
    assert list(table.index) == ["bm25", "dense", "shuffled"]  # the other stage is left out
    assert table.loc["dense"].tolist() == ["main", 10, "0.570", "-"]
    assert table.loc["shuffled"].tolist() == ["refuter", 0, "-", "-"]
    other = pages.arm_table(CHAPTER, ("auc", "recall@50"), ["two_towers", "bm25"])
    assert list(other.index) == ["two_towers", "bm25"]
    assert other.loc["bm25"].tolist() == ["main", 2, "-", "0.550"]


def test_the_table_of_buckets_keeps_their_order(grid):
    table = pages.bucket_table(CHAPTER, ("bm25", "dense", "two_towers"), "recall@50")
    assert list(table.columns) == ["dense"]
    # world 0 comes first and lacks a bucket, which therefore stands last
    assert table["dense"].to_dict() == {"zero": "0.150", "many": "0.350", "few": "0.300"}
    assert list(table.index) == ["zero", "many", "few"]


def test_a_bucket_that_one_arm_lacks_is_a_dash(grid):
    found = cards.logs_of(CHAPTER)
    for kept in found.records.values():
        if kept.cell.arm == "bm25":
            kept.metrics["bm25/recall@50/odd"] = 0.5
    logs.write_logs(found, cards.cards_folder() / "logs", CHAPTER)
    table = pages.bucket_table(CHAPTER, ("dense", "bm25"), "recall@50")
    assert table.loc["odd"].tolist() == ["-", "0.500"]
    assert table.loc["zero"].tolist() == ["0.150", "-"]


def test_a_dose_response_compares_the_same_cells(grid):
    """Seeds 1 to 4 ran at the default alone and would raise that point."""
    x, y = pages.dose_response(CHAPTER, "rate", 0.0, "dense", "recall@50")
    assert x == [0.0, 0.1, 0.3]
    assert y == pytest.approx([0.55, 0.45, 0.25])
    for arm, metric in (("bm25", "recall@50"), ("dense", "auc"), ("nobody", "recall@50")):
        assert pages.dose_response(CHAPTER, "rate", 0.0, arm, metric) == ([], [])
    assert pages.dose_response(CHAPTER, "another", 0.0, "dense", "recall@50") == ([], [])


def test_a_dose_chart_draws_the_arms_that_have_one(grid):
    arms = ("dense", "bm25", "two_towers")
    chart = pages.dose_chart(CHAPTER, "rate", 0.0, arms, "recall@50", **CHART)
    assert isinstance(chart, InteractiveLines)
    assert list(chart.series) == ["dense"]
    chart = pages.dose_chart(CHAPTER, "rate", 0.0, arms, "auc", **CHART)
    assert list(chart.series) == ["two towers"]
    assert chart.title == "Recall against rate"
    note = pages.dose_chart(CHAPTER, "another", 0.0, arms, "recall@50", **CHART)
    assert note.data == "The grid holds no run of this dial."


def curve(arm: str, world: int, seed: int, **settings: float) -> logs.Record:
    """A cell whose curve starts at world + seed / 10, beside other metrics."""
    start = world + seed / 10
    points = {96: start + 0.5, 8: start, 128: start + 0.7}  # in no order, as numbers or as text
    numbers = {f"{arm}/em_training/rollouts: {place}": value for place, value in points.items()}
    numbers[f"{arm}/em_training"] = 9.0
    numbers[f"{arm}/reward/rollouts: 8"] = start - 1
    cell = Cell(CHAPTER, "toy", arm, world, 0, seed, tuple(settings.items()))
    return logs.Record(cell, numbers, *FACTS)


def test_training_curves_are_by_world_in_the_order_of_attempts(card_file: Path):
    records = [curve("dense", world, seed) for world in (0, 1) for seed in range(2 + world)]
    records += [curve("bm25", 0, 5), curve("dense", 0, 7, rate=0.2), curve("dense", 2, 0, rate=0.1)]
    kept = logs.Logs({r.cell.folder_name: r for r in records})
    logs.write_logs(kept, cards.cards_folder() / "logs", CHAPTER)
    places, curves = pages.training_curves(CHAPTER, "dense")
    assert places.tolist() == [8, 96, 128]
    assert [world.shape for world in curves] == [(2, 3), (3, 3)]
    assert curves[0][:, 0].tolist() == [0.0, 0.1]
    assert curves[1][:, 0].tolist() == [1.0, 1.1, 1.2]
    for world in curves:
        assert (world - world[:, :1]).tolist() == [pytest.approx([0, 0.5, 0.7])] * len(world)
    few = pages.training_curves(CHAPTER, "dense", seeds=(1, 2))[1]
    assert [world[:, 0].tolist() for world in few] == [[0.1], [1.1, 1.2]]
    (other,) = pages.training_curves(CHAPTER, "bm25")[1]
    assert other[:, 0].tolist() == [0.5]
    places, (first, _) = pages.training_curves(CHAPTER, "dense", "reward")
    assert places.tolist() == [8]
    assert first.tolist() == [[-1.0], [-0.9]]


def test_without_a_run_there_is_no_training_curve(grid):
    for arm in ("dense", "shuffled"):  # ran without training; never ran
        places, curves = pages.training_curves(CHAPTER, arm)
        assert places.shape == (0,)
        assert curves == []


def test_a_smoothed_curve_is_the_mean_of_what_came_before():
    found = pages.smoothed(np.array([1.0, 3.0, 5.0, 7.0, 0.0]), 3)
    assert found.tolist() == pytest.approx([1, 2, 3, 5, 4])
    assert len(pages.smoothed(np.array([]))) == 0


def test_arms_are_compared_in_the_runs_that_both_have(card_file: Path):
    rows = [record("dense", 0, 0), record("dense", 0, 1), record("dense", 1, 0)]
    rows += [record("bm25", 0, 1), record("bm25", 1, 0), record("dense", 1, 1, rate=0.1)]
    for n, row in enumerate(rows):
        if row.cell.arm == "bm25":
            row.metrics["bm25/recall@50"] -= 0.1 * (n - 2)  # .1 and .2 lower
    kept = logs.Logs({row.cell.folder_name: row for row in rows})
    logs.write_logs(kept, cards.cards_folder() / "logs", CHAPTER)
    gains = pages.paired(CHAPTER, "dense", "bm25", "recall@50")
    assert sorted(gains.tolist()) == pytest.approx([0.1, 0.2])
    only = pages.paired(CHAPTER, "dense", "bm25", "recall@50", seeds=[1])
    assert only.tolist() == pytest.approx([0.1])
    table = pages.paired_table(CHAPTER, ["dense", "bm25", "none"], "bm25", ["recall@50", "other"])
    assert table.loc["dense"].tolist() == ["+0.150 ± 0.050", pages.MISSING, 2]
    assert table.index.tolist() == ["dense"]


def test_deviations_and_tuning_are_tables_even_when_empty(card_file: Path):
    assert pages.deviations_table(CHAPTER).loc[1, "effect"] == "lower recall"
    assert pages.tuning_table(CHAPTER).loc["dense", "chosen"] == "2e-3"
    text = card_file.read_text()
    start, end = text.index("tuning:"), text.index("unstated:")
    card_file.write_text(text[:start] + "tuning: []\ndeviations: []\n" + text[end:])
    assert pages.deviations_table(CHAPTER).empty
    assert list(pages.tuning_table(CHAPTER).columns) == ["sweep", "chosen", "worlds", "seeds"]


def test_the_note_on_the_live_run(grid):
    nothing = "The grid holds no run of this profile, world and dials to compare with."
    usual = {"dense/recall@50": 0.52, "bm25/recall@50": 0.5}
    told = "This run lies where the grid predicts."
    assert pages.live_note(CHAPTER, "toy", 0, usual, True) == told
    odd = pages.live_note(CHAPTER, "toy", 0, usual | {"dense/recall@50": 0.9}, True)
    assert "dense/recall@50 of this run is 0.9000" in odd
    for profile, world, metrics, default in (
        ("toy", 0, usual, False),
        ("smoke", 0, usual, True),
        ("toy", 7, usual, True),
        ("toy", 0, {"shuffled/recall@50": 0.3}, True),
    ):
        assert pages.live_note(CHAPTER, profile, world, metrics, default) == nothing


def test_a_chapter_without_a_log_has_pages_too(card_file: Path):
    assert set(pages.arm_table(CHAPTER, ("recall@50",))["recall@50"]) == {"-"}
    assert pages.bucket_table(CHAPTER, ("dense",), "recall@50").empty
    assert pages.dose_response(CHAPTER, "rate", 0.0, "dense", "recall@50") == ([], [])
    assert "no run" in pages.live_note(CHAPTER, "toy", 0, {"dense/recall@50": 0.5}, True)
