"""Train what chapter 3 starts from in shop 0, and ship it with the package.

    python data_scripts/pretrain_needs.py      # about three minutes of one CPU core

The base model, which has learnt to answer with and without keywords and to write them, and the
distilled model from which alignment starts. What is trained, and how, are the chapter's own
definitions. Everything follows from the two seeds, both 0.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import ModuleType

import typer

from minisearch import chapters
from minisearch.models.generative import Alphabet
from minisearch.models.lm import ASSETS
from minisearch.profiles import quiet, use_threads
from minisearch.storage import atomic_write, cached

FOLDER = ASSETS / "needs_0"
MODELS = ("base", "distilled")


def prepared() -> ModuleType:
    """The definitions of chapter 3 at the toy profile, with shop 0 open and identifiers made."""
    chapter = chapters.load("03_onesearch_v2")
    settings = chapter.SearchSettings.of("toy")
    use_threads(settings.threads)
    vars(chapter).update(
        profile="toy", world_seed=0, init_seed=0, seed=0, data="", noise=-1.0, fresh=True, steps=0,
        rate=0.0, rl_rate=0.0, settings=settings,
    )  # fmt: skip
    chapter.shop = chapter.simulated_shop(0)
    chapter.space = chapter.make_space(chapter.shop)
    chapter.codes = chapter.make_codes()
    marks = ("retrieve", "think")
    chapter.alphabet = Alphabet(len(chapter.space.vocabulary), marks, chapter.codes.sizes)
    chapter.identifiers = chapter.alphabet.tokens(chapter.codes.codes)
    return chapter


def train_all(chapter: ModuleType) -> dict[str, Path]:
    """Train both models, or find them in the cache of this checkout; their paths.

    The cache knows a model by its settings, its data, and the source of the chapter and of all that
    it imports, so that what an earlier version left behind is never taken.
    """
    chapter.distilled_model()
    return {
        name: cached("onesearch", chapter.key_of(name), _absent) / "weights.safetensors"
        for name in MODELS
    }


def _absent(folder: Path) -> None:
    raise SystemExit(f"{folder} should have been filled by the training before")


def model_card(files: dict[str, Path]) -> str:
    """What the folder holds, in Markdown."""
    rows = "\n".join(
        f"| `{name}.safetensors` | {path.stat().st_size / 1e6:.2f} MB | "
        f"{hashlib.sha256(path.read_bytes()).hexdigest()} |"
        for name, path in files.items()
    )
    return f"""# needs_0: a generative retriever for requests that hide what is wanted

Weights in half precision for the simulated shop of `world_seed` 0 at the toy profile of chapter 3,
and of use for nothing else. `base` is a BART of .4 million parameters that has learnt to write the
identifier of a clicked product from a query, from a query with keywords, and the keywords from the
query. `distilled` went on from it by the chapter's main arm. Both follow from seed 0.

Made by `python data_scripts/pretrain_needs.py`. Licence: MIT, as the code. Each file names the data
it was made for (a digest of identifiers, words, clicks and thoughts). On a machine that makes
others from the same seed the chapter trains its own. What the arms can do stands on the card of
chapter 3.

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
