"""The download script on small files in the true format, the network replaced."""

from __future__ import annotations

import errno
import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import kuaisearch_example as example
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from minisearch.data import tables
from minisearch.data.kuaisearch import KuaiSearch
from minisearch.errors import InputError
from minisearch.records import row_count

SCRIPT = Path(__file__).parents[2] / "data_scripts" / "kuaisearch.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("kuaisearch_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hub(tmp_path, monkeypatch, script) -> Path:
    """A folder that plays the hub; the published figures become those of its small files."""
    folder = example.put(tmp_path / "hub", example.rows(), "{}_lite/train.jsonl")
    figures = {}
    for path in folder.rglob("*.jsonl"):
        content = path.read_bytes()
        figures[str(path.relative_to(folder))] = (len(content), content.count(b"\n"))
    monkeypatch.setattr(script, "FIGURES", figures)

    def fetch(repository, name, *, repo_type, revision, local_dir):
        assert (repository, repo_type) == ("benchen4395/KuaiSearch", "dataset")
        assert revision == "09807c773ce67360ed8df30842e372182fcf7ad9"
        target = Path(local_dir, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    return folder


def run(script, *arguments):
    app = typer.Typer()
    app.command()(script.main)
    return CliRunner().invoke(app, [str(a) for a in arguments])


def left(folder: Path) -> list[str]:
    """The files that have their final names, hidden ones aside."""
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(str(path) for path in files if not path.parts[0].startswith("."))


def test_figures_are_those_of_the_published_revision(script):
    assert sum(size for size, _ in script.FIGURES.values()) == 106_593_680_201
    assert script.FIGURES["rank_lite/train.jsonl"] == (16_749_137_750, 17_800_904)
    full = script.files("full", ["users", "items", "recall", "rank", "relevance"])
    lite = script.files("lite", ["users", "items", "recall", "rank", "relevance"])
    assert set(full.values()) | set(lite.values()) == set(script.FIGURES)
    assert full["relevance"] == lite["relevance"]


def test_the_converted_files_hold_the_same_rows(tmp_path, script, hub):
    done = run(script, tmp_path / "data", "--no-keep-jsonl")
    assert done.exit_code == 0, done.output
    assert "rank_lite/train.jsonl: verified, 80 rows" in done.output
    assert left(tmp_path / "data") == [
        "items_lite/train.parquet",
        "rank_lite/train.parquet",
        "recall_lite/train.parquet",
        "relevance/train.parquet",
        "users_lite/train.parquet",
    ]
    assert not (tmp_path / "data" / script.STAGING).exists()
    KuaiSearch.read(hub).write(tmp_path / "one")
    KuaiSearch.read(tmp_path / "data").write(tmp_path / "other")
    for name in ("users", "items", "recall", "rank", "relevance"):
        one, other = (tmp_path / side / name / "train.jsonl" for side in ("one", "other"))
        assert one.read_bytes() == other.read_bytes()


def test_conversion_reads_a_block_at_a_time(tmp_path, script, hub, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 4000)
    path = script.convert(hub / "rank_lite/train.jsonl", "rank")
    written = pq.ParquetFile(path).metadata
    assert written.num_rows == 80
    assert max(written.row_group(n).num_rows for n in range(written.num_row_groups)) < 12


def test_a_second_run_downloads_nothing(tmp_path, script, hub, monkeypatch):
    assert run(script, tmp_path / "data", "--tables", "users,items").exit_code == 0
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    assert run(script, tmp_path / "data", "--tables", "users,items").exit_code == 0
    assert run(script, tmp_path / "data", "--tables", "users", "--no-parquet").exit_code == 0


@pytest.mark.parametrize("stop", [ConnectionError("reset by peer"), TimeoutError("too slow")])
def test_an_interrupted_download_leaves_no_final_file_and_resumes(
    tmp_path, script, hub, monkeypatch, stop
):
    complete = huggingface_hub.hf_hub_download

    def interrupted(repository, name, *, local_dir, **options):
        part = Path(local_dir, ".cache", "part.incomplete")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(b"half")
        raise stop

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", interrupted)
    done = run(script, tmp_path / "data", "--tables", "users")
    assert done.exit_code == 2
    assert "users_lite/train.jsonl: found the download stopped" in done.output
    assert str(stop) in done.output
    assert "run the same command again" in done.output
    assert left(tmp_path / "data") == []
    assert list((tmp_path / "data").rglob("*.incomplete"))  # what the client resumes from

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", complete)
    assert run(script, tmp_path / "data", "--tables", "users").exit_code == 0
    assert left(tmp_path / "data") == ["users_lite/train.jsonl", "users_lite/train.parquet"]


def test_control_c_leaves_no_final_file(tmp_path, script, hub, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.download("users_lite/train.jsonl", tmp_path / "data")
    assert left(tmp_path / "data") == []


@pytest.mark.parametrize(
    ("change", "found", "expected"),
    [
        (lambda content: content[:-40], "bytes", "bytes"),
        (lambda content: content.replace(b"\n", b" ", 1), "4 rows", "5 rows"),
    ],
)
def test_a_file_that_differs_from_the_published_figures(
    tmp_path, script, hub, change, found, expected
):
    path = hub / "users_lite/train.jsonl"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError) as error:
        script.download("users_lite/train.jsonl", tmp_path / "data")
    assert "users_lite/train.jsonl" in error.value.where
    assert error.value.found.endswith(found)
    assert error.value.expected.endswith(expected)
    assert "again" in error.value.remedy
    assert left(tmp_path / "data") == []
    assert not list((tmp_path / "data").rglob("train.jsonl"))


def test_a_disk_without_room_stops_before_the_download(tmp_path, script, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    monkeypatch.setitem(script.FIGURES, "rank_lite/train.jsonl", (16_749_137_750, 17_800_904))
    with pytest.raises(InputError, match=r"found 0\.0 GB free; expected 16\.7 GB of room"):
        script.download("rank_lite/train.jsonl", tmp_path / "data")


@pytest.mark.parametrize(
    ("number", "found"),
    [(errno.ENOSPC, "No space left on device"), (errno.EACCES, "Permission denied")],
)
def test_a_disk_that_refuses_during_the_download(tmp_path, script, hub, monkeypatch, number, found):
    def refused(*_, **__):
        raise OSError(number, found)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refused)
    with pytest.raises(InputError) as error:
        script.download("users_lite/train.jsonl", tmp_path / "data")
    assert error.value.found == found
    assert left(tmp_path / "data") == []


def test_a_conversion_that_fails_leaves_no_parquet(tmp_path, script, hub, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 4000)
    path = hub / "rank_lite/train.jsonl"
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([*lines[:60], '{"user_id": 1}']), "utf-8")
    with pytest.raises(InputError, match="row 61, column session_id"):
        script.convert(path, "rank")
    assert left(hub / "rank_lite") == ["train.jsonl"]


@pytest.mark.parametrize(
    ("option", "value", "choice"), [("--edition", "light", "lite"), ("--tables", "item", "items")]
)
def test_an_unknown_edition_or_table(tmp_path, script, hub, option, value, choice):
    done = run(script, tmp_path / "data", option, value)
    assert done.exit_code == 2
    assert f"did you mean '{choice}'?" in done.output
    assert not (tmp_path / "data").exists()


def test_what_was_downloaded_is_read(tmp_path, script, hub):
    run(script, tmp_path / "data", "--tables", "users,items,recall", "--no-parquet")
    data = KuaiSearch.read(tmp_path / "data", tables=("users", "items", "recall"))
    assert row_count(data.recall) == 20
