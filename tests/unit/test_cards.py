"""Cards: reading, collecting, verdicts, rechecks and pages, on made-up runs of known truth."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import yaml
from scipy.optimize import brentq

from minisearch import cards, logs, showing, stats
from minisearch.cells import Cell, code_key
from minisearch.claims import Card
from minisearch.errors import InputError
from minisearch.verdicts import evaluate

CHAPTER, QUERIES = "01_tiny", 200
QUALITY = {"bm25": 0.5, "dense": 0.6, "two_towers": 0.6, "shuffled": 0.3}
EXAMPLE = Path(__file__).with_name("example_card.yaml")


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> Card:
    """Change a card's file and read it again."""
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))
    return Card.read(CHAPTER)


def chapter_file() -> Path:
    return cards.project_root() / "chapters" / f"{CHAPTER}.py"


@cache
def key_of(text: str, path: Path) -> str:
    """The key of the chapter as it is; worked out once for each text."""
    return code_key(path)


def write_run(root: Path, cell: Cell, quality: float | None = None, **facts: Any) -> Path:
    """A complete run folder whose per-query recalls scatter around a known mean."""
    quality = QUALITY[cell.arm] if quality is None else quality
    luck = np.random.default_rng(cell.world_seed).normal(0, 0.2, QUERIES)  # shared by the arms
    fixed = cell.arm == "bm25"
    rng = np.random.default_rng([cell.world_seed, 999 if fixed else cell.seed, len(cell.arm)])
    values = quality + luck - luck.mean() + 0.02 * rng.normal() * (not fixed)
    values = (values + 0.1 * rng.normal(size=QUERIES)).astype("float32")
    folder = root / cell.chapter / cell.profile / cell.folder_name
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    rows = pandas.DataFrame(
        {"query_row": np.arange(QUERIES) * 3, "recall@50": values, "other": 1.0}
    )
    rows.to_parquet(folder / "rows" / f"{cell.arm}.parquet")
    mean = float(values.astype(float).mean())
    metrics = {f"{cell.arm}/recall@50": mean, f"{cell.arm}/recall@50/empty": None}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    run = {
        "cell": cell.to_dict(),
        "code_key": key_of((chapter := chapter_file()).read_text(), chapter),
        "command": "minisearch reproduce 01",
        "commit": "abc",
        "dirty": False,
        "versions": {"numpy": "2"},
        "machine": {"cpu": "a CPU"},
        "date": "2026-01-03T10:00:00Z",
        "wall_seconds": 2.0,
        "cpu_seconds": 1.0 if fixed else 60.0,
        "peak_memory_mb": 100,
    }
    (folder / "run.json").write_text(json.dumps(run | facts))
    return folder


def run_grid(card: Card, root: Path, **quality: float) -> None:
    for arm in card.arms:
        for cell in card.cells(arm):
            write_run(root, cell, quality.get(arm))


@pytest.fixture
def root(project: Path) -> Path:
    return project / "_build" / "runs"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder, filled by the first test that needs the whole grid."""
    return tmp_path_factory.mktemp("template")


@pytest.fixture
def gathered(card_file: Path, root: Path, template: Path) -> tuple[Card, logs.Logs]:
    """The example card with its whole grid run and collected."""
    card, kept = Card.read(CHAPTER), card_file.parent / "logs"
    if not any(template.iterdir()):
        run_grid(card, root)
        cards.collect(CHAPTER)
        shutil.copytree(root, template / "runs")
        shutil.copytree(kept, template / "logs")
    else:
        shutil.copytree(template / "runs", root)
        shutil.copytree(template / "logs", kept)
    return card, cards.logs_of(CHAPTER)


# --- the file -------------------------------------------------------------------------------------


def test_the_example_card_is_read_whole(card_file: Path):
    card = Card.read(CHAPTER)
    assert card.primary.treatment == "dense"
    assert card.seeds("dense") == (0, 1, 2, 3, 4)
    assert card.seeds("bm25") == (0,)
    assert card.common_seeds(card.claims["one_is_enough"]) == (0, 1, 2)
    assert len(card.cells("dense")) == 15
    assert card.registered is not None
    assert card.registered.date == "2026-01-02"
    assert card.profiles[1].status == "not run"


MISTAKES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda c: c.pop("question"), r"01_tiny\.yaml\.question: found nothing"),
    (lambda c: c.update(questoin=1), "did you mean 'question'"),
    (lambda c: c["claims"][0].update(type="better"), r"claims\[0\]\.type: found 'better'"),
    (lambda c: c["claims"][0].update(treatment="dens"), "did you mean 'dense'"),
    (lambda c: c["claims"][0].update(primary="yes"), r"claims\[0\]\.primary: found 'yes'"),
    (lambda c: c["claims"][0].pop("id"), r"claims\[0\]\.id: found None"),
    (lambda c: c["claims"][1].update(id="dense_beats_keywords"), r"claims\[1\]\.id"),
    (lambda c: c["claims"][1].update(primary=True), "mark exactly one"),
    (lambda c: c["claims"][0].update(primary=False), "one primary claim"),
    (lambda c: c["claims"][1].update(margin=0.0), "one_is_enough, margin: found 0"),
    (lambda c: c["claims"][0].update(margin=0.1), "dense_beats_keywords, margin: found 0.1"),
    (lambda c: c["grid"].update(seeds="0-3"), "found 4; expected at least 5"),
    (lambda c: c["arms"][2].update(seed_range="0-1"), "found 2; expected at least 3"),
    (lambda c: c["grid"].update(worlds="2-0"), "grid.worlds: found '2-0'"),
    (lambda c: c["arms"][0].update(seeds="some"), r"arms\[0\]\.seeds: found 'some'"),
    (lambda c: c["preconditions"][0].update(threshold="high"), r"threshold: found 'high' \(str\)"),
    (lambda c: c.update(claims={}), "claims: found dict; expected a list"),
    (lambda c: c["tuning"][0].update(arm="dance"), "tuning, arm: found 'dance'"),
    (lambda c: c.update(paper="A title"), "paper: found str; expected named fields"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_a_mistake_in_a_card_names_its_field(card_file: Path, change, message: str):
    with pytest.raises(InputError, match=message):
        edit(card_file, change)


def test_broken_yaml_and_an_unknown_chapter_are_named(card_file: Path):
    with pytest.raises(InputError, match="did you mean '01_tiny'"):
        Card.read("01_tyni")
    card_file.write_text("paper: [")
    with pytest.raises(InputError, match=r"01_tiny\.yaml: .*expected YAML"):
        Card.read(CHAPTER)


# --- the log --------------------------------------------------------------------------------------


def test_collecting_keeps_the_grid_and_nothing_else(card_file: Path, root: Path):
    card = Card.read(CHAPTER)
    run_grid(card, root)
    write_run(root, Cell(CHAPTER, "toy", "dense", 0, 0, 1000))  # the page's own seed
    write_run(root, Cell(CHAPTER, "toy", "dense", 7, 0, 0))  # a world outside the grid
    swept = Cell(CHAPTER, "toy", "dense", 0, 0, 0, (("rate", 0.9),))
    write_run(root, swept)
    shutil.copytree(
        root / CHAPTER / "toy" / swept.folder_name, root / CHAPTER / "toy" / "half-written.failed"
    )
    found = cards.collect(CHAPTER)
    assert len(found.records) == 3 * (1 + 5 + 3 + 3) + 1
    assert found.rows is not None
    assert set(found.rows) == {"cell", "query_row", "recall@50"}
    assert swept.folder_name not in found.by_cell
    assert [r.cell for r in cards.load_cells(CHAPTER) if r.cell.overrides] == [swept]


def test_a_log_is_read_as_it_was_written(gathered: tuple[Card, logs.Logs]):
    found, again = cards.collect(CHAPTER), cards.logs_of(CHAPTER)
    assert again.rows is not None
    assert again.rows.equals(found.rows)
    for name, record in found.records.items():
        assert again.records[name].metrics == pytest.approx(record.metrics, abs=1e-9)
        assert again.records[name].machine == record.machine
    assert evaluate(gathered[0], again) == evaluate(gathered[0], found)


def test_a_log_names_metrics_once_and_keeps_their_order_and_digits(tmp_path: Path):
    facts = ("key", "command", "abc", False, {}, {"cpu": "x"}, "now", 1.0, None)
    numbers = {"dense/recall@50": 1 / 3, "dense/b: >20": 1e-7 / 3, "dense/b: 1-5": 1}
    kinds = [numbers, numbers, dict(reversed(numbers.items())), {}]
    records = {}
    for seed, metrics in enumerate(kinds):
        cell = Cell(CHAPTER, "toy", "dense", 0, 0, seed)
        records[cell.folder_name] = logs.Record(cell, metrics, *facts)
    logs.write_logs(logs.Logs(records), tmp_path, CHAPTER)
    file = tmp_path / f"{CHAPTER}.cells.json"
    assert file.read_text().count("dense/recall@50") == 2  # in either order
    again = logs.read_logs(tmp_path, CHAPTER)
    for name, record in records.items():
        rounded = {key: float(f"{value:.10g}") for key, value in record.metrics.items()}
        assert list(again.records[name].metrics.items()) == list(rounded.items())
    before = file.read_bytes()
    logs.write_logs(again, tmp_path, CHAPTER)
    assert file.read_bytes() == before


def test_cells_that_saw_the_same_queries_share_them_in_the_file(gathered, tmp_path: Path):
    few, record = 2000, next(iter(gathered[1].records.values()))
    queries = {"query_row": np.arange(few, dtype="int32"), "cluster": np.arange(few) // 3}
    rng, frames = np.random.default_rng(0), []
    for n in range(20):
        scores = {"recall@50": rng.integers(0, 2, few).astype("float32")}
        frames.append(pandas.DataFrame({"cell": f"a{n}", **queries, **scores}))
    other = {"query_row": np.arange(7, dtype="int32"), "auc": np.linspace(0, 1, 7, dtype="float32")}
    frames.append(pandas.DataFrame({"cell": "b", **other}))  # of another task, without clusters
    log = logs.Logs({"a": record}, pandas.concat(frames, ignore_index=True))
    logs.write_logs(log, tmp_path, "02_example")
    back = logs.read_logs(tmp_path, "02_example")
    pandas.testing.assert_frame_equal(back.rows, log.rows)
    assert set(back.by_cell["b"]) == {"cell", "query_row", "auc"}
    assert back.by_cell["a3"]["cluster"].tolist() == queries["cluster"].tolist()
    stored = pandas.read_parquet(tmp_path / "02_example.parquet")
    assert (stored["query_row"] >= 0).sum() == few + 7


def test_cells_that_are_not_run_again_stay_in_the_log(gathered, root: Path):
    card, before = gathered
    shutil.rmtree(root)
    cell = card.cells("dense")[0]
    write_run(root, cell, 0.9)
    after = cards.collect(CHAPTER)
    assert after.records.keys() == before.records.keys()
    assert after.records[cell.folder_name].metrics["dense/recall@50"] == pytest.approx(0.9, abs=0.1)
    assert len(after.by_cell) == len(before.by_cell)


@pytest.mark.parametrize("name", ["code_key", "machine", "wall_seconds", "cell"])
def test_a_run_without_its_facts_is_refused(card_file: Path, root: Path, name: str):
    folder = write_run(root, Card.read(CHAPTER).cells("dense")[0])
    run = json.loads((folder / "run.json").read_text())
    run.pop(name)
    (folder / "run.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match=rf"run\.json, field {name}"):
        cards.collect(CHAPTER)


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"a": "b"}', "metrics.json, a: found 'b'"), ("{", "readable JSON"), ("[]", "a JSON object")],
)
def test_metrics_that_are_no_numbers_are_refused(card_file: Path, root: Path, text, message):
    folder = write_run(root, Card.read(CHAPTER).cells("dense")[0])
    (folder / "metrics.json").write_text(text)
    with pytest.raises(InputError, match=message):
        cards.collect(CHAPTER)


def test_a_log_that_is_too_large_is_refused_and_the_old_one_kept(gathered, root, monkeypatch):
    files = sorted((cards.cards_folder() / "logs").iterdir())
    before = [file.read_bytes() for file in files]
    monkeypatch.setattr(logs, "LOG_LIMIT", 1000)
    with pytest.raises(InputError, match="at most 1,000"):
        cards.collect(CHAPTER)
    assert [file.read_bytes() for file in files] == before


def test_a_real_sized_log_fits(tmp_path: Path):
    """Two arms, three worlds, twenty seeds, four thousand requests in clusters."""
    rng, frames, records = np.random.default_rng(0), [], {}
    for world in range(3):
        clusters = rng.integers(900, size=4000)
        for arm, seeds in (("dense", 20), ("bm25", 1)):
            for seed in range(seeds):
                cell = Cell("01_real", "toy", arm, world, 0, seed)
                hits = rng.choice([0.0, 0.25, 0.5, 1.0], size=4000, p=[0.5, 0.1, 0.2, 0.2])
                columns = {"cell": cell.folder_name, "query_row": np.arange(4000) * 4}
                columns |= {"cluster": clusters, "recall@50": hits.astype("float32")}
                frames.append(pandas.DataFrame(columns))
                facts = (
                    "key",
                    "command",
                    "abc",
                    False,
                    {"numpy": "2"},
                    {"cpu": "x"},
                    "now",
                    1.0,
                    1.0,
                )
                numbers = {f"{arm}/metric {n}": float(rng.random()) for n in range(30)}
                records[cell.folder_name] = logs.Record(cell, numbers, *facts)
    logs.write_logs(logs.Logs(records, pandas.concat(frames)), tmp_path, "01_real")
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert 50_000 < size < 400_000


# --- verdicts -------------------------------------------------------------------------------------


def test_known_truths_get_their_verdicts(gathered: tuple[Card, logs.Logs]):
    results = evaluate(*gathered)
    primary, secondary = results["claims"].values()
    assert primary["verdict"] == "SUPPORTED"
    assert primary["low"] < 0.1 < primary["high"]
    assert (primary["seeds"], primary["worlds"], primary["queries"]) == (5, 3, 600)
    assert primary["beside"]["method"] != primary["method"]
    assert "p_holm" not in primary
    assert secondary["verdict"] in ("SUPPORTED", "INCONCLUSIVE")
    assert secondary["seeds"] == 3
    assert secondary["p_holm"] == secondary["p"]
    assert results["preconditions"]["headroom"]["met"] is True
    assert results["rivals"]["shuffled"]["verdict"] == "CONTRADICTED"
    assert results["cost"]["cells"] == 36
    json.dumps(results, allow_nan=False)


def test_a_worse_treatment_contradicts(card_file: Path, root: Path):
    run_grid(Card.read(CHAPTER), root, dense=0.4)
    claims = evaluate(Card.read(CHAPTER), cards.collect(CHAPTER))["claims"]
    assert [claim["verdict"] for claim in claims.values()] == ["CONTRADICTED", "CONTRADICTED"]


def test_no_difference_is_inconclusive(card_file: Path, root: Path):
    run_grid(Card.read(CHAPTER), root, dense=0.5)
    results = evaluate(Card.read(CHAPTER), cards.collect(CHAPTER))
    assert results["claims"]["dense_beats_keywords"]["verdict"] == "INCONCLUSIVE"


def test_one_missing_cell_means_not_run(gathered: tuple[Card, logs.Logs]):
    card, found = gathered
    del found.records[card.cells("dense")[3].folder_name]
    found.rows = found.rows[found.rows["cell"] != card.cells("dense")[3].folder_name]
    results = evaluate(card, found)["claims"]
    assert results["dense_beats_keywords"] == {"verdict": "NOT-RUN", "missing_cells": 1}


def test_a_failed_precondition_overrides_and_an_unmeasured_one_waits(gathered, card_file: Path):
    _, found = gathered
    card = edit(card_file, lambda c: c["preconditions"][0].update(threshold=0.1))
    results = evaluate(card, found)
    assert results["preconditions"]["headroom"]["met"] is False
    assert {c["verdict"] for c in results["claims"].values()} == {"PRECONDITION-NOT-MET"}
    card = edit(card_file, lambda c: c["preconditions"][0].update(metric="bm25/unheard"))
    results = evaluate(card, found)
    assert results["preconditions"]["headroom"] == {"value": None, "met": None}
    assert {c["verdict"] for c in results["claims"].values()} == {"NOT-RUN"}


def test_a_precondition_must_hold_in_the_worst_world(gathered, card_file: Path, root: Path):
    card, _ = gathered
    write_run(root, card.cells("bm25")[1], 0.95)
    result = evaluate(card, cards.collect(CHAPTER))["preconditions"]["headroom"]
    assert result["met"] is False
    assert result["value"] == pytest.approx(0.95, abs=0.05)


def test_a_precondition_may_compare_two_metrics(gathered, card_file: Path):
    def teacher(c: dict[str, Any]) -> None:
        both = {"metric": "dense/recall@50", "against": "bm25/recall@50"}
        c["preconditions"][0].update(direction="above", threshold=0.05, **both)

    need = evaluate(edit(card_file, teacher), gathered[1])["preconditions"]["headroom"]
    assert need["met"] is True
    assert need["value"] == pytest.approx(0.1, abs=0.04)


def test_a_precondition_and_a_rival_may_bear_on_one_claim(gathered, card_file: Path):
    def change(content: dict[str, Any]) -> None:
        content["preconditions"][0] |= {"threshold": 0.1, "claims": ["one_is_enough"]}
        content["arms"][3]["claim"] = "one_is_enough"

    card = edit(card_file, change)
    found = evaluate(card, gathered[1])
    told = {name: claim["verdict"] for name, claim in found["claims"].items()}
    assert told["one_is_enough"] == "PRECONDITION-NOT-MET"
    assert told["dense_beats_keywords"] == "SUPPORTED"
    assert card.rivalled("shuffled").baseline == "two_towers"
    shown = {claim["primary"]: claim for claim in showing.to_json(card)["claims"]}
    primary, secondary = shown[True], shown[False]
    assert (primary["preconditions"], primary["refuters"]) == ([], [])
    assert len(secondary["preconditions"]) == 1


def test_a_rival_of_one_seed_without_rows_is_judged_over_checkpoints(card_file: Path, root: Path):
    def change(content: dict[str, Any]) -> None:
        content["grid"]["inits"] = "0-1"
        content["arms"][3]["seed_range"] = "0"
        content["arms"][0]["seeds"] = "trained"
        content["claims"] = [content["claims"][0] | {"metric": "over training"}]

    card = edit(card_file, change)
    gains = {"dense": 0.1, "shuffled": 0.2}
    for arm in card.arms:
        for cell in card.cells(arm):
            folder = write_run(root, cell)
            luck = np.random.default_rng([cell.world_seed, cell.init_seed, cell.seed]).normal()
            metrics = json.loads((folder / "metrics.json").read_text())
            metrics[f"{arm}/over training"] = 0.5 + gains.get(arm, 0.0) + 0.01 * luck * (arm > "c")
            (folder / "metrics.json").write_text(json.dumps(metrics))
    cards.collect(CHAPTER)
    found = evaluate(card, cards.logs_of(CHAPTER))
    claim, rival = found["claims"]["dense_beats_keywords"], found["rivals"]["shuffled"]
    assert (claim["worlds"], claim["inits"], claim["seeds"]) == (3, 2, 5)
    assert (rival["worlds"], rival["inits"], rival["seeds"]) == (3, 2, 1)
    assert rival["estimate"] == pytest.approx(0.2, abs=0.02)
    assert rival["low"] < 0.2 < rival["high"]
    assert rival["wins"]


def test_checkpoints_that_answer_the_same_queries_do_not_double_them(card_file: Path, root: Path):
    card = edit(card_file, lambda content: content["grid"].update(inits="0-1"))
    run_grid(card, root)
    cards.collect(CHAPTER)
    found = cards.logs_of(CHAPTER)
    claim = evaluate(card, found)["claims"]["dense_beats_keywords"]

    def mean_over_checkpoints(arm: str, world: int) -> stats.Array:
        cells = [cell for cell in card.cells(arm) if cell.world_seed == world]
        rows = [found.by_cell[cell.folder_name]["recall@50"].to_numpy() for cell in cells]
        inits = [cell.init_seed for cell in cells]
        return np.mean([np.stack(rows)[np.array(inits) == init] for init in (0, 1)], axis=0)

    arms = [[mean_over_checkpoints(arm, world) for world in range(3)] for arm in ("dense", "bm25")]
    wanted = stats.interval(stats.paired_differences(*arms))
    assert (claim["queries"], claim["inits"], claim["seeds"]) == (3 * QUERIES, 2, 5)
    assert (claim["low"], claim["high"]) == pytest.approx((wanted.low, wanted.high))


@pytest.mark.parametrize("inits", ["0-1", "0"])
def test_one_training_seed_is_not_taken_for_the_truth(card_file: Path, root: Path, inits: str):
    def change(content: dict[str, Any]) -> None:
        content["grid"]["inits"] = inits
        content["arms"][3]["seed_range"] = "0"

    card = edit(card_file, change)
    run_grid(card, root)
    for cell in card.cells("shuffled"):  # far above in four of its runs, far below in the others
        lucky = (cell.world_seed + cell.init_seed) % 3 != 1
        write_run(root, cell, 0.9 if lucky else 0.2)
    cards.collect(CHAPTER)
    rival = evaluate(card, cards.logs_of(CHAPTER))["rivals"]["shuffled"]
    assert rival["estimate"] > 0.1
    assert rival["verdict"] == "INCONCLUSIVE"
    assert ("checkpoints" if inits == "0-1" else "worlds") in rival["method"]


def test_a_precondition_of_no_known_claim_is_named(card_file: Path):
    with pytest.raises(InputError, match="preconditions, headroom, claim"):
        edit(card_file, lambda c: c["preconditions"][0].update(claims=["one_is_enouhg"]))


def lifted(found: logs.Logs, arm: str, by: float) -> logs.Logs:
    """The log with a constant added to every value of one arm."""
    rows, records = found.rows.copy(), {}
    for name, record in found.records.items():
        ours = record.cell.arm == arm
        rows.loc[rows["cell"] == name, "recall@50"] += np.float32(by * ours)
        metrics = {key: value + by * ours for key, value in record.metrics.items()}
        records[name] = dataclasses.replace(record, metrics=metrics)
    return logs.Logs(records, rows)


def test_holm_withdraws_a_secondary_decision(gathered, card_file: Path):
    """A secondary p of 0.02 decides alone, and no longer among nine."""

    def one(c: dict[str, Any]) -> None:
        c["claims"][1].update(type="superiority", margin=0.0)

    def nine(c: dict[str, Any]) -> None:
        c["claims"] += [c["claims"][1] | {"id": f"other_{n}"} for n in range(8)]

    card, found = edit(card_file, one), gathered[1]
    result = evaluate(card, found)["claims"]["one_is_enough"]
    names = [field.name for field in dataclasses.fields(stats.Interval)]
    base = stats.Interval(**{name: result[name] for name in names})

    def p_at(by: float) -> float:
        moved = {name: getattr(base, name) + by for name in ("estimate", "low", "high")}
        return stats.p_value("superiority", dataclasses.replace(base, **moved)) - 0.02

    nudged = lifted(found, "dense", brentq(p_at, -base.estimate, 1.0))
    alone = evaluate(card, nudged)["claims"]["one_is_enough"]
    assert (alone["verdict"], alone["p"]) == ("SUPPORTED", pytest.approx(0.02, abs=1e-3))
    among = evaluate(edit(card_file, nine), nudged)["claims"]["one_is_enough"]
    assert (among["verdict"], among["p_holm"]) == ("INCONCLUSIVE", pytest.approx(0.18, abs=1e-2))


def test_a_claim_about_a_bucket_rests_on_cell_means_and_says_so(card_file: Path, root: Path):
    card = edit(card_file, lambda c: c["claims"][0].update(metric="recall@50/head"))
    for arm in card.arms:
        for cell in card.cells(arm):
            folder = write_run(root, cell)
            metrics = json.loads((folder / "metrics.json").read_text())
            metrics[f"{arm}/recall@50/head"] = metrics[f"{arm}/recall@50"] + 0.2
            (folder / "metrics.json").write_text(json.dumps(metrics))
    claim = evaluate(card, cards.collect(CHAPTER))["claims"]["dense_beats_keywords"]
    assert claim["verdict"] == "SUPPORTED"
    assert claim["queries"] == 0
    assert "without query noise" in claim["method"]


def test_clusters_in_the_rows_are_the_units(gathered, root: Path):
    card, _ = gathered
    plain = evaluate(*gathered)["claims"]["dense_beats_keywords"]
    for file in root.glob(f"{CHAPTER}/toy/*/rows/*.parquet"):
        rows = pandas.read_parquet(file)
        rows["cluster"] = np.arange(QUERIES) // 10
        rows.to_parquet(file)
    claim = evaluate(card, cards.collect(CHAPTER))["claims"]["dense_beats_keywords"]
    assert claim["queries"] == 3 * QUERIES // 10
    assert claim["estimate"] == pytest.approx(plain["estimate"])


def test_arms_that_saw_other_queries_are_refused(gathered, root: Path):
    card, _ = gathered
    file = next((root / CHAPTER / "toy" / card.cells("bm25")[0].folder_name).glob("rows/*"))
    rows = pandas.read_parquet(file)
    rows["query_row"] += 1
    rows.to_parquet(file)
    with pytest.raises(InputError, match="other queries than"):
        evaluate(card, cards.collect(CHAPTER))


def ask_more(file: Path, numbers: list[int]) -> None:
    """Add rows of another question, which have a value of its own metric alone."""
    rows = pandas.read_parquet(file)
    more = pandas.DataFrame({"query_row": numbers, "hits": 1.0})
    pandas.concat([rows, more], ignore_index=True).to_parquet(file)


def test_rows_of_another_question_are_left_out(gathered, root: Path):
    card, plain = gathered[0], evaluate(*gathered)["claims"]
    for arm in card.arms:  # as many as an arm likes: only those with a value must agree
        for cell in card.cells(arm):
            (file,) = (root / CHAPTER / "toy" / cell.folder_name).glob("rows/*")
            ask_more(file, [10_000 + n for n in range(len(arm))])
    claims = evaluate(card, cards.collect(CHAPTER))["claims"]
    for name, claim in claims.items():
        for field in ("estimate", "low", "high", "queries", "verdict"):
            assert claim[field] == plain[name][field], (name, field)


def test_rows_that_lack_a_value_in_one_arm_alone_are_refused(gathered, root: Path):
    card, _ = gathered
    file = next((root / CHAPTER / "toy" / card.cells("bm25")[0].folder_name).glob("rows/*"))
    rows = pandas.read_parquet(file)
    rows.loc[3, "recall@50"] = np.nan
    rows.to_parquet(file)
    metrics = file.parents[1] / "metrics.json"
    mean = float(rows["recall@50"].astype(float).mean())
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"bm25/recall@50": mean}))
    with pytest.raises(InputError, match="other queries than"):
        evaluate(card, cards.collect(CHAPTER))


def test_a_typed_log_is_found_out(gathered):
    card, found = gathered
    name = card.cells("dense")[0].folder_name
    found.records[name].metrics["dense/recall@50"] += 0.01
    with pytest.raises(InputError, match=r"recall@50: found a mean of .* over the rows"):
        evaluate(card, found)


# --- checking again -------------------------------------------------------------------------------


def rerun(root: Path, **facts: Any) -> Callable[[Cell], Path]:
    return lambda cell: write_run(root / "again", cell, **facts)


def outcomes(compared: list[cards.Comparison]) -> set[str]:
    return {row.outcome for row in compared}


def test_ci_draws_from_the_cheapest_quarter_of_the_arms(gathered, root: Path):
    rng = np.random.default_rng(0)
    drawn = [cards.recheck(*gathered, rerun(root), rng)[0] for _ in range(8)]
    assert {row.cell.arm for row in drawn} == {"bm25"}
    assert len({row.cell for row in drawn}) > 1
    assert outcomes(drawn) == {"equal"}


def test_a_drifted_number_is_different(gathered, root: Path):
    card, found = gathered
    rng = np.random.default_rng(0)
    assert outcomes(cards.recheck(card, found, rerun(root, quality=0.5 + 1e-6), rng)) == {
        "different"
    }
    for quality, expected in ((0.5 + 1e-6, "as predicted"), (0.52, "different")):
        elsewhere = rerun(root, quality=quality, machine={"cpu": "another"})  # deterministic
        assert outcomes(cards.recheck(card, found, elsewhere, rng)) == {expected}


def test_seconds_are_not_compared(gathered, root: Path):
    card, found = gathered
    for name in ("seconds a step", "steps"):
        for record in found.records.values():
            record.metrics[f"{record.cell.arm}/{name}"] = 0.04
        again = cards.recheck(card, found, rerun(root), np.random.default_rng(0))
        assert any(row.metric.endswith(f"/{name}") for row in again) == (name == "steps")


def test_elsewhere_one_seed_a_world_is_judged_by_all_worlds(gathered):
    _, found = gathered
    worlds = {c: r for c, r in found.records.items() if r.cell.arm == "dense" and not r.cell.seed}
    alone = replace(found, records=worlds)
    first = next(iter(worlds.values()))
    low, high = cards._predicted(alone, first.cell, "dense/recall@50", 0.99)
    assert low <= first.metrics["dense/recall@50"] <= high
    low, high = cards._predicted(
        replace(found, records={first.cell.folder_name: first}), first.cell, "dense/recall@50", 0.99
    )
    assert low > high


def test_a_trained_arm_elsewhere_must_fall_where_the_grid_predicts(gathered, root: Path):
    card, found = gathered
    for quality, expected in ((None, "equal"), (0.605, "as predicted"), (0.9, "different")):
        run = rerun(root, machine={"cpu": "another"})
        if quality:
            run = rerun(root, quality=quality, machine={"cpu": "another"})
        compared = cards.recheck(card, found, run, np.random.default_rng(0), per_arm=True)
        assert {row.outcome for row in compared if row.cell.arm == "dense"} == {expected}
    here = cards.recheck(
        card, found, rerun(root, quality=0.605), np.random.default_rng(0), per_arm=True
    )
    assert {row.outcome for row in here if row.cell.arm == "dense"} == {"different"}


def test_elsewhere_a_trained_arm_is_compared_with_known_code_that_ran_there(gathered, root: Path):
    card, found = gathered
    key = next(iter(found.records.values())).code_key
    rng, folder = np.random.default_rng(0), root / "beside"
    there = {"quality": 0.605, "machine": {"cpu": "another"}}
    cell = card.cells("dense")[1]
    write_run(folder, cell, code_key=key, **there)
    (run,) = folder.rglob("run.json")
    beside = run.parents[1]

    def compared(**facts: Any) -> set[str]:
        rows = cards.recheck(card, found, rerun(root, **facts), rng, per_arm=True, beside=beside)
        dense = [row for row in rows if row.cell.arm == "dense"]
        assert {row.cell for row in dense} == {cell}
        return outcomes(dense)

    assert compared(**there) == {"equal"}
    assert compared(**there | {"quality": 0.6051}) == {"different"}
    write_run(folder, cell, code_key="unheard of", **there)
    with pytest.raises(InputError, match="run that code"):
        compared(**there)


def flags() -> list[str]:
    return showing.to_json(Card.read(CHAPTER))["claims"][0]["flags"]


def test_changed_code_is_stale_until_every_arm_gives_equal_numbers(gathered, project, root):
    cards.publish(CHAPTER)
    assert flags() == []
    chapter = project / "chapters" / "01_tiny.py"
    chapter.write_text(chapter.read_text() + "\n# only words\n")
    assert flags() == []
    chapter.write_text(chapter.read_text() + "\n# %%\nNEW = 1\n")
    assert flags() == ["STALE"]
    rng = np.random.default_rng(0)
    cards.recheck(Card.read(CHAPTER), cards.logs_of(CHAPTER), rerun(root), rng)  # one arm only
    cards.publish(CHAPTER)
    assert flags() == ["STALE"]
    wrong = rerun(root, quality=0.3)
    cards.recheck(Card.read(CHAPTER), cards.logs_of(CHAPTER), wrong, rng, per_arm=True)
    cards.publish(CHAPTER)
    assert flags() == ["STALE"]
    cards.recheck(Card.read(CHAPTER), cards.logs_of(CHAPTER), rerun(root), rng, per_arm=True)
    cards.publish(CHAPTER)
    assert flags() == []


def test_a_log_keeps_ten_digits_of_a_large_number_too(gathered):
    """42906.666666666664 is written as 42906.66667."""
    card, kept = Card.read(CHAPTER), cards.logs_of(CHAPTER)
    record = next(iter(kept.records.values()))
    name = f"{record.cell.arm}/tokens"
    exact, logged = 42906.666666666664, 42906.66667
    for fresh, outcome in ((exact, "equal"), (exact + 1, "different")):
        before, after = (
            dataclasses.replace(record, metrics={name: value}) for value in (logged, fresh)
        )
        (found,) = cards._compared(card, kept, before, after)
        assert found.outcome == outcome


def test_an_empty_log_cannot_be_rechecked(card_file: Path, root: Path):
    with pytest.raises(InputError, match="run and collect its grid first"):
        cards.recheck(Card.read(CHAPTER), logs.Logs(), rerun(root), np.random.default_rng(0))


def test_the_live_run_is_held_against_the_grid(gathered):
    card, found = gathered
    exact = found.records[card.cells("bm25")[0].folder_name].metrics["bm25/recall@50"]
    usual = {"dense/recall@50": 0.61, "bm25/recall@50": exact}
    assert cards.live_check(CHAPTER, "toy", 0, usual) is None
    message = cards.live_check(CHAPTER, "toy", 0, usual | {"dense/recall@50": 0.9})
    assert message is not None
    assert "dense/recall@50 of this run is 0.9000, the grid predicts" in message
    drifted = cards.live_check(CHAPTER, "toy", 0, usual | {"bm25/recall@50": exact + 1e-4})
    assert drifted is not None
    assert cards.live_check(CHAPTER, "smoke", 0, {"dense/recall@50": 0.9}) is None
    assert cards.live_check(CHAPTER, "toy", 9, {"dense/recall@50": 0.9}) is None
    assert cards.live_check(CHAPTER, "toy", 0, {}) is None


# --- pages ----------------------------------------------------------------------------------------


def test_a_card_without_results_says_not_run_everywhere(card_file: Path):
    claims = showing.to_json(Card.read(CHAPTER))["claims"]
    assert [claim["verdict"] for claim in claims] == ["NOT-RUN", "NOT-RUN"]
    assert claims[0]["effect"] is None
    for text in (
        showing.card_box(CHAPTER),
        showing.claims_markdown(CHAPTER),
        showing.scoreboard_markdown(),
    ):
        assert "NOT-RUN" in text
        assert "SUPPORTED" not in text
        assert "toy scale" not in text


def test_json_holds_what_a_tool_needs(gathered):
    cards.publish(CHAPTER)
    claim = showing.to_json(Card.read(CHAPTER))["claims"][0]
    wanted = "id type primary arms effect interval seeds worlds preconditions refuters verdict cost"
    assert set(wanted.split()) <= claim.keys()
    assert claim["interval"][0] < claim["effect"] < claim["interval"][1]
    assert claim["refuters"][0]["arm"] == "shuffled"
    assert claim["preconditions"][0]["met"] is True
    json.dumps(claim, allow_nan=False)


def test_pages_tell_effect_verdict_and_scale(gathered):
    cards.publish(CHAPTER)
    box = showing.card_box(CHAPTER)
    claim = showing.to_json(Card.read(CHAPTER))["claims"][0]
    assert f"{claim['effect']:+.4f}" in box
    assert "**SUPPORTED** at toy scale" in box
    assert "5 seeds, 3 worlds; 600 evaluation units; crossed bootstrap" in box
    assert "in recall@50, dense against bm25 |" in box
    assert "| Whose claim | the paper's |" in box
    assert "| This page | 3.5 minutes |" in box
    assert "| Last verified | not since it ran |" in box
    assert "met" in box
    assert "| Refuters in its place | `shuffled`: does not (-0." in box
    assert "Controls in its place" not in box  # the card has none
    table = showing.claims_markdown(CHAPTER)
    assert "non-inferiority (0.02)" in table
    said = "**the paper's**; .0826 against .0706 (R@10) repository README; stated by the authors |"
    assert said in table
    assert "| **ours** |" in table
    assert "[1 A tiny paper](../chapters/01_tiny.py)" in showing.scoreboard_markdown()
    readme = showing.readme_table()
    assert "[1 A tiny paper](chapters/01_tiny.py)" in readme
    assert "not worse than two" not in readme
    widths = {line.count(" | ") for line in showing.claims_table(CHAPTER).splitlines()}
    assert len(widths - {0}) == 1


def test_a_refuter_that_wins_too_stands_in_the_headline(card_file: Path, root: Path):
    run_grid(Card.read(CHAPTER), root, shuffled=0.62)
    cards.collect(CHAPTER)
    cards.publish(CHAPTER)
    assert "but `shuffled`, which ought not to work, wins too" in showing.scoreboard_markdown()


def test_results_of_another_registration_are_not_shown(gathered, card_file: Path):
    cards.publish(CHAPTER)
    card = edit(card_file, lambda c: c["claims"][1].update(margin=0.5))
    assert {claim["verdict"] for claim in showing.to_json(card)["claims"]} == {"NOT-RUN"}


def test_runs_before_the_registration_and_none_at_all_are_flagged(gathered, card_file: Path):
    cards.publish(CHAPTER)
    edit(card_file, lambda c: c["registered"].update(date="2026-01-04"))
    assert flags() == ["RUN-BEFORE-REGISTRATION"]
    edit(card_file, lambda c: c.pop("registered"))
    assert flags() == ["UNREGISTERED"]


def test_a_claim_is_held_against_the_time_of_its_own_registration(gathered, card_file: Path):
    """All runs began on 2026-01-03 at 10:00."""
    cards.publish(CHAPTER)

    def told(first: str, later: str = "") -> list[list[str]]:
        entry = {"date": later, "commit": "f", "claims": ["one_is_enough"]}
        registered = {"date": first, "commit": "0123abc"}
        change = {"registered": registered, "registered_later": [entry] if later else []}
        card = edit(card_file, lambda c: c.update(change))
        return [claim["flags"] for claim in showing.to_json(card)["claims"]]

    early = ["RUN-BEFORE-REGISTRATION"]
    assert told("2026-01-03T09:59:59Z") == [[], []]
    assert told("2026-01-03T10:00:01Z") == [early, early]
    assert told("2026-01-03") == [[], []]  # where only the day is known
    assert told("2026-01-02", "2026-01-03T10:00:01Z") == [[], early]


def test_a_run_at_another_dial_is_no_run_before_the_registration(card_file: Path, root: Path):
    card = Card.read(CHAPTER)
    run_grid(card, root)
    swept = Cell(CHAPTER, "toy", "dense", 0, 0, 0, (("rate", 0.9),))
    write_run(root, swept, date="2025-12-01T00:00:00Z")
    cards.collect(CHAPTER)
    assert flags() == []
    write_run(root, card.cells("dense")[0], date="2025-12-01T00:00:00Z")
    cards.collect(CHAPTER)
    assert flags() == ["RUN-BEFORE-REGISTRATION"]


DATES = [
    lambda c: c["registered"].update(date="in January"),
    lambda c: c.update(changes=[{"date": "2026-01-02 10:00", "what": "x"}]),
]


@pytest.mark.parametrize("change", DATES)
def test_a_date_is_a_day_or_a_time_in_utc(card_file: Path, change):
    with pytest.raises(InputError, match=r"date: found .*expected a day or a time such as"):
        edit(card_file, change)


def test_a_time_without_quotes_is_read_in_utc(card_file: Path):
    text = card_file.read_text().replace("date: 2026-01-02,", "date: 2026-01-02T03:04:05+01:00,")
    card_file.write_text(text)
    assert Card.read(CHAPTER).registered_on("one_is_enough") == "2026-01-02T02:04:05Z"


def test_a_later_registration_names_claims_that_exist(card_file: Path):
    entry = {"date": "2026-01-02", "commit": "f", "claims": ["one_is_enuogh"]}
    with pytest.raises(InputError, match="registered, claim: found 'one_is_enuogh'"):
        edit(card_file, lambda c: c.update(registered_later=[entry]))


def test_the_rest_of_the_card_is_folded_below_its_claims(card_file: Path):
    change = {"date": "2026-01-05", "what": "an arm | was added"}
    edit(card_file, lambda c: c.update(changes=[change]))
    table, *folds = showing.claims_markdown(CHAPTER).split("<details>")
    assert table.startswith("| Claim |")
    assert [fold.split("</summary>")[0].split(">")[1] for fold in folds] == [
        "History of the registration", "Settings looked at beforehand",
        "What the paper leaves unstated", "Profiles and their cost",
    ]  # fmt: skip
    history, tried, unstated, cost = folds
    registered, changed = history.index("commit 0123abc"), history.index("an arm \\| was added")
    assert registered < changed
    assert "| calibrated | keywords at one half | 100-102 |" in tried
    assert "* the temperature; we use 1" in unstated
    assert "| full | not run | 8 GPUs | not measured |" in cost
    assert "an arm \\| was added" in showing.changes_markdown()
    primary, secondary = showing.to_json(Card.read(CHAPTER))["claims"]
    assert primary["changes"] == (change,)
    assert primary["regimes"][0]["showed"] == "keywords at one half"
    assert primary["unstated"] == ("the temperature; we use 1",)
    assert "regimes" not in secondary


def test_empty_parts_of_a_card_are_left_out(card_file: Path):
    edit(card_file, lambda c: c.update(regimes=[], unstated=[], registered=None))
    assert list(showing.card_details(CHAPTER)) == ["Profiles and their cost"]
    assert showing.changes_markdown() == "Nothing yet."


def test_notes_say_what_a_figure_is_and_leave_the_registration_alone(gathered, card_file: Path):
    cards.publish(CHAPTER)
    before = Card.read(CHAPTER).digest()
    notes = {"measure": "R@50", "units": "queries", "whose": "ours: another baseline"}
    card = edit(card_file, lambda c: c["claims"][0].update(erratum="read more", **notes))
    assert card.digest() == before
    box = showing.card_box(CHAPTER)
    assert "600 queries; crossed bootstrap" in box
    assert "in R@50, dense against bm25" in box
    assert "| Whose claim | ours: another baseline |" in box
    assert "*Erratum: read more*" in showing.claims_table(CHAPTER)
    assert "| ours: another baseline |" in showing.readme_table()
    with pytest.raises(InputError, match="whose: found mine"):
        edit(card_file, lambda c: c["claims"][0].update(whose="mine"))


def test_after_a_claim_of_ours_the_readme_has_the_papers_on_the_same_arms(card_file: Path):
    def change(content: dict[str, Any]) -> None:
        first, second = content["claims"]
        same = first | {"id": "theirs", "text": "Theirs.", "primary": False}
        other = second | {"id": "pair", "text": "Another pair.", "whose": "the paper's"}
        content["claims"] = [first | {"whose": "ours"}, second, other, same]

    edit(card_file, change)
    rows = showing.readme_table().splitlines()[2:]
    assert len(rows) == 2
    assert "| Theirs. | the paper's |" in rows[1]
    edit(card_file, lambda c: c["claims"][0].update(whose=""))
    assert "Theirs." not in showing.readme_table()


def shown(**facts: Any) -> dict[str, Any]:
    """A claim as `to_json` gives it, with some facts replaced."""
    claim = showing.to_json(Card.read(CHAPTER))["claims"][0]
    result = {"effect": 5.0, "interval": [5.0, 5.0], "p": 0.01, "verdict": "SUPPORTED"}
    return claim | result | facts


def test_what_is_counted_has_neither_p_nor_verdict(card_file: Path):
    counted = shown(counted=True, measure="million operations")
    assert showing._effect(counted) == "+5 in million operations"
    assert showing._chance(counted) == "-"
    assert showing._headline(counted) == "counted, as claimed"
    assert showing._headline(counted | {"verdict": "CONTRADICTED"}) == "counted, not as claimed"


def test_a_decision_that_holm_alone_takes_back_says_so(card_file: Path):
    told = shown(verdict="INCONCLUSIVE", p=0.02, p_holm=0.06)
    assert showing._headline(told) == "**INCONCLUSIVE** after Holm at toy scale"
    assert showing._chance(told) == "0.06 (Holm)"
    assert showing._chance(told | {"p_holm": None}) == "0.02"
    for other in ({"p": 0.06}, {"p_holm": None}, {"verdict": "SUPPORTED"}):
        assert "after Holm" not in showing._headline(told | other)


def test_grades_ratios_and_what_an_effect_rests_on_are_in_words(card_file: Path):
    assert (
        showing._grade("FOUND-A/C")
        == "in part stated by the authors, in part as one reader reports"
    )
    assert showing._grade("FOUND-B; ours") == "as several readers report; ours"
    assert showing._said(shown(grade="ours; a margin", whose="ours")).endswith("; a margin")
    ratio = shown(type="ratio", interval=[4.0, 6.0], measure="hit rate")
    assert showing._effect(ratio) == "5.0000 [4.0000, 6.0000] times the hit rate"
    facts = {"seeds": 1, "inits": 2, "worlds": 3, "queries": 0, "method": "paired t"}
    basis = showing._basis(Card.read(CHAPTER), shown(**facts))
    assert basis == "1 seed, 2 checkpoints, 3 worlds; means of runs; paired t"
    started = replace(Card.read(CHAPTER), assets=("eye/model.safetensors",))
    assert "1 seed, 1 checkpoint, 3" in showing._basis(started, shown(**facts | {"inits": 1}))


def test_the_day_of_the_last_recheck_stands_in_the_box(gathered, root: Path):
    cards.publish(CHAPTER)
    rng = np.random.default_rng(0)
    later = rerun(root, date="2026-02-03T04:05:06Z")
    cards.recheck(Card.read(CHAPTER), cards.logs_of(CHAPTER), later, rng, per_arm=True)
    assert "| Last verified | 2026-02-03, a run of each arm again" in showing.card_box(CHAPTER)


def test_a_chapter_is_called_as_the_plan_has_it(project: Path):
    assert showing.chapter_name("07_agent", "A paper") == "7 A paper"
    (project / "book").mkdir()
    row = {"file": "07_agent", "title": "An agent (A paper)"}
    plan = [{"part": "One", "chapters": [row]}]
    (project / "book" / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert showing.chapter_name("07_agent", "A paper") == "7 An agent (A paper)"
