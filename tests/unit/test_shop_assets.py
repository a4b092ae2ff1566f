"""What chapter 2 starts from in shop 0: the files are those of the card, and fit the shop."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest
from safetensors import safe_open

from minisearch import chapters
from minisearch.models.lm import ASSETS

FOLDER = ASSETS / "shop_0"
SCHEMES = ("kae", "rq_kmeans", "rq_opq", "rq_vae")
FILES = ("encoder", *SCHEMES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_the_one_its_card_names_small_and_in_half_precision(name):
    path = FOLDER / f"{name}.safetensors"
    named = dict(
        re.findall(r"`(\w+)\.safetensors` .* (\w{64}) \|", (FOLDER / "README.md").read_text())
    )
    assert named.keys() == set(FILES)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == named[name]
    assert path.stat().st_size < 4e6
    with safe_open(path, "np") as file:
        weights = list(map(file.get_tensor, file.keys()))
        assert re.fullmatch(r"\w{16}", file.metadata()["digest"])
    assert all(array.dtype == np.float16 and np.isfinite(array).all() for array in weights)


def test_the_base_models_have_the_same_body():
    def body(name: str) -> dict[str, tuple[int, ...]]:
        with safe_open(FOLDER / f"{name}.safetensors", "np") as file:
            names = list(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        return {key: shape for key, shape in shapes.items() if "shared" not in key}

    assert all(body(name) == body("kae") for name in SCHEMES)


def test_the_chapter_takes_the_shipped_encoder_and_words(monkeypatch, tmp_path):
    """Where vocabulary, clicks and keyword identifiers are the shop's, nothing is trained."""
    page = chapters.load("02_oneretrieval")
    settings = page.RetrievalSettings.of("toy")
    values = {"profile": "toy", "world_seed": 0, "init_seed": 0, "data": "", "fresh": False}
    for name, value in (values | {"settings": settings}).items():
        monkeypatch.setattr(page, name, value, raising=False)
    shop, _ = page.open_world("toy", 0, "")
    monkeypatch.setattr(page, "fit", lambda *_, **__: pytest.fail("it was trained"))
    encoder = page.dual_encoder(shop)
    codes = page.keyword_codes(shop, encoder.vectors, "requests")
    size = len(encoder.vocabulary) + sum(len(n) for n in page.STAGES.values()) - 1
    with safe_open(FOLDER / "kae.safetensors", "np") as file:
        assert file.metadata()["digest"] == page.digest_of(codes.items, size + sum(codes.sizes))
