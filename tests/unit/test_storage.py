"""Nothing half-written ever has its final name, and what is shared is built once."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minisearch import storage
from minisearch.errors import InputError

BUILDER = """
import sys, time
from pathlib import Path
from minisearch.storage import cached

def build(folder):
    (folder / "half").write_text("x")
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    time.sleep(float(sys.argv[2]))

print(cached("world", {"seed": 3}, build), flush=True)
"""


def builder(log: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_root_from_environment_working_folder_or_package(project, monkeypatch, tmp_path_factory):
    assert storage.project_root() == project
    monkeypatch.delenv("MINISEARCH_ROOT")
    monkeypatch.chdir(project / "chapters")
    assert storage.project_root() == project
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert storage.project_root() == Path(storage.__file__).parents[2]


def test_a_root_that_is_none_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("MINISEARCH_ROOT", str(tmp_path))
    with pytest.raises(InputError, match=r"MINISEARCH_ROOT .*no chapters/.*Remedy"):
        storage.project_root()


def test_folders(project, monkeypatch, tmp_path):
    assert storage.build_dir() == project / "_build"
    assert storage.run_dir("01_tiny", "toy", "x") == project / "_build/runs/01_tiny/toy/x"
    monkeypatch.setenv("MINISEARCH_BUILD", str(tmp_path / "other"))
    assert storage.build_dir() == tmp_path / "other"


def test_a_folder_appears_when_it_is_whole(tmp_path):
    final = tmp_path / "a" / "final"
    with storage.atomic_directory(final) as folder:
        (folder / "file").write_text("1")
        assert not final.exists()
        assert folder.parent == final.parent
    assert names(final.parent) == ["final"]
    assert (final / "file").read_text() == "1"


def test_a_folder_replaces_the_old_one_whole(tmp_path):
    final = tmp_path / "final"
    for text in ("old", "new"):
        with storage.atomic_directory(final) as folder:
            (folder / text).touch()
    assert names(final) == ["new"]
    assert names(tmp_path) == ["final"]


def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path):
    final = tmp_path / "final"
    with storage.atomic_directory(final) as folder:
        (folder / "old").touch()
    with pytest.raises(ZeroDivisionError), storage.atomic_directory(final) as folder:
        _ = (folder / "new").write_text("half") / 0
    assert names(final) == ["old"]
    assert names(tmp_path) == ["final"]


def test_what_a_dead_process_left_is_swept_and_a_live_one_is_not_touched(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = storage.platform.node()
    left, mine = (tmp_path / f".final.{host}@{pid}-0.part" for pid in (dead.pid, os.getpid()))
    left.mkdir()
    mine.mkdir()
    with storage.atomic_directory(tmp_path / "final"):
        pass
    assert not left.exists()
    assert mine.exists()


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "file"
    storage.atomic_write(path, "één")
    storage.atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_no_write_permission_names_the_path_and_the_remedy(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    root = os.geteuid() == 0
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    if root:
        os.seteuid(65534)  # permissions do not bind the superuser
    try:
        with pytest.raises(InputError, match=rf"{locked}.*denied.*MINISEARCH_BUILD"):
            storage.atomic_write(locked / "deep" / "file", "x")
        with (
            pytest.raises(InputError, match=rf"{locked}.*denied.*MINISEARCH_BUILD"),
            storage.atomic_directory(locked / "final"),
        ):
            pytest.fail("the folder was made")
    finally:
        if root:
            os.seteuid(0)
    assert names(locked) == []


def test_no_room_names_the_path_and_leaves_nothing(tmp_path):
    """A limit on file size fails in the middle of a write, as a full disk does."""
    resource = pytest.importorskip("resource")
    old = tmp_path / "file"
    old.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(InputError, match=rf"{tmp_path}.*room to write.*free some space"):
            storage.atomic_write(old, b"x" * 100_000)
        with (
            pytest.raises(InputError, match="room to write"),
            storage.atomic_directory(tmp_path / "final") as folder,
        ):
            (folder / "big").write_bytes(b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == ["file"]
    assert old.read_text() == "old"


def test_a_full_disk_is_one_clear_error(tmp_path):
    with (
        pytest.raises(InputError, match="No space left on device; expected room to write"),
        storage.atomic_directory(tmp_path / "final"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_other_errors_of_the_system_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), storage.atomic_directory(tmp_path / "final"):
        (tmp_path / "nowhere").read_text()


def test_cached_builds_once_per_key(project):
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "data").write_text("x")

    first = storage.cached("world", {"seed": 1, "dials": [0.5]}, build)
    again = storage.cached("world", {"dials": [0.5], "seed": 1}, build)
    other = storage.cached("world", {"seed": 2, "dials": [0.5]}, build)
    assert first == again != other
    assert len(built) == 2
    assert json.loads((first / "key.json").read_text()) == {"seed": 1, "dials": [0.5]}
    assert first.parent == project / "_build" / "cache" / "world"


def test_a_build_that_fails_is_built_by_the_next(project):
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        storage.cached("world", {"seed": 1}, fail)
    assert names(storage.cached("world", {"seed": 1}, lambda folder: None)) == ["key.json"]


def test_processes_side_by_side_build_once(project):
    log = project / "log"
    both = [builder(log, 1.0) for _ in range(2)]
    paths = {process.communicate()[0].strip() for process in both}
    assert len(paths) == 1
    assert log.read_text() == "built\n"


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_builder_neither_blocks_nor_counts(project):
    log, world = project / "log", project / "_build" / "cache" / "world"
    first = builder(log, 600)
    wait_for(log.exists)
    first.kill()
    first.communicate()
    assert [name for name in names(world) if name.endswith(".part")]
    second = builder(log, 0)
    path = Path(second.communicate(timeout=30)[0].strip())
    assert names(path) == ["half", "key.json"]
    assert log.read_text() == "built\n" * 2
    assert not [name for name in names(world) if name.endswith(".part")]
