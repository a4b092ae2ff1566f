"""The simulated shop's statistics beside the published ones of KuaiSearch."""

from __future__ import annotations

from typing import Any

import numpy as np

from minisearch.data.kuaisearch import KuaiSearch
from minisearch.worlds.shop import sums_before

# quantity, value in KuaiSearch-Lite, evidence, and how the shop comes by it.
# Evidence: "stated" by the authors; "counted" on the published files; "derived" from such counts.
# How: "set" is a setting or drawn in these shares; "fitted" follows from behaviour whose settings
# were fitted to it; "size" depends on how many items and requests there are, and is not comparable.
REAL = (
    ("requests a user", 5.44, "derived", "set"),
    ("women among the users", 0.5934, "stated", "set"),
    ("impressions a request, mean", 32.0, "counted", "set"),
    ("impressions a request, 5th percentile", 3.0, "counted", "set"),
    ("impressions a request, median", 13.0, "counted", "set"),
    ("impressions a request, 95th percentile", 121.0, "counted", "set"),
    ("relevance score 0", 0.1313, "stated", "set"),
    ("relevance score 1", 0.1903, "stated", "set"),
    ("relevance score 2", 0.3398, "stated", "set"),
    ("relevance score 3", 0.3386, "stated", "set"),
    ("clicks an impression (CTR)", 0.03824, "counted", "fitted"),
    ("orders an impression", 0.00286, "counted", "fitted"),
    ("clicks a request, mean", 1.23, "counted", "fitted"),
    ("clicks a request, 95th percentile", 5.0, "counted", "fitted"),
    ("orders a request", 0.092, "counted", "fitted"),
    ("requests with a click", 0.531, "counted", "fitted"),
    ("requests with an order", 0.088, "counted", "fitted"),
    ("requests without earlier click or order of the user", 0.312, "derived", "fitted"),
    ("train requests whose query repeats", 0.622, "derived", "fitted"),
    ("distinct queries a train request", 0.504, "derived", "fitted"),
    ("test requests", 0.0298, "counted", "size"),
    ("items a request", 11.94, "derived", "size"),
    ("share of the catalogue ever shown", 0.836, "derived", "size"),
    ("impressions a shown item", 3.2, "derived", "size"),
)


def statistics(data: KuaiSearch) -> list[dict[str, Any]]:
    """The published statistics of KuaiSearch-Lite beside the same ones of `data`.

    Rows: quantity, simulated, real, evidence, how (see `REAL`).
    """
    recall = data.recall
    shown, clicks, orders = (
        recall[f"{name}_item_ids"].lengths for name in ("impressed", "clicked", "purchased")
    )
    time = np.argsort(recall["time_index"])
    user = np.unique(recall["user_id"], return_inverse=True)[1][time]
    active = (clicks + orders > 0)[time][:, None].astype(float)
    queries = recall["query"][recall["split"] == "train"].astype(str)
    times = np.unique(queries, return_counts=True)[1]
    exposed = len(np.unique(recall["impressed_item_ids"].values))
    found = {
        "requests a user": len(shown) / (user.max() + 1),
        "women among the users": (data.users["gender"] == "F").mean(),
        "impressions a request, mean": shown.mean(),
        "impressions a request, 5th percentile": np.percentile(shown, 5),
        "impressions a request, median": np.percentile(shown, 50),
        "impressions a request, 95th percentile": np.percentile(shown, 95),
        "clicks an impression (CTR)": clicks.sum() / shown.sum(),
        "orders an impression": orders.sum() / shown.sum(),
        "clicks a request, mean": clicks.mean(),
        "clicks a request, 95th percentile": np.percentile(clicks, 95),
        "orders a request": orders.mean(),
        "requests with a click": (clicks > 0).mean(),
        "requests with an order": (orders > 0).mean(),
        "requests without earlier click or order of the user": (
            sums_before(user, np.arange(len(user)), active) == 0
        ).mean(),
        "train requests whose query repeats": times[times > 1].sum() / len(queries),
        "distinct queries a train request": len(times) / len(queries),
        "test requests": (recall["split"] == "test").mean(),
        "items a request": len(data.items["item_id"]) / len(shown),
        "share of the catalogue ever shown": exposed / len(data.items["item_id"]),
        "impressions a shown item": shown.sum() / exposed,
    }
    if data.relevance is not None:
        for score in range(4):
            found[f"relevance score {score}"] = (data.relevance["score"] == score).mean()
    return [
        {"quantity": name, "simulated": float(found[name]), "real": real, "evidence": e, "how": how}
        for name, real, e, how in REAL
        if name in found
    ]
