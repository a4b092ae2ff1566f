"""Every command, on the tiny project; what they call is tested where it is defined."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minisearch import book, cli, doctor, runs
from minisearch.data import assets

COMMANDS = [
    [], ["run"], ["reproduce"], ["book"], ["card"], ["data"], ["data", "list"], ["data", "get"],
    ["data", "check"], ["assignment"], ["assignment", "build"], ["doctor"],
]  # fmt: skip


def call(*words: str) -> int:
    """The exit status of `minisearch` with these words."""
    try:
        cli.main(list(words))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def card(project) -> Path:
    """A card for the tiny chapter: bm25 (deterministic), dense, and two arms on fewer seeds."""
    path = project / "book" / "cards" / "01_tiny.yaml"
    path.parent.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("example_card.yaml"), path)
    return path


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_has_an_example(command, capsys):
    assert call(*command, "--help") == 0
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert f"Example: minisearch {' '.join(command)}".strip() in text


def test_help_comes_at_once():
    best = 9.0
    for _ in range(3):
        start = time.perf_counter()
        code = "from minisearch.cli import main; main(['--help'])"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        best = min(best, time.perf_counter() - start)
    assert best < 1


def test_help_loads_nothing_heavy():
    code = "import sys, minisearch.cli; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"torch", "numpy", "pandas", "papermill", "jupytext"} & set(loaded.stdout.split())


@pytest.mark.parametrize(
    ("given", "joined"),
    [
        ("run 01 -p rate 1", "run 01 -p rate=1"),
        ("run 01 -p rate=1 -p data /a=b --force", "run 01 -p rate=1 -p data=/a=b --force"),
        ("-p rate -1 -p loud true", "-p rate=-1 -p loud=true"),
        ("run 01 -p rate", "run 01 -p rate"),
    ],
)
def test_a_parameter_takes_two_words_or_one(given, joined):
    assert cli._join_parameters(given.split()) == joined.split()


def test_run_prints_headline_metrics_and_the_notebook(project, capfd):
    assert call("run", "tiny", "--profile", "smoke", "--seed", "7", "-p", "rate", "0.25") == 0
    out, progress = capfd.readouterr()
    assert out.splitlines()[0] == "1 ran"
    assert re.search(r"^main/score +7\.2500$", out, re.M)
    assert "score/head" not in out
    assert Path(out.splitlines()[-1].removeprefix("notebook: ")).is_file()
    assert "01_tiny: cell 5/5" in progress
    assert call("run", "tiny", "--profile", "smoke", "--seed", "7", "-p", "rate", "0.25") == 0
    assert capfd.readouterr().out.startswith("1 complete")


def test_run_of_the_defaults_is_the_page(project, monkeypatch):
    asked = []
    monkeypatch.setattr(runs, "run_cell", lambda cell, *_, **__: asked.append(cell) or stop())
    assert call("run", "01") == 130
    assert asked == [runs.page_cell("01")]


def stop():
    raise KeyboardInterrupt


def test_an_interrupt_has_its_own_exit_status(project, monkeypatch):
    monkeypatch.setattr(runs, "run_cell", lambda *_, **__: stop())
    assert call("run", "01") == 130


def test_a_failure_is_told_with_its_cell_and_what_is_left(write_chapter, capsys):
    write_chapter("01_tiny", "x = 1\n\n# %%\nraise ValueError('too [bold] a step')\n")
    assert call("reproduce", "--profile", "smoke", "--seeds", "0-1") == 1
    out = capsys.readouterr().out
    assert "1 failed, 1 skipped" in out
    assert "failed: 01_tiny main world 0 seed 0" in out
    assert "cell      In [4]" in out
    assert "line      raise ValueError('too [bold] a step')" in out
    assert "error     ValueError: too [bold] a step" in out
    assert Path(re.search(r"notebook  (.+)", out)[1]).is_file()


def dry(capsys, *words: str) -> list[str]:
    assert call("reproduce", "01", "--dry-run", *words) == 0
    return [
        re.sub(r"-\w{10}$", "", Path(line).name) for line in capsys.readouterr().out.splitlines()
    ]


def test_dry_run_lists_the_grid_and_runs_nothing(project, card, capsys):
    assert dry(capsys) == ["main-w0-i0-s1000"]
    assert dry(capsys, "--worlds", "0-1", "--seeds", "3") == ["main-w0-i0-s3", "main-w1-i0-s3"]
    assert dry(capsys, "--arms", "dense,bm25", "--worlds", "5", "--seeds", "100-101") == [
        "dense-w5-i0-s100", "dense-w5-i0-s101", "bm25-w5-i0-s100",
    ]  # fmt: skip
    assert not (project / "_build").exists()


def test_all_arms_without_ranges_are_the_registered_grid(project, card, capsys):
    from minisearch.claims import Card

    registered = Card.read("01_tiny")
    grid = runs.grid("01_tiny", "toy", "all", ("", "", ""))
    assert grid == [cell for arm in registered.arms for cell in registered.cells(arm)]
    assert grid == runs.grid("01_tiny", "toy", "all", ("0-2", "0", "0-4"))


def test_dry_run_tells_what_is_complete(project, capsys):
    runs.run_cell(runs.page_cell("01", profile="smoke"), "grid")
    assert call("reproduce", "--profile", "smoke", "--seeds", "999-1000", "--dry-run") == 0
    states = [line[:8].strip() for line in capsys.readouterr().out.splitlines()]
    assert states == ["to run", "complete"]


def test_reproduce_collects_only_when_asked(project, card, monkeypatch):
    from minisearch import cards

    told = []
    monkeypatch.setattr(runs, "reproduce", lambda cells, jobs, mode, force: told.append(jobs) or [])
    monkeypatch.setattr(cards, "collect", lambda name: told.append(("collect", name)))
    monkeypatch.setattr(cards, "publish", lambda name: told.append(("publish", name)))
    assert call("reproduce", "--jobs", "3") == 0
    assert call("reproduce", "--collect") == 0
    assert told == [3, 1, ("collect", "01_tiny"), ("publish", "01_tiny")]


def test_book_runs_the_pages_and_builds_the_site(project, monkeypatch, capsys):
    built = []
    monkeypatch.setattr(book, "build", lambda profile: built.append(profile) or Path("/site"))
    assert call("book", "--profile", "smoke") == 0
    assert built == ["smoke"]
    assert runs.cell_folder(runs.page_cell("01", profile="smoke")).is_dir()
    assert capsys.readouterr().out.endswith("built: /site/index.html\n")


def test_a_book_is_not_built_from_a_failed_chapter(write_chapter, monkeypatch):
    write_chapter("01_tiny", "1 / 0\n")
    monkeypatch.setattr(book, "build", lambda profile: pytest.fail("built"))
    assert call("book", "--profile", "smoke") == 1


def test_cards_as_text_and_as_json(project, card, capsys):
    assert call("card", "01", "--json") == 0
    claims = json.loads(capsys.readouterr().out)
    assert [claim["id"] for claim in claims] == ["dense_beats_keywords", "one_is_enough"]
    assert claims[0]["chapter"] == "01_tiny"
    assert claims[0]["verdict"] == "NOT-RUN"
    assert call("card", "--all", "--json") == 0
    assert json.loads(capsys.readouterr().out) == claims
    assert claims[0]["regimes"][0]["dials"] == "calibrated"
    assert call("card") == 0
    shown = capsys.readouterr().out
    assert "NOT-RUN" in shown
    assert "the temperature; we use 1" in shown
    assert "details" not in shown


@pytest.mark.parametrize(("outcome", "status"), [("equal", 0), ("different", 1)])
def test_recheck_fails_where_a_number_differs(project, card, monkeypatch, capsys, outcome, status):
    from minisearch import cards

    row = cards.Comparison(runs.page_cell("01"), "dense/recall@50", 0.5, 0.25, outcome)
    asked = []
    monkeypatch.setattr(cards, "recheck", lambda *_, **options: asked.append(options) or [row])
    assert call("card", "01", "--recheck") == status
    assert call("card", "01", "--recheck", "--cheap") == status
    assert call("card", "01", "--recheck", "--beside", "runs") == status
    assert [(o["per_arm"], o["beside"]) for o in asked] == [
        (True, None), (False, None), (True, Path("runs"))
    ]  # fmt: skip
    out = capsys.readouterr().out
    assert f"{outcome}  01_tiny/main-w0-i0-s1000" in out
    assert "dense/recall@50: 0.5, now 0.25" in out


def test_data_commands(monkeypatch, capsys):
    assert call("data", "list") == 0
    listed = capsys.readouterr().out
    assert all(asset.name in listed for asset in assets.list_assets())
    name = assets.list_assets()[0].name
    monkeypatch.setattr(assets, "is_present", lambda asset: asset.name == name)
    monkeypatch.setattr(assets, "check", lambda asset: 12)
    assert call("data", "check") == 0
    assert capsys.readouterr().out == f"OK  {name}: 12 files\n"
    asked = []
    monkeypatch.setattr(assets, "get", lambda names: asked.append(names) or [])
    assert call("data", "get", "toy") == call("data", "get", "a", "b") == 0
    assert asked == ["toy", ["a", "b"]]


def test_assignment_build_names_what_it_wrote(project, monkeypatch, capsys, tmp_path):
    from minisearch import classroom

    monkeypatch.setattr(classroom, "build_assignment", lambda chapter, out: (out / "a", out / "b"))
    assert call("assignment", "build", "01", "--out", str(tmp_path)) == 0
    assert capsys.readouterr().out == f"written: {tmp_path}/a\nwritten: {tmp_path}/b\n"


def test_doctor_fails_only_for_what_is_required(monkeypatch, capsys):
    good = doctor.Finding("Python", True, "3.11.7")
    optional = doctor.Finding("GPU", False, "none", "buy one", required=False)
    bad = doctor.Finding("disk", False, "1 GiB free", "free some space")
    monkeypatch.setattr(doctor, "examine", lambda: iter([good, optional]))
    assert call("doctor") == 0
    assert capsys.readouterr().out.splitlines() == [
        "OK    Python: 3.11.7", "-     GPU (optional): none", "      to add it: buy one",
    ]  # fmt: skip
    monkeypatch.setattr(doctor, "examine", lambda: iter([good, bad]))
    assert call("doctor") == 1
    out = capsys.readouterr().out
    assert "FAIL  disk: 1 GiB free\n      fix: free some space" in out


def test_the_program_tells_its_version(capsys):
    from importlib.metadata import version

    assert call("--version") == 0
    assert capsys.readouterr().out == f"minisearch {version('minisearch')}\n"


def test_doctor_looks_at_this_machine():
    found = {finding.name: finding for finding in doctor.examine()}
    for name in ("Python", "packages", "build folder", "disk", "processor", "memory"):
        assert found[name].ok, found[name].detail
    assert not found["GPU"].required
    assert {"jupyter_book", "nbgrader", "jupyterlab", "chromium"} <= found.keys()
    assert all(finding.ok or finding.fix for finding in found.values())


def test_doctor_names_a_missing_package(monkeypatch):
    monkeypatch.setattr(doctor, "versions", lambda: {"numpy": "2.0", "faiss-cpu": "missing"})
    packages = {finding.name: finding for finding in doctor.examine()}["packages"]
    assert not packages.ok
    assert "faiss-cpu missing" in packages.detail
