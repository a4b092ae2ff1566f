"""An online experiment in the simulated shop: users split at random, an A/A period, then A/B.

People act on the list that they are shown. Whether a person would click a product in a request, and
then order it, is luck that belongs to user, request and product, not to the place in the list: a
product that both lists show is liked in both or in neither, and clicked less often further down.
Twins use that: every request is answered under both lists with the same luck, which no shop can do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from minisearch.errors import InputError
from minisearch.profiles import derive_seed
from minisearch.records import EMPTY, rows_of
from minisearch.worlds.shop_truth import ShopTruth, click_probability, grade, order_probability

Z = 1.959964  # of a 95 % interval
Counts = dict[str, np.ndarray]


@dataclass(frozen=True)
class Ratio:
    """A ratio metric under two lists, and its relative difference with its 95 % interval."""

    control: float
    treatment: float
    lift: float  # treatment / control - 1
    low: float
    high: float

    def equivalent(self, margin: float) -> bool:
        """Two one-sided tests at 2.5 %: whether the difference is within the margin."""
        return -margin < self.low and self.high < margin

    def reading(self, margin: float, before: Ratio | None = None) -> str:
        """What it says, given the same metric before anything differed, if there is one.

        "void" where the two groups differed already, then "up" or "down" where the interval leaves
        out zero, "equivalent" where it lies within the margin, else "open". A difference that is
        small and clear is up or down, not equivalent.
        """
        if before is not None and (before.low > 0 or before.high < 0):
            return "void"
        if self.low > 0 or self.high < 0:
            return "up" if self.low > 0 else "down"
        return "equivalent" if self.equivalent(margin) else "open"


def ratio_metric(
    numerator: np.ndarray, denominator: np.ndarray, user: np.ndarray, treated: np.ndarray
) -> Ratio:
    """Sum over sum of each group, with the delta method over users, who are what was split.

    Shape: numerator, denominator, user (Q,), one a request; treated (U,) bool, one a user.

    Raises:
        InputError: for a group without users that asked for anything.
    """
    active = np.bincount(user, minlength=len(treated)) > 0
    sums = [np.bincount(user, part, len(treated)) for part in (numerator, denominator)]
    values, variances = [], []
    for group in (active & ~treated, active & treated):
        ratio, influence = _ratio(*(part[group] for part in sums))
        values.append(ratio)
        variances.append(influence.var(ddof=1) / len(influence))
    control, treatment = values
    if control == 0:
        return Ratio(control, treatment, math.nan, -math.inf, math.inf)
    error = math.sqrt(variances[1] + (treatment / control) ** 2 * variances[0]) / control
    return _with_interval(control, treatment, error)


def twin_metric(
    control: tuple[np.ndarray, np.ndarray],
    treatment: tuple[np.ndarray, np.ndarray],
    user: np.ndarray,
) -> Ratio:
    """The same of all requests under both lists, by the delta method over users in pairs.

    Shape: two pairs of numerator and denominator (Q,), user (Q,).

    Raises:
        InputError: for fewer than two users.
    """
    place = np.unique(user, return_inverse=True)[1]
    sums = [[np.bincount(place, part) for part in pair] for pair in (control, treatment)]
    (before, of_control), (after, of_treatment) = (_ratio(*pair) for pair in sums)
    if before == 0:
        return Ratio(before, after, math.nan, -math.inf, math.inf)
    influence = (of_treatment - after / before * of_control) / before
    return _with_interval(before, after, math.sqrt(influence.var(ddof=1) / len(influence)))


def _ratio(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Sum over sum, and what each user adds to its error. Shape: (U,), (U,) -> (U,)."""
    if len(x) < 2 or not y.sum():
        raise InputError("online experiment", f"{len(x)} users", "two or more", "add requests.")
    ratio = float(x.sum() / y.sum())
    return ratio, (x - ratio * y) / y.mean()


def _with_interval(control: float, treatment: float, error: float) -> Ratio:
    lift = treatment / control - 1
    return Ratio(control, treatment, lift, lift - Z * error, lift + Z * error)


def luck(seed: int, *keys: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1) that are the same for the same seed and keys, in any order of rows.

    Shape: whole numbers (P,) each -> (P,).

    Source: the finaliser of SplitMix64 (Steele et al., 2014), once a key.
    """
    state = np.full(np.broadcast(*keys).shape, seed % 2**63, np.uint64)
    for key in keys:
        state = (state ^ np.asarray(key).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        state ^= state >> np.uint64(31)
    return np.asarray((state >> np.uint64(11)) / 2**53)


def outcomes(
    truth: ShopTruth, session_ids: np.ndarray, ranked_ids: np.ndarray, seed: int
) -> Counts:
    """What requests would bring with these lists: views, clicks, orders, relevant views.

    Luck is the seed's, and belongs to user, request and product.

    Shape: (Q,), (Q, K) item ids, EMPTY where a list is shorter -> (Q,) counts each.
    """
    sessions, items = rows_of(truth.session_id, session_ids), rows_of(truth.item_id, ranked_ids)
    query, place = np.nonzero(items != EMPTY)
    pairs = sessions[query], items[query, place]
    keys = truth.requests.user[pairs[0]], truth.session_id[pairs[0]], truth.item_id[pairs[1]]
    draws = [luck(derive_seed(truth.world_seed, "online", seed, n), *keys) for n in range(2)]
    chance = truth.config.attention * click_probability(truth, *pairs, place + 1)
    clicked = draws[0] < chance
    ordered = clicked & (draws[1] < order_probability(truth, *pairs))
    happened = {
        "views": np.ones(len(query)), "clicks": clicked, "orders": ordered,
        "relevant": grade(truth, *pairs) == 3,
    }  # fmt: skip
    count = len(session_ids)
    return {name: np.bincount(query, each, minlength=count) for name, each in happened.items()}


def _metrics(counts: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Numerator and denominator of every metric. Shape: (Q,) each."""
    requests = np.ones(len(counts["views"]))
    return {
        "item CTR": (counts["clicks"], counts["views"]),
        "clicks a request": (counts["clicks"], requests),
        "orders a request": (counts["orders"], requests),
        "relevant share of views": (counts["relevant"], counts["views"]),
    }


def experiment(
    truth: ShopTruth, session_ids: np.ndarray, control: np.ndarray, treatment: np.ndarray, seed: int
) -> dict[str, dict[str, Ratio]]:
    """Half of the users get other lists; then all requests are answered both ways, as twins.

    The two periods have luck of their own. The twins have the luck of the second one, and what is
    not theirs (who is in which half) falls away.

    Shape: session_ids (Q,), control and treatment (Q, K) item ids -> "A/A", "A/B" and "twins", each
    with a ratio a metric.
    """
    user = truth.requests.user[rows_of(truth.session_id, session_ids)]
    count = len(truth.people.activity)
    draw = np.random.default_rng(derive_seed(truth.world_seed, "split", seed))
    treated = draw.permutation(count) < count // 2
    mixed = np.where(treated[user][:, None], treatment, control)
    shown = {"A/A": (control, 2 * seed), "A/B": (mixed, 2 * seed + 1)}
    found = {
        period: {
            name: ratio_metric(*pair, user, treated)
            for name, pair in _metrics(outcomes(truth, session_ids, lists, number)).items()
        }
        for period, (lists, number) in shown.items()
    }
    luck_of, both = 2 * seed + 1, (control, treatment)
    old, new = (_metrics(outcomes(truth, session_ids, lists, luck_of)) for lists in both)
    found["twins"] = {name: twin_metric(old[name], new[name], user) for name in old}
    return found
