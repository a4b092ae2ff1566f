"""Train what the shop chapters start from in shop 0, and ship it with the package.

    python data_scripts/pretrain_shop.py      # about five minutes of one CPU core

A dual encoder, and for every scheme of identifiers a model after the first two of chapter 2's four
stages: the same steps, the same batch size, the same rule for the start. What is trained, and how,
are the chapter's own definitions. Everything follows from the two seeds, both 0.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import ModuleType

import typer

from minisearch import chapters
from minisearch.models.lm import ASSETS
from minisearch.profiles import quiet, use_threads
from minisearch.storage import atomic_write, build_dir

SCHEMES = ("kae", "rq_kmeans", "rq_opq", "rq_vae")
FOLDER = ASSETS / "shop_0"


def prepared() -> ModuleType:
    """The definitions of chapter 2 at the toy profile, with shop 0 open."""
    chapter = chapters.load("02_oneretrieval")
    settings = chapter.RetrievalSettings.of("toy")
    use_threads(settings.threads)
    vars(chapter).update(
        profile="toy", world_seed=0, init_seed=0, seed=0, data="", fresh=True, settings=settings
    )
    chapter.shop, _ = chapter.open_world("toy", 0, "")
    chapter.clicks = chapter.shop.clicks
    return chapter


def train_all(chapter: ModuleType) -> dict[str, Path]:
    """Train, or find in the cache of this checkout, every file that is shipped; their paths."""
    chapter.encoder = chapter.dual_encoder(chapter.shop)
    for scheme in SCHEMES:
        typer.echo(scheme)
        chapter.base_model(chapter.Plan(scheme), chapter.make_scheme(scheme))
    wanted = {"world": 0, "init": 0, "data": "", "recipe": chapter.RECIPE}
    found = {}
    for path in sorted((build_dir() / "cache" / "oneretrieval").glob("*/key.json")):
        key = json.loads(path.read_text("utf-8"))
        usual = key["settings"]["profile"] == "toy"
        if usual and {name: key[name] for name in wanted} == wanted:
            if key["name"] in found:
                raise SystemExit(f"two kept versions of {key['name']}; delete {path.parents[1]}")
            found[key["name"]] = path.parent / "weights.safetensors"
    return {name: found[name] for name in ("encoder", *SCHEMES)}


def model_card(files: dict[str, Path]) -> str:
    """What the folder holds, in Markdown."""
    rows = "\n".join(
        f"| `{name}.safetensors` | {path.stat().st_size / 1e6:.2f} MB | "
        f"{hashlib.sha256(path.read_bytes()).hexdigest()} |"
        for name, path in files.items()
    )
    return f"""# shop_0: a dual encoder, and a generative retriever for each scheme of identifiers

Weights in half precision for the simulated shop of `world_seed` 0 at the toy profile of chapter 2,
and of use for nothing else. `encoder` is a bag of word vectors trained on the shop's clicks. The
others are BARTs of about a million parameters that start from it, after stages S0 and S1 of the
chapter (S0 for `kae` alone): equally many steps and rows, seed 0. They are not yet trained to
retrieve; stages S2 and S3 of the chapter do that.

Made by `python data_scripts/pretrain_shop.py`. Licence: MIT, as the code. Each file names the data
it was made for (a digest of vocabulary and clicks, or of the identifiers); on a machine that makes
other identifiers from the same seed the chapter trains its own. What the finished arms can do
stands on the card of chapter 2.

| file | size | SHA-256 |
|---|---|---|
{rows}
"""


def main() -> None:
    """Train and ship."""
    quiet()
    files = train_all(prepared())
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        shutil.copyfile(path, FOLDER / f"{name}.safetensors")
    atomic_write(FOLDER / "README.md", model_card(files))
    typer.echo(f"written to {FOLDER}")


if __name__ == "__main__":
    typer.run(main)
