"""What this machine is and has: versions, processor, commit, and whether it can build the book."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisearch.errors import MinisearchError
from minisearch.storage import atomic_directory, build_dir, project_root


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, how it is, and what to do if it is not well."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    required: bool = True


def versions() -> dict[str, str]:
    """Installed versions of this package and of what it declares to need at run time."""
    from importlib.metadata import PackageNotFoundError, requires, version

    found = {}
    for line in ["minisearch", *(requires("minisearch") or [])]:
        if "extra ==" not in line:
            name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "missing"
    return found


def cpu_model() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return match[1] if match else platform.processor() or platform.machine()


def commit() -> dict[str, Any]:
    """The commit of the checkout and whether its files differ from it; None without git."""
    said = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain"]):
        try:
            git = ["git", "-C", str(project_root()), *command]
            done = subprocess.run(git, capture_output=True, text=True, check=True)
        except (FileNotFoundError, subprocess.CalledProcessError):
            return {"commit": None, "dirty": None}
        said.append(done.stdout.strip())
    return {"commit": said[0], "dirty": bool(said[1])}


def examine() -> Iterator[Finding]:
    """Look at everything the book needs, the required things first."""
    python = platform.python_version()
    right = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Finding("Python", right, python, "create the environment with Python 3.11, 3.12 or 3.13.")
    found = versions()
    missing = [name for name, version in found.items() if version == "missing"]
    said = ", ".join(f"{name} {version}" for name, version in found.items())
    yield Finding("packages", not missing, said, "install the book again, as its README says.")
    yield from _folders()
    yield from _hardware()
    yield from _optional()


def _folders() -> Iterator[Finding]:
    try:
        with atomic_directory(build_dir() / "doctor") as folder:
            free = shutil.disk_usage(folder).free / 2**30
        (build_dir() / "doctor").rmdir()
    except MinisearchError as error:
        yield Finding("build folder", False, str(error), "see the remedy beside.")
        return
    fix = "free some space, or set MINISEARCH_BUILD to another disk."
    yield Finding("build folder", True, str(build_dir()))
    yield Finding("disk", free >= 2, f"{free:.1f} GiB free (2 needed)", fix)


def _hardware() -> Iterator[Finding]:
    import psutil
    import torch

    memory = psutil.virtual_memory().total / 2**30
    fix = "run one chapter at a time, or on a machine with more memory."
    yield Finding("processor", True, f"{cpu_model()}, {os.cpu_count()} cores")
    yield Finding("memory", memory >= 4, f"{memory:.1f} GiB (4 needed)", fix)
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "Apple GPU"
    fix = "nothing to do for smoke and toy; small and full want a GPU and its build of torch."
    yield Finding("GPU", gpu, name if gpu else "none", fix, required=False)


def _optional() -> Iterator[Finding]:
    from importlib.util import find_spec

    from minisearch.data import assets

    for module, extra, use in (
        ("jupyter_book", "book", "building the site"),
        ("pytest", "test", "the tests"),
        ("jupyterlab", "lab", "working in notebooks"),
        ("nbgrader", "classroom", "nbgrader courses"),
    ):
        fix = f"pip install -e '.[{extra}]' -c constraints.txt"
        yield Finding(module, find_spec(module) is not None, f"for {use}", fix, required=False)
    for asset in assets.list_assets():
        have, fix = assets.is_present(asset), f"minisearch data get {asset.name}"
        yield Finding(asset.name, have, f"for {asset.purpose}", fix, asset.profile == "toy")
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    fix = "install Chromium from the system's packages; without it the browser tests are skipped."
    path = next(filter(None, found), "not found")
    yield Finding("chromium", any(found), path, fix, required=False)
