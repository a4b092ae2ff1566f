"""Where things are kept, and writing them so that nothing half-written ever has its final name.

Everything generated lives under `build_dir()`: runs (`runs/`), shared worlds (`cache/`), the site.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from minisearch.errors import InputError

_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def project_root() -> Path:
    """The checkout: the folder that holds `chapters/` and `pyproject.toml`.

    Looked for in `MINISEARCH_ROOT` if that is set, else upwards from the working folder, else
    upwards from the package.

    Raises:
        InputError: where there is none.
    """
    chosen = os.environ.get("MINISEARCH_ROOT")
    starts = [Path(chosen)] if chosen else [Path.cwd(), Path(__file__).parent]
    for start in starts:
        for folder in (start.resolve(), *start.resolve().parents):
            if (folder / "chapters").is_dir() and (folder / "pyproject.toml").is_file():
                return folder
    raise InputError(
        f"MINISEARCH_ROOT {chosen}" if chosen else f"working folder {Path.cwd()}",
        "no chapters/ beside a pyproject.toml, here or above",
        "the checkout of the book",
        "change to the checkout, or set MINISEARCH_ROOT to it.",
    )


def build_dir() -> Path:
    """The folder of everything generated: `_build` of the checkout, or `MINISEARCH_BUILD`."""
    chosen = os.environ.get("MINISEARCH_BUILD")
    return Path(chosen).resolve() if chosen else project_root() / "_build"


def run_dir(chapter: str, profile: str, folder_name: str = "") -> Path:
    """The folder of one run, or (without `folder_name`) of all runs of a chapter and profile."""
    return build_dir() / "runs" / chapter / profile / folder_name


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write into an InputError that names the path."""
    try:
        yield
    except OSError as error:
        where, found = str(error.filename or path), os.strerror(error.errno or 0)
        if error.errno in _FULL:
            remedy = f"free some space under {path.parent}, or set MINISEARCH_BUILD elsewhere."
            raise InputError(where, found, "room to write", remedy) from error
        if error.errno in _DENIED:
            remedy = "change its permissions, or set MINISEARCH_BUILD to a folder you may write."
            raise InputError(where, found, "a writable folder", remedy) from error
        raise


def _sweep(final: Path) -> None:
    """Delete what killed processes of this machine left beside `final`."""
    for left in final.parent.glob(f".{escape(final.name)}.*.part"):
        import psutil

        host, _, owner = left.name[len(final.name) + 2 :].partition("@")
        pid = owner.partition("-")[0]
        if host == platform.node() and pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(
                missing_ok=True
            )


def _sibling(final: Path) -> Path:
    """A name beside `final` (so that a rename suffices) that tells which process owns it."""
    owner = f"{platform.node()}@{os.getpid()}-{uuid.uuid4().hex[:8]}"
    return final.with_name(f".{final.name}.{owner}.part")


@contextmanager
def atomic_directory(final: Path) -> Iterator[Path]:
    """A temporary folder beside `final` that takes its name, and its place, on success.

    On failure it is removed and `final` is as it was. Folders left by killed processes are
    removed the next time the same `final` is written.

    Raises:
        InputError: where the folder cannot be written or the disk is full.
    """
    with writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final)
        folder = _sibling(final)
        folder.mkdir()
        try:
            yield folder
            if final.exists():
                # A folder cannot be renamed onto a full one, so the old one steps aside first.
                old = _sibling(final)
                os.replace(final, old)
                os.replace(folder, final)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(folder, final)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file so that `path` holds either what it held before or all of `content`.

    Raises:
        InputError: where it cannot be written or the disk is full.
    """
    data = content.encode() if isinstance(content, str) else content
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        part = _sibling(path)
        try:
            part.write_bytes(data)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def cached(kind: str, key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder that `build` filled for `key`, built once however many processes ask for it.

    The others wait for the one that builds. A builder that is killed loses its lock (the
    operating system releases it) and leaves nothing that counts as built.

    Args:
        kind: what is kept, e.g. "shop"; one folder a kind under `_build/cache`.
        key: everything the content depends on, in types that JSON knows; stored as `key.json`.
        build: called with an empty folder to fill.

    Raises:
        InputError: where the cache cannot be written or the disk is full.
    """
    text = json.dumps(key, sort_keys=True, indent=1)
    final = build_dir() / "cache" / kind / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not (final / "key.json").is_file():
        from filelock import FileLock

        with writing(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(final.with_name(f"{final.name}.lock")):
                if not (final / "key.json").is_file():
                    with atomic_directory(final) as folder:
                        build(folder)
                        (folder / "key.json").write_text(text, encoding="utf-8")
    return final
