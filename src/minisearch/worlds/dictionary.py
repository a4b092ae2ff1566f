"""The attribute words of a simulated shop, as its operators would list them: word and kind.

It comes from the shop's vocabulary and not from its log, and knows nothing of who wanted what.
"""

from __future__ import annotations

from minisearch.worlds.shop_catalogue import ATTRIBUTES, ShopConfig, make_words


def shop_dictionary(config: ShopConfig, world_seed: int) -> dict[str, str]:
    """Every surface form with its attribute category, one of `ATTRIBUTES`.

    Forms of one value are separate words: nothing says that two of them mean the same. A form of
    two categories (the fruit and the colour) gets the later of them in `ATTRIBUTES`.
    """
    words = make_words(config, world_seed)
    typed = sorted(zip(words.attribute, words.forms, strict=True), key=lambda pair: pair[0])
    return {form: ATTRIBUTES[attribute] for attribute, forms in typed for form in forms}
