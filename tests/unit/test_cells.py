"""Cells, ranges and overrides; what changes a code key and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from minisearch.cells import Cell, code_key, expand, grid_source, parse_overrides, parse_range
from minisearch.errors import InputError

KNOWN = {"profile": str, "seed": int, "rate": float, "loud": bool, "data": str, "steps": int}


def test_every_field_of_a_cell_shows_in_its_folder_name():
    cell = Cell("01_tiny", "toy", "dense", 1, 0, 7)
    others = [
        Cell("02_tiny", "toy", "dense", 1, 0, 7),
        Cell("01_tiny", "smoke", "dense", 1, 0, 7),
        Cell("01_tiny", "toy", "bm25", 1, 0, 7),
        Cell("01_tiny", "toy", "dense", 2, 0, 7),
        Cell("01_tiny", "toy", "dense", 1, 1, 7),
        Cell("01_tiny", "toy", "dense", 1, 0, 8),
        Cell("01_tiny", "toy", "dense", 1, 0, 7, (("rate", 0.5),)),
    ]
    assert cell.folder_name.startswith("dense-w1-i0-s7-")
    assert len({c.folder_name for c in [cell, *others]}) == 8


def test_the_folder_name_is_the_same_in_every_process():
    assert Cell("01_tiny", "toy", "dense").folder_name == "dense-w0-i0-s1000-00302201b3"


def test_a_cell_survives_json():
    cell = Cell("01_tiny", "toy", "dense", 1, 2, 3, (("data", "x"), ("rate", 0.5)))
    assert Cell.from_dict(cell.to_dict()) == cell
    assert cell.parameters()["arms"] == "dense"
    assert cell.parameters()["rate"] == 0.5


def test_ranges():
    assert parse_range("0-4,7") == (0, 1, 2, 3, 4, 7)
    assert parse_range(" 3 ") == (3,)


@pytest.mark.parametrize("text", ["", "a", "4-0", "1,,2", "-1", "0-4,3", "1.5"])
def test_what_is_no_range_is_refused_by_option_name(text):
    with pytest.raises(InputError, match=r"--worlds: found "):
        parse_range(text, "--worlds")


def test_overrides_are_typed_and_sorted():
    given = [("rate", "1"), ("loud", "true"), ("data", "1")]
    assert parse_overrides(given, KNOWN) == (("data", "1"), ("loud", True), ("rate", 1.0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([("rat", "1")], "did you mean 'rate'"),
        ([("seed", "1")], "use --seed"),
        ([("steps", "1.5")], "pass steps as int"),
        ([("loud", "maybe")], "pass loud as bool"),
        ([("rate", "1"), ("rate", "2")], "give it once"),
    ],
)
def test_bad_overrides_name_the_parameter(given, message):
    with pytest.raises(InputError, match=message):
        parse_overrides(given, KNOWN)


def test_a_grid_has_every_combination_once():
    cells = expand("01_tiny", "toy", ["a", "b"], worlds=(0, 1), seeds=(5, 6, 7), inits=(0,))
    assert len(cells) == len(set(cells)) == 12
    with pytest.raises(InputError, match="--profile"):
        expand("01_tiny", "huge", ["a"])


# --- code keys ------------------------------------------------------------------------------------

CHAPTER = '''\
# ---
# jupyter: header
# ---

# %% [markdown]
# # A title

# %% tags=["parameters"]
seed: int = 1000

# %%
from pkg.model import train
RATE = 0.1  # per second

def loss(x):
    """What it computes."""
    from pkg.deep import inner
    return inner(x) * RATE

# %% tags=["page-only", "hide-input"]
from pkg.pictures import draw
draw(train)
'''
MODULES = {
    "__init__.py": '__version__ = "1"\n',
    "model.py": "from . import shared\nfrom pkg.data import reader\n\ndef train():\n    return 1\n",
    "shared.py": "LIMIT = 3\n",
    "deep.py": "def inner(x):\n    return x\n",
    "pictures.py": "def draw(x):\n    return x\n",
    "site.py": "TITLE = 1\n",
    "data/__init__.py": "",
    "data/reader.py": "from .codes import table\n",
    "data/codes.py": "table = {}\n",
}


class Project:
    """A chapter, a package and their key."""

    def __init__(self, root: Path) -> None:
        self.chapter, self.package = root / "chapters" / "01_tiny.py", root / "src" / "pkg"
        self.chapter.parent.mkdir()
        self.chapter.write_text(CHAPTER)
        for name, text in MODULES.items():
            (self.package / name).parent.mkdir(parents=True, exist_ok=True)
            (self.package / name).write_text(text)

    def key(self) -> str:
        return code_key(self.chapter, self.package)

    def edit(self, path: Path, old: str, new: str) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


@pytest.fixture
def coded(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # per second", "  # a second"),
        ("What it computes.", "Something else."),
        ("# # A title", "# # Another title"),
        ("inner(x) * RATE", "(inner( x )\n            * RATE)"),
        ("draw(train)", "draw(draw(train))"),
        ("pkg.pictures", "pkg.site"),
        ("# jupyter: header", "# jupyter: footer"),
    ],
)
def test_words_layout_and_the_page_do_not_change_the_key(coded: Project, old: str, new: str):
    before = coded.key()
    coded.edit(coded.chapter, old, new)
    assert coded.key() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("RATE = 0.1", "RATE = 0.2"),
        ("inner(x) * RATE", "inner(x) + RATE"),
        ("seed: int = 1000", "seed: int = 1001"),
        (', "hide-input"]', "]\nRATE = 3\n# %%"),
        ('"page-only", ', ""),
    ],
)
def test_what_a_grid_cell_executes_changes_the_key(coded: Project, old: str, new: str):
    before = coded.key()
    coded.edit(coded.chapter, old, new)
    assert coded.key() != before


@pytest.mark.parametrize(
    "name",
    ["model.py", "shared.py", "deep.py", "data/__init__.py", "data/reader.py", "data/codes.py"],
)
def test_every_module_the_chapter_reaches_counts(coded: Project, name: str):
    before = coded.key()
    (coded.package / name).write_text((coded.package / name).read_text() + "\nNEW = 1\n")
    assert coded.key() != before


@pytest.mark.parametrize("name", ["pictures.py", "site.py"])
def test_modules_out_of_reach_do_not_count(coded: Project, name: str):
    before = coded.key()
    (coded.package / name).write_text("anything = 'else'\n")
    assert coded.key() == before


def test_comments_docstrings_and_the_version_of_a_module_do_not_count(coded: Project):
    before = coded.key()
    coded.edit(coded.package / "shared.py", "LIMIT", '"""Limits."""\n\n# why three\nLIMIT')
    coded.edit(coded.package / "__init__.py", '"1"', '"2"')
    assert coded.key() == before


def test_assets_on_the_card_count_and_must_exist(coded: Project):
    root = coded.chapter.parent.parent
    card, asset = root / "book" / "cards" / "01_tiny.yaml", coded.package / "assets" / "words.txt"
    for path in (card, asset):
        path.parent.mkdir(parents=True)
    card.write_text("assets: [words.txt, icon_words]\n")
    asset.write_text("one")
    with pytest.raises(InputError, match=r"'icon_words'"):
        coded.key()
    pins = root / "requirements-assets.txt"
    pins.write_text("other==1 \\\n    --hash=sha256:0\nicon_words==1.0 \\\n    --hash=sha256:a\n")
    keys = [coded.key()]
    asset.write_text("two")
    keys.append(coded.key())
    pins.write_text(pins.read_text().replace("sha256:a", "sha256:b"))
    keys.append(coded.key())
    pins.write_text(pins.read_text().replace("other==1", "other==2"))
    assert len(set(keys)) == 3
    assert coded.key() == keys[-1]


def test_a_syntax_error_names_file_and_line(coded: Project):
    (coded.package / "deep.py").write_text("\ndef (:\n")
    with pytest.raises(InputError, match=r"deep\.py, line 2"):
        coded.key()


def test_grid_source_keeps_code_cells_only():
    source = grid_source(CHAPTER)
    assert "RATE = 0.1" in source
    assert "title" not in source
    assert "draw" not in source
    assert "jupyter" not in source
