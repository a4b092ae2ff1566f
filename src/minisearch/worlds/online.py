"""An online experiment in the simulated shop: users split at random, an A/A period, then A/B.

People act on the list that their arm shows. Both arms use the same random numbers (one for each
request and place), so that a request which gets the same list does the same under both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from minisearch.errors import InputError
from minisearch.profiles import derive_seed
from minisearch.records import EMPTY, rows_of
from minisearch.worlds.shop_truth import ShopTruth, click_probability, order_probability

Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class Ratio:
    """A ratio metric of two groups of users, and their relative difference with its interval."""

    control: float
    treatment: float
    lift: float  # treatment / control - 1
    low: float
    high: float

    def equivalent(self, margin: float) -> bool:
        """Two one-sided tests at 2.5 %: whether the difference is within the margin."""
        return -margin < self.low and self.high < margin


def ratio_metric(
    numerator: np.ndarray, denominator: np.ndarray, user: np.ndarray, treated: np.ndarray
) -> Ratio:
    """Sum over sum of each group, with the delta method over users, who are what was split.

    Shape: numerator, denominator, user (Q,), one a request; treated (U,) bool, one a user.

    Raises:
        InputError: for a group without users that asked for anything.
    """
    count = len(treated)
    above, below = (np.bincount(user, part, count) for part in (numerator, denominator))
    active = np.bincount(user, minlength=count) > 0
    values, variances = [], []
    for group in (active & ~treated, active & treated):
        x, y = above[group], below[group]
        if len(x) < 2 or not y.sum():
            raise InputError("online experiment", f"{len(x)} users", "two or more", "add requests.")
        ratio = x.sum() / y.sum()
        residual = (x - ratio * y) / y.mean()  # what each user adds to the ratio's error
        values.append(ratio)
        variances.append(residual.var(ddof=1) / len(x))
    control, treatment = values
    if control == 0:
        return Ratio(control, treatment, math.nan, -math.inf, math.inf)
    lift = treatment / control - 1
    error = math.sqrt(variances[1] + (treatment / control) ** 2 * variances[0]) / control
    return Ratio(control, treatment, lift, lift - Z * error, lift + Z * error)


def outcomes(
    truth: ShopTruth, session_ids: np.ndarray, ranked_ids: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Views, clicks and orders that requests would bring with these lists; the luck is the seed's.

    Shape: (Q,), (Q, K) item ids, EMPTY where a list is shorter -> (Q, K) bool each.
    """
    sessions, items = rows_of(truth.session_id, session_ids), rows_of(truth.item_id, ranked_ids)
    draw = np.random.default_rng(derive_seed(truth.world_seed, "online", seed))
    luck = draw.random((2, *ranked_ids.shape))
    query, place = np.nonzero(items != EMPTY)
    pairs = sessions[query], items[query, place]
    shown, clicked, ordered = (np.zeros(items.shape, bool) for _ in range(3))
    shown[query, place] = True
    chance = truth.config.attention * click_probability(truth, *pairs, place + 1)
    clicked[query, place] = luck[0][query, place] < chance
    ordered[query, place] = luck[1][query, place] < order_probability(truth, *pairs)
    return {"views": shown, "clicks": clicked, "orders": clicked & ordered}


def experiment(
    truth: ShopTruth, session_ids: np.ndarray, control: np.ndarray, treatment: np.ndarray, seed: int
) -> dict[str, dict[str, Ratio]]:
    """Half of the users get other lists: item CTR, clicks and orders a request, in both periods.

    Shape: session_ids (Q,), control and treatment (Q, K) item ids -> "A/A" and "A/B".
    """
    user = truth.requests.user[rows_of(truth.session_id, session_ids)]
    count = len(truth.people.activity)
    draw = np.random.default_rng(derive_seed(truth.world_seed, "split", seed))
    treated = draw.permutation(count) < count // 2
    found: dict[str, dict[str, Ratio]] = {}
    for number, (period, lists) in enumerate((("A/A", control), ("A/B", treatment))):
        shown = np.where(treated[user][:, None], lists, control)
        sums = {
            name: happened.sum(1)
            for name, happened in outcomes(truth, session_ids, shown, 2 * seed + number).items()
        }
        requests = np.ones(len(user))
        found[period] = {
            "item CTR": ratio_metric(sums["clicks"], sums["views"], user, treated),
            "clicks a request": ratio_metric(sums["clicks"], requests, user, treated),
            "orders a request": ratio_metric(sums["orders"], requests, user, treated),
        }
    return found
