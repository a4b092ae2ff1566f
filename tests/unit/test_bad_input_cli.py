"""What a user can get wrong: one red message, exit status 2, nothing written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minisearch import cli


@pytest.fixture
def card(project) -> None:
    (project / "book" / "cards").mkdir(parents=True)
    source = Path(__file__).with_name("example_card.yaml")
    shutil.copy(source, project / "book" / "cards" / "01_tiny.yaml")


def complaint(capsys, *words: str) -> str:
    """What is said on standard error, in one line; the exit status must be 2."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(words))
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return " ".join(re.sub("[│╭╮╰╯─]", " ", err).split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run 01 --profile toi", "profile: found 'toi'.*did you mean 'toy'"),
        ("reproduce --profile huge", "found 'huge'; expected one of smoke, toy, small, full"),
        ("book --profile toi", "profile: found 'toi'.*did you mean 'toy'"),
        ("run 02", "chapter: found '02'; expected one of 01_tiny"),
        ("reproduce tinny", "chapter: found 'tinny'"),
        ("card 02", "chapter: found '02'"),
        ("assignment build 02 --out x", "chapter: found '02'"),
        ("run 01 -p raet 0.5", "parameter: found 'raet'.*did you mean 'rate'"),
        ("run 01 -p rate high", "parameter rate: found 'high'; expected float"),
        ("run 01 -p loud maybe", "parameter loud: found 'maybe'; expected bool"),
        ("run 01 -p seed 3", "parameter seed: .*use --seed instead"),
        ("run 01 -p rate 1 -p rate 2", "parameter rate: found two values"),
        ("run 01 -p rate", "-p rate: found no value"),
        ("run 01 --seed x", "Invalid value for '--seed': .*integer"),
        ("run 01 --arms desne", "--arms, chapter 01_tiny: found 'desne'.*did you mean 'dense'"),
        ("reproduce --arms bm25,x", "--arms, chapter 01_tiny: found 'x'; expected one of all"),
        ("reproduce --seeds 4-0", "--seeds: found '4-0'; expected numbers and ranges"),
        ("reproduce --worlds a", "--worlds: found 'a'"),
        ("reproduce --inits 0,,1", "--inits: found '0,,1'"),
        ("reproduce --jobs 0", "Invalid value for '--jobs': .* 1"),
        ("data get nothing-like-it", "asset: found 'nothing-like-it'"),
        ("data check nothing-like-it", "asset: found 'nothing-like-it'"),
        ("fly", "No such command 'fly'"),
    ],
)
def test_one_clear_message_and_nothing_written(project, card, capsys, words, message):
    root = Path(cli.__file__).parents[2]
    shutil.copy(root / "requirements-assets.txt", project)
    assert re.search(message, complaint(capsys, *words.split()))
    assert not (project / "_build").exists()
    assert not Path("x").exists()


def test_outside_the_checkout(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MINISEARCH_ROOT", str(tmp_path))
    assert "no chapters/ beside a pyproject.toml" in complaint(capsys, "run", "01")


def test_a_chapter_that_complains_is_heard(write_chapter, capsys):
    write_chapter(
        "01_tiny",
        "from minisearch.errors import InputError\n\n"
        'raise InputError(f"{data}/items.jsonl, row 3", "[nothing]", "a title", "add one.")\n',
    )
    said = complaint(capsys, "run", "01", "--profile", "smoke", "-p", "data", "/shop")
    expected = "/shop/items.jsonl, row 3: found [nothing]; expected a title. Remedy: add one."
    assert f"Error: {expected} (In [3] of " in said


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
@pytest.mark.parametrize("command", ["run", "reproduce"])
def test_no_permission_for_the_build_folder(project, monkeypatch, capfd, command):
    locked = project / "locked"
    locked.mkdir(mode=0o555)
    monkeypatch.setenv("MINISEARCH_BUILD", str(locked / "build"))
    for parent in (project, *project.parents[:3]):
        parent.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # permissions do not bind the superuser
    try:
        said = complaint(capfd, command, "01", "--profile", "smoke")
    finally:
        if root:
            os.seteuid(0)
    assert re.search(rf"{locked}/build.*: found Permission denied; expected a writable fol", said)
    assert "MINISEARCH_BUILD" in said
    assert not list(locked.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system of a set size")
def test_a_full_disk(project, monkeypatch, capfd, write_chapter):
    """On a file system of 64 kB, where one can be mounted."""
    write_chapter("01_tiny", "print('x' * 200_000)\n")
    small = project / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no file system can be mounted here")
    try:
        monkeypatch.setenv("MINISEARCH_BUILD", str(small))
        said = complaint(capfd, "run", "01", "--profile", "smoke")
        assert "No space left on device; expected room to write. Remedy: free some space" in said
        left = [path for path in small.rglob("*") if path.is_file()]
        assert left == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
