"""The script of PyVideo on a small archive in the true layout, the network replaced."""

from __future__ import annotations

import importlib
import json
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from minisearch.errors import InputError

SCRIPTS = Path(__file__).parents[2] / "data_scripts"
COMMIT = "8d3735025" + "0" * 31
TOP = f"data-{COMMIT}"

# Records in the three shapes that the set has: a new one, one of the old site, a bare one.
RECORDS = {
    "group/videos/layers.json": {
        "description": "Speaker: A. Person\n\nLearn how to\ttest in layers.",
        "language": "eng",
        "recorded": "2017-03-16",
        "speakers": ["A. Person"],
        "title": "March 2017:  Testing in Layers",
        "videos": [{"type": "youtube", "url": "https://example.org/1"}],
    },
    "group/videos/guide.json": {
        "alias": "video/1/guide",
        "category": "Group",
        "copyright_text": "CC BY",
        "description": "",
        "summary": "Pandas, drawn.\n",
        "tags": ["pandas", "drawing"],
        "speakers": None,
        "recorded": None,
        "title": "A Guide",
        "videos": [],
    },
    "other/videos/bare.json": {"title": "Bare", "videos": []},
}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    module = importlib.import_module("pyvideo")
    monkeypatch.setattr(module, "TALKS", len(RECORDS))
    return module


def archive_at(path: Path, records=RECORDS, commit=COMMIT) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.comment = commit.encode()
        file.writestr(f"{TOP}/group/category.json", json.dumps({"title": "Group"}))
        file.writestr(f"{TOP}/.schemas/video.json", "{}")
        file.writestr(f"{TOP}/tools/videos/readme.md", "no talk")
        for name, record in records.items():
            text = record if isinstance(record, str) else json.dumps(record)
            file.writestr(f"{TOP}/{name}", text)
    return path


def test_talks_are_read_from_their_files_alone(script, tmp_path):
    rows = {row["title"]: row for row in script.talks(archive_at(tmp_path / "a.zip"))}
    assert set(rows) == {"March 2017: Testing in Layers", "A Guide", "Bare"}
    guide = rows["A Guide"]
    assert guide["summary"] == "Pandas, drawn."  # where the description is empty
    assert guide["tags"] == ["pandas", "drawing"]
    assert (guide["speakers"], guide["recorded"], guide["category"]) == ([], "", "group")
    layers = rows["March 2017: Testing in Layers"]
    assert layers["summary"] == "Speaker: A. Person Learn how to test in layers."
    assert layers["recorded"] == "2017-03-16"
    assert rows["Bare"]["category"] == "other"


def test_what_is_written_is_what_the_chapter_reads(script, tmp_path):
    from minisearch import chapters

    archive_at(tmp_path / "talks.zip")
    done = CliRunner().invoke(_app(script), [str(tmp_path / "talks")])
    assert done.exit_code == 0, done.output
    assert "3 talks, 2 with a description, 1 with tags" in done.output
    found = chapters.load("04_onebar").read_talks(tmp_path / "talks" / "talks.jsonl")
    assert [talk["title"] for talk in found] == ["A Guide", "March 2017: Testing in Layers", "Bare"]


def _app(script):
    import typer

    app = typer.Typer()
    app.command()(script.main)
    return app


@pytest.mark.parametrize(
    ("records", "commit", "named"),
    [
        (RECORDS, "f" * 40, "8d3735025..."),
        (RECORDS | {"x/videos/y.json": {"title": "One more"}}, COMMIT, "4 talks"),
        ({"x/videos/y.json": "{"}, COMMIT, "y.json"),
        ({"x/videos/y.json": "[]"}, COMMIT, "no title"),
    ],
    ids=["another commit", "another number", "not json", "not a record"],
)
def test_a_wrong_archive_is_refused_and_nothing_written(script, tmp_path, records, commit, named):
    archive_at(tmp_path / "talks.zip", records, commit)
    done = CliRunner().invoke(_app(script), [str(tmp_path / "talks")])
    assert done.exit_code == 2
    assert named in done.output.replace("\n", "")
    assert not (tmp_path / "talks" / "talks.jsonl").exists()


def test_no_archive_at_all(script, tmp_path):
    (tmp_path / "talks.zip").write_text("<html>")
    with pytest.raises(InputError, match="zip"):
        script.verify(tmp_path / "talks.zip")


def test_a_stopped_download_leaves_no_file(script, monkeypatch, tmp_path):
    def fails(url, path):
        assert url == script.URL
        Path(path).write_text("half")

    monkeypatch.setattr("torch.hub.download_url_to_file", fails)
    with pytest.raises(InputError):
        script.fetch(tmp_path / "talks.zip")
    assert not (tmp_path / "talks.zip").exists()
