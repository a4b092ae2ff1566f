"""A real item search task that comes as a package: an icon set with its editors' search terms.

Source: the Font Awesome Free icons (CC BY 4.0) in the package fontawesomefree.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from minisearch.errors import InputError
from minisearch.profiles import derive_seed


@dataclass(frozen=True)
class IconTerms:
    """Items and the words that people chose for finding them.

    Attributes:
        names: the identifier of each item, e.g. "magnifying-glass".
        labels: the title of each item, e.g. "Magnifying Glass".
        categories: the categories of each item, none for some.
        pairs: (search term, row of the item), as published.
    """

    names: list[str]
    labels: list[str]
    categories: list[list[str]]
    pairs: list[tuple[str, int]]

    def split_terms(self, seed: int, test_share: float = 0.2) -> tuple[set[str], set[str]]:
        """Training and test terms: no term is in both, in whatever case it is written."""
        folded = sorted({_folded(term) for term, _ in self.pairs})
        random = np.random.default_rng(derive_seed(seed, "icon terms"))
        held_out = random.permutation(len(folded))[: round(test_share * len(folded))]
        chosen = {folded[row] for row in held_out}
        terms = {term for term, _ in self.pairs}
        test = {term for term in terms if _folded(term) in chosen}
        return terms - test, test


def _folded(term: str) -> str:
    return " ".join(term.casefold().split())


def icon_search_terms() -> IconTerms:
    """Read the installed package's metadata: 1,885 items, 9,540 pairs, 3,493 distinct terms.

    Raises:
        InputError: where the package, or a file of it, is missing or unreadable.
    """
    import yaml

    remedy = "run `minisearch data get fontawesomefree`."
    spec = find_spec("fontawesomefree")  # not imported: it is a plug-in of a web framework
    if spec is None or not spec.submodule_search_locations:
        raise InputError("package fontawesomefree", "it is not installed", "the icon set", remedy)
    folder = Path(spec.submodule_search_locations[0], "static", "fontawesomefree", "metadata")
    try:
        icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        groups = yaml.safe_load((folder / "categories.yml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        remedy = "reinstall the package fontawesomefree."
        raise InputError(str(folder), str(error), "its metadata files", remedy) from error
    names = list(icons)
    categories: dict[str, list[str]] = {name: [] for name in names}
    for group in groups.values():
        for name in group["icons"]:
            categories[name].append(group["label"])
    pairs = [(t, row) for row, name in enumerate(names) for t in icons[name]["search"]["terms"]]
    labels = [icons[name]["label"] for name in names]
    return IconTerms(names, labels, [categories[name] for name in names], pairs)
